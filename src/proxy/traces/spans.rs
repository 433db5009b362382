//! The spans of one request, by `OpenTelemetry`'s conventions for HTTP and for generative AI.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::time::Instant;

use super::export::Traces;
use crate::proxy::observe::facts::{End, Facts};
use crate::proxy::outcome::{Outcome, Scope};
use crate::proxy::wall_clock;

pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A request under way. `None` inside if its trace is not taken.
#[derive(Default)]
pub(crate) struct Traced(Option<Box<Trace>>);

struct Trace {
    traces: Arc<Traces>,
    id: TraceId,
    /// The client's span.
    parent: Option<SpanId>,
    /// The request's.
    own: SpanId,
    attempts: Vec<Attempt>,
    /// What it waited for: probes, and places.
    waits: Vec<(Instant, Instant)>,
}

struct Attempt {
    span: SpanId,
    first_byte: Option<Instant>,
}

/// What is known of a request when it is over.
pub(crate) struct RequestSpan<'a> {
    pub(crate) facts: &'a Facts,
    /// The name of the token that was shown.
    pub(crate) token: Option<&'a str>,
}

/// What is known of an attempt.
pub(crate) struct AttemptSpan<'a> {
    pub(crate) provider: &'a str,
    pub(crate) host: &'a str,
    pub(crate) port: Option<u16>,
    pub(crate) started: Instant,
    pub(crate) took: Duration,
    pub(crate) outcome: Outcome,
    pub(crate) is_probe: bool,
}

impl Traced {
    /// A client that traces its request decides whether its trace is taken; of the others a share is.
    pub(crate) fn begin(traces: Option<&Arc<Traces>>, headers: &HeaderMap) -> Self {
        let Some(traces) = traces else { return Self(None) };
        let (id, parent) = match headers.get(&TRACEPARENT).and_then(|value| context(value.as_bytes())) {
            Some((id, parent, true)) => (id, Some(parent)),
            None if fastrand::f64() < traces.sample => (TraceId::from_bytes(fastrand::u128(1..).to_be_bytes()), None),
            Some((_, _, false)) | None => return Self(None),
        };
        let (traces, own) = (Arc::clone(traces), new_span());
        Self(Some(Box::new(Trace { traces, id, parent, own, attempts: Vec::new(), waits: Vec::new() })))
    }

    /// Begins an attempt. Returns what its provider is told.
    pub(crate) fn attempt(&mut self) -> Option<HeaderValue> {
        let trace = self.0.as_mut()?;
        let span = new_span();
        trace.attempts.push(Attempt { span, first_byte: None });
        HeaderValue::try_from(format!("00-{}-{span}-01", trace.id)).ok()
    }

    /// The request has waited since then.
    pub(crate) fn waited(&mut self, since: Instant) {
        if let Some(trace) = &mut self.0 {
            trace.waits.push((since, Instant::now()));
        }
    }

    /// A good answer of the attempt at this place begins.
    pub(crate) fn first_byte(&mut self, attempt: usize) {
        if let Some(attempt) = self.0.as_mut().and_then(|trace| trace.attempts.get_mut(attempt)) {
            attempt.first_byte = Some(Instant::now());
        }
    }

    /// Sends the spans of a request that is over.
    pub(crate) fn end<'a>(&mut self, request: &RequestSpan<'_>, attempts: impl Iterator<Item = AttemptSpan<'a>>) {
        let Some(trace) = self.0.take() else { return };
        let facts = request.facts;
        let clock = Clock { now: Instant::now(), wall: wall_clock::now() };
        let operation = operation(facts.uri.path());
        let model = facts.model.as_deref();
        for (attempt, known) in attempts.zip(&trace.attempts) {
            let answered = attempt.outcome.is_success();
            let ended = attempt.started + attempt.took;
            if let Some(first_byte) = known.first_byte.filter(|_| facts.is_stream) {
                let (from, to) = (clock.at(first_byte), clock.at(ended.max(first_byte)));
                trace.send(known.span, new_span(), SpanKind::Internal, "stream".into(), (from, to), Vec::new(), None);
            }
            let mut attributes = vec![
                KeyValue::new("gen_ai.provider.name", attempt.provider.to_owned()),
                KeyValue::new("server.address", attempt.host.to_owned()),
                KeyValue::new("fusebox.outcome", attempt.outcome.as_str()),
                KeyValue::new("fusebox.probe", attempt.is_probe),
            ];
            attributes.extend(attempt.port.map(|port| KeyValue::new("server.port", i64::from(port))));
            attributes.extend(operation.map(|operation| KeyValue::new("gen_ai.operation.name", operation)));
            attributes.extend(model.map(|model| KeyValue::new("gen_ai.request.model", model.to_owned())));
            if answered {
                let usage = facts.usage;
                let tokens = [("input", usage.tokens_in), ("output", usage.tokens_out)];
                for (name, count) in tokens {
                    let count = count.and_then(|count| i64::try_from(count).ok());
                    attributes.extend(count.map(|count| KeyValue::new(format!("gen_ai.usage.{name}_tokens"), count)));
                }
            }
            let scope = attempt.outcome.scope();
            if scope != Scope::Nobody {
                attributes.push(KeyValue::new("fusebox.scope", scope.as_str()));
            }
            let name = match (operation, model) {
                (Some(operation), Some(model)) => format!("{operation} {model}").into(),
                _ => Cow::from(facts.method.to_string()),
            };
            let times = (clock.at(attempt.started), clock.at(ended));
            let error = (!answered).then(|| attempt.outcome.as_str());
            trace.send(trace.own, known.span, SpanKind::Client, name, times, attributes, error);
        }
        for (from, to) in &trace.waits {
            let times = (clock.at(*from), clock.at(*to));
            trace.send(trace.own, new_span(), SpanKind::Internal, "wait".into(), times, Vec::new(), None);
        }
        let mut attributes = vec![
            KeyValue::new("http.request.method", facts.method.to_string()),
            KeyValue::new("url.path", facts.uri.path().to_owned()),
            KeyValue::new("fusebox.request_id", facts.id.to_str().unwrap_or_default().to_owned()),
        ];
        attributes.extend(facts.status.map(|status| KeyValue::new("http.response.status_code", i64::from(status))));
        attributes.extend(facts.client.map(|client| KeyValue::new("client.address", client.to_string())));
        attributes.extend(model.map(|model| KeyValue::new("gen_ai.request.model", model.to_owned())));
        attributes.extend(request.token.map(|token| KeyValue::new("fusebox.token", token.to_owned())));
        let user_agent = facts.user_agent.as_ref().and_then(|it| it.to_str().ok());
        attributes.extend(user_agent.map(|it| KeyValue::new("user_agent.original", it.to_owned())));
        let error = match (facts.status, facts.end) {
            (Some(status), _) if status >= 500 => Some("5xx"),
            (_, End::Cut) => Some("cut"),
            _ => None,
        };
        let name = format!("{} {}", facts.method, route(facts.uri.path())).into();
        let times = (clock.at(facts.started), clock.wall);
        trace.send(
            trace.parent.unwrap_or(SpanId::INVALID),
            trace.own,
            SpanKind::Server,
            name,
            times,
            attributes,
            error,
        );
    }
}

