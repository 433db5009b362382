//! The future of a call.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::classify::Classify;
use super::error::CircuitOpenError;
use crate::breaker::{AcquireOwned, CircuitBreaker};
use crate::permit::OwnedPermit;

pin_project! {
    /// Asks for a permit, waits until the inner service is ready if it is not, and calls it.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the call. An ordinary call then counts for nothing, and a probe as failed, unless the layer
    /// [cancels on drop](super::CircuitBreakerLayer::cancel_on_drop).
    ///
    /// # Panics
    ///
    /// If it is polled after its end; and as [`acquire`](CircuitBreaker::acquire).
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct ResponseFuture<S, Request, C>
    where
        S: Service<Request>,
    {
        // Of the call that is not made yet.
        asking: Option<Asking<S, Request>>,
        #[pin]
        call: Option<S::Future>,
        permit: Option<OwnedPermit>,
        rejection: Option<CircuitOpenError>,
        classify: C,
    }
}

struct Asking<S, Request> {
    acquire: AcquireOwned,
    service: S,
    request: Request,
    is_ready: bool,
    cancel_on_drop: bool,
}

impl<S: Service<Request>, Request, C> ResponseFuture<S, Request, C> {
    #[cold]
    pub(super) fn rejected(rejection: CircuitOpenError, classify: C) -> Self {
        Self { asking: None, call: None, permit: None, rejection: Some(rejection), classify }
    }

    #[inline]
    pub(super) fn called(call: S::Future, permit: OwnedPermit, classify: C) -> Self {
        Self { asking: None, call: Some(call), permit: Some(permit), rejection: None, classify }
    }

    #[cold]
    pub(super) fn asking(
        breaker: Arc<CircuitBreaker>,
        (service, request): (S, Request),
        is_ready: bool,
        cancel_on_drop: bool,
        classify: C,
    ) -> Self {
        let asking = Asking { acquire: breaker.acquire_owned(), service, request, is_ready, cancel_on_drop };
        Self { asking: Some(asking), call: None, permit: None, rejection: None, classify }
    }
}

impl<S, Request, C> Future for ResponseFuture<S, Request, C>
where
    S: Service<Request>,
    C: Classify<S::Response, S::Error>,
{
    type Output = Result<C::Response, C::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(asking) = this.asking {
            if this.permit.is_none() {
                match ready!(Pin::new(&mut asking.acquire).poll(cx)) {
                    Ok(permit) if asking.cancel_on_drop => *this.permit = Some(permit.cancel_on_drop()),
                    Ok(permit) => *this.permit = Some(permit),
                    Err(rejection) => {
                        let explained = asking.acquire.breaker().explain(rejection);
                        *this.asking = None;
                        return Poll::Ready(this.classify.reject(explained));
                    }
                }
            }
            if !asking.is_ready
                && let Err(error) = ready!(asking.service.poll_ready(cx))
            {
                *this.asking = None;
                return Poll::Ready(this.classify.judge(Err(error), taken(this.permit)));
            }
            if let Some(Asking { mut service, request, .. }) = this.asking.take() {
                this.call.set(Some(service.call(request)));
            }
        }
        if let Some(call) = this.call.as_mut().as_pin_mut() {
            let result = ready!(call.poll(cx));
            let permit = taken(this.permit);
            this.call.set(None);
            return Poll::Ready(this.classify.judge(result, permit));
        }
        let rejection = this.rejection.take().expect("not polled after its end");
        Poll::Ready(this.classify.reject(rejection))
    }
}

fn taken(permit: &mut Option<OwnedPermit>) -> OwnedPermit {
    permit.take().expect("a call has a permit until it is judged")
}

impl<S: Service<Request>, Request, C> fmt::Debug for ResponseFuture<S, Request, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").field("permit", &self.permit).finish_non_exhaustive()
    }
}
