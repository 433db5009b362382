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

use super::socket::{Socket, Transport};

/// The connections that one task serves. hyper-util has the same thing, but takes a lock for each poll of each
/// connection.
pub(crate) struct ConnectionSet {
    drain: Arc<Drain>,
    /// Each connection has a clone.
    is_open: mpsc::Sender<Infallible>,
    all_ended: mpsc::Receiver<Infallible>,
}

/// Whether connections are to end.
#[derive(Default)]
pub(crate) struct Drain {
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
    /// Serves a connection in a task of its own.
    pub(crate) fn serve<F: Future<Output = ()> + Send + 'static>(&self, serve: impl FnOnce(Arc<Drain>) -> F) {
        let (serve, is_open) = (serve(Arc::clone(&self.drain)), self.is_open.clone());
        tokio::spawn(async move {
            serve.await;
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

/// A connection that can be told to end after the requests that it is serving.
pub(crate) trait Connection: Future<Output = hyper::Result<()>> {
    fn end(self: Pin<&mut Self>);
}

impl<T, S, B> Connection for http1::UpgradeableConnection<Socket<T>, S>
where
    T: Transport,
    S: HttpService<Incoming, ResBody = B, Error = Infallible>,
    B: Body<Error: Into<Box<dyn Error + Send + Sync>>> + 'static,
{
    fn end(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl Drain {
    /// What comes before a connection's first request. `None` if it is to end before that.
    pub(crate) async fn unless_begun<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut begins = pin!(self.begins.notified());
        begins.as_mut().enable();
        if self.has_begun.load(Ordering::Acquire) {
            return None;
        }
        tokio::select! {
            output = future => Some(output),
            () = begins => None,
        }
    }

    /// Returns when connections are to end.
    pub(crate) async fn begun(&self) {
        let _ = self.unless_begun(std::future::pending::<()>()).await;
    }

    pub(crate) async fn serve(&self, mut connection: Pin<&mut impl Connection>) -> hyper::Result<()> {
        let mut begins = pin!(self.begins.notified());
        let (mut is_first, mut is_told) = (true, false);
        poll_fn(|cx| {
            // A task's waker does not change, so registering it once is enough.
            if std::mem::take(&mut is_first) {
                let _ = begins.as_mut().poll(cx);
            }
            if !is_told && self.has_begun.load(Ordering::Acquire) {
                is_told = true;
                connection.as_mut().end();
            }
            connection.as_mut().poll(cx)
        })
        .await
    }
}
