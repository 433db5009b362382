//! The gateway: an OpenAI-compatible reverse proxy that fails over from one LLM provider to the next.
//!
//! A request's way: `server` accepts it, `forward` reads it and picks the candidates that its breakers admit, `attempt` asks
//! one of them and judges the answer, `upstream` knows how a request reaches a provider, `stream` judges the rest of the
//! answer while it passes through.

mod answer;
mod attempt;
mod config;
pub mod demo;
mod forward;
mod headers;
mod health;
mod path;
mod server;
mod stream;
mod upstream;

pub use config::{ConfigErrors, GatewayConfig, ProviderConfig, Secret};
pub use health::{Health, HealthStatus, ProviderHealth};
pub use server::{AppState, create_admin_router, create_router, run_server};
pub use upstream::SetupError;

pub use crate::{
    BreakerSnapshot, CircuitBreaker, CircuitBreakerRegistry, CircuitOpenError, CircuitState, PermitType, ProbeGuard,
};
