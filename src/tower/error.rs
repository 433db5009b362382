//! The errors of a service behind a breaker.

use std::error::Error;

pub use crate::error::CircuitOpenError;

/// As tower's.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// The rejection that an error is, or that it was caused by: for a retry policy, or for an answer that says when to
/// come back.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use fusebox::CircuitBreaker;
/// use fusebox::tower::{CircuitBreakerLayer, error::rejection};
/// use tower::{Layer, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let breaker = Arc::new(CircuitBreaker::builder("search").build()?);
/// breaker.trip_for(Duration::from_secs(7), "429", "rate limit reached");
/// let search = tower::service_fn(async |_: ()| Ok::<_, std::io::Error>(()));
/// let error = CircuitBreakerLayer::new(breaker).layer(search).oneshot(()).await.unwrap_err();
///
/// let rejection = rejection(&*error).unwrap();
/// assert_eq!(rejection.provider(), "search");
/// assert!(rejection.retry_after() > Some(Duration::from_secs(6)));
/// # Ok(())
/// # }
/// ```
pub fn rejection<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CircuitOpenError> {
    std::iter::successors(Some(error), |error| (*error).source()).find_map(|error| error.downcast_ref())
}
