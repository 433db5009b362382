//! Judging what came back for an attempt: the breaker is told how it went, and either the client gets an answer or
//! another provider is asked.
//!
//! Not here: whose fault an error is: `blame`; whom to ask next: `failover`.

use bytes::Bytes;
use http::{Response, StatusCode, response};

use super::ask::{Asked, ErrorReply, Reply};
use super::blame;
use super::exchange::Exchange;
use super::stream::{JudgedStream, Payload};
use super::usage;
use crate::proxy::outcome::{Outcome, Scope};
use crate::proxy::provider::ProviderId;
use crate::proxy::{answer, later};

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
    /// A candidate with more room may do better.
    Longer(Fallback),
    /// This goes to the client, unless another candidate has failed before: what is missing here may be there.
    Missing(Fallback),
}

/// A failed attempt's answer, for the client if no candidate does better.
pub(crate) struct Fallback {
    pub(crate) answer: Answer,
    outcome: Outcome,
    /// Whether it says that something was not found, which may be true of this provider alone.
    pub(crate) is_not_found: bool,
}

impl Fallback {
    /// How much it helps the client: most of all to learn what to do otherwise, or to come back later, then of a
    /// failure of a provider that could have answered, and least of all that one could not.
    pub(crate) fn usefulness(&self) -> u8 {
        match self.outcome {
            Outcome::ContextLength => 5,
            Outcome::RateLimited | Outcome::Later => 4,
            Outcome::ServerError => 3,
            outcome if outcome.is_timeout() => 2,
            outcome if outcome.is_failure() => 1,
            _ => 0,
        }
    }
}

/// Settles an attempt by its reply.
pub(crate) fn judge(asked: &Asked, reply: Reply, exchange: &mut Exchange, model: &str) -> Verdict {
    let attempt = asked.attempt;
    let provider = Some(exchange.attempts.provider(attempt));
    match reply {
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
            Verdict::Next(Fallback { answer, outcome, is_not_found: false })
        }
        Reply::Error(reply) => {
            exchange.attempts.settle_until(attempt, reply.blame.outcome, reply.blame.later, &reply.message);
            error_verdict(asked, provider, *reply)
        }
        Reply::Whole(head, whole) => {
            exchange.attempts.first_byte(attempt);
            exchange.attempts.settle(attempt, Outcome::Ok, &"");
            usage::of_answer(&mut exchange.facts.usage, &whole);
            if let Some(later) = later::used_up(&head.headers, blame::now) {
                exchange.attempts.use_up(attempt, later);
            }
            Verdict::Answer(Answer { response: Response::from_parts(head, Payload::Whole(whole)), provider })
        }
        Reply::Stream(start) => {
            exchange.attempts.first_byte(attempt);
            if let Some(later) = later::used_up(&start.head.headers, blame::now) {
                exchange.attempts.use_up(attempt, later);
            }
            let (head, stream) = JudgedStream::begin(asked, *start, exchange, model);
            let response = Response::from_parts(head, Payload::Stream(Box::new(stream)));
            Verdict::Answer(Answer { response, provider })
        }
        Reply::Session(mut head) => {
            exchange.attempts.first_byte(attempt);
            head.extensions.insert(attempt);
            Verdict::Answer(Answer { response: Response::from_parts(*head, Payload::Whole(Bytes::new())), provider })
        }
    }
}

/// What follows from an error.
fn error_verdict(asked: &Asked, provider: Option<ProviderId>, reply: ErrorReply) -> Verdict {
    let ErrorReply { blame, head, body, .. } = reply;
    let outcome = blame.outcome;
    let answer = match body {
        // A message about the gateway's account may quote a part of its key, and is nothing for its clients.
        Some(body) if outcome != Outcome::Protocol && head.status != StatusCode::UNAUTHORIZED => {
            let body = Payload::Whole(asked.upstream.without_secrets(body));
            Answer { response: Response::from_parts(head, body), provider }
        }
        _ => Answer { response: instead_of(outcome, &head).map(Payload::Whole), provider: None },
    };
    let is_its_own = answer.provider.is_some();
    let fallback = Fallback { answer, outcome, is_not_found: blame.is_not_found };
    match outcome {
        Outcome::ClientError if is_its_own => {
            if fallback.is_not_found {
                Verdict::Missing(fallback)
            } else {
                Verdict::Answer(fallback.answer)
            }
        }
        Outcome::ContextLength if is_its_own => Verdict::Longer(fallback),
        _ => Verdict::Next(fallback),
    }
}

fn instead_of(outcome: Outcome, head: &response::Parts) -> Response<Bytes> {
    if outcome == Outcome::Redirected {
        answer::redirected()
    } else if outcome.is_failure() || outcome.scope() == Scope::Model {
        answer::unreachable()
    } else {
        answer::refused_by_provider(head.status)
    }
}
