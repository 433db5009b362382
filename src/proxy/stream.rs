//! A stream on its way to the client, judged while it passes: a provider that stops in the middle has failed, however well
//! it began.
//!
//! Not here: a stream that has not begun: `hold`.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::classify::Outcome;
use super::config::Timeouts;
use super::hold::late;
use super::pieces::size_with;
use super::provider::Provider;
use super::record::{End, Record};
use super::silence::Chunks;
use super::sse::{Events, has_content};
use super::timers::Pause;
use super::upstream::{Chain, UpstreamBody};
use crate::CircuitBreaker;

type Passed = Poll<Option<Result<Frame<Bytes>, Box<dyn Error + Send + Sync>>>>;

/// A body that settles its attempt when it ends.
pub(crate) struct JudgedStream {
    body: UpstreamBody,
    /// Read ahead, to see whether the body begins at all.
    first: Option<Bytes>,
    /// Of a stream of events.
    events: Option<Events>,
    /// When a probe that is judged at its end has run for long enough.
    proven: Option<Instant>,
    timeouts: Timeouts,
    /// When the request was sent.
    since: Instant,
    pause: Pause,
    /// Of a stream of events.
    chunks: Option<Chunks>,
    /// Its number in the record.
    attempt: usize,
    is_over: bool,
}

impl JudgedStream {
    /// For a body that has begun well, with `first`.
    ///
    /// A good beginning is all that is asked of a probe, so that nobody waits for a whole stream; the rest is then judged as an
    /// ordinary call. But where the circuit was opened by answers that broke off, a good beginning proves nothing: that probe
    /// is judged at its end, or when it has run for as long as its lease is safe (a `first_byte` and an `idle`; the lease has
    /// one `idle` more, within which something happens).
    pub(crate) fn begin(
        provider: &Provider,
        body: UpstreamBody,
        first: Option<Bytes>,
        is_events: bool,
        since: Instant,
        record: &mut Record,
        attempt: usize,
    ) -> Self {
        let timeouts = provider.config.timeouts.clone();
        let mut proven = None;
        if record.is_probe(attempt) {
            if opened_by_broken_answers(&provider.breaker) {
                proven = Some(since + timeouts.first_byte + timeouts.idle);
            } else {
                record.prove(attempt);
            }
        }
        if body.is_end_stream() {
            succeed(record, attempt);
        }
        let events = is_events.then(Events::default);
        let chunks = if is_events { record.chunks(attempt) } else { None };
        let pause = Pause::new(record.timer());
        Self { body, first, events, proven, timeouts, since, pause, chunks, attempt, is_over: false }
    }

    pub(crate) fn is_over(&self) -> bool {
        // With a known length hyper's server stops reading once it has all of it, and never asks for the end.
        self.is_over || (self.events.is_none() && self.first.is_none() && self.body.is_end_stream())
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        if self.events.is_some() {
            // It may end otherwise than the provider meant it.
            return SizeHint::default();
        }
        size_with(self.first.as_ref().map_or(0, Bytes::len) as u64, &self.body.size_hint())
    }

    pub(crate) fn poll(&mut self, record: &mut Record, cx: &mut Context<'_>) -> Passed {
        let attempt = self.attempt;
        while !self.is_over {
            let chunk = match self.first.take() {
                Some(first) => first,
                None => match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Pending => {
                        // Its time counts only while the client is ready for more: a slow client is not the provider's fault.
                        let whole_by = self.since + self.timeouts.total;
                        if let Some(chunks) = &mut self.chunks {
                            chunks.wait();
                        }
                        ready!(self.pause.poll(|| whole_by.min(Instant::now() + self.timeouts.idle), cx));
                        return self.break_off_late(record);
                    }
                    Poll::Ready(Some(Err(error))) => {
                        return self.break_off(record, Outcome::Cut, &Chain(&error).to_string());
                    }
                    Poll::Ready(None) => {
                        if let Some(chunks) = &mut self.chunks {
                            chunks.come(|| true);
                        }
                        succeed(record, attempt);
                        self.is_over = true;
                        let rest = self.events.as_mut().map(Events::rest).unwrap_or_default();
                        return Poll::Ready((!rest.is_empty()).then(|| Ok(Frame::data(rest))));
                    }
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => data,
                        // Trailers, which no client of a model waits for (RFC 9110 section 6.5.1 lets them be dropped). After
                        // them the end would not be asked for.
                        Err(_) => continue,
                    },
                },
            };
            self.pause.end();
            if let Some(chunks) = &mut self.chunks {
                // Comments, pings and empty deltas only keep the stream alive.
                chunks.come(|| has_content(&chunk));
            }
            if self.body.is_end_stream() {
                succeed(record, attempt);
            } else {
                let now = Instant::now();
                if now >= self.since + self.timeouts.total {
                    return self.break_off_late(record);
                }
                if self.proven.take_if(|proven| now >= *proven).is_some() {
                    record.prove(attempt);
                }
            }
            let passed = match &mut self.events {
                Some(events) => events.push(&chunk),
                None => chunk,
            };
            if !passed.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(passed))));
            }
        }
        Poll::Ready(None)
    }

    fn break_off_late(&mut self, record: &mut Record) -> Passed {
        let (outcome, message) = late(Outcome::IdleTimeout, self.since, &self.timeouts);
        self.break_off(record, outcome, &message)
    }

    fn break_off(&mut self, record: &mut Record, outcome: Outcome, message: &str) -> Passed {
        record.settle(self.attempt, outcome, &message);
        record.set_end(End::Cut);
        self.is_over = true;
        // To the client without what only an operator should see.
        let shown = match outcome {
            Outcome::IdleTimeout => "The provider fell silent in the middle of the answer.",
            Outcome::TotalTimeout => "The provider took too long for the whole answer.",
            _ => "The provider broke off in the middle of the answer.",
        };
        Poll::Ready(Some(match &mut self.events {
            Some(events) => Ok(Frame::data(events.error(shown))),
            None => Err(message.into()),
        }))
    }
}

fn succeed(record: &mut Record, attempt: usize) {
    record.settle(attempt, Outcome::Ok, &"");
    record.set_end(End::Complete);
}

fn opened_by_broken_answers(breaker: &CircuitBreaker) -> bool {
    breaker.snapshot().last_error.is_some_and(|error| Outcome::breaks_off(error.error_type()))
}
