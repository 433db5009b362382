//! One HTTP/1 connection, polled by whoever uses it: no task of its own, and no wakeup between that task and the connection.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use axum::http::{Request, Response};
use bytes::Bytes;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};

use super::wake::Relay;
use super::{RequestBody, Stream};

/// A connection that is always ready would keep the other tasks of its core from running. tokio's own limit on what a task may
/// do without a pause is a wakeup as any other here, and would be polled against for ever.
const MAX_ROUNDS: usize = 64;

/// In a box: it is moved to its use and back to its rest, and is large.
pub(super) struct Http1(Box<Inner>);

struct Inner {
    sender: SendRequest<RequestBody>,
    connection: http1::Connection<Stream, RequestBody>,
    is_over: bool,
    relay: Relay,
}

impl Http1 {
    pub(super) async fn new(stream: Stream) -> hyper::Result<Self> {
        let (sender, connection) = http1::handshake(stream).await?;
        Ok(Self(Box::new(Inner { sender, connection, is_over: false, relay: Relay::new() })))
    }

    pub(super) async fn send(&mut self, request: Request<RequestBody>) -> hyper::Result<Response<Incoming>> {
        // Nobody is to be woken by that.
        self.0.relay.begin();
        let mut response = pin!(self.0.sender.send_request(request));
        poll_fn(|cx| self.0.poll(cx, |cx| response.as_mut().poll(cx))).await
    }

    pub(super) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        self.0.poll(cx, |cx| Pin::new(&mut *body).poll_frame(cx))
    }

    /// Whether something has happened that nobody has looked at.
    pub(super) fn is_woken(&self) -> bool {
        self.0.relay.is_woken()
    }

    /// Whether another request can be sent. Wakes `task` when that may have changed.
    pub(super) fn rests(&mut self, task: Option<&Waker>) -> bool {
        let Inner { sender, connection, is_over, relay } = &mut *self.0;
        relay.set_task(task);
        for _ in 0..MAX_ROUNDS {
            if *is_over || !relay.is_woken() {
                break;
            }
            relay.begin();
            *is_over = Pin::new(&mut *connection).poll(&mut relay.context()).is_ready();
            relay.leave();
        }
        !*is_over && sender.is_ready()
    }
}

impl Inner {
    /// Polls `wanted`, and the connection as long as that may bring it on.
    fn poll<T>(&mut self, cx: &mut Context<'_>, mut wanted: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let Self { connection, is_over, relay, .. } = self;
        relay.set_task(Some(cx.waker()));
        let is_woken = relay.is_woken();
        relay.begin();
        let mut own = relay.context();
        // What is wanted may be there already, unless something has happened on the connection first.
        if !is_woken && let Poll::Ready(value) = wanted(&mut own) {
            relay.leave();
            return Poll::Ready(value);
        }
        for _ in 0..MAX_ROUNDS {
            if !*is_over {
                // How it ended is told to who waits for the answer or for its body.
                *is_over = Pin::new(&mut *connection).poll(&mut own).is_ready();
            }
            if let Poll::Ready(value) = wanted(&mut own) {
                relay.leave();
                return Poll::Ready(value);
            }
            if !relay.take_noted() && relay.end() {
                return Poll::Pending;
            }
        }
        relay.leave();
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
