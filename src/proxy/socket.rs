//! A client's connection: given up where the client takes nothing of its answer, and closed so that it can still read it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::timers::Timer;

/// How long a client that is sending may take to read that it has been refused.
const LINGER: Duration = Duration::from_secs(2);

/// What hyper reads and writes.
pub(crate) struct Socket {
    stream: TokioIo<TcpStream>,
    timer: Timer,
    /// How long the client may take nothing of what it is sent.
    patience: Duration,
    /// While it takes nothing, and while it may still read why it was refused.
    until: Option<Instant>,
    is_shut_down: bool,
    has_asked: Arc<AtomicBool>,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, timer: Timer, patience: Duration) -> Self {
        let has_asked = Arc::default();
        Self { stream: TokioIo::new(stream), timer, patience, until: None, is_shut_down: false, has_asked }
    }

    /// Whether the client has sent something since it was last sent something.
    pub(crate) fn has_asked(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.has_asked)
    }

    /// What came of writing: if nothing, it is an error in the end.
    fn within_patience(&mut self, written: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            let until = *self.until.get_or_insert_with(|| Instant::now() + self.patience);
            ready!(self.timer.poll_until(until, cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.until = None;
        self.has_asked.store(false, Ordering::Relaxed);
        written
    }
}

impl Read for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.has_asked.store(true, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.within_patience(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// A connection that is closed while the client still sends is reset, and what the client has not read by then is lost:
    /// the answer that says why it was closed (RFC 9112 section 9.6). So what still comes is read, for a while.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.is_shut_down {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.is_shut_down = true;
            this.until = Some(Instant::now() + LINGER);
        }
        let until = this.until.unwrap_or_else(Instant::now);
        let mut scratch = [const { std::mem::MaybeUninit::uninit() }; 8 * 1024];
        loop {
            let mut buffer = ReadBuf::uninit(&mut scratch);
            if Pin::new(this.stream.inner_mut()).poll_read(cx, &mut buffer)?.is_pending() {
                return this.timer.poll_until(until, cx).map(Ok);
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
