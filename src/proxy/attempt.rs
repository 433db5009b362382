//! Asking one provider, and judging its answer as long as nothing of it has gone to the client: until then another provider
//! can do better.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::header::{self, HeaderMap};
use axum::http::{HeaderValue, Response, StatusCode, Version, request, response};
use serde::de::IgnoredAny;
use tokio::time::Instant;
use tracing::warn;

use super::classify::Outcome;
use super::config::{ProviderConfig, ServerConfig, Timeouts};
use super::hold::{Held, hold, late, next, within};
use super::metrics::ProviderMetrics;
use super::record::{Payload, Record};
use super::stream::JudgedStream;
use super::upload::Progress;
use super::upstream::{Chain, RequestBody, SendError, Upstream};
use super::{answer, headers};
use crate::CircuitBreaker;

/// An answer that is no good is held up to this size at least, since it says why.
const MIN_HELD: u64 = 64 << 10;
/// How long such a body may take, where another provider may do better.
const MAX_EXCUSE: Duration = Duration::from_secs(1);

/// A provider and its breaker.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) config: ProviderConfig,
    pub(crate) breaker: Arc<CircuitBreaker>,
    pub(crate) metrics: Arc<ProviderMetrics>,
    since: Instant,
    /// When the newest request was sent that failed, in microseconds after `since`.
    newest_failure: AtomicU64,
}

/// What asking a provider led to.
pub(crate) enum Asked {
    /// This goes to the client.
    Answered(Response<Payload>),
    /// Another candidate may do better; if there is none, this is an answer.
    Declined(Declined),
    /// The client did not send what it had promised, and gets this.
    Refused(Response<Payload>),
}

/// An answer for when there is no better one.
pub(crate) struct Declined {
    pub(crate) answer: Response<Payload>,
    /// Whether it is the provider's own.
    pub(crate) is_its_own: bool,
    outcome: Outcome,
}

impl Declined {
    /// The more, the more it helps the client. Being asked to come back later comes first, then what happened to a provider
    /// that could have served it, and last that one never could.
    pub(crate) fn usefulness(&self) -> u8 {
        match self.outcome {
            Outcome::RateLimited => 4,
            Outcome::ServerError => 3,
            outcome if outcome.is_timeout() => 2,
            outcome if outcome.is_failure() => 1,
            _ => 0,
        }
    }
}

/// A request to a provider.
pub(crate) struct Question<'a> {
    /// Of this provider.
    pub(crate) upstream: &'a Upstream,
    pub(crate) head: &'a request::Parts,
    pub(crate) body: RequestBody,
    /// Of a body that is passed on as it comes.
    pub(crate) progress: Option<&'a Progress>,
    pub(crate) limits: &'a ServerConfig,
}

