//! A circuit breaker as a tower layer (feature `tower`).
//!
//! [`CircuitBreakerLayer`] puts a [`CircuitBreaker`](crate::CircuitBreaker) before a service: a call asks for a permit,
//! goes to the service, and what comes back says how it went. One layer has one breaker, which all services that it
//! makes and all their clones share; or one for each key of the requests ([`CircuitBreakerLayer::keyed`]).
//!
//! ```
//! use std::sync::Arc;
//!
//! use fusebox::tower::CircuitBreakerLayer;
//! use fusebox::{CircuitBreaker, is_rejection};
//! use tower::{Service, ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let breaker = Arc::new(CircuitBreaker::builder("search").failure_threshold(1).build()?);
//! let search = tower::service_fn(async |_: &'static str| Err::<u32, _>(std::io::Error::other("down")));
//! let mut search = ServiceBuilder::new().layer(CircuitBreakerLayer::new(breaker)).service(search);
//!
//! let error = search.ready().await.unwrap().call("cats").await.unwrap_err();
//! assert_eq!(error.to_string(), "down");
//! let error = search.ready().await.unwrap().call("cats").await.unwrap_err();
//! assert!(is_rejection(&*error));
//! # Ok(())
//! # }
//! ```
//!
//! # What counts
//!
//! | layer                                                   | failures                                   | a rejected call gets                     |
//! |---------------------------------------------------------|--------------------------------------------|------------------------------------------|
//! | [`new`](CircuitBreakerLayer::new)                       | every `Err` that is no rejection           | a [`BoxError`](error::BoxError): a [`CircuitOpenError`](crate::CircuitOpenError) |
//! | [`classify`](CircuitBreakerLayer::classify)             | what your function says of the result      | the same                                 |
//! | [`http`](CircuitBreakerLayer::http)                     | `Err`, 5xx, and a body that breaks off      | the same                                 |
//! | [`http`](CircuitBreakerLayer::http)`.`[`answering`](CircuitBreakerLayer::answering) | the same       | a 503 with `Retry-After`; so it fits axum, whose services never fail |
//!
//! For anything else, implement [`Classify`].
//!
//! # In which order
//!
//! The first layer of a `ServiceBuilder` is the outermost. "Before" in this table means outside of the breaker.
//!
//! | with               | before the breaker (outside)                             | after the breaker (inside)                                  |
//! |--------------------|----------------------------------------------------------|-------------------------------------------------------------|
//! | `Timeout`          | a call that times out is dropped: it counts if the breaker has [`Abandoned::Failure`](crate::Abandoned::Failure), and a probe in any case; neither does if the layer [cancels on drop](CircuitBreakerLayer::cancel_on_drop). The time includes waiting for a probe | a call that times out is a failure. **The usual place** |
//! | `Retry`            | each try asks the breaker. A policy that does not retry a rejection, which [`is_rejection`](crate::is_rejection) tells from a failure, spends no retry budget on it. **The usual place** | the breaker sees the last try only: a call that needed three tries is a success |
//! | `Buffer`           | one worker asks for the inner service's readiness; calls wait in the queue, and are rejected when they leave it | a full queue is an inner service that is not ready: while the circuit is open, calls are rejected without waiting for it. `Buffer`'s worker calls the service whether or not the caller is still there |
//! | `ConcurrencyLimit` | a call that waits for a probe holds one of the places    | a call that is rejected takes no place. **The usual place** |
//! | `LoadShed`         | what the layer sheds is no call, and counts for nothing. The breaker is not ready while its inner service is not, so it sheds then | `Overloaded` is an error of the inner service: it counts, unless you [`classify`](CircuitBreakerLayer::classify) it as neutral |
//!
//! # Readiness
//!
//! `poll_ready` asks the inner service. Where the circuit would reject the call, it is ready at once: a call that is to
//! be rejected must not wait behind the calls that hang; and if the circuit opens while the inner service is not ready,
//! whoever waits for it is woken. The service that was ready is the one that is called. An error of the inner service's
//! `poll_ready` is judged as an error of a call.

pub mod classify;
pub mod error;
pub mod future;
pub mod http;
mod layer;
mod service;
mod source;

pub use self::classify::Classify;
pub use self::layer::CircuitBreakerLayer;
pub use self::service::CircuitBreaker;
pub use self::source::{Keyed, One, Source};
