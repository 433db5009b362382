//! The body of an answer on its way to the client, which takes the request's record with it: its end is the record's.
//!
//! Not here: judging a stream: `stream`.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::http::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::record::{End, Record};
use super::stream::JudgedStream;

/// The body of an answer.
pub(crate) enum Payload {
    Whole(Bytes),
    Stream(Box<JudgedStream>),
}

/// An answer's body on its way, with its record.
pub(crate) struct ClientBody {
    payload: Payload,
    record: Record,
}

impl ClientBody {
    /// The answer to the client. `provider`: whose it is; without one it is the gateway's own.
    pub(crate) fn answer(mut record: Record, answer: Response<Payload>, provider: Option<usize>) -> Response<Self> {
        let (mut head, payload) = answer.into_parts();
        record.set_answer(&mut head, provider, matches!(payload, Payload::Stream(_)));
        if matches!(&payload, Payload::Whole(bytes) if bytes.is_empty()) {
            // It will not be asked for its body.
            record.set_end(End::Complete);
        }
        Response::from_parts(head, Self { payload, record })
    }
}

impl http_body::Body for ClientBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Self { payload, record } = &mut *self;
        let frame = match payload {
            Payload::Whole(bytes) => {
                record.set_end(End::Complete);
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Payload::Stream(stream) => stream.poll(record, cx),
        };
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            record.count_bytes_out(data.len());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.payload {
            Payload::Whole(bytes) => bytes.is_empty(),
            Payload::Stream(stream) => stream.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.payload {
            Payload::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Payload::Stream(stream) => stream.size_hint(),
        }
    }
}
