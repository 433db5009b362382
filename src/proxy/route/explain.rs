//! Why nobody could answer, for a client that has shown a token: its developer needs no operator to see what was tried.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};

use super::exchange::Exchange;
use super::judge::Answer;
use super::stream::Payload;
use crate::proxy::observe::access_log::{AttemptLine, SkippedLine};

/// Adds `error.fusebox` to an error, if it is JSON with an `error`.
pub(crate) fn explain(exchange: &Exchange, answer: Answer) -> Answer {
    if exchange.facts.token.is_none() {
        return answer;
    }
    let Answer { response, provider } = answer;
    let (mut head, mut payload) = response.into_parts();
    if let Payload::Whole(body) = &mut payload
        && let Some(explained) = explained(exchange, &head.headers, body)
    {
        *body = explained;
        head.headers.remove(header::CONTENT_LENGTH);
    }
    Answer { response: http::Response::from_parts(head, payload), provider }
}

fn explained(exchange: &Exchange, headers: &HeaderMap, body: &[u8]) -> Option<Bytes> {
    let mut body: Value = serde_json::from_slice(body).ok()?;
    let error = body.get_mut("error")?.as_object_mut()?;
    let attempt = |AttemptLine { provider, outcome, took, .. }: AttemptLine<'_>| json!({"provider": provider, "outcome": outcome.as_str(), "ms": took.as_millis()});
    let skipped = |SkippedLine { provider, skip }: SkippedLine<'_>| json!({"provider": provider, "scope": skip.scope, "cause": skip.cause});
    let seconds: Option<u64> =
        headers.get(header::RETRY_AFTER).and_then(|value: &HeaderValue| value.to_str().ok()?.parse().ok());
    let said = json!({
        "attempts": exchange.attempts.lines().map(attempt).collect::<Vec<_>>(),
        "skipped": exchange.attempts.skipped().map(skipped).collect::<Vec<_>>(),
        "retry_after": seconds,
    });
    error.insert("fusebox".to_owned(), said);
    Some(body.to_string().into())
}
