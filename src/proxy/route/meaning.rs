//! What the pieces of a stream mean: where one ends, and whether it carries a part of the answer, is an error, or marks
//! the end. This is the one place that knows the protocols:
//!
//! | protocol | is no content: it announces, or keeps alive | marks the end |
//! |---|---|---|
//! | chat completions | a `delta` with nothing but a `role`, or with empty values; no `choices` | a `finish_reason`; `[DONE]` |
//! | completions | an empty `text`; no `choices` | a `finish_reason`; `[DONE]` |
//! | responses | `response.created`, `queued`, `in_progress`, `*.added`; an empty `delta` | `response.completed`, `incomplete` |
//! | messages (Anthropic) | `ping`, `message_start`, `content_block_start`; an empty `delta` | `message_stop` |
//! | speech, transcripts, images | an empty `delta` or `audio` | `speech.audio.done` and the like |
//! | lines of JSON (NDJSON) | an empty line; an empty `message`, `response` or `thinking`; no `choices` | `"done": true` |
//! | all events | a comment; an event without data | |
//!
//! Everything else is content: reasoning, tool calls, sound, and all that is unknown.
//!
//! Not here: passing them on: `sse`; what an error stands for: `inside`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::inside::{self, Inside};

/// What the pieces of a stream are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Server-sent events.
    Events,
    /// A JSON document in each line.
    Lines,
}

/// Where the last piece that ends in `text` ends, or 0 if none does. An event ends with an empty line, and a line with
/// CR LF, LF or CR (HTML standard, section 9.2.5).
pub(crate) fn last_end(form: Form, text: &[u8]) -> usize {
    if form == Form::Lines {
        return memchr::memrchr(b'\n', text).map_or(0, |at| at + 1);
    }
    if text.ends_with(b"\n\n") {
        return text.len();
    }
    let end = |line_end: &[u8]| memmem::rfind(text, line_end).map_or(0, |at| at + line_end.len());
    end(b"\n\n").max(end(b"\n\r\n")).max(end(b"\r\r"))
}

/// What an event means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It announces the stream or keeps it alive.
    Nothing,
    /// It carries a part of the answer. Anything unknown counts as content.
    Content,
    Error(Inside),
    /// It marks the end and nothing else.
    End,
}

/// The meaning of the first piece in `text` that means something.
pub(crate) fn first(form: Form, text: &[u8]) -> Meaning {
    if says_something(form, text) {
        return Meaning::Content;
    }
    let mut first = Meaning::Nothing;
    each(form, text, |meaning| {
        first = meaning;
        if first == Meaning::Nothing { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    first
}

/// Whether one of the pieces in `text` does not merely announce the stream or keep it alive.
pub(crate) fn has_content(form: Form, text: &[u8]) -> bool {
    first(form, text) != Meaning::Nothing
}

/// The first piece in `text` that is an error. It is cheap where the word does not occur.
pub(crate) fn error_in(form: Form, text: &[u8]) -> Option<Inside> {
    static ERROR: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("error"));
    let mut found = None;
    if ERROR.find(text).is_some() {
        each(form, text, |meaning| match meaning {
            Meaning::Error(inside) => {
                found = Some(inside);
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        });
    }
    found
}

/// The types of the last events of an answer, as they stand in the JSON of an event: Anthropic's, those of `OpenAI`'s
/// responses, and those of its speech, transcriptions and images. A text that names one has its quotes escaped.
static LAST_TYPES: LazyLock<[memmem::Finder<'static>; 7]> = LazyLock::new(|| {
    [
        "\"message_stop\"",
        "\"response.completed\"",
        "\"response.incomplete\"",
        "\"speech.audio.done\"",
        "\"transcript.text.done\"",
        "\"image_generation.completed\"",
        "\"image_edit.completed\"",
    ]
    .map(memmem::Finder::new)
});
static TYPE: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("\"type\""));
static DONE_LINE: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("\"done\""));
static FINISH_REASON: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("\"finish_reason\""));
static DONE: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("[DONE]"));

