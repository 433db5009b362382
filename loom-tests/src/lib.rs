//! The core of fusebox for the model checker: the production sources, mounted by path beside a `sync` of their own, so that
//! no line of them knows of it. `cargo test -p loom-tests --release` explores the models in `tests/models`.

// A folder for the paths below to start from; the sources find each other, and `sync`, at the root.
#[path = "../../src"]
mod production {
    pub(crate) mod breaker;
    pub(crate) mod clock;
    pub(crate) mod config;
    pub(crate) mod error;
    pub(crate) mod event;
    pub(crate) mod permit;
    pub(crate) mod registry;
    pub(crate) mod settings;
    pub(crate) mod word;
}
pub mod sync;

use production::{breaker, clock, config, error, event, permit, registry, settings, word};

pub use breaker::history::LastError;
pub use breaker::{BreakerSnapshot, CircuitBreaker};
pub use config::{Config, ConfigBuilder, ConfigError};
pub use error::{CallError, CircuitOpenError, Rejection, RejectionReason};
pub use permit::{OwnedPermit, Permit, PermitType, ProbeGuard};
pub use registry::CircuitBreakerRegistry;
pub use word::CircuitState;
