//! What the events of a stream mean: where one ends, and whether it carries a part of the answer, is an error, or marks
//! the end.
//!
//! Not here: passing them on: `sse`; what an error stands for: `inside`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::inside::{self, Inside};

/// Where the last event that ends in `text` ends, or 0 if none does. An event ends with an empty line, and a line with
/// CR LF, LF or CR (HTML standard, section 9.2.5).
pub(crate) fn last_end(text: &[u8]) -> usize {
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

/// The meaning of the first event in `text` that means something.
pub(crate) fn first(text: &[u8]) -> Meaning {
    if text.starts_with(b"data:") && says_something(text) {
        return Meaning::Content;
    }
    let mut first = Meaning::Nothing;
    each(text, |meaning| {
        first = meaning;
        if first == Meaning::Nothing { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    first
}

/// Whether one of the events in `text` does not merely announce the stream or keep it alive.
pub(crate) fn has_content(text: &[u8]) -> bool {
    first(text) != Meaning::Nothing
}

/// The first event in `text` that is an error. It is cheap where the word does not occur.
pub(crate) fn error_in(text: &[u8]) -> Option<Inside> {
    static ERROR: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("error"));
    let mut found = None;
    if ERROR.find(text).is_some() {
        each(text, |meaning| match meaning {
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
static FINISH_REASON: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("\"finish_reason\""));
static DONE: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("[DONE]"));

/// Whether one of these events marks the end of the answer. Clients stop reading there, and close their connection.
pub(crate) fn marks_the_end(events: &[u8]) -> bool {
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
        || !is_chat && LAST_TYPES.iter().any(|last| last.find(events).is_some())
}

/// The fields of an event. The empty name stands for a comment.
const FIELDS: [&[u8]; 5] = [b"data", b"event", b"id", b"retry", b""];

/// Shows each event that ends in `text` to `visit`, until it breaks.
fn each(text: &[u8], mut visit: impl FnMut(Meaning) -> ControlFlow<()>) {
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
fn says_something(text: &[u8]) -> bool {
    const CONTENT: &[u8] = b"\"content\":\"";
    memmem::find(text, CONTENT).is_some_and(|at| text.get(at + CONTENT.len()).is_some_and(|first| *first != b'"'))
        && last_end(text) > 0
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
        let says = |value: &&RawValue| !matches!(value.get(), "null" | "\"\"" | "[]" | "{}");
        let mut delta = self.delta.iter().flatten();
        delta.any(|(name, value)| *name != "role" && says(value))
            || self.text.iter().chain(&self.finish_reason).any(says)
    }
}

/// The events that `OpenAI`'s and Anthropic's streams begin with.
const ANNOUNCEMENTS: [&str; 8] = [
    "ping",
    "message_start",
    "content_block_start",
    "response.created",
    "response.queued",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
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
    let Event { r#type, object, error, response, choices } = event;
    let kind = r#type.filter(|_| object != Some("error")).or(object).unwrap_or_default();
    if let Some(inside) = inside::of_event(inside::Event { name, kind, error, response, data }) {
        return Meaning::Error(inside);
    }
    match choices {
        Some(choices) if choices.iter().any(Choice::has_failed) => Meaning::Error(Inside::unknown()),
        Some(choices) if choices.iter().any(Choice::has_content) => Meaning::Content,
        Some(_) => Meaning::Nothing,
        None if kind == "message_stop" => Meaning::End,
        None if ANNOUNCEMENTS.contains(&kind) => Meaning::Nothing,
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
            let Meaning::Error(inside) = first(text.as_bytes()) else { panic!("{text}") };
            assert_eq!(&*inside.code, code, "{text}");
            let answer: serde_json::Value = serde_json::from_slice(&inside.body).unwrap();
            assert!(!answer["error"].is_null(), "{answer}");
            let after_content = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"a\"}}}}]}}\n\n{text}");
            assert_eq!(first(after_content.as_bytes()), Meaning::Content);
            assert_eq!(error_in(after_content.as_bytes()), Some(inside));
        }
        for text in
            ["data: [DONE]\n\n", "data: {\"choices\":[]}\n\ndata: [DONE]\n\n", "data: {\"type\":\"message_stop\"}\n\n"]
        {
            assert_eq!(first(text.as_bytes()), Meaning::End, "{text}");
        }
        let says = "data: {\"choices\":[{\"delta\":{\"content\":\"an error: \\\"error\\\"\"}}]}\n\n";
        assert_eq!(error_in(says.as_bytes()), None);
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
            assert!(!has_content(empty.as_bytes()), "{empty}");
            let with_content = format!("{empty}\n\ndata: {{\"choices\":[{{\"delta\":{{\"content\":\"a\"}}}}]}}\n\n");
            assert!(has_content(with_content.as_bytes()), "{with_content}");
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
            assert!(has_content(content.as_bytes()), "{content}");
        }
    }
}
