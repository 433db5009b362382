//! Asking one provider, and judging its answer as long as nothing of it has gone to the client: until then another provider
//! can do better.
//!
//! Not here: whom to ask next: `failover`; connections: `upstream`.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{self, HeaderMap};
use axum::http::{HeaderValue, Response, StatusCode, Version, request, response};
use bytes::Bytes;
use serde::de::IgnoredAny;
use tokio::time::Instant;
use tracing::warn;

use super::classify::Outcome;
use super::client_body::Payload;
use super::config::{ServerConfig, Timeouts};
use super::cores::Core;
use super::hold::{Held, begin, hold, late};
use super::model::{Format, Named};
use super::parts::Parts;
use super::provider::Provider;
use super::record::Record;
use super::stream::JudgedStream;
use super::timers::{Timer, within};
use super::upload::Progress;
use super::upstream::{Chain, RequestBody, SendError, Upstream, UpstreamBody};
use super::{answer, headers};

/// An answer that is no good is held up to this size at least, since it says why.
const MIN_HELD: u64 = 64 << 10;
/// How long such a body may take, where another provider may do better.
const MAX_EXCUSE: Duration = Duration::from_secs(1);

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

/// A request that can be sent.
pub(crate) struct Prepared {
    pub(crate) head: request::Parts,
    /// All of it, or as much as there was to be read.
    pub(crate) body: Bytes,
    pub(crate) format: Format,
    pub(crate) named: Option<Named>,
}

/// A request to a provider, with all that it takes to wait for its answer, whatever becomes of the client.
pub(crate) struct Question {
    /// Of this provider.
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) request: Arc<Prepared>,
    pub(crate) body: RequestBody,
    /// Of a body that is passed on as it comes.
    pub(crate) progress: Option<Arc<Progress>>,
    /// Longer answers are passed on as they come.
    pub(crate) max_held: u64,
    pub(crate) core: Arc<Core>,
    pub(crate) started: Instant,
    pub(crate) timer: Timer,
}

/// What came of it, as far as it had to be known.
pub(crate) enum First {
    /// The client did not send what it had promised, and gets this.
    Fault(Response<Bytes>),
    Failed(Outcome, String),
    Unwanted(Refusal),
    Whole(response::Parts, Bytes),
    Stream(Box<Begun>),
}

/// An answer in another class than 2xx or 3xx.
pub(crate) type Refusal = Box<(Outcome, response::Parts, UpstreamBody)>;

/// The beginning of a stream.
pub(crate) struct Begun {
    pub(crate) head: response::Parts,
    pub(crate) first: Option<Bytes>,
    pub(crate) body: UpstreamBody,
    pub(crate) is_events: bool,
    /// Otherwise it has only been kept alive for now.
    pub(crate) has_content: bool,
}

impl First {
    /// Whether it shows that the provider answers.
    pub(crate) fn is_good(&self) -> bool {
        match self {
            Self::Whole(..) => true,
            Self::Stream(begun) => begun.has_content,
            Self::Fault(_) | Self::Failed(..) | Self::Unwanted(..) => false,
        }
    }
}

/// In a box: it may outlast its client's request.
pub(crate) type Call = Pin<Box<dyn Future<Output = First> + Send>>;

/// A request under way.
pub(crate) struct Running {
    pub(crate) call: Call,
    pub(crate) asking: Asking,
}

/// Who was asked, and when.
pub(crate) struct Asking {
    /// Its number in the record.
    pub(crate) attempt: usize,
    provider: Arc<Provider>,
    upstream: Arc<Upstream>,
    progress: Option<Arc<Progress>>,
    started: Instant,
}

impl Provider {
    /// Sends a request, and waits for all of its answer, or for the first content of a stream.
    pub(crate) fn ask(self: &Arc<Self>, attempt: usize, question: Question) -> Running {
        let asking = Asking {
            attempt,
            provider: Arc::clone(self),
            upstream: Arc::clone(&question.upstream),
            progress: question.progress.clone(),
            started: question.started,
        };
        Running { call: Box::pin(Arc::clone(self).first(question)), asking }
    }

    #[expect(clippy::manual_async_fn, reason = "it would keep its arguments twice")]
    fn first(self: Arc<Self>, mut question: Question) -> impl Future<Output = First> {
        async move {
            let response = match self.head(&mut question).await {
                Ok(response) => response,
                Err(first) => return first,
            };
            self.read(&mut question, response).await
        }
    }

    /// Sends a request, and waits for the head of its answer.
    async fn head(&self, question: &mut Question) -> Result<Response<UpstreamBody>, First> {
        let timeouts = &self.config.timeouts;
        let Question { upstream, request, body, progress, started, timer, .. } = question;
        let body = std::mem::replace(body, RequestBody::Whole(Parts::default()));
        // While the client's body is still coming, it is not the provider who is late.
        let since = || since(*started, progress.as_deref());
        let until = || since() + timeouts.first_byte.min(timeouts.total);
        let sent = within(timer, until, pin!(upstream.send(&request.head, body))).await;
        if let Some(fault) = progress.as_ref().and_then(|progress| progress.fault()) {
            return Err(First::Fault(fault.answer()));
        }
        match sent {
            Some(Ok(response)) => Ok(response),
            Some(Err(error)) => {
                let outcome = match error {
                    SendError::Connect(_) => Outcome::Connect,
                    SendError::Shortage(_) => Outcome::Shortage,
                    SendError::ConnectTimeout(_) => Outcome::ConnectTimeout,
                    SendError::Connection(_) => Outcome::Connection,
                };
                Err(First::Failed(outcome, error.to_string()))
            }
            None => Err(first_late(since(), timeouts)),
        }
    }

