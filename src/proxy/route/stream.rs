//! A stream on its way to the client, judged while it passes: a provider that breaks off in the middle has failed,
//! however well it began.
//!
//! Not here: the beginning of a stream: `receive`.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::response;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::ask::{Asked, StreamStart};
use super::attempts::AttemptId;
use super::ending::Ending;
use super::exchange::Exchange;
use super::meaning::Form;
use super::receive::late;
use super::sse::Events;
use super::usage;
use crate::proxy::body::pieces::size_with;
use crate::proxy::config::Timeouts;
use crate::proxy::observe::facts::End;
use crate::proxy::outcome::Outcome;
use crate::proxy::timers::Pause;
use crate::proxy::upstream::{Chain, UpstreamBody};
use crate::silence::WatchedStream;

type Passed = Poll<Option<Result<Frame<Bytes>, Box<dyn Error + Send + Sync>>>>;

/// The body of an answer.
pub(crate) enum Payload {
    Whole(Bytes),
    Stream(Box<JudgedStream>),
    /// What a stream ends with that has no content.
    Failed(Bytes),
}

/// A body that settles its attempt when it ends.
pub(crate) struct JudgedStream {
    body: UpstreamBody,
    /// What was received to see whether the body begins at all.
    first: Option<Bytes>,
    /// `None` if its pieces cannot be read.
    events: Option<Events>,
    /// `None` if HTTP tells the end, or if nothing can be told.
    ending: Option<Ending>,
    /// `None` if its pieces cannot be read, or if silence detection is switched off.
    pieces: Option<WatchedStream>,
    /// When a probe that is judged at its end has run for long enough. `None` if it is judged at its beginning.
    proven: Option<Instant>,
    timeouts: Timeouts,
    /// When the request was sent.
    since: Instant,
    pause: Pause,
    attempt: AttemptId,
    /// Whether HTTP tells its end from one that broke off.
    has_an_end: bool,
    is_over: bool,
}

impl JudgedStream {
    /// For a body that began well.
    ///
    /// A good beginning is enough for a probe, so that nobody waits for a whole stream; the rest is judged as an
    /// ordinary call. But if the circuit was opened by answers that broke off, a good beginning proves nothing. Such a
    /// probe is judged at its end, or when it has run for `first_byte` and `idle`: its lease lasts one `idle` longer,
    /// and within that time the stream goes on or breaks off.
    pub(crate) fn begin(
        asked: &Asked,
        start: StreamStart,
        exchange: &mut Exchange,
        model: &str,
    ) -> (response::Parts, Self) {
        let StreamStart { head, first, body, form, ending, has_an_end } = start;
        let (attempt, since) = (asked.attempt, asked.since());
        let timeouts = asked.provider.config.timeouts.clone();
        let mut proven = None;
        if exchange.attempts.is_probe(attempt) {
            if exchange.attempts.circuit(attempt).breaks_off() {
                proven = Some(since + timeouts.first_byte + timeouts.idle);
            } else {
                exchange.attempts.prove(attempt);
            }
        }
        if body.is_end_stream() && form.is_none() && ending.is_none() {
            exchange.succeed(attempt);
        }
        let events = form.map(Events::new);
        let pieces = form.and_then(|_| exchange.attempts.pieces(attempt, model));
        let pause = Pause::new(exchange.attempts.core().timers.timer());
        let stream = Self {
            body,
            first: Some(first),
            events,
            ending,
            pieces,
            proven,
            timeouts,
            since,
            pause,
            attempt,
            has_an_end,
            is_over: false,
        };
        (head, stream)
    }

    /// What was received before it is passed on.
    pub(crate) fn begun(&self) -> &[u8] {
        self.first.as_deref().unwrap_or_default()
    }

    /// Whether it consists of server-sent events that can be read.
    pub(crate) fn is_events(&self) -> bool {
        self.events.as_ref().is_some_and(|events| events.form() == Form::Events)
    }

    pub(crate) fn is_over(&self) -> bool {
        // hyper's server stops polling a body of known length once it has all of it, and never asks for the end.
        let ends_by_itself = self.events.is_none() && self.ending.is_none();
        self.is_over || (ends_by_itself && self.first.is_none() && self.body.is_end_stream())
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        if self.events.is_some() {
            // An error event may replace its end.
            return SizeHint::default();
        }
        size_with(self.first.as_ref().map_or(0, Bytes::len) as u64, &self.body.size_hint())
    }

