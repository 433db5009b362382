//! A stream whose client has its head while no provider has sent content yet, and gets comments meanwhile, so that
//! nobody on the way closes the connection. Until there is content, the request still moves on from provider to
//! provider.
//!
//! Not here: asking them: `route`; when this begins: `v1`.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderValue, Response};
use serde_json::Value;
use tokio::time::Instant;

use crate::proxy::route::exchange::Exchange;
use crate::proxy::route::judge::Answer;
use crate::proxy::route::stream::Payload;
use crate::proxy::timers::{Pause, Timer};

/// What becomes of a request, with the exchange that it went through.
pub(crate) type Answering = Pin<Box<dyn Future<Output = (Exchange, Answer)> + Send>>;

/// Clients skip comments.
const COMMENT: &[u8] = b": keep-alive\n\n";

/// The body of an answer that there is not yet.
pub(crate) struct Waiting {
    answering: Answering,
    pause: Pause,
    every: Duration,
    /// Comments that were sent, in bytes.
    sent: usize,
}

pub(crate) enum Waited {
    Comment(Bytes),
    Over(Box<(Payload, Exchange)>),
}

impl Waiting {
    /// The client gets the head of an answer. `has_head` is told.
    pub(crate) fn begin(
        answering: Answering,
        timer: Timer,
        every: Duration,
        id: HeaderValue,
        has_head: &AtomicBool,
    ) -> Response<Self> {
        has_head.store(true, Ordering::Relaxed);
        let mut response = Response::new(Self { answering, pause: Pause::new(timer), every, sent: 0 });
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        // nginx would collect the comments.
        headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        headers.insert(HeaderName::from_static("x-request-id"), id);
        response
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Waited> {
        if let Poll::Ready((exchange, answer)) = self.answering.as_mut().poll(cx) {
            return Poll::Ready(self.end(exchange, answer));
        }
        if self.sent > 0 {
            let every = self.every;
            ready!(self.pause.poll(|| Instant::now() + every, cx));
            self.pause.end();
        }
        // The first one goes with the head.
        self.sent += COMMENT.len();
        Poll::Ready(Waited::Comment(Bytes::from_static(COMMENT)))
    }

    /// A stream of events goes on. Anything else ends the client's stream with an error: its status can no longer be
    /// sent.
    fn end(&self, mut exchange: Exchange, answer: Answer) -> Waited {
        let Answer { response, provider } = answer;
        let (mut head, payload) = response.into_parts();
        exchange.answer_with(&mut head, provider, true);
        exchange.facts.bytes_out += self.sent as u64;
        let is_good = head.status.is_success();
        let error = match payload {
            Payload::Stream(stream) if is_good && stream.is_events() => {
                return Waited::Over(Box::new((Payload::Stream(stream), exchange)));
            }
            Payload::Whole(body) if !is_good => serde_json::from_slice::<Value>(&body).ok(),
            _ => None,
        };
        let error = error.filter(|error| error.get("error").is_some());
        let broken = || exchange.facts.broken_stream("No provider sent a stream that could be passed on.");
        let error = error.unwrap_or_else(broken);
        let event = format!("event: error\ndata: {error}\n\n");
        Waited::Over(Box::new((Payload::Failed(event.into()), exchange)))
    }
}
