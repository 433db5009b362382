//! The gateway: an OpenAI-compatible reverse proxy that fails over from one LLM provider to the next.
//!
//! A request's way: `server` accepts its connection (`socket`, `drain`) and hands it to one of the `cores`, each a thread with
//! connections to the providers, timeouts (`timers`) and a log of its own; `forward` reads it (`upload`, `model`); `failover` picks the
//! candidates that its breakers admit, and moves on from one that `silence` finds silent; `attempt` asks one of them, reads its
//! answer (`hold`) and judges it by `classify`;
//! `upstream` knows how a request reaches a provider, and is the only one that does; `stream` judges the rest of a stream while
//! it passes through, with `sse` for the ends of its events; `record` tells of it in headers, `metrics` and the access log (`lines`).
//! `state` holds what `config` turned into.

mod answer;
mod attempt;
mod budget;
mod classify;
mod client_body;
mod config;
mod cores;
mod descriptors;
// For the binary, whose arguments it takes.
#[doc(hidden)]
pub mod demo;
mod drain;
mod failover;
mod forward;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod headers;
mod health;
mod hold;
mod lines;
// For the binary.
#[doc(hidden)]
pub mod log;
mod metrics;
mod model;
mod parts;
mod path;
mod pieces;
mod provider;
mod record;
mod server;
mod silence;
mod socket;
mod sse;
mod state;
mod stream;
mod timers;
mod upload;
mod upstream;

pub use config::{ConfigErrors, Connections, GatewayConfig, ProviderConfig, Secret, ServerConfig, Strategy, Timeouts};
pub use health::{Health, HealthStatus, ProviderHealth};
pub use server::{create_admin_router, create_router, run_server};
pub use state::AppState;
pub use upstream::SetupError;

pub use crate::{
    BreakerSnapshot, CircuitBreaker, CircuitBreakerRegistry, CircuitOpenError, CircuitState, PermitType, ProbeGuard,
};