/// Whether one of these pieces marks the end of the answer. Clients stop reading there, and close their connection.
pub(crate) fn marks_the_end(form: Form, events: &[u8]) -> bool {
    if form == Form::Lines {
        let is_true = |at: usize| {
            let value = events[at + DONE_LINE.needle().len()..].trim_ascii_start().strip_prefix(b":");
            value.is_some_and(|value| value.trim_ascii_start().starts_with(b"true"))
        };
        return DONE_LINE.find_iter(events).any(is_true);
    }
    let is_done = |at: usize| {
        let line = events[..at].rsplit(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
        line.strip_prefix(b"data:").is_some_and(|rest| rest.trim_ascii().is_empty())
    };
    let is_reason = |at: usize| {
        let value = events[at + FINISH_REASON.needle().len()..].trim_ascii_start().strip_prefix(b":");
        value.is_some_and(|value| !value.trim_ascii_start().starts_with(b"null"))
    };
    let mut reasons = FINISH_REASON.find_iter(events).peekable();
    // Each chunk of a chat has a `finish_reason`, which is `null` but in the last one. A chat has no types.
    let is_chat = reasons.peek().is_some();
    reasons.any(is_reason)
        || DONE.find_iter(events).any(is_done)
        || !is_chat && TYPE.find(events).is_some() && LAST_TYPES.iter().any(|last| last.find(events).is_some())
}

/// The fields of an event. The empty name stands for a comment.
const FIELDS: [&[u8]; 5] = [b"data", b"event", b"id", b"retry", b""];

/// Shows each piece that ends in `text` to `visit`, until it breaks.
fn each(form: Form, text: &[u8], mut visit: impl FnMut(Meaning) -> ControlFlow<()>) {
    if form == Form::Lines {
        let mut lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        let _ = lines.try_for_each(|line| visit(of_line(line.trim_ascii())));
        return;
    }
    let (mut event, mut data): (&[u8], &[u8]) = (b"", b"");
    let mut lines = text.split(|byte| *byte == b'\n').peekable();
    while let Some(line) = lines.next() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        let is_known = |field: &&[u8]| {
            let is_whole = name.len() < line.len() || lines.peek().is_some();
            if is_whole { *field == name } else { field.starts_with(name) }
        };
        let value = || line[name.len()..].strip_prefix(b":").unwrap_or_default().trim_ascii();
        if !FIELDS.iter().any(is_known) {
            if visit(Meaning::Content).is_break() {
                return;
            }
        } else if name == b"data" {
            // If there are several lines, the last one counts: no event without content has several.
            data = value();
        } else if name == b"event" {
            event = value();
        } else if line.is_empty() && visit(of_event(std::mem::take(&mut event), std::mem::take(&mut data))).is_break() {
            return;
        }
    }
    // Lines that end with CR alone, which no provider sends.
    if text.strip_suffix(b"\r").is_some_and(|text| !text.contains(&b'\n')) {
        let _ = visit(Meaning::Content);
    }
}

/// The usual form of content, found without parsing.
fn says_something(form: Form, text: &[u8]) -> bool {
    static CONTENT: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("\"content\":\""));
    let says = |at: usize| text.get(at + CONTENT.needle().len()).is_some_and(|first| *first != b'"');
    form == Form::Events
        && text.starts_with(b"data:")
        && CONTENT.find(text).is_some_and(says)
        && last_end(form, text) > 0
}

/// The parts of a line that show what it means.
#[derive(Deserialize)]
struct Line<'a> {
    done: Option<bool>,
    #[serde(borrow)]
    message: Option<BTreeMap<&'a str, &'a RawValue>>,
    #[serde(borrow)]
    response: Option<&'a RawValue>,
    #[serde(borrow)]
    thinking: Option<&'a RawValue>,
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
}

