//! Which breaker a request is for.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::breaker::CircuitBreaker;
use crate::registry::CircuitBreakerRegistry;

/// Where the service takes the breaker of a request from.
pub trait Source<Request> {
    /// The one breaker, if all requests have the same: then the service is ready for a call that will be rejected.
    fn only(&self) -> Option<&Arc<CircuitBreaker>>;

    /// The breaker of this request.
    fn of(&self, request: &Request) -> Arc<CircuitBreaker>;
}

/// The same breaker for all requests.
#[derive(Clone, Debug)]
pub struct One(pub(super) Arc<CircuitBreaker>);

impl<Request> Source<Request> for One {
    #[inline]
    fn only(&self) -> Option<&Arc<CircuitBreaker>> {
        Some(&self.0)
    }

    #[inline]
    fn of(&self, _: &Request) -> Arc<CircuitBreaker> {
        Arc::clone(&self.0)
    }
}

/// A breaker for each key: see [`CircuitBreakerLayer::keyed`](super::CircuitBreakerLayer::keyed).
#[derive(Clone)]
pub struct Keyed<F> {
    pub(super) breakers: Arc<CircuitBreakerRegistry>,
    pub(super) key: F,
}

impl<Request, F: Fn(&Request) -> Cow<'_, str>> Source<Request> for Keyed<F> {
    fn only(&self) -> Option<&Arc<CircuitBreaker>> {
        None
    }

    fn of(&self, request: &Request) -> Arc<CircuitBreaker> {
        let key = (self.key)(request);
        // Without room for its key a call has a breaker of its own, which nobody else will see.
        self.breakers
            .get_or_insert(&*key)
            .unwrap_or_else(|_| Arc::new(CircuitBreaker::new(&*key, self.breakers.config())))
    }
}

impl<F> fmt::Debug for Keyed<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed").field("breakers", &self.breakers).finish_non_exhaustive()
    }
}
