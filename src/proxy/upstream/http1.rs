//! One HTTP/1 connection, polled by whoever uses it: no task of its own, and no wakeup between that task and the connection.

use std::future::{Future as _, poll_fn};
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use axum::http::{Request, Response};
use bytes::Bytes;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use tokio::time::Instant;

use super::RequestBody;
use super::stream::Stream;
use super::wake::Relay;

/// A connection that is always ready would keep the other tasks of its core from running. tokio's own limit on what a task may
/// do without a pause is a wakeup as any other here, and would be polled against for ever.
const MAX_ROUNDS: usize = 64;

/// Whether what is wanted has more, and so was not left to be woken.
struct IsReady(bool);

/// In a box: it is moved to its use and back to its rest, and is large.
pub(super) struct Http1(Box<Inner>);

struct Inner {
    sender: SendRequest<RequestBody>,
    connection: http1::Connection<Stream, RequestBody>,
    is_over: bool,
    relay: Relay,
    since: Instant,
}

impl Http1 {
    pub(super) async fn new(stream: Stream) -> hyper::Result<Self> {
        let (sender, connection) = http1::handshake(stream).await?;
        Ok(Self(Box::new(Inner { sender, connection, is_over: false, relay: Relay::new(), since: Instant::now() })))
    }

    pub(super) async fn send(&mut self, request: Request<RequestBody>) -> hyper::Result<Response<Incoming>> {
        // Nobody is to be woken by that: the connection is polled at once.
        self.0.relay.begin_woken();
        let mut response = pin!(self.0.sender.send_request(request));
        poll_fn(|cx| {
            self.0.poll(cx, |cx| match response.as_mut().poll(cx) {
                Poll::Ready(response) => ControlFlow::Break(response),
                Poll::Pending => ControlFlow::Continue(IsReady(false)),
            })
        })
        .await
    }

    /// Hands what there is of a body to `take`, until that has had enough, or until there is no more for now.
    pub(super) fn poll_frames<T>(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
        mut take: impl FnMut(Option<hyper::Result<Frame<Bytes>>>, &Incoming) -> ControlFlow<T>,
    ) -> Poll<T> {
        self.0.poll(cx, |cx| match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(frame) => take(frame, body).map_continue(|()| IsReady(true)),
            Poll::Pending => ControlFlow::Continue(IsReady(false)),
        })
    }

    pub(super) fn since(&self) -> Instant {
        self.0.since
    }

    /// Whether something has happened that nobody has looked at.
    pub(super) fn is_woken(&self) -> bool {
        self.0.relay.is_woken()
    }

    /// Whether another request can be sent. Wakes `task` when that may have changed.
    pub(super) fn rests(&mut self, task: Option<&Waker>) -> bool {
        let Inner { sender, connection, is_over, relay, .. } = &mut *self.0;
        relay.set_task(task);
        for _ in 0..MAX_ROUNDS {
            if *is_over || !relay.begin() {
                break;
            }
            *is_over = Pin::new(&mut *connection).poll(&mut relay.context()).is_ready();
        }
        relay.leave();
        !*is_over && sender.is_ready()
    }
}

impl Inner {
    /// Polls what is `wanted`, and the connection as long as that may bring it on.
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut wanted: impl FnMut(&mut Context<'_>) -> ControlFlow<T, IsReady>,
    ) -> Poll<T> {
        let Self { connection, is_over, relay, .. } = self;
        relay.set_task(Some(cx.waker()));
        // Otherwise the connection has nothing to do before it is asked for something.
        let mut is_woken = relay.begin();
        let mut own = relay.context();
        for _ in 0..MAX_ROUNDS {
            if is_woken && !*is_over {
                // How it ended is told to who waits for the answer or for its body.
                *is_over = Pin::new(&mut *connection).poll(&mut own).is_ready();
            }
            let is_ready = match wanted(&mut own) {
                ControlFlow::Continue(IsReady(is_ready)) => is_ready,
                ControlFlow::Break(value) => {
                    relay.leave();
                    return Poll::Ready(value);
                }
            };
            is_woken = relay.begin();
            if !is_woken && !is_ready && relay.end() {
                return Poll::Pending;
            }
        }
        // What was noted last has not been looked at.
        relay.leave_woken();
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
