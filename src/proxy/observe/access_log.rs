//! One line of the access log: a JSON object for each request, whose fields `docs/METRICS.md` lists.
//!
//! Not here: when a line is written: `route::exchange`; the thread that writes it: `lines`.

use std::io::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::facts::Facts;
use crate::proxy::answer::start_of;
use crate::proxy::outcome::{Outcome, Scope};
use crate::proxy::wall_clock::{now, timestamp};

/// One attempt, as the log shows it.
#[derive(Clone, Copy)]
pub(crate) struct AttemptLine<'a> {
    pub(crate) provider: &'a str,
    pub(crate) outcome: Outcome,
    pub(crate) through_silence: bool,
    pub(crate) took: Duration,
}

/// A candidate that was not asked, as the log shows it.
#[derive(Clone, Copy)]
pub(crate) struct SkippedLine<'a> {
    pub(crate) provider: &'a str,
    pub(crate) skip: Skip,
}

/// Why a candidate was not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Skip {
    /// Whose circuit refused it: `provider`, `model` or `key`.
    pub(crate) scope: &'static str,
    /// Why that is open, or `probe_in_flight`, `recovering` or `full`.
    pub(crate) cause: &'static str,
}

/// A client may send a text of any length.
const MAX_USER_AGENT: usize = 200;

/// `token` is the name of the one that the client has shown.
pub(crate) fn write<'a>(
    text: &mut Vec<u8>,
    facts: &Facts,
    token: Option<&str>,
    attempts: impl Iterator<Item = AttemptLine<'a>> + Clone,
    skipped: impl Iterator<Item = SkippedLine<'a>>,
    took: Duration,
) {
    let blamed = attempts.clone().filter(|attempt| attempt.outcome.is_failure()).map(|attempt| attempt.provider);
    let blamed: Vec<_> = blamed.collect();
    write!(text, "{{\"time\":\"{}\"", timestamp(now())).expect("a buffer takes everything");
    put(text, ",\"id\":", facts.id.to_str().unwrap_or_default());
    put(text, ",\"client\":", &facts.client);
    put(text, ",\"token\":", &token);
    let user_agent = facts.user_agent.as_ref().and_then(|it| it.to_str().ok());
    put(text, ",\"user_agent\":", &user_agent.map(|it| start_of(it, MAX_USER_AGENT)));
    put(text, ",\"method\":", facts.method.as_str());
    // The query is left out: it may hold secrets.
    put(text, ",\"path\":", facts.uri.path());
    put(text, ",\"model\":", &facts.model);
    put(text, ",\"status\":", &facts.status);
    put(text, ",\"end\":", &facts.end);
    let answered = attempts.clone().find(|attempt| attempt.outcome.is_success());
    put(text, ",\"provider\":", &answered.map(|attempt| attempt.provider));
    put(text, ",\"provider_request_id\":", &facts.provider_id.as_ref().and_then(|id| id.to_str().ok()));
    text.extend_from_slice(b",\"attempts\":[");
    for (number, AttemptLine { provider, outcome, through_silence, took }) in attempts.enumerate() {
        put(text, if number == 0 { "{\"provider\":" } else { ",{\"provider\":" }, provider);
        put(text, ",\"outcome\":", outcome.as_str());
        if outcome.scope() != Scope::Nobody {
            put(text, ",\"scope\":", outcome.scope().as_str());
        }
        if through_silence {
            put(text, ",\"through_silence\":", &true);
        }
        put(text, ",\"ms\":", &millis(took));
        text.push(b'}');
    }
    text.extend_from_slice(b"],\"skipped\":[");
    for (number, SkippedLine { provider, skip }) in skipped.enumerate() {
        put(text, if number == 0 { "{\"provider\":" } else { ",{\"provider\":" }, provider);
        put(text, ",\"scope\":", skip.scope);
        put(text, ",\"cause\":", skip.cause);
        text.push(b'}');
    }
    put(text, "],\"blamed\":", &blamed);
    put(text, ",\"stream\":", &facts.is_stream);
    put(text, ",\"bytes_in\":", &facts.bytes_in);
    put(text, ",\"bytes_out\":", &facts.bytes_out);
    put(text, ",\"tokens_in\":", &facts.usage.tokens_in);
    put(text, ",\"tokens_out\":", &facts.usage.tokens_out);
    put(text, ",\"tokens_cached\":", &facts.usage.cached);
    put(text, ",\"first_byte_ms\":", &facts.first_byte.map(millis));
    put(text, ",\"ms\":", &millis(took));
    text.push(b'}');
}

/// Writes `key`, which includes all that stands between it and the value before, and the value. The key goes in as it
/// is: serde would escape it like a value, which took as long as the rest of the line.
fn put(text: &mut Vec<u8>, key: &'static str, value: &(impl Serialize + ?Sized)) {
    text.extend_from_slice(key.as_bytes());
    serde_json::to_writer(text, value).expect("texts and numbers");
}

/// In milliseconds, to a thousandth.
pub(crate) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
