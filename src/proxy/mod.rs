//! The gateway: an OpenAI-compatible reverse proxy that fails over from one LLM provider to the next.
//!
//! Its floors, from the client to the provider. Each knows those below it, and a test holds the order:
//!
//! - `server`, `edge`: accepting connections, and serving them on the cores' threads;
//! - `admin`: what operators see and do;
//! - `route`: the way of a request: choosing a provider, asking it, judging its answer, passing it on;
//! - `core`, `state`, `provider`, `circuits`: what requests share, and how it is replaced while they are under way;
//! - `keeper`, `orders`: what outlasts the process, and orders by hand;
//! - `replica`: what is shared with other gateways;
//! - `observe`: the access log, the log, metrics, health, and what has happened lately;
//! - `silence`: watching providers that do not answer;
//! - `upstream`: connections to providers;
//! - `request`: what a client asks for;
//! - `config`, `body`, `answer`, `outcome`, `timers`: what the others are made of.

mod admin;
mod answer;
mod body;
mod certificates;
mod circuits;
mod config;
mod core;
mod counts;
mod edge;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod keeper;
mod keys;
mod later;
mod observe;
mod online;
mod orders;
mod outcome;
mod owners;
mod place;
mod protocol;
mod provider;
mod replica;
mod request;
mod route;
mod server;
mod silence;
mod state;
mod timers;
#[cfg(feature = "otel")]
mod traces;
mod upstream;
mod wall_clock;

pub use circuits::AnswerKind;
pub use config::{
    ConfigErrors, Connections, Cooldowns, FailoverConfig, GatewayConfig, Limits, Network, ProviderConfig, Secret,
    ServerConfig, ServerTls, Strategy, Timeouts, Token, TracesConfig, WhenAllOpen,
};
pub use later::retry_after;
pub use observe::health::{CircuitHealth, FleetHealth, Health, HealthStatus, KeyHealth, ProviderHealth};
// For the binary.
#[doc(hidden)]
pub use edge::descriptors::check_descriptors;
#[doc(hidden)]
pub use observe::log;
pub use online::{ModelsAnswer, look_online};
pub use protocol::Protocols;
pub use server::{create_admin_router, create_router, run_server};
pub use state::{AppState, ProviderStats};
pub use upstream::SetupError;

pub use crate::{
    BreakerSnapshot, CircuitBreaker, CircuitBreakerRegistry, CircuitOpenError, CircuitState, PermitType, ProbeGuard,
};
