//! A connection's bytes, written in as few and as cheap calls as can be, and closed so that the other side can still read.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// What is below this is copied: one piece costs the system less than several.
const SMALL: usize = 4096;
/// How long a client that is sending may take to read that it has been refused.
const LINGER: Duration = Duration::from_secs(2);

/// A connection to a client.
pub(crate) struct Socket {
    stream: TokioIo<TcpStream>,
    lingers: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream: TokioIo::new(stream), lingers: None }
    }
}

impl Read for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// A connection that is closed while the client still sends is reset, and what the client has not read by then is lost:
    /// the answer that says why it was closed (RFC 9112 section 9.6). So what still comes is read, for a while.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingers.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        let lingers = this.lingers.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut scratch = [const { std::mem::MaybeUninit::uninit() }; 8 * 1024];
        loop {
            if lingers.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::uninit(&mut scratch);
            ready!(Pin::new(this.stream.inner_mut()).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        write_pieces(Pin::new(&mut self.stream), cx, pieces)
    }
}

/// Writes several pieces, as one if they are small.
pub(crate) fn write_pieces(
    stream: Pin<&mut impl Write>,
    cx: &mut Context<'_>,
    pieces: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let length: usize = pieces.iter().map(|piece| piece.len()).sum();
    match pieces {
        [piece] => stream.poll_write(cx, piece),
        _ if length > SMALL => stream.poll_write_vectored(cx, pieces),
        _ => {
            let mut whole = [0; SMALL];
            let mut at = 0;
            for piece in pieces {
                whole[at..at + piece.len()].copy_from_slice(piece);
                at += piece.len();
            }
            stream.poll_write(cx, &whole[..at])
        }
    }
}
