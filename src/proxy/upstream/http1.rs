//! One HTTP/1 connection. The task that uses it polls it, so that there is no task for the connection and no wakeup
//! between the two.
//!
//! Not here: which connection is used: `idle`.

use std::future::{Future as _, poll_fn};
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use tokio::time::Instant;

use super::wake::{Relay, Wanted};
use super::{RequestBody, Stream};

/// How many unread bytes of a provider are buffered: the largest head of an answer. hyper's own limit is 400 KiB.
pub(super) const MAX_BUFFERED: usize = 64 << 10;

/// In a box: it is large, and is moved whenever it is used or becomes idle.
pub(super) struct Http1(Box<Inner>);

struct Inner {
    sender: SendRequest<RequestBody>,
    driver: Driver,
    relay: Relay,
    since: Instant,
}

/// hyper's half that reads and writes.
struct Driver {
    connection: http1::Connection<Stream, RequestBody>,
    is_over: bool,
}

impl Http1 {
    pub(super) async fn new(stream: Stream) -> hyper::Result<Self> {
        let (sender, connection) = http1::Builder::new().max_buf_size(MAX_BUFFERED).handshake(stream).await?;
        let driver = Driver { connection, is_over: false };
        Ok(Self(Box::new(Inner { sender, driver, relay: Relay::new(), since: Instant::now() })))
    }

    /// `request` makes the request: as a plain argument it would be stored twice.
    pub(super) async fn send(
        &mut self,
        request: impl FnOnce() -> Request<RequestBody>,
    ) -> hyper::Result<Response<Incoming>> {
        // Sending wakes the connection. It is polled at once, so the task need not be woken for it.
        self.0.relay.expect_wake();
        let mut response = pin!(self.0.sender.send_request(request()));
        poll_fn(|cx| {
            self.0.poll(cx, |cx| match response.as_mut().poll(cx) {
                Poll::Ready(response) => ControlFlow::Break(response),
                Poll::Pending => ControlFlow::Continue(Wanted::Nothing),
            })
        })
        .await
    }

    /// Hands the available frames of a body to `take`, until `take` breaks or no frame is available.
    pub(super) fn poll_frames<T>(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
        mut take: impl FnMut(Option<hyper::Result<Frame<Bytes>>>, &Incoming) -> ControlFlow<T>,
    ) -> Poll<T> {
        self.0.poll(cx, |cx| match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(frame) => take(frame, body).map_continue(|()| Wanted::MayBeMore),
            Poll::Pending => ControlFlow::Continue(Wanted::Nothing),
        })
    }

    pub(super) fn since(&self) -> Instant {
        self.0.since
    }

    /// Whether the connection was woken since it was last polled.
    pub(super) fn is_woken(&self) -> bool {
        self.0.relay.is_woken()
    }

    /// Whether another request can be sent on the idle connection. Wakes `task` when that may have changed.
    pub(super) fn rests(&mut self, task: Option<&Waker>) -> bool {
        let Inner { sender, driver, relay, .. } = &mut *self.0;
        relay.settle(task, |cx| driver.poll(cx));
        !driver.is_over && sender.is_ready()
    }
}

impl Inner {
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        wanted: impl FnMut(&mut Context<'_>) -> ControlFlow<T, Wanted>,
    ) -> Poll<T> {
        let Self { driver, relay, .. } = self;
        relay.poll(cx, |cx| driver.poll(cx), wanted)
    }
}

impl Driver {
    fn poll(&mut self, cx: &mut Context<'_>) {
        if !self.is_over {
            // The task that waits for the answer or its body gets the error.
            self.is_over = Pin::new(&mut self.connection).poll(cx).is_ready();
        }
    }
}
