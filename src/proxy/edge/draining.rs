//! Ending connections in good order: each ends after the request that it is serving.

use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::HttpService;
use tokio::sync::{Notify, mpsc};

use super::socket::Socket;

/// The connections that one task serves. hyper-util has the same thing, but takes a lock for each poll of each
/// connection.
pub(crate) struct ConnectionSet {
    drain: Arc<Drain>,
    /// Each connection has a clone.
    is_open: mpsc::Sender<Infallible>,
    all_ended: mpsc::Receiver<Infallible>,
}

#[derive(Default)]
struct Drain {
    has_begun: AtomicBool,
    begins: Notify,
}

impl Default for ConnectionSet {
    fn default() -> Self {
        let (is_open, all_ended) = mpsc::channel(1);
        Self { drain: Arc::default(), is_open, all_ended }
    }
}

impl ConnectionSet {
    /// Serves a connection in a task of its own, and calls `ended` with the result.
    pub(crate) fn serve<S, B>(
        &self,
        connection: http1::Connection<Socket, S>,
        ended: impl FnOnce(hyper::Result<()>) + Send + 'static,
    ) where
        S: HttpService<Incoming, ResBody = B, Error = Infallible, Future: Send> + Send + 'static,
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        let (drain, is_open) = (Arc::clone(&self.drain), self.is_open.clone());
        tokio::spawn(async move {
            ended(drain.serve(pin!(connection)).await);
            drop(is_open);
        });
    }

    /// Tells all connections to end, and waits until they have.
    pub(crate) async fn end(mut self) {
        self.drain.has_begun.store(true, Ordering::Release);
        self.drain.begins.notify_waiters();
        drop(self.is_open);
        self.all_ended.recv().await;
    }
}

impl Drain {
    async fn serve<S, B>(&self, mut connection: Pin<&mut http1::Connection<Socket, S>>) -> hyper::Result<()>
    where
        S: HttpService<Incoming, ResBody = B, Error = Infallible>,
        B: Body<Error: Into<Box<dyn Error + Send + Sync>>> + 'static,
    {
        let mut begins = pin!(self.begins.notified());
        let (mut is_first, mut is_told) = (true, false);
        poll_fn(|cx| {
            // A task's waker does not change, so registering it once is enough.
            if std::mem::take(&mut is_first) {
                let _ = begins.as_mut().poll(cx);
            }
            if !is_told && self.has_begun.load(Ordering::Acquire) {
                is_told = true;
                connection.as_mut().graceful_shutdown();
            }
            connection.as_mut().poll(cx)
        })
        .await
    }
}