impl Trace {
    #[expect(clippy::too_many_arguments, reason = "each is a part of the span")]
    fn send(
        &self,
        parent: SpanId,
        span: SpanId,
        kind: SpanKind,
        name: Cow<'static, str>,
        (start_time, end_time): (SystemTime, SystemTime),
        mut attributes: Vec<KeyValue>,
        error: Option<&'static str>,
    ) {
        attributes.extend(error.map(|error| KeyValue::new("error.type", error)));
        self.traces.send(SpanData {
            span_context: SpanContext::new(self.id, span, TraceFlags::SAMPLED, false, TraceState::default()),
            parent_span_id: parent,
            parent_span_is_remote: kind == SpanKind::Server && self.parent.is_some(),
            span_kind: kind,
            name,
            start_time,
            end_time: end_time.max(start_time),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: error.map_or(Status::Unset, Status::error),
            instrumentation_scope: InstrumentationScope::builder("fusebox").build(),
        });
    }
}

/// What the wall clock showed at an instant.
struct Clock {
    now: Instant,
    wall: SystemTime,
}

impl Clock {
    fn at(&self, instant: Instant) -> SystemTime {
        self.wall.checked_sub(self.now.saturating_duration_since(instant)).unwrap_or(self.wall)
    }
}

fn new_span() -> SpanId {
    SpanId::from_bytes(fastrand::u64(1..).to_be_bytes())
}

/// The trace's id, the span's, and whether the trace is taken (W3C Trace Context, section 3.2). `None` if it is
/// invalid.
fn context(text: &[u8]) -> Option<(TraceId, SpanId, bool)> {
    let text = std::str::from_utf8(text).ok()?;
    let mut parts = text.split('-');
    let [version, trace, span, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let lengths = [version.len(), trace.len(), span.len(), flags.len()];
    // A later version may have more parts.
    let is_known = version != "ff" && (version != "00" || parts.next().is_none());
    if lengths != [2, 32, 16, 2] || !is_known || ![version, trace, span, flags].into_iter().all(is_hex) {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let is_taken = u8::from_str_radix(flags, 16).ok()? & 1 != 0;
    (trace != TraceId::INVALID && span != SpanId::INVALID).then_some((trace, span, is_taken))
}

/// What a request asks for, as the conventions call it.
fn operation(path: &str) -> Option<&'static str> {
    match path {
        "/v1/chat/completions" | "/v1/messages" | "/v1/responses" => Some("chat"),
        "/v1/embeddings" => Some("embeddings"),
        "/v1/completions" | "/v1/complete" => Some("text_completion"),
        _ => None,
    }
}

/// A name of few values: an id in a path would make one for each.
fn route(path: &str) -> &str {
    let mut slashes = path.match_indices('/').map(|(at, _)| at);
    let is_known = operation(path).is_some();
    if is_known { path } else { slashes.nth(2).map_or(path, |third| &path[..third]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_context_is_read_as_the_recommendation_says() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let span = "b7ad6b7169203331";
        let read =
            |text: &str| context(text.as_bytes()).map(|(id, span, taken)| (id.to_string(), span.to_string(), taken));
        let good = |taken| Some((trace.to_owned(), span.to_owned(), taken));
        assert_eq!(read(&format!("00-{trace}-{span}-01")), good(true));
        assert_eq!(read(&format!("00-{trace}-{span}-00")), good(false));
        assert_eq!(read(&format!("cc-{trace}-{span}-01-what-comes")), good(true), "a later version");
        for wrong in [
            String::new(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", &trace[1..]),
            format!("00-{trace}-{span}-0g"),
        ] {
            assert_eq!(read(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_name_of_a_span_has_no_id_in_it() {
        assert_eq!(route("/v1/chat/completions"), "/v1/chat/completions");
        assert_eq!(route("/v1/responses/resp_123/input_items"), "/v1/responses");
        assert_eq!(route("/v1/models"), "/v1/models");
    }
}
