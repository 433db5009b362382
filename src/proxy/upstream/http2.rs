//! HTTP/2 connections, each shared by many requests.
//!
//! Not here: HTTP/1, and how the version is chosen: `upstream`.

use std::error::Error;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use tokio::sync::MutexGuard;
use tokio::time::Instant;
use tracing::debug;

use super::{Chain, RequestBody, Stream};

/// Common servers allow at least this many (RFC 9113 section 6.5.2 recommends it). A further request would wait within
/// the connection, and the provider would look slow.
const MAX_STREAMS: usize = 100;
/// A dead connection would hold up all its requests. While there are any, it is pinged at this interval, and has this
/// long to answer.
const PING: Duration = Duration::from_secs(10);

/// The connections to one provider.
pub(super) struct Http2Pool {
    max_age: Duration,
    connections: Mutex<Vec<SharedConnection>>,
    /// Whether the newest connection to the provider was HTTP/2.
    is_spoken: AtomicBool,
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct SharedConnection {
    sender: SendRequest<RequestBody>,
    streams: Arc<AtomicUsize>,
    since: Instant,
}

/// One use of a connection.
pub(super) struct Http2(SharedConnection);

impl Drop for Http2 {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Http2Pool {
    pub(super) fn new(max_age: Duration) -> Self {
        Self {
            max_age,
            connections: Mutex::default(),
            is_spoken: AtomicBool::new(false),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    /// A connection that has room for another request, and was made after `made_since`.
    pub(super) fn take(&self, made_since: Option<Instant>) -> Option<Http2> {
        if !self.is_spoken.load(Ordering::Relaxed) {
            return None;
        }
        let mut connections = self.connections.lock();
        // Requests under way on a connection that is removed here go on.
        connections.retain(|connection| !connection.sender.is_closed() && connection.since.elapsed() < self.max_age);
        let fits = |connection: &&SharedConnection| {
            connection.streams.load(Ordering::Relaxed) < MAX_STREAMS
                && made_since.is_none_or(|made_since| connection.since >= made_since)
        };
        connections.iter().find(fits).map(SharedConnection::use_once)
    }

    /// Waits for the turn to connect, if the provider speaks HTTP/2: one connection is made at a time.
    pub(super) async fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        if self.is_spoken.load(Ordering::Relaxed) { Some(self.connecting.lock().await) } else { None }
    }

    pub(super) async fn connect(&self, stream: Stream) -> hyper::Result<Http2> {
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PING);
        let (sender, connection) = http.handshake(stream).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(error = %Chain(&error), "a provider's connection ended early");
            }
        });
        let connection = SharedConnection { sender, streams: Arc::default(), since: Instant::now() };
        self.is_spoken.store(true, Ordering::Relaxed);
        let used = connection.use_once();
        self.connections.lock().push(connection);
        Ok(used)
    }

    /// Call it when the provider has chosen HTTP/1. Then each request needs a connection of its own, and does not wait
    /// for a turn.
    pub(super) fn is_not_spoken(&self) {
        if self.is_spoken.swap(false, Ordering::Relaxed) {
            self.connections.lock().clear();
        }
    }

    /// Removes a connection, so that no other request is sent on it.
    pub(super) fn forget(&self, used: &Http2) {
        self.connections.lock().retain(|connection| !Arc::ptr_eq(&connection.streams, &used.0.streams));
    }
}

impl SharedConnection {
    fn use_once(&self) -> Http2 {
        self.streams.fetch_add(1, Ordering::Relaxed);
        Http2(self.clone())
    }
}

impl Http2 {
    pub(super) async fn send(
        &mut self,
        request: impl FnOnce() -> Request<RequestBody>,
    ) -> hyper::Result<Response<Incoming>> {
        self.0.sender.send_request(request()).await
    }

    /// As [`Http1::poll_frames`](super::http1::Http1::poll_frames).
    pub(super) fn poll_frames<T>(
        body: &mut Incoming,
        cx: &mut Context<'_>,
        mut take: impl FnMut(Option<hyper::Result<Frame<Bytes>>>, &Incoming) -> ControlFlow<T>,
    ) -> Poll<T> {
        loop {
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(frame) => {
                    if let ControlFlow::Break(value) = take(frame, body) {
                        return Poll::Ready(value);
                    }
                }
            }
        }
    }
}

/// Why the provider reset the stream. `None` if it did not, or closed the whole connection.
pub(super) fn reset_by_provider(error: &hyper::Error) -> Option<Reason> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.reason().filter(|_| error.is_reset() && error.is_remote());
        }
        cause = error.source();
    }
    None
}