fn of_line(line: &[u8]) -> Meaning {
    if line.is_empty() {
        return Meaning::Nothing;
    }
    if let Some(inside) = inside::of_answer(line) {
        return Meaning::Error(inside);
    }
    let Ok(line) = serde_json::from_slice::<Line<'_>>(line) else { return Meaning::Content };
    let Line { done, message, response, thinking, choices } = line;
    let is_known = message.is_some() || response.is_some() || thinking.is_some() || choices.is_some();
    let mut parts = message.iter().flatten().filter(|(name, _)| **name != "role").map(|(_, value)| value);
    let says = parts.any(says_anything)
        || response.iter().chain(&thinking).any(says_anything)
        || choices.iter().flatten().any(Choice::has_content);
    match done {
        _ if says => Meaning::Content,
        Some(true) => Meaning::End,
        _ if is_known => Meaning::Nothing,
        _ => Meaning::Content,
    }
}

fn says_anything(value: &&RawValue) -> bool {
    !matches!(value.get(), "null" | "\"\"" | "[]" | "{}")
}

/// The parts of an event that show what it means.
#[derive(Deserialize)]
struct Event<'a> {
    r#type: Option<&'a str>,
    object: Option<&'a str>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    response: Option<&'a RawValue>,
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow)]
    delta: Option<&'a RawValue>,
    #[serde(borrow)]
    audio: Option<&'a RawValue>,
}

impl Event<'_> {
    /// Whether it is a delta that has nothing in it.
    fn is_empty_delta(&self) -> bool {
        let is_empty = |delta: &RawValue| {
            let fields = serde_json::from_str::<BTreeMap<&str, &RawValue>>(delta.get());
            let mut fields = fields.iter().flatten();
            !says_anything(&delta)
                || delta.get().starts_with('{') && !fields.any(|(name, value)| *name != "type" && says_anything(value))
        };
        let mut parts = self.delta.iter().chain(&self.audio).peekable();
        self.r#type.is_some_and(|kind| kind.ends_with("delta"))
            && parts.peek().is_some()
            && parts.all(|it| is_empty(it))
    }
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Option<BTreeMap<&'a str, &'a RawValue>>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    finish_reason: Option<&'a RawValue>,
}

impl Choice<'_> {
    fn has_failed(&self) -> bool {
        self.finish_reason.is_some_and(|reason| reason.get() == "\"error\"")
    }

    fn has_content(&self) -> bool {
        let mut delta = self.delta.iter().flatten();
        delta.any(|(name, value)| *name != "role" && says_anything(value))
            || self.text.iter().chain(&self.finish_reason).any(says_anything)
    }
}

/// Events that announce what comes, or keep the stream alive.
const ANNOUNCEMENTS: [&str; 9] = [
    "ping",
    "message_start",
    "content_block_start",
    "response.created",
    "response.queued",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.reasoning_summary_part.added",
];

