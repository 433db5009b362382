//! [guide]: crate::guide
#![doc = include_str!("../README.md")]

mod breaker;
mod clock;
mod config;
mod error;
mod event;
#[cfg(any(doc, doctest))]
pub mod guide;
mod permit;
#[cfg(feature = "proxy")]
pub mod proxy;
mod registry;
mod settings;
pub mod silence;
mod sync;
mod word;

pub use breaker::history::LastError;
pub use breaker::{BreakerSnapshot, CircuitBreaker};
pub use config::{Config, ConfigBuilder, ConfigError};
pub use error::{CallError, CircuitOpenError, Rejection, RejectionReason};
pub use permit::{OwnedPermit, Permit, PermitType, ProbeGuard};
pub use registry::CircuitBreakerRegistry;
pub use word::CircuitState;
