//! One request from its headers to the end of its answer: what is told of it in its answer's headers, in the access log and
//! in the metrics. It is written when it is dropped, so that a client that leaves is not forgotten.
//!
//! Not here: decisions, but for telling breakers what came of an attempt.

use std::fmt;
use std::future::Future;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::header::{CONNECTION, HeaderName};
use axum::http::{HeaderValue, Method, Uri, request, response};
use serde::Serialize;
use tokio::time::Instant;
use tracing::warn;

use super::answer::start_of;
use super::classify::Outcome;
use super::cores::{Core, Local, ProviderPermit};
use super::silence::{Awaited, Chunks, Watch, Watchers};
use super::timers::Timer;
use crate::PermitType;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROVIDER: HeaderName = HeaderName::from_static("x-fusebox-provider");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-fusebox-attempts");
const REPLAY: HeaderName = HeaderName::from_static("x-fusebox-replay");

/// Longer names of models are cut in the log: a client may send anything.
const MAX_LOGGED_MODEL: usize = 200;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    /// The client got an answer, whatever it said.
    Complete,
    /// The provider broke off in the middle of it.
    Cut,
    ClientLeft,
}

struct Attempt {
    provider: usize,
    started: Instant,
    /// Until it is judged.
    permit: Option<ProviderPermit>,
    /// Until it is answered.
    watch: Option<Watch>,
    /// `None` while it lasts; if it never ends, the client has left.
    ended: Option<(Outcome, Duration)>,
}

pub(crate) struct Record {
    core: Arc<Core>,
    local: Arc<Local>,
    started: Instant,
    id: HeaderValue,
    method: Method,
    uri: Uri,
    model: Option<Box<str>>,
    attempts: Vec<Attempt>,
    status: Option<u16>,
    bytes_in: u64,
    bytes_out: u64,
    first_byte: Option<Duration>,
    is_replayable: bool,
    closes: bool,
    is_stream: bool,
    end: End,
}

