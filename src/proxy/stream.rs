//! The body of an answer on its way to the client, judged while it passes: a provider that stops in the middle has failed,
//! however well it began.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep, sleep};

use super::attempt::fail;
use super::upstream::{Chain, UpstreamBody};
use crate::{CircuitBreaker, OwnedPermit, PermitType};

/// A body that resolves its permit when it ends. If the client leaves first, the permit is dropped, which is neutral.
pub(crate) struct JudgedBody {
    body: UpstreamBody,
    /// Read ahead, to see whether the body begins at all.
    first: Option<Frame<Bytes>>,
    permit: Option<OwnedPermit>,
    timeout: Duration,
    pause: Option<Pin<Box<Sleep>>>,
    pausing: bool,
}

impl JudgedBody {
    pub(crate) fn new(body: UpstreamBody, timeout: Duration) -> Self {
        Self { body, first: None, permit: None, timeout, pause: None, pausing: false }
    }

    /// # Errors
    ///
    /// If the body breaks off before it begins.
    pub(crate) async fn wait_for_first_piece(&mut self) -> Result<(), hyper::Error> {
        self.first = self.body.frame().await.transpose()?;
        Ok(())
    }

    /// Takes charge of the permit, for a body that has begun well. That is all that is asked of a probe, so that nobody
    /// waits for a whole stream; the rest is then judged as an ordinary call.
    pub(crate) fn judge(&mut self, permit: OwnedPermit, breaker: &Arc<CircuitBreaker>) {
        self.permit = match permit.kind() {
            PermitType::Normal => Some(permit),
            PermitType::Probe => {
                permit.success();
                ordinary_permit(Arc::clone(breaker))
            }
        };
        self.resolve_at_end();
    }

    /// With a known length hyper's server stops reading once it has all of it, and never asks for the end.
    fn resolve_at_end(&mut self) {
        if self.body.is_end_stream() {
            self.succeed();
        }
    }

    fn succeed(&mut self) {
        if let Some(permit) = self.permit.take() {
            permit.success();
        }
    }

    fn fail(&mut self, error_type: &str, message: impl fmt::Display) {
        if let Some(permit) = self.permit.take() {
            fail(permit, error_type, message);
        }
    }
}

fn ordinary_permit(breaker: Arc<CircuitBreaker>) -> Option<OwnedPermit> {
    let permit = breaker.try_acquire_owned().ok()?.cancel_on_drop();
    (permit.kind() == PermitType::Normal).then_some(permit)
}

impl Body for JudgedBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Some(frame) = this.first.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            // The time counts only while the client is ready for more: a slow client is not the provider's fault.
            let pause = this.pause.get_or_insert_with(|| Box::pin(sleep(this.timeout)));
            if !this.pausing {
                this.pausing = true;
                pause.as_mut().reset(Instant::now() + this.timeout);
            }
            ready!(pause.as_mut().poll(cx));
            let message = format!("no further piece of the body within {:?}", this.timeout);
            this.fail("timeout", &message);
            return Poll::Ready(Some(Err(message.into())));
        };
        this.pausing = false;
        match &frame {
            Some(Ok(_)) => this.resolve_at_end(),
            Some(Err(error)) => this.fail("stream", Chain(error)),
            None => this.succeed(),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let ahead = self.first.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len) as u64;
        let rest = self.body.size_hint();
        let mut hint = SizeHint::new();
        // The upper bound first: `SizeHint` asserts that the lower one is not above it.
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + ahead);
        }
        hint.set_lower(rest.lower() + ahead);
        hint
    }
}
