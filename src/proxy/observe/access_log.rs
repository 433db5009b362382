//! One line of the access log: a JSON object for each request, whose fields `docs/METRICS.md` lists.
//!
//! Not here: when a line is written: `route::exchange`; the thread that writes it: `lines`.

use std::io::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::facts::Facts;
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

pub(crate) fn write<'a>(
    text: &mut Vec<u8>,
    facts: &Facts,
    attempts: impl Iterator<Item = AttemptLine<'a>> + Clone,
    took: Duration,
) {
    let blamed = attempts.clone().filter(|attempt| attempt.outcome.is_failure()).map(|attempt| attempt.provider);
    let blamed: Vec<_> = blamed.collect();
    write!(text, "{{\"time\":\"{}\"", timestamp(now())).expect("a buffer takes everything");
    put(text, ",\"id\":", facts.id.to_str().unwrap_or_default());
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
    put(text, "],\"blamed\":", &blamed);
    put(text, ",\"stream\":", &facts.is_stream);
    put(text, ",\"bytes_in\":", &facts.bytes_in);
    put(text, ",\"bytes_out\":", &facts.bytes_out);
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
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
