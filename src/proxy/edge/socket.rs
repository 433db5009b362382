//! A client's socket. It is given up if the client reads nothing of its answer, and it is closed in such a way that the
//! client can still read a refusal. A client that sends no more may have left, or may only be done with sending: the
//! socket finds out.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use crate::proxy::timers::{Pause, Timer};

/// How long a client that is still sending may take to read a refusal.
const LINGER: Duration = Duration::from_secs(2);

/// A client that has left resets its connection when something is sent to it. This may be sent before any answer, and
/// clients skip it (RFC 9110 section 15.2).
const ARE_YOU_THERE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// How often, and how long, to look for that: a round trip, and some more.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOK_FOR: Duration = Duration::from_secs(1);

/// The preface of HTTP/2, which a client sends that has not negotiated it (RFC 9113 section 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// TCP, or TLS over it.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    fn tcp(&self) -> &TcpStream;
}

impl Transport for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Transport for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// The socket that hyper reads from and writes to.
pub(crate) struct Socket<T> {
    stream: TokioIo<Stream<T>>,
    /// Runs while the client reads nothing, and after the shutdown while it may still read a refusal.
    pause: Pause,
    /// How long the client may read nothing.
    patience: Duration,
    /// `None` until the shutdown.
    lingers_until: Option<Instant>,
    has_asked: Arc<AtomicBool>,
    is_served: Arc<AtomicBool>,
    /// Since when the client has sent no more. `None` while it may send.
    done_since: Option<Instant>,
    /// Bytes that came while hyper was not reading. hyper stops reading when bytes are left after a request, and then
    /// would not notice that the client leaves.
    ahead: BytesMut,
    /// Whether hyper waits for bytes.
    is_awaited: bool,
    /// hyper's HTTP/2 always reads.
    reads_ahead: bool,
}

/// How much is read ahead. If a client sends more than this after a request, its leaving is not noticed.
const MAX_AHEAD: usize = 4 << 10;

impl<T: Transport> Socket<T> {
    pub(crate) fn new(stream: T, timer: Timer, patience: Duration) -> Self {
        let (stream, pause) = (TokioIo::new(Stream { stream, is_at_end: false }), Pause::new(timer));
        Self {
            stream,
            pause,
            patience,
            lingers_until: None,
            has_asked: Arc::default(),
            is_served: Arc::default(),
            done_since: None,
            ahead: BytesMut::new(),
            is_awaited: false,
            reads_ahead: true,
        }
    }

    /// For HTTP/2, which asks its client by itself whether it is there.
    pub(crate) fn for_http2(self) -> Self {
        Self { reads_ahead: false, ..self }
    }

    /// Whether the client begins with HTTP/2. Its first bytes are kept for hyper.
    ///
    /// # Errors
    ///
    /// If it sends too few to tell within `limit`, or if reading fails.
    pub(crate) async fn begins_with_http2(&mut self, limit: Duration) -> io::Result<bool> {
        let until = Instant::now() + limit;
        poll_fn(|cx| {
            loop {
                let known = self.ahead.len().min(HTTP2.len());
                if self.ahead[..known] != HTTP2[..known] || self.stream.inner().is_at_end {
                    self.pause.end();
                    return Poll::Ready(Ok(false));
                }
                if known == HTTP2.len() {
                    self.pause.end();
                    return Poll::Ready(Ok(true));
                }
                let mut scratch = [const { MaybeUninit::uninit() }; MAX_AHEAD];
                let mut buffer = ReadBuf::uninit(&mut scratch);
                if Pin::new(self.stream.inner_mut()).poll_read(cx, &mut buffer)?.is_pending() {
                    ready!(self.pause.poll(|| until, cx));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                self.has_asked.store(true, Ordering::Relaxed);
                self.ahead.extend_from_slice(buffer.filled());
            }
        })
        .await
    }

    /// Whether the client has sent anything since the gateway last sent something.
    pub(crate) fn has_asked(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.has_asked)
    }