fn of_event(name: &[u8], data: &[u8]) -> Meaning {
    if data == b"[DONE]" {
        return Meaning::End;
    }
    if data.is_empty() && name != b"error" {
        return Meaning::Nothing;
    }
    let Ok(event) = serde_json::from_slice::<Event<'_>>(data) else {
        return if name == b"error" { Meaning::Error(Inside::unknown()) } else { Meaning::Content };
    };
    let is_empty_delta = event.is_empty_delta();
    let Event { r#type, object, error, response, choices, .. } = event;
    let kind = r#type.filter(|_| object != Some("error")).or(object).unwrap_or_default();
    if let Some(inside) = inside::of_event(inside::Event { name, kind, error, response, data }) {
        return Meaning::Error(inside);
    }
    match choices {
        Some(choices) if choices.iter().any(Choice::has_failed) => Meaning::Error(Inside::unknown()),
        Some(choices) if choices.iter().any(Choice::has_content) => Meaning::Content,
        Some(_) => Meaning::Nothing,
        None if kind == "message_stop" => Meaning::End,
        None if ANNOUNCEMENTS.contains(&kind) || is_empty_delta => Meaning::Nothing,
        None => Meaning::Content,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_found_wherever_it_stands_and_an_end_is_no_content() {
        for (text, code) in [
            ("data: {\"error\":{\"code\":\"server_error\"}}\n\n", "server_error"),
            (
                ": wait\n\n: wait\n\ndata: {\"error\":{\"code\":502},\"choices\":[{\"delta\":{\"content\":\"\"},\"finish_reason\":\"error\"}]}\n\n",
                "502",
            ),
            (
                "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n",
                "overloaded_error",
            ),
            (
                "event: message_start\ndata: {\"type\":\"message_start\"}\n\nevent: ping\ndata: {\"type\":\"ping\"}\n\nevent: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\"}}\n\n",
                "api_error",
            ),
            (
                "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"error\":null}}\n\nevent: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"rate_limit_exceeded\"}}}\n\n",
                "rate_limit_exceeded",
            ),
            (
                "event: error\ndata: {\"type\":\"error\",\"code\":\"server_error\",\"message\":\"m\"}\r\n\r\n",
                "server_error",
            ),
            ("event: error\ndata: it broke\n\n", "unknown"),
            ("data: {\"object\":\"error\",\"message\":\"m\",\"type\":\"x\",\"code\":400}\n\n", "400"),
            ("data: {\"choices\":[{\"delta\":{\"content\":\"\"},\"finish_reason\":\"error\"}]}\n\n", "unknown"),
            ("event: error\n\n", "unknown"),
        ] {
            let Meaning::Error(inside) = first(Form::Events, text.as_bytes()) else { panic!("{text}") };
            assert_eq!(&*inside.code, code, "{text}");
            let answer: serde_json::Value = serde_json::from_slice(&inside.body).unwrap();
            assert!(!answer["error"].is_null(), "{answer}");
            let after_content = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"a\"}}}}]}}\n\n{text}");
            assert_eq!(first(Form::Events, after_content.as_bytes()), Meaning::Content);
            assert_eq!(error_in(Form::Events, after_content.as_bytes()), Some(inside));
        }
        for text in
            ["data: [DONE]\n\n", "data: {\"choices\":[]}\n\ndata: [DONE]\n\n", "data: {\"type\":\"message_stop\"}\n\n"]
        {
            assert_eq!(first(Form::Events, text.as_bytes()), Meaning::End, "{text}");
        }
        let says = "data: {\"choices\":[{\"delta\":{\"content\":\"an error: \\\"error\\\"\"}}]}\n\n";
        assert_eq!(error_in(Form::Events, says.as_bytes()), None);
    }

    #[test]
    fn comments_pings_announcements_and_empty_deltas_are_not_content() {
        for empty in [
            "",
            "dat",
            ": keep-alive\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"not whole yet",
            "data: {\"choices\":[]}\n\n",
            "data: {\"id\":\"x\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[]}}]}\r\n\r\n",
            "data: {\"choices\":[{\"delta\":{}}, {\"text\":\"\"}]}\n\n",
            "event: ping\ndata: {\"type\": \"ping\"}\n\n",
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{}}\n\n",
            "event: response.created\ndata: {\"type\":\"response.created\"}\n\n: c\n\n",
        ] {
            assert!(!has_content(Form::Events, empty.as_bytes()), "{empty}");
            let with_content = format!("{empty}\n\ndata: {{\"choices\":[{{\"delta\":{{\"content\":\"a\"}}}}]}}\n\n");
            assert!(has_content(Form::Events, with_content.as_bytes()), "{with_content}");
        }
        for content in [
            "data: [DONE]\n\n",
            "data: text\n\n",
            "data: {}\n\n",
            "data: {\"error\":{}}\n\n",
            "data: {\"choices\":[{\"text\":\"a\"}]}\r\n\r\n",
            "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{}]}}]}\n\n",
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\"}\n\n",
            "data: old\rdata: old\r\r",
            "1",
            "no event\n",
        ] {
            assert!(has_content(Form::Events, content.as_bytes()), "{content}");
        }
    }
}
