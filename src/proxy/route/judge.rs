//! Judging what came back for an attempt: the breaker is told how it went, and either the client gets an answer or
//! another provider is asked.
//!
//! Not here: which outcome an answer stands for: `outcome`; whom to ask next: `failover`.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, response};
use tokio::time::Instant;
use tracing::warn;

use super::ask::{Asked, ErrorBody, ErrorReply, Reply, StreamStart, is_encoded};
use super::exchange::Exchange;
use super::receive::{Held, hold};
use super::stream::{JudgedStream, Payload};
use crate::proxy::answer;
use crate::proxy::config::ServerConfig;
use crate::proxy::core::Core;
use crate::proxy::outcome::Outcome;
use crate::proxy::provider::ProviderId;
use crate::proxy::upstream::UpstreamBody;

/// The body of an error says why, and is held up to this size at least.
const MIN_HELD: u64 = 64 << 10;
/// How long the body of an error may take if another provider may do better.
const MAX_ERROR_BODY: Duration = Duration::from_secs(1);

/// An answer for the client.
pub(crate) struct Answer {
    pub(crate) response: Response<Payload>,
    /// Whose it is; `None` stands for the gateway's own.
    pub(crate) provider: Option<ProviderId>,
}

/// What follows from a reply.
pub(crate) enum Verdict {
    /// This goes to the client.
    Answer(Answer),
    /// Another candidate may do better.
    Next(Fallback),
}

/// A failed attempt's answer, for the client if no candidate does better.
pub(crate) struct Fallback {
    pub(crate) answer: Answer,
    outcome: Outcome,
}

impl Fallback {
    /// How much it helps the client: most of all to be asked to come back later, then to learn of a failure of a
    /// provider that could have answered, and least of all to learn that one could not.
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

/// Settles an attempt by its reply. The body of an error is still to be received: see [`error_verdict`].
pub(crate) fn judge(
    asked: &Asked,
    reply: Reply,
    exchange: &mut Exchange,
    model: &str,
) -> Result<Verdict, Box<ErrorReply>> {
    let attempt = asked.attempt;
    let provider = Some(exchange.attempts.provider(attempt));
    Ok(match reply {
        Reply::ClientFault(answer) => {
            exchange.attempts.settle(attempt, Outcome::ClientLeft, &"");
            Verdict::Answer(Answer { response: answer.map(Payload::Whole), provider: None })
        }
        Reply::Failed(outcome, message) => {
            exchange.attempts.settle(attempt, outcome, &message);
            let response = match outcome {
                Outcome::Shortage => answer::short(),
                Outcome::Empty => answer::empty(),
                outcome if outcome.is_timeout() => answer::timed_out(),
                _ => answer::unreachable(),
            };
            let answer = Answer { response: response.map(Payload::Whole), provider: None };
            Verdict::Next(Fallback { answer, outcome })
        }
        Reply::Error(reply) => {
            // Before its body is received, which cannot change the outcome.
            exchange.attempts.settle(attempt, reply.outcome, &reply.message);
            return Err(reply);
        }
        Reply::Whole(head, whole) => {
            exchange.attempts.first_byte(attempt);
            exchange.attempts.settle(attempt, Outcome::Ok, &"");
            Verdict::Answer(Answer { response: Response::from_parts(head, Payload::Whole(whole)), provider })
        }
        Reply::Stream(start) => {
            let StreamStart { head, first, body, is_events, ending, has_content, has_an_end } = *start;
            if has_content {
                exchange.attempts.first_byte(attempt);
            }
            let stream =
                JudgedStream::begin(asked, body, first, is_events.then_some(has_an_end), ending, exchange, model);
            let response = Response::from_parts(head, Payload::Stream(Box::new(stream)));
            Verdict::Answer(Answer { response, provider })
        }
    })
}

/// What follows from an error, whose body is received if a client `waits` for it.
///
/// # Cancel safety
///
/// Dropping it, because the client has left, changes nothing.
pub(crate) async fn error_verdict(
    asked: &Asked,
    provider: ProviderId,
    reply: ErrorReply,
    core: &Core,
    limits: &ServerConfig,
    waits: bool,
) -> Verdict {
    let ErrorReply { outcome, head, body, .. } = reply;
    let said = match body {
        ErrorBody::Whole(body) => Some(body),
        // The gateway could not strike out its key.
        ErrorBody::Coming(_) if is_encoded(&head.headers) => None,
        ErrorBody::Coming(body) if waits => error_body(asked, outcome, body, core, limits, asked.since()).await,
        ErrorBody::Coming(_) => None,
    };
    let status = head.status;
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::PAYMENT_REQUIRED | StatusCode::FORBIDDEN) {
        warn!(provider = asked.provider.name(), %status, "a provider refused the gateway's account");
    }
    let is_its_own = said.is_some() && outcome != Outcome::Protocol
        // It is about the gateway's key, and may quote a part of it.
        && status != StatusCode::UNAUTHORIZED;
    let answer = match said {
        Some(body) if is_its_own => {
            let body = Payload::Whole(asked.upstream.without_secrets(body));
            Answer { response: Response::from_parts(head, body), provider: Some(provider) }
        }
        _ => Answer { response: instead_of(outcome, &head).map(Payload::Whole), provider: None },
    };
    match outcome {
        Outcome::ClientError if is_its_own => Verdict::Answer(answer),
        _ => Verdict::Next(Fallback { answer, outcome }),
    }
}

fn instead_of(outcome: Outcome, head: &response::Parts) -> Response<Bytes> {
    if outcome.is_failure() { answer::unreachable() } else { answer::refused_by_provider(head.status) }
}

/// The whole body of an error, or `None` if it is too long or takes too long.
async fn error_body(
    asked: &Asked,
    outcome: Outcome,
    mut body: UpstreamBody,
    core: &Core,
    limits: &ServerConfig,
    since: Instant,
) -> Option<Bytes> {
    let mut timer = core.timers.timer();
    let max = limits.replay_answer_bytes.max(MIN_HELD);
    let timeouts = &asked.provider.config.timeouts;
    let held = hold(&mut timer, &mut body, None, max, &core.app.budget, since, timeouts);
    let held = match outcome {
        Outcome::ClientError => tokio::time::timeout(timeouts.first_byte, held).await.ok()?.ok()?,
        // A provider that could do better should not have to wait for it.
        _ => tokio::time::timeout(MAX_ERROR_BODY, held).await.ok()?.ok()?,
    };
    match held {
        Held::Whole(body) => Some(body),
        Held::TooLong(_) => None,
    }
}
