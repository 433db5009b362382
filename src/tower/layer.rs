//! The layer.

use std::borrow::Cow;
use std::sync::Arc;

use tower_layer::Layer;

use super::classify::{ByFn, Errors};
use super::http::{Answering, Http};
use super::service::CircuitBreaker;
use super::source::{Keyed, One};
use crate::breaker::{self, Outcome};
use crate::registry::CircuitBreakerRegistry;

/// Puts a breaker before a service: see the [module](super).
///
/// `C` says how a call went ([`Classify`](super::Classify)), and `B` which breaker it is for
/// ([`Source`](super::Source)).
#[derive(Clone, Debug)]
pub struct CircuitBreakerLayer<C = Errors, B = One> {
    source: B,
    classify: C,
    cancel_on_drop: bool,
}

impl CircuitBreakerLayer {
    /// With one breaker, for which every error counts as a failure.
    ///
    /// All services that this layer makes share the breaker, and so does whoever else has it: keep a clone of the `Arc`
    /// to look at its state, or to isolate it by hand.
    pub fn new(breaker: impl Into<Arc<breaker::CircuitBreaker>>) -> Self {
        Self { source: One(breaker.into()), classify: Errors, cancel_on_drop: false }
    }

    /// With one breaker, for a service that answers with `http::Response`: see [`answering`](Self::answering) and
    /// [`Http`] for what counts.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use axum::{Router, http::StatusCode, routing::get};
    /// use fusebox::CircuitBreaker;
    /// use fusebox::tower::CircuitBreakerLayer;
    ///
    /// # fn main() -> Result<(), fusebox::ConfigError> {
    /// let breaker = Arc::new(CircuitBreaker::builder("reports").build()?);
    /// let app: Router = Router::new()
    ///     .route("/reports", get(async || StatusCode::INTERNAL_SERVER_ERROR))
    ///     .layer(CircuitBreakerLayer::http(breaker).answering());
    /// # Ok(())
    /// # }
    /// ```
    pub fn http(breaker: impl Into<Arc<breaker::CircuitBreaker>>) -> CircuitBreakerLayer<Http> {
        Self::new(breaker).classify_with(Http)
    }
}

impl<F> CircuitBreakerLayer<Errors, Keyed<F>> {
    /// With a breaker for each key, such as the host that a request is for. The key comes with a request, so give the
    /// registry a [cap](CircuitBreakerRegistry::with_cap). Where there is no room for a key, its calls pass and count
    /// for nothing.
    ///
    /// Such a service is ready when its inner service is: which breaker a request is for is not known before that. For
    /// a service that answers with `http::Response`, add `.classify_with(`[`Http`]`)`; [`host`](super::http::host) and
    /// [`authority`](super::http::authority) are keys.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::borrow::Cow;
    /// use std::sync::Arc;
    ///
    /// use fusebox::CircuitBreakerRegistry;
    /// use fusebox::tower::CircuitBreakerLayer;
    /// use tower::{Layer, ServiceExt};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// struct Request { tenant: String }
    ///
    /// let tenants = Arc::new(CircuitBreakerRegistry::default().with_cap(10_000));
    /// let layer = CircuitBreakerLayer::keyed(Arc::clone(&tenants), |request: &Request| Cow::from(&request.tenant));
    /// let service = layer.layer(tower::service_fn(async |_: Request| Ok::<_, std::io::Error>(())));
    /// service.oneshot(Request { tenant: "acme".into() }).await.unwrap();
    /// assert!(tenants.get("acme").is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn keyed<Request>(breakers: impl Into<Arc<CircuitBreakerRegistry>>, key: F) -> Self
    where
        F: Fn(&Request) -> Cow<'_, str>,
    {
        Self { source: Keyed { breakers: breakers.into(), key }, classify: Errors, cancel_on_drop: false }
    }
}

impl<C, B> CircuitBreakerLayer<C, B> {
    /// With a function that says how a call went. What it gets is what the service gives: `Ok` may be a failure.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use fusebox::tower::CircuitBreakerLayer;
    /// use fusebox::{CircuitBreaker, CircuitState, Outcome};
    /// use tower::{Layer, ServiceExt};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let breaker = Arc::new(CircuitBreaker::builder("search").failure_threshold(1).build()?);
    /// let layer = CircuitBreakerLayer::new(Arc::clone(&breaker)).classify(|result: &Result<u16, std::io::Error>| {
    ///     match result {
    ///         Ok(500..) => Outcome::failure("5xx", "the server failed"),
    ///         other => Outcome::of(other),
    ///     }
    /// });
    /// let search = layer.layer(tower::service_fn(async |_: ()| Ok::<u16, std::io::Error>(503)));
    /// assert_eq!(search.oneshot(()).await.unwrap(), 503);
    /// assert_eq!(breaker.state(), CircuitState::Open);
    /// # Ok(())
    /// # }
    /// ```
    pub fn classify<Response, Error, F>(self, classify: F) -> CircuitBreakerLayer<ByFn<F>, B>
    where
        F: Fn(&Result<Response, Error>) -> Outcome,
    {
        self.classify_with(ByFn(classify))
    }

    /// With a [`Classify`](super::Classify) of your own.
    pub fn classify_with<D>(self, classify: D) -> CircuitBreakerLayer<D, B> {
        CircuitBreakerLayer { source: self.source, classify, cancel_on_drop: self.cancel_on_drop }
    }

    /// A call whose future is dropped counts for nothing, even if it is the probe: for a server whose clients may leave
    /// at any time. Otherwise a dropped probe counts as a failure; see [`Permit`](crate::Permit#dropping). It is set in
    /// [`answering`](CircuitBreakerLayer::answering).
    #[must_use]
    pub fn cancel_on_drop(mut self) -> Self {
        self.cancel_on_drop = true;
        self
    }
}

impl<B> CircuitBreakerLayer<Http, B> {
    /// A rejected call gets a 503 with `Retry-After` instead of an error, and errors of the inner service are passed on
    /// as they are. So it fits a server such as axum's, whose services never fail. As clients may leave at any time,
    /// calls [cancel on drop](Self::cancel_on_drop).
    pub fn answering(self) -> CircuitBreakerLayer<Answering, B> {
        self.cancel_on_drop().classify_with(Answering)
    }
}

impl<S, C: Clone, B: Clone> Layer<S> for CircuitBreakerLayer<C, B> {
    type Service = CircuitBreaker<S, C, B>;

    fn layer(&self, inner: S) -> Self::Service {
        CircuitBreaker::new(inner, self.source.clone(), self.classify.clone(), self.cancel_on_drop)
    }
}