    /// To be set when a request is served whose client may get a `100 Continue`. The socket resets it when something is
    /// sent.
    pub(crate) fn is_served(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_served)
    }

    /// The client sends no more. Ready once that can be told to hyper, which then sends the answer, if there is one to
    /// come, and closes the connection.
    ///
    /// # Errors
    ///
    /// If the client has left.
    fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.done_since.is_none() && !self.has_asked.load(Ordering::Relaxed) {
            // In the middle of an answer nothing can be sent to find out. Between two requests it does not matter.
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if self.done_since.is_none() && self.is_served.load(Ordering::Relaxed) {
            // It is short, and nothing else is under way.
            let stream = &mut self.stream.inner_mut().stream;
            let _ = Pin::new(&mut *stream).poll_write(cx, ARE_YOU_THERE)?;
            let _ = Pin::new(stream).poll_flush(cx)?;
        }
        let until = *self.done_since.get_or_insert_with(Instant::now) + LOOK_FOR;
        while self.is_served.load(Ordering::Relaxed) && Instant::now() < until {
            if let Some(error) = self.stream.inner().stream.tcp().take_error()? {
                return Poll::Ready(Err(error));
            }
            ready!(self.pause.poll(|| Instant::now() + LOOK_EVERY, cx));
            self.pause.end();
        }
        Poll::Ready(Ok(()))
    }

    /// Reads ahead while hyper is not reading.
    ///
    /// # Errors
    ///
    /// If the client has left.
    fn read_ahead(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        // After a refusal, `poll_shutdown` reads instead.
        while self.reads_ahead
            && !self.is_awaited
            && self.lingers_until.is_none()
            && !self.stream.inner().is_at_end
            && self.ahead.len() < MAX_AHEAD
        {
            let mut scratch = [const { MaybeUninit::uninit() }; 1024];
            let mut buffer = ReadBuf::uninit(&mut scratch);
            if Pin::new(self.stream.inner_mut()).poll_read(cx, &mut buffer)?.is_pending() {
                break;
            }
            self.ahead.extend_from_slice(buffer.filled());
        }
        if self.stream.inner().is_at_end && self.lingers_until.is_none() {
            // While it is pending, its timer wakes the task.
            let _ = self.poll_done(cx)?;
        }
        Ok(())
    }

    /// The result of a write. It becomes an error if nothing could be written for too long.
    fn within_patience(&mut self, written: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            ready!(self.pause.poll(|| Instant::now() + self.patience, cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.pause.end();
        self.has_asked.store(false, Ordering::Relaxed);
        self.is_served.store(false, Ordering::Relaxed);
        written
    }
}

/// A stream that knows whether it has been read to its end.
struct Stream<T> {
    stream: T,
    is_at_end: bool,
}

impl<T: Transport> AsyncRead for Stream<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.is_at_end = buffer.filled().len() == before && buffer.remaining() > 0;
        Poll::Ready(Ok(()))
    }
}

impl<T: Transport> AsyncWrite for Stream<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }
}

impl<T: Transport> Read for Socket<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let length = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead.split_to(length));
            if self.ahead.is_empty() {
                self.ahead = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        self.is_awaited = true;
        if !self.stream.inner().is_at_end {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        }
        if self.stream.inner().is_at_end {
            ready!(self.poll_done(cx))?;
        }
        self.is_awaited = false;
        self.has_asked.store(true, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<T: Transport> Write for Socket<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.within_patience(written, cx)
    }

    /// hyper flushes at every poll, after it has read what it wants.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.read_ahead(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// If a connection is closed while the client still sends, it is reset, and the client loses what it has not read
    /// yet: the answer that says why it was closed (RFC 9112 section 9.6). So the rest is read and dropped for a while.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let until = if let Some(until) = this.lingers_until {
            until
        } else {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.pause.end();
            *this.lingers_until.insert(Instant::now() + LINGER)
        };
        let mut scratch = [const { MaybeUninit::uninit() }; 8 * 1024];
        loop {
            let mut buffer = ReadBuf::uninit(&mut scratch);
            if Pin::new(this.stream.inner_mut()).poll_read(cx, &mut buffer)?.is_pending() {
                return this.pause.poll(|| until, cx).map(Ok);
            }
            if buffer.filled().is_empty() || Instant::now() >= until {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.within_patience(written, cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::task::yield_now;
    use tokio::time::advance;

    use super::*;
    use crate::proxy::timers::Timers;

    async fn write(socket: &mut Socket<TcpStream>) -> Poll<io::Result<usize>> {
        poll_fn(|cx| Poll::Ready(Pin::new(&mut *socket).poll_write(cx, &[0; 8 << 10]))).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_is_waited_for_and_one_that_stops_reading_is_given_up() {
        const PATIENCE: Duration = Duration::from_millis(100);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (client, timers) = (client.unwrap(), Arc::<Timers>::default());
        let mut socket = Socket::new(accepted.unwrap().0, timers.timer(), PATIENCE);
        for _ in 0..4 {
            while let Poll::Ready(written) = write(&mut socket).await {
                written.expect("it is in time");
            }
            advance(PATIENCE * 3 / 4).await;
            let mut scratch = vec![0; 1 << 20];
            loop {
                while client.try_read(&mut scratch).is_ok() {}
                match write(&mut socket).await {
                    Poll::Ready(written) => {
                        written.expect("it is in time");
                        break;
                    }
                    Poll::Pending => yield_now().await,
                }
            }
        }
        let error = loop {
            match write(&mut socket).await {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => break error,
                Poll::Pending => advance(PATIENCE).await,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
