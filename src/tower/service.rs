//! The service.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tower_service::Service;

use super::classify::Classify;
use super::future::ResponseFuture;
use super::source::Source;
use crate::breaker;
use crate::transition::CircuitState;

/// A service behind a circuit breaker: see the [module](super).
pub struct CircuitBreaker<S, C, B> {
    inner: S,
    source: B,
    classify: C,
    cancel_on_drop: bool,
    /// The inner service is ready for the next call.
    is_ready: bool,
    opening: Option<Opening>,
}

/// Ends when the circuit opens. It is made when the inner service is not ready, and kept until it is.
type Opening = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

impl<S, C, B> CircuitBreaker<S, C, B> {
    pub(super) fn new(inner: S, source: B, classify: C, cancel_on_drop: bool) -> Self {
        Self { inner, source, classify, cancel_on_drop, is_ready: false, opening: None }
    }

    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The service inside. What is done with it is unknown to the breaker.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Takes the service out.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, C, B, Request> Service<Request> for CircuitBreaker<S, C, B>
where
    S: Service<Request> + Clone,
    C: Classify<S::Response, S::Error> + Clone,
    B: Source<Request>,
{
    type Response = C::Response;
    type Error = C::Error;
    type Future = ResponseFuture<S, Request, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        let breaker = self.source.only();
        loop {
            // The call is going to be rejected, or to wait for a probe: not for the inner service.
            if self.is_ready || breaker.is_some_and(|breaker| !breaker.would_allow()) {
                return Poll::Ready(Ok(()));
            }
            if let Poll::Ready(result) = self.inner.poll_ready(cx) {
                self.opening = None;
                self.is_ready = result.is_ok();
                return Poll::Ready(result.map_err(|error| {
                    let permit = breaker.and_then(|breaker| Arc::clone(breaker).try_acquire_owned().ok());
                    self.classify.not_ready(error, permit)
                }));
            }
            let Some(breaker) = breaker else { return Poll::Pending };
            match &mut self.opening {
                // Subscribes first and looks again then, or an opening in between would wake nobody.
                None => self.opening = Some(Box::pin(opening(breaker))),
                Some(opening) => {
                    ready!(opening.as_mut().poll(cx));
                    self.opening = None;
                }
            }
        }
    }

    fn call(&mut self, request: Request) -> Self::Future {
        self.opening = None;
        let mut breaker = self.source.of(&request);
        let classify = self.classify.clone();
        if let Some(rejection) = breaker.rejection_at_once() {
            // If the inner service is ready, it stays so for the next call.
            return ResponseFuture::rejected(breaker.explain(rejection), classify);
        }
        let is_ready = mem::take(&mut self.is_ready);
        if is_ready {
            breaker = match breaker.permit_at_once() {
                Ok(permit) if self.cancel_on_drop => {
                    return ResponseFuture::called(self.inner.call(request), permit.cancel_on_drop(), classify);
                }
                Ok(permit) => return ResponseFuture::called(self.inner.call(request), permit, classify),
                Err(breaker) => breaker,
            };
        }
        // Takes the service that is ready, and leaves a clone.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        ResponseFuture::asking(breaker, (inner, request), is_ready, self.cancel_on_drop, classify)
    }
}

/// Ends when the circuit opens. It may have closed again since, so whoever is woken looks.
fn opening(breaker: &breaker::CircuitBreaker) -> impl Future<Output = ()> + Send + Sync + use<> {
    let mut transitions = breaker.subscribe();
    async move {
        // Too many to be told is as good as one. That there is no breaker any more cannot happen: the service has it.
        while transitions.recv().await.is_ok_and(|told| told.to != CircuitState::Open) {}
    }
}

impl<S: Clone, C: Clone, B: Clone> Clone for CircuitBreaker<S, C, B> {
    /// A clone shares the breaker. It is not ready, as its inner service is not.
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.source.clone(), self.classify.clone(), self.cancel_on_drop)
    }
}

impl<S: fmt::Debug, C, B: fmt::Debug> fmt::Debug for CircuitBreaker<S, C, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("inner", &self.inner)
            .field("source", &self.source)
            .field("is_ready", &self.is_ready)
            .finish_non_exhaustive()
    }
}
