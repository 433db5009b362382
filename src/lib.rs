//! [guide]: crate::guide
#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod breaker;
mod clock;
mod config;
mod error;
mod event;
#[cfg(feature = "serde")]
mod export;
mod feed;
#[cfg(feature = "fleet")]
pub mod fleet;
#[cfg(any(doc, doctest))]
pub mod guide;
#[cfg(feature = "metrics")]
pub mod metrics;
mod permit;
#[cfg(feature = "proxy")]
pub mod proxy;
mod registry;
mod settings;
pub mod silence;
mod sync;
#[cfg(feature = "tower")]
pub mod tower;
mod transition;
mod window;
mod word;

#[cfg(feature = "metrics")]
pub use breaker::Totals;
pub use breaker::{AcquireOwned, BreakerSnapshot, CancelOnDrop, CircuitBreaker, Outcome};
pub use config::{Abandoned, Config, ConfigBuilder, ConfigError, Window};
pub use error::{CallError, CircuitOpenError, LastError, Rejection, RejectionReason, is_rejection};
#[cfg(feature = "serde")]
pub use export::{Exported, ExportedBreaker, ExportedError, RestoreError};
pub use feed::Transition;
pub use permit::{OwnedPermit, Permit, PermitType};
pub use registry::{CircuitBreakerRegistry, ProbeGuard, RegistryFull};
pub use transition::{Cause, CircuitState};
pub use window::LastCalls;