impl Record {
    /// The id that the client gave, or a new one, goes on to the provider too.
    pub(crate) fn start(core: Arc<Core>, head: &mut request::Parts) -> Self {
        let is_usable =
            |id: &HeaderValue| (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
        let id = head.headers.get(&REQUEST_ID).filter(|id| is_usable(id)).cloned().unwrap_or_else(|| {
            let mut id = [0; 32];
            let random = fastrand::u128(..).to_le_bytes();
            for (digits, byte) in id.chunks_exact_mut(2).zip(random) {
                digits.copy_from_slice(&[byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
            }
            HeaderValue::from_bytes(&id).expect("hexadecimal digits")
        });
        head.headers.insert(REQUEST_ID, id.clone());
        core.app.metrics.begin();
        Self {
            local: core.local(),
            core,
            started: Instant::now(),
            id,
            method: head.method.clone(),
            uri: head.uri.clone(),
            model: None,
            attempts: Vec::new(),
            status: None,
            bytes_in: 0,
            bytes_out: 0,
            first_byte: None,
            is_replayable: true,
            closes: false,
            is_stream: false,
            end: End::ClientLeft,
        }
    }

    pub(crate) fn local(&self) -> &Arc<Local> {
        &self.local
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    pub(crate) fn timer(&self) -> Timer {
        self.core.timers.timer()
    }

    pub(crate) fn set_model(&mut self, model: &str) {
        self.model = Some(start_of(model, MAX_LOGGED_MODEL).into());
    }

    pub(crate) fn set_bytes_in(&mut self, bytes: u64) {
        self.bytes_in = bytes;
    }

    pub(crate) fn set_not_replayable(&mut self) {
        self.is_replayable = false;
    }

    /// Whether the client may still be sending a body that nobody will read (RFC 9112 section 9.6).
    pub(crate) fn set_closes(&mut self, closes: bool) {
        self.closes = closes;
    }

    /// A client that leaves says nothing about a provider: what is not settled counts for nothing. `awaited`: what is, if
    /// a silent provider is to be noticed. Returns the attempt's number.
    pub(crate) fn begin_attempt(&mut self, provider: usize, permit: ProviderPermit, awaited: Option<Awaited>) -> usize {
        self.local.providers[provider].metrics.begin(permit.kind() == PermitType::Probe);
        let started = Instant::now();
        let watch = awaited.and_then(|awaited| self.watchers(provider)?.start(self.model(), awaited, &permit, started));
        self.attempts.push(Attempt { provider, started, permit: Some(permit.cancel_on_drop()), watch, ended: None });
        self.attempts.len() - 1
    }

    fn watchers(&self, provider: usize) -> Option<&Watchers> {
        self.local.watchers[provider].as_deref()
    }

    fn model(&self) -> &str {
        self.model.as_deref().unwrap_or_default()
    }

    /// What watches the pieces of this attempt's stream.
    pub(crate) fn chunks(&self, attempt: usize) -> Option<Chunks> {
        self.watchers(self.attempts[attempt].provider)?.chunks(self.model())
    }

    /// Whether the provider has fallen silent, so that another one had better be asked.
    pub(crate) fn is_silent(&self, attempt: usize) -> bool {
        self.attempts[attempt].watch.as_ref().is_some_and(Watch::is_silent)
    }

    /// Another provider has answered before this silent one. `answer`: whether it answers after all.
    pub(crate) fn listen(&mut self, attempt: usize, answer: impl Future<Output = bool> + Send + 'static) {
        let watch = self.attempts[attempt].watch.take();
        self.settle(attempt, Outcome::Silent, &"");
        if let Some(watch) = watch
            && let Some(watchers) = self.watchers(self.attempts[attempt].provider)
        {
            watchers.listen(answer, watch);
        }
    }

    pub(crate) fn is_probe(&self, attempt: usize) -> bool {
        self.attempts[attempt].permit.as_ref().is_some_and(|permit| permit.kind() == PermitType::Probe)
    }

    /// If the attempt is a probe, it has succeeded as such; what is still to come is judged as an ordinary call.
    pub(crate) fn prove(&mut self, attempt: usize) {
        if self.is_probe(attempt)
            && let attempt = &mut self.attempts[attempt]
            && let Some(probe) = attempt.permit.take()
        {
            probe.success();
            let permit = self.local.try_acquire(attempt.provider).map(ProviderPermit::cancel_on_drop).ok();
            attempt.permit = permit.filter(|permit| permit.kind() == PermitType::Normal);
        }
    }

    /// Ends an attempt, if it lasts, and judges it. The breaker itself logs only the failure that it opens on; at the rate of
    /// failures that a breaker lets through, a line each is not too much. Of those that fell silent together, it logs one.
    pub(crate) fn settle(&mut self, attempt: usize, outcome: Outcome, message: &dyn fmt::Display) {
        let attempt = &mut self.attempts[attempt];
        if attempt.ended.is_some() {
            return;
        }
        let provider = &self.local.providers[attempt.provider];
        // The silence of several is the breaker's affair.
        let is_failure = outcome.is_failure() && outcome != Outcome::Silent;
        let took = attempt.started.elapsed();
        attempt.ended = Some((outcome, took));
        provider.metrics.end(outcome, took);
        attempt.watch = None;
        if let Some(permit) = attempt.permit.take() {
            if is_failure {
                provider.note_failure(attempt.started);
                permit.failure(outcome.as_str(), message);
            } else if outcome == Outcome::Ok
                && (permit.kind() == PermitType::Probe || !provider.has_failed_since(attempt.started))
            {
                permit.success();
            } else {
                permit.cancel();
            }
        }
        // Last: nothing that others wait for is left to whoever writes the log.
        if is_failure {
            let error_type = outcome.as_str();
            warn!(provider = provider.name(), error_type, error = %message, "a provider failed");
        } else if outcome == Outcome::Shortage && self.core.app.may_tell_of_shortage() {
            warn!(provider = provider.name(), error = %message, "the gateway has no room for another connection");
        }
    }

    /// A good answer begins.
    pub(crate) fn first_byte(&mut self, attempt: usize) {
        let attempt = &mut self.attempts[attempt];
        let now = Instant::now();
        if let Some(mut watch) = attempt.watch.take() {
            watch.answered(now);
        }
        self.local.providers[attempt.provider].metrics.first_byte(now.saturating_duration_since(attempt.started));
    }

    /// Whom an attempt asks.
    pub(crate) fn provider(&self, attempt: usize) -> usize {
        self.attempts[attempt].provider
    }

    /// When an attempt began.
    pub(crate) fn attempt_started(&self, attempt: usize) -> Instant {
        self.attempts[attempt].started
    }

    /// How the request ended, as far as is known.
    pub(crate) fn set_end(&mut self, end: End) {
        self.end = end;
    }

    /// The head of the answer to the client. `provider`: whose it is; without one it is the gateway's own.
    pub(crate) fn set_answer(&mut self, head: &mut response::Parts, provider: Option<usize>, is_stream: bool) {
        head.headers.insert(REQUEST_ID, self.id.clone());
        let name = provider.map_or(HeaderValue::from_static("none"), |index| self.local.upstreams[index].name.clone());
        head.headers.insert(PROVIDER, name);
        let attempts = match self.attempts.len() {
            1 => HeaderValue::from_static("1"),
            attempts => HeaderValue::from(attempts),
        };
        head.headers.insert(ATTEMPTS, attempts);
        if !self.is_replayable {
            head.headers.insert(REPLAY, HeaderValue::from_static("no"));
        }
        if self.closes {
            head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.status = Some(head.status.as_u16());
        self.is_stream = is_stream;
    }

    /// A piece of the answer goes to the client.
    pub(crate) fn count_bytes_out(&mut self, bytes: usize) {
        self.bytes_out += bytes as u64;
        self.first_byte.get_or_insert_with(|| self.started.elapsed());
    }

    fn write_line(&self, text: &mut Vec<u8>, took: Duration) {
        let name = |attempt: &Attempt| self.local.providers[attempt.provider].name();
        let outcome = |attempt: &Attempt| attempt.ended.map_or(Outcome::ClientLeft, |(outcome, _)| outcome);
        let blamed: Vec<_> = self.attempts.iter().filter(|attempt| outcome(attempt).is_failure()).map(name).collect();
        write!(text, "{{\"time\":\"{}\"", now()).expect("a buffer takes everything");
        put(text, ",\"id\":", self.id.to_str().unwrap_or_default());
        put(text, ",\"method\":", self.method.as_str());
        // Without the query, which may hold what is none of the log's business.
        put(text, ",\"path\":", self.uri.path());
        put(text, ",\"model\":", &self.model);
        put(text, ",\"status\":", &self.status);
        put(text, ",\"end\":", &self.end);
        put(text, ",\"provider\":", &self.attempts.iter().find(|attempt| outcome(attempt) == Outcome::Ok).map(name));
        text.extend_from_slice(b",\"attempts\":[");
        for (number, attempt) in self.attempts.iter().enumerate() {
            let took = attempt.ended.map_or_else(|| attempt.started.elapsed(), |(_, took)| took);
            put(text, if number == 0 { "{\"provider\":" } else { ",{\"provider\":" }, name(attempt));
            put(text, ",\"outcome\":", outcome(attempt).as_str());
            put(text, ",\"ms\":", &millis(took));
            text.push(b'}');
        }
        put(text, "],\"blamed\":", &blamed);
        put(text, ",\"stream\":", &self.is_stream);
        put(text, ",\"bytes_in\":", &self.bytes_in);
        put(text, ",\"bytes_out\":", &self.bytes_out);
        put(text, ",\"first_byte_ms\":", &self.first_byte.map(millis));
        put(text, ",\"ms\":", &millis(took));
        text.push(b'}');
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        for attempt in 0..self.attempts.len() {
            self.settle(attempt, Outcome::ClientLeft, &"");
        }
        let took = self.started.elapsed();
        self.core.app.metrics.end(self.status, took);
        if self.local.server.access_log
            && let Some(log) = self.core.log()
        {
            log.push(|line| self.write_line(line, took));
        }
    }
}

/// A value of a JSON object. `key`, with all that stands between it and the value before, goes in as it is: serde escapes keys
/// like values, which took as long as the rest of the line.
fn put(text: &mut Vec<u8>, key: &'static str, value: &(impl Serialize + ?Sized)) {
    text.extend_from_slice(key.as_bytes());
    serde_json::to_writer(text, value).expect("texts and numbers");
}

/// To a thousandth.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[expect(clippy::disallowed_methods, reason = "a log is read beside other logs, which go by the wall clock")]
fn now() -> humantime::Rfc3339Timestamp {
    timestamp(SystemTime::now())
}

/// A wall clock may be set to anything, and the format has four digits for a year that is not before 1970.
fn timestamp(at: SystemTime) -> humantime::Rfc3339Timestamp {
    let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_millis(at.clamp(UNIX_EPOCH, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_is_set_to_anything_has_a_time() {
        let day = Duration::from_secs(24 * 60 * 60);
        assert_eq!(timestamp(UNIX_EPOCH - day).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(UNIX_EPOCH + day).to_string(), "1970-01-02T00:00:00.000Z");
        assert_eq!(timestamp(UNIX_EPOCH + 4_000_000 * day).to_string(), "9999-12-31T23:59:59.000Z");
    }
}
