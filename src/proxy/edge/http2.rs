//! HTTP/2 as the gateway serves it: the limits of the configuration, for connections and for each of their streams.
//!
//! Not here: whether a connection speaks it: `clients`.

use std::cell::Cell;
use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::HttpService;
use tokio::time::Instant;

use super::draining::Connection;
use super::socket::{Socket, Transport};
use crate::proxy::config::ServerConfig;
use crate::proxy::observe::metrics::CloseReason;
use crate::proxy::state::AppState;
use crate::proxy::timers::{HyperTimer, Pause, Timers};

/// How many requests a client may have under way on one connection.
const MAX_STREAMS: u32 = 100;
/// How many streams a client may reset before the gateway has seen them. One that resets more is cut: rapid reset,
/// CVE-2023-44487.
const MAX_RESETS: usize = 20;
/// How many bytes of a request, and of all requests of a connection, may be on their way to the gateway.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// How many bytes of an answer wait for a client that does not take them.
const MAX_SEND: usize = 64 << 10;
/// A client that is silent is asked whether it is there.
const ASK_AFTER: Duration = Duration::from_secs(20);

/// A connection of HTTP/2. It ends if the client asks for nothing for as long as it may be idle.
pub(super) struct Http2<T: Transport, S: HttpService<Incoming>> {
    connection: Pin<Box<http2::Connection<Socket<T>, S, Streams>>>,
    streams: Arc<AtomicUsize>,
    idle: Pause,
    may_be_idle: Duration,
}

impl<T, S, B> Http2<T, S>
where
    T: Transport,
    S: HttpService<Incoming, ResBody = B, Error = Infallible, Future: Send + 'static>,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    pub(super) fn new(
        app: &Arc<AppState>,
        timers: &Arc<Timers>,
        server: &ServerConfig,
        io: Socket<T>,
        service: S,
    ) -> Self {
        let streams = Streams {
            app: Arc::clone(app),
            timers: Arc::clone(timers),
            patience: server.write_timeout,
            under_way: Arc::default(),
        };
        let under_way = Arc::clone(&streams.under_way);
        let mut http = http2::Builder::new(streams);
        http.timer(HyperTimer(Arc::clone(timers))).keep_alive_interval(ASK_AFTER);
        http.max_concurrent_streams(MAX_STREAMS).max_pending_accept_reset_streams(MAX_RESETS);
        http.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        http.max_send_buf_size(MAX_SEND);
        http.max_header_list_size(u32::try_from(server.max_header_bytes).unwrap_or(u32::MAX));
        let connection = Box::pin(http.serve_connection(io.for_http2(), service));
        Self { connection, streams: under_way, idle: Pause::new(timers.timer()), may_be_idle: server.header_timeout }
    }
}

impl<T, S, B> Future for Http2<T, S>
where
    T: Transport,
    S: HttpService<Incoming, ResBody = B, Error = Infallible, Future: Send + 'static>,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            if let Poll::Ready(ended) = this.connection.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            if this.streams.load(Ordering::Relaxed) > 0 {
                this.idle.end();
                return Poll::Pending;
            }
            let may_be_idle = this.may_be_idle;
            ready!(this.idle.poll(|| Instant::now() + may_be_idle, cx));
            this.idle.end();
            this.connection.as_mut().graceful_shutdown();
        }
    }
}

impl<T, S, B> Connection for Http2<T, S>
where
    T: Transport,
    S: HttpService<Incoming, ResBody = B, Error = Infallible, Future: Send + 'static>,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    fn end(mut self: Pin<&mut Self>) {
        self.connection.as_mut().graceful_shutdown();
    }
}

/// Runs the streams of one connection. A stream whose client takes nothing of its answer is given up, even if the
/// client takes those of others.
#[derive(Clone)]
pub(super) struct Streams {
    app: Arc<AppState>,
    timers: Arc<Timers>,
    patience: Duration,
    under_way: Arc<AtomicUsize>,
}

thread_local! {
    /// Whether the answer that was polled last had a piece to give. `None` if none was polled.
    static GAVE: Cell<Option<bool>> = const { Cell::new(None) };
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        let (streams, place) = (self.clone(), Place(Arc::clone(&self.under_way)));
        tokio::spawn(async move {
            let (mut stream, mut pause) = (pin!(stream), Pause::new(streams.timers.timer()));
            let mut waits_for_the_client = false;
            poll_fn(|cx| {
                GAVE.set(None);
                if stream.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                // hyper asks for a piece when the client has taken the one before.
                if let Some(gave) = GAVE.take() {
                    waits_for_the_client = gave;
                    pause.end();
                }
                if waits_for_the_client {
                    ready!(pause.poll(|| Instant::now() + streams.patience, cx));
                    streams.app.metrics.close(CloseReason::WriteTimeout);
                    return Poll::Ready(());
                }
                Poll::Pending
            })
            .await;
            drop(place);
        });
    }
}

/// A stream, while it is under way.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer whose stream knows whether it waits for the client or for the answer.
pub(super) struct Watched<B>(pub(super) B);

impl<B: Body + Unpin> Body for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.0).poll_frame(cx);
        GAVE.set(Some(frame.is_ready()));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
