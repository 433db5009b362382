//! Bodies on their way to a provider and back.
//!
//! Not here: time limits: `route::receive` and `route::stream`.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;

use super::http1::Http1;
use super::http2::Http2;
use super::idle::Idle;
use crate::proxy::body::parts::Parts;
use crate::proxy::body::pieces::Pieces;
use crate::proxy::request::upload::{Fault, Upload};

/// Frames that are available at once are merged into one, up to this size: each frame is written separately to the
/// client.
const MAX_MERGED: u64 = 16 << 10;

/// The body of a provider's answer. When it has been read, its connection can be used again.
pub(crate) struct UpstreamBody {
    body: Incoming,
    /// What was received after the last frame that was handed on.
    ahead: Option<Result<Frame<Bytes>, hyper::Error>>,
    /// `None` once the body has been read.
    loan: Option<Loan>,
}

/// A connection in use.
pub(super) enum Loan {
    Http1(Http1, Arc<Idle>),
    /// It serves other requests at the same time.
    Http2 {
        _until_dropped: Http2,
    },
    /// It is polled by a task of its own, and serves no other request.
    Own {
        _until_dropped: SendRequest<RequestBody>,
    },
}

impl UpstreamBody {
    pub(super) fn new(body: Incoming, loan: Loan) -> Self {
        Self { body, ahead: None, loan: Some(loan) }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { body, ahead, loan } = &mut *self;
        if let Some(frame) = ahead.take() {
            return Poll::Ready(Some(frame));
        }
        let Some(connection) = loan else { return Poll::Ready(None) };
        let mut pieces = Pieces::default();
        let mut is_over = false;
        let take = |frame: Option<Result<Frame<Bytes>, hyper::Error>>, body: &Incoming| {
            match frame {
                Some(Ok(frame)) if frame.is_data() => {
                    pieces.push(frame.into_data().unwrap_or_default());
                    if pieces.len() < MAX_MERGED && !body.is_end_stream() {
                        return ControlFlow::Continue(());
                    }
                }
                Some(other) => *ahead = Some(other),
                None => is_over = true,
            }
            ControlFlow::Break(())
        };
        let taken = match connection {
            Loan::Http1(connection, _) => connection.poll_frames(body, cx, take),
            Loan::Http2 { .. } | Loan::Own { .. } => Http2::poll_frames(body, cx, take),
        };
        if is_over && let Some(loan) = loan.take() {
            loan.end();
        }
        if pieces.len() > 0 {
            return Poll::Ready(Some(Ok(Frame::data(pieces.into_bytes()))));
        }
        taken.map(|()| ahead.take())
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_none() && (self.loan.is_none() || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        // hyper does not poll a body of known length for its end.
        if self.body.is_end_stream()
            && let Some(loan) = self.loan.take()
        {
            loan.end();
        }
    }
}

impl Loan {
    /// Gives the connection back when the answer has been read.
    fn end(self) {
        if let Self::Http1(connection, idle) = self {
            idle.put(connection);
        }
    }
}

/// The body of a request to a provider.
pub(crate) enum RequestBody {
    Whole(Parts),
    /// It can be sent only once.
    Upload(Box<Upload>),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        match &mut *self {
            Self::Whole(parts) => Poll::Ready(parts.take().map(|part| Ok(Frame::data(part)))),
            Self::Upload(upload) => Pin::new(&mut **upload).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(parts) => parts.is_empty(),
            Self::Upload(upload) => upload.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(parts) => SizeHint::with_exact(parts.len()),
            Self::Upload(upload) => upload.size_hint(),
        }
    }
}
