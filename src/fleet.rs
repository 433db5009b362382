//! What one replica finds out helps all (feature `fleet`): breakers of the same name in several processes, which tell
//! each other by Redis or Valkey that they have opened and closed.
//!
//! Without it each of `N` replicas pays its own threshold of failures for the same outage, and sends its own probes.
//! With it, the first one that opens makes the others *suspect* the upstream: their next failure opens their circuit,
//! unless a call succeeds first. While several agree that the upstream fails, one of them probes for all.
//!
//! A replica never depends on the others. Nothing is asked of Redis while a call waits, but for a probe of the fleet,
//! which waits for the permission to be the only one for [`timeout`](FleetConfig::timeout) at most. If Redis is slow,
//! full or gone, each breaker does what it does alone. The guide's page on fleets has the rules, what happens when what
//! fails, and when not to use it.
//!
//! # Examples
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use fusebox::CircuitBreakerRegistry;
//! use fusebox::fleet::FleetConfig;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let breakers = Arc::new(CircuitBreakerRegistry::new(["openai", "anthropic"]));
//! let fleet = FleetConfig::redis("redis://127.0.0.1:6379")?.group("eu-west")?.join(Arc::clone(&breakers));
//! // Use the breakers as ever. Dropping `fleet` leaves it.
//! # drop(fleet);
//! # Ok(())
//! # }
//! ```

mod beliefs;
mod circle;
mod config;
mod figures;
mod member;
mod message;
mod store;
mod topic;

#[cfg(feature = "proxy")]
pub(crate) use circle::Circle;
#[cfg(feature = "proxy")]
pub(crate) use config::ranges;
pub use config::{Deliberate, FleetConfig, FleetError, Mode};
#[cfg(feature = "proxy")]
pub(crate) use figures::Figures;
pub use figures::{CircuitFigures, FleetSnapshot};
pub use member::Fleet;
pub use store::hub::Hub;