impl Provider {
    pub(crate) fn new(config: ProviderConfig, breaker: Arc<CircuitBreaker>, metrics: Arc<ProviderMetrics>) -> Self {
        Self { config, breaker, metrics, since: Instant::now(), newest_failure: AtomicU64::new(0) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// A request failed that was sent then.
    pub(crate) fn note_failure(&self, sent: Instant) {
        self.newest_failure.fetch_max(self.micros(sent), Ordering::Relaxed);
    }

    /// Whether a request failed that was sent later. What was sent before an outage may well be answered during it; that says
    /// nothing about now, and must not end a row of failures.
    pub(crate) fn has_failed_since(&self, sent: Instant) -> bool {
        self.newest_failure.load(Ordering::Relaxed) > self.micros(sent)
    }

    /// Never 0: no failure has been at 0.
    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.since).as_micros()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Sends a request and waits for the answer: for all of it, or for the first piece of a stream.
    ///
    /// # Cancel safety
    ///
    /// Dropping it, because the client has left, counts against nobody.
    pub(crate) async fn ask(&self, question: Question<'_>, record: &mut Record) -> Asked {
        let timeouts = &self.config.timeouts;
        let Question { upstream, head, body, progress, limits } = question;
        let started = record.attempt_started();
        // While the client's body is still coming, it is not the provider who is late.
        let since = || progress.map_or(started, |progress| progress.since().max(started));
        let mut timer = record.timer();

        let until = || since() + timeouts.first_byte.min(timeouts.total);
        let sent = within(&mut timer, until, pin!(upstream.send(head, body))).await;
        if let Some(fault) = progress.and_then(Progress::fault) {
            record.settle(Outcome::ClientLeft, &"");
            return Asked::Refused(fault.answer().map(Payload::Whole));
        }
        let response = match sent {
            Some(Ok(response)) => response,
            Some(Err(error)) => {
                let outcome = match error {
                    SendError::Connect(_) => Outcome::Connect,
                    SendError::ConnectTimeout(_) => Outcome::ConnectTimeout,
                    SendError::Connection(_) => Outcome::Connection,
                };
                return failed(record, outcome, &error);
            }
            None => return failed_late(record, since(), timeouts),
        };
        let (mut head, mut body) = response.into_parts();
        // Otherwise its end is the connection's, and looks the same whether it was meant or not.
        let has_an_end = head.version == Version::HTTP_2
            || [header::CONTENT_LENGTH, header::TRANSFER_ENCODING].iter().any(|name| head.headers.contains_key(name));
        headers::to_client(&mut head.headers);
        let outcome = Outcome::of(head.status);
        if outcome != Outcome::Ok {
            // Before its body is there: what it says does not change what it is.
            record.settle(outcome, &head.status);
            let max = limits.replay_answer_bytes.max(MIN_HELD);
            let said = hold(&mut timer, &mut body, max, since(), timeouts);
            let said = match outcome {
                Outcome::ClientError => said.await.ok(),
                // Who could do better should not have to wait for it.
                _ => tokio::time::timeout(MAX_EXCUSE, said).await.ok().and_then(Result::ok),
            };
            return self.refused(outcome, head, said, upstream);
        }

        let is_event_stream = has_type(&head.headers, &["text/event-stream"]);
        // A compressed one, which was not asked for, can only be passed on as it is.
        let is_events = is_event_stream && !head.headers.contains_key(header::CONTENT_ENCODING);
        let is_stream = is_event_stream || has_type(&head.headers, &["audio/", "video/", "application/x-ndjson"]);
        let first = if is_stream || limits.replay_answer_bytes == 0 {
            match within(&mut timer, until, pin!(next(&mut body))).await {
                Some(Ok(first)) => first,
                Some(Err(error)) => return failed(record, Outcome::Cut, &Chain(&error)),
                None => return failed_late(record, since(), timeouts),
            }
        } else {
            match hold(&mut timer, &mut body, limits.replay_answer_bytes, since(), timeouts).await {
                Ok(Held::Whole(whole)) => {
                    if !has_an_end && has_type(&head.headers, &["application/json"]) && !is_json(&whole) {
                        return failed(record, Outcome::Cut, &"the connection was closed within a JSON document");
                    }
                    record.first_byte();
                    record.settle(Outcome::Ok, &"");
                    return Asked::Answered(Response::from_parts(head, Payload::Whole(whole)));
                }
                Ok(Held::TooLong(begun)) => Some(begun),
                Err((outcome, message)) => return failed(record, outcome, &message),
            }
        };
        record.first_byte();
        if is_events {
            // Its length changes if it ends with an error.
            head.headers.remove(header::CONTENT_LENGTH);
        }
        let stream = JudgedStream::begin(self, body, first, is_events, since(), record);
        Asked::Answered(Response::from_parts(head, Payload::Stream(Box::new(stream))))
    }

    /// An answer in another class than 2xx or 3xx. `said` is `None` if its body did not come whole.
    fn refused(&self, outcome: Outcome, head: response::Parts, said: Option<Held>, upstream: &Upstream) -> Asked {
        let status = head.status;
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::PAYMENT_REQUIRED | StatusCode::FORBIDDEN) {
            warn!(provider = self.name(), %status, "a provider refused the gateway's account");
        }
        let own = match said {
            _ if outcome == Outcome::Protocol => None,
            // It is about the gateway's key, and may show a part of it.
            _ if status == StatusCode::UNAUTHORIZED => None,
            Some(Held::Whole(body)) => Some(Response::from_parts(head, Payload::Whole(upstream.without_key(body)))),
            _ => None,
        };
        let is_its_own = own.is_some();
        let answer = own.unwrap_or_else(|| {
            if outcome.is_failure() { answer::unreachable() } else { answer::refused_by_provider(status) }
                .map(Payload::Whole)
        });
        match outcome {
            Outcome::ClientError if is_its_own => Asked::Answered(answer),
            _ => Asked::Declined(Declined { answer, is_its_own, outcome }),
        }
    }
}

fn failed(record: &mut Record, outcome: Outcome, message: &dyn fmt::Display) -> Asked {
    record.settle(outcome, message);
    let answer = if outcome.is_timeout() { answer::timed_out() } else { answer::unreachable() };
    Asked::Declined(Declined { answer: answer.map(Payload::Whole), is_its_own: false, outcome })
}

fn failed_late(record: &mut Record, since: Instant, timeouts: &Timeouts) -> Asked {
    let (outcome, message) = late(Outcome::FirstByteTimeout, since, timeouts);
    failed(record, outcome, &message)
}

fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(text).is_ok()
}

fn has_type(headers: &HeaderMap, types: &[&str]) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    types
        .iter()
        .any(|wanted| value.get(..wanted.len()).is_some_and(|start| start.eq_ignore_ascii_case(wanted.as_bytes())))
}