    /// Reads an answer as far as nothing of it goes to the client yet.
    fn read(&self, question: &mut Question, response: Response<UpstreamBody>) -> impl Future<Output = First> {
        let (mut head, mut body) = response.into_parts();
        async move {
            let timeouts = &self.config.timeouts;
            let Question { progress, max_held, core, started, timer, upstream, .. } = question;
            let since = || since(*started, progress.as_deref());
            let until = || since() + timeouts.first_byte.min(timeouts.total);
            // Otherwise its end is the connection's, and looks the same whether it was meant or not.
            let has_an_end = head.version == Version::HTTP_2
                || [header::CONTENT_LENGTH, header::TRANSFER_ENCODING]
                    .iter()
                    .any(|name| head.headers.contains_key(name));
            headers::to_client(&mut head.headers);
            upstream.strike_out_key(&mut head.headers);
            let outcome = Outcome::of(head.status);
            if outcome != Outcome::Ok {
                return First::Unwanted(Box::new((outcome, head, body)));
            }

            let is_event_stream = has_type(&head.headers, &["text/event-stream"]);
            // A compressed one, which was not asked for, can only be passed on as it is.
            let is_events = is_event_stream && !head.headers.contains_key(header::CONTENT_ENCODING);
            let is_stream = is_event_stream || has_type(&head.headers, &["audio/", "video/", "application/x-ndjson"]);
            if !is_stream && *max_held > 0 {
                return match hold(timer, &mut body, *max_held, &core.app.budget, since(), timeouts).await {
                    Ok(Held::Whole(whole)) => {
                        if !has_an_end && has_type(&head.headers, &["application/json"]) && !is_json(&whole) {
                            let message = "the connection was closed within a JSON document";
                            return First::Failed(Outcome::Cut, message.to_owned());
                        }
                        First::Whole(head, whole)
                    }
                    Ok(Held::TooLong(begun)) => {
                        First::Stream(Box::new(Begun { head, first: Some(begun), body, is_events, has_content: true }))
                    }
                    Err((outcome, message)) => First::Failed(outcome, message),
                };
            }
            match begin(timer, &mut body, until, is_events).await {
                Ok(Some((first, has_content))) => {
                    First::Stream(Box::new(Begun { head, first, body, is_events, has_content }))
                }
                Ok(None) => first_late(since(), timeouts),
                Err(error) => First::Failed(Outcome::Cut, Chain(&error).to_string()),
            }
        }
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

impl Asking {
    /// Judges what came of it. An answer in another class than 2xx or 3xx is [`refused`](Self::refused) then.
    pub(crate) fn judge(&self, first: First, record: &mut Record) -> Result<Asked, Refusal> {
        let attempt = self.attempt;
        Ok(match first {
            First::Fault(answer) => {
                record.settle(attempt, Outcome::ClientLeft, &"");
                Asked::Refused(answer.map(Payload::Whole))
            }
            First::Failed(outcome, message) => {
                record.settle(attempt, outcome, &message);
                let answer = match outcome {
                    Outcome::Shortage => answer::short(),
                    outcome if outcome.is_timeout() => answer::timed_out(),
                    _ => answer::unreachable(),
                };
                Asked::Declined(Declined { answer: answer.map(Payload::Whole), is_its_own: false, outcome })
            }
            First::Unwanted(refusal) => {
                // Before its body is there: what it says does not change what it is.
                let (outcome, head, _) = &*refusal;
                record.settle(attempt, *outcome, &head.status);
                return Err(refusal);
            }
            First::Whole(head, whole) => {
                record.first_byte(attempt);
                record.settle(attempt, Outcome::Ok, &"");
                Asked::Answered(Response::from_parts(head, Payload::Whole(whole)))
            }
            First::Stream(begun) => {
                let Begun { head, first, body, is_events, has_content } = *begun;
                if has_content {
                    record.first_byte(attempt);
                }
                let since = since(self.started, self.progress.as_deref());
                let stream = JudgedStream::begin(&self.provider, body, first, is_events, since, record, attempt);
                Asked::Answered(Response::from_parts(head, Payload::Stream(Box::new(stream))))
            }
        })
    }

    /// What an answer in another class says. `is_needed`: whether a client waits for that.
    ///
    /// # Cancel safety
    ///
    /// Dropping it, because the client has left, changes nothing.
    pub(crate) async fn refused(&self, refusal: Refusal, core: &Core, limits: &ServerConfig, is_needed: bool) -> Asked {
        let (outcome, head, body) = *refusal;
        let since = since(self.started, self.progress.as_deref());
        let said = if is_needed { self.excuse(outcome, body, core, limits, since).await } else { None };
        self.provider.refused(outcome, head, said, &self.upstream)
    }

    /// What an answer in another class says, if it is there soon.
    async fn excuse(
        &self,
        outcome: Outcome,
        mut body: UpstreamBody,
        core: &Core,
        limits: &ServerConfig,
        since: Instant,
    ) -> Option<Held> {
        let mut timer = core.timers.timer();
        let max = limits.replay_answer_bytes.max(MIN_HELD);
        let said = hold(&mut timer, &mut body, max, &core.app.budget, since, &self.provider.config.timeouts);
        match outcome {
            Outcome::ClientError => said.await.ok(),
            // Who could do better should not have to wait for it.
            _ => tokio::time::timeout(MAX_EXCUSE, said).await.ok().and_then(Result::ok),
        }
    }
}

/// When a request was sent, all of its body included.
fn since(started: Instant, progress: Option<&Progress>) -> Instant {
    progress.map_or(started, |progress| progress.since().max(started))
}

fn first_late(since: Instant, timeouts: &Timeouts) -> First {
    let (outcome, message) = late(Outcome::FirstByteTimeout, since, timeouts);
    First::Failed(outcome, message)
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