    pub(crate) fn poll(&mut self, exchange: &mut Exchange, cx: &mut Context<'_>) -> Passed {
        let attempt = self.attempt;
        while !self.is_over {
            let chunk = match self.first.take() {
                Some(first) => first,
                None => match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Pending => {
                        // The limit counts only while the client is ready for more: a slow client is not the provider's
                        // fault.
                        let whole_by = self.since + self.timeouts.total;
                        let (idle, pieces) = (self.timeouts.idle, &self.pieces);
                        if let Some(pieces) = pieces.as_ref().filter(|pieces| !pieces.is_paused()) {
                            pieces.wait(Instant::now().into_std());
                        }
                        ready!(self.pause.poll(|| whole_by.min(Instant::now() + idle), cx));
                        return self.break_off_late(exchange);
                    }
                    Poll::Ready(Some(Err(error))) => {
                        return self.break_off(exchange, Outcome::Cut, &Chain(&error).to_string());
                    }
                    Poll::Ready(None) => {
                        self.pieces.iter().for_each(|pieces| pieces.piece(Instant::now().into_std()));
                        return self.finish(exchange);
                    }
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => data,
                        // Trailers are dropped (RFC 9110 section 6.5.1 allows it): no client of a model reads them, and
                        // hyper would not ask for the end after them.
                        Err(_) => continue,
                    },
                },
            };
            let now = Instant::now();
            if self.body.is_end_stream() {
                if self.events.is_none() && self.ending.is_none() {
                    exchange.succeed(attempt);
                }
            } else {
                if now >= self.since + self.timeouts.total {
                    return self.break_off_late(exchange);
                }
                if self.proven.take_if(|proven| now >= *proven).is_some() {
                    exchange.attempts.prove(attempt);
                }
            }
            let passed = if let Some(events) = &mut self.events {
                let (passed, error) = events.push(&chunk);
                usage::of_pieces(&mut exchange.facts.usage, &passed);
                // Comments, pings and empty deltas only keep the stream alive.
                if self.pause.is_on() || self.pieces.as_ref().is_some_and(WatchedStream::has_pause) {
                    let has_content = events.has_content(&passed);
                    let end = if has_content { WatchedStream::piece } else { WatchedStream::interrupt };
                    self.pieces.iter().for_each(|pieces| end(pieces, now.into_std()));
                    // Bytes are content by the letter, but they end no pause that is watched.
                    if has_content || events.has_begun_a_piece() {
                        self.pause.end();
                    } else {
                        self.pause.interrupt(now);
                    }
                }
                if let Some(inside) = error {
                    exchange.fail_inside(attempt, &inside);
                } else if events.is_marked() {
                    // Whatever the client, or the connection, does now.
                    exchange.succeed(attempt);
                } else if self.has_an_end && self.body.is_end_stream() && events.is_between_events() {
                    exchange.succeed_unmarked(attempt);
                }
                passed
            } else {
                if let Some(ending) = &mut self.ending {
                    ending.push(&chunk);
                }
                self.pause.end();
                chunk
            };
            if !passed.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(passed))));
            }
        }
        Poll::Ready(None)
    }

    /// The provider has ended the body.
    fn finish(&mut self, exchange: &mut Exchange) -> Passed {
        let Some(events) = &mut self.events else {
            if self.ending.as_ref().is_some_and(|ending| !ending.is_whole()) {
                return self.break_off(exchange, Outcome::Cut, "the connection was closed within a JSON document");
            }
            exchange.succeed(self.attempt);
            self.is_over = true;
            return Poll::Ready(None);
        };
        let (rest, is_half) = events.finish();
        usage::of_pieces(&mut exchange.facts.usage, &rest);
        if is_half {
            return self.break_off(exchange, Outcome::Cut, "the stream ended in the middle of an event or line");
        }
        if !events.is_ended() && !self.has_an_end && events.form() == Form::Events {
            let message = "the connection was closed before an event that marks the end of the stream";
            return self.break_off(exchange, Outcome::Cut, message);
        }
        if events.is_marked() || events.form() == Form::Lines && !events.is_ended() {
            exchange.succeed(self.attempt);
        } else if !events.is_ended() {
            exchange.succeed_unmarked(self.attempt);
        }
        self.is_over = true;
        Poll::Ready((!rest.is_empty()).then(|| Ok(Frame::data(rest))))
    }

    fn break_off_late(&mut self, exchange: &mut Exchange) -> Passed {
        let (outcome, message) = late(Outcome::IdleTimeout, self.since, &self.timeouts);
        self.break_off(exchange, outcome, &message)
    }

    fn break_off(&mut self, exchange: &mut Exchange, outcome: Outcome, message: &str) -> Passed {
        if self.events.as_ref().is_some_and(Events::is_ended) {
            // The client has the end of the answer. What was held after it is no event.
            self.is_over = true;
            return Poll::Ready(None);
        }
        exchange.attempts.settle(self.attempt, outcome, &message);
        exchange.facts.end = End::Cut;
        self.is_over = true;
        // The client is told without what is meant for operators only.
        let shown = match outcome {
            Outcome::IdleTimeout => "The provider fell silent in the middle of the answer.",
            Outcome::TotalTimeout => "The provider took too long for the whole answer.",
            _ => "The provider broke off in the middle of the answer.",
        };
        Poll::Ready(Some(match &mut self.events {
            Some(events) if events.form() == Form::Events => {
                Ok(Frame::data(events.end_with(&exchange.facts.broken_stream(shown))))
            }
            _ => Err(message.into()),
        }))
    }
}
