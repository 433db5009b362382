//! Server-sent events: where they end, whether they have content, and whether one marks the end of the answer. A client
//! gets whole events only, so that a stream that breaks off can end with an event that says so.
//!
//! Not here: anything else that an event means.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::proxy::answer::broken_stream;

/// A longer event is passed on in parts. No provider sends one.
const MAX_EVENT: usize = 1 << 20;

/// Cuts a stream at the ends of events.
#[derive(Default)]
pub(crate) struct Events {
    /// The beginning of an event whose end has not come.
    held: BytesMut,
    /// Whether a part of that event has been passed on.
    within: bool,
    /// Whether an event that was passed on marks the end of the answer.
    marked: bool,
}

impl Events {
    /// What can be passed on after this chunk. It is empty if no event ends in the chunk.
    pub(crate) fn push(&mut self, chunk: &Bytes) -> Bytes {
        let passed = self.whole_events(chunk);
        self.marked = self.marked || marks_the_end(&passed);
        passed
    }

    /// Whether an event that was passed on marks the end of the answer: what comes after it, and whether the connection
    /// ends well, does not matter any more.
    pub(crate) fn is_marked(&self) -> bool {
        self.marked
    }

    /// Whether all that came has been passed on, in whole events.
    pub(crate) fn is_between_events(&self) -> bool {
        self.held.is_empty() && !self.within
    }

    fn whole_events(&mut self, chunk: &Bytes) -> Bytes {
        if self.held.is_empty() {
            let end = last_end(chunk);
            if end > 0 {
                self.within = false;
            }
            if end < chunk.len() {
                self.held.extend_from_slice(&chunk[end..]);
            }
            return self.unless_too_long(chunk.slice(..end));
        }
        // The end of an event may be split between two chunks.
        let seen = self.held.len().saturating_sub(3);
        self.held.extend_from_slice(chunk);
        let end = last_end(&self.held[seen..]);
        if end == 0 {
            return self.unless_too_long(Bytes::new());
        }
        self.within = false;
        let passed = self.held.split_to(seen + end).freeze();
        self.unless_too_long(passed)
    }

    fn unless_too_long(&mut self, passed: Bytes) -> Bytes {
        if self.held.len() <= MAX_EVENT {
            return passed;
        }
        self.within = true;
        let mut all = BytesMut::from(passed);
        all.unsplit(self.held.split());
        all.freeze()
    }

    /// The stream is over: what is left of it, and whether it broke off in the middle of an event. The last event need
    /// not have an empty line if it marks the end.
    pub(crate) fn finish(&mut self) -> (Bytes, bool) {
        let rest = self.held.split().freeze();
        self.marked = self.marked || marks_the_end(&rest);
        let is_half = !self.marked && (self.within || !rest.trim_ascii().is_empty());
        (rest, is_half)
    }

    /// The event that replaces what is left if the stream breaks off. Every OpenAI SDK turns it into an error.
    pub(crate) fn error(&mut self, message: &str) -> Bytes {
        self.held.clear();
        let error = broken_stream(message);
        let end_of_what_was_passed = if self.within { "\n\n" } else { "" };
        format!("{end_of_what_was_passed}event: error\ndata: {error}\n\n").into()
    }
}

/// Where the last event that ends in `text` ends, or 0 if none does. An event ends with an empty line, and a line with
/// CR LF, LF or CR (HTML standard, section 9.2.5).
pub(crate) fn last_end(text: &[u8]) -> usize {
    if text.ends_with(b"\n\n") {
        return text.len();
    }
    let end = |line_end: &[u8]| memmem::rfind(text, line_end).map_or(0, |at| at + line_end.len());
    end(b"\n\n").max(end(b"\n\r\n")).max(end(b"\r\r"))
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
fn marks_the_end(events: &[u8]) -> bool {
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

/// Whether one of the events in `text` carries a part of an answer, and does not merely announce the stream or keep it
/// alive. Anything unknown counts as content.
pub(crate) fn has_content(text: &[u8]) -> bool {
    if text.starts_with(b"data:") && says_something(text) {
        return true;
    }
    let mut data: &[u8] = b"";
    let mut lines = text.split(|byte| *byte == b'\n').peekable();
    while let Some(line) = lines.next() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        let is_known = |field: &&[u8]| {
            let is_whole = name.len() < line.len() || lines.peek().is_some();
            if is_whole { *field == name } else { field.starts_with(name) }
        };
        if !FIELDS.iter().any(is_known) {
            return true;
        } else if name == b"data" {
            // If there are several lines, the last one counts: no event without content has several.
            data = line[name.len()..].strip_prefix(b":").unwrap_or_default().trim_ascii();
        } else if line.is_empty() && !is_empty(std::mem::take(&mut data)) {
            return true;
        }
    }
    // Lines that end with CR alone, which no provider sends.
    text.strip_suffix(b"\r").is_some_and(|text| !text.contains(&b'\n'))
}

/// The usual form of content, found without parsing.
fn says_something(text: &[u8]) -> bool {
    const CONTENT: &[u8] = b"\"content\":\"";
    memmem::find(text, CONTENT).is_some_and(|at| text.get(at + CONTENT.len()).is_some_and(|first| *first != b'"'))
        && last_end(text) > 0
}

/// The parts of an event that show whether it has content.
#[derive(Deserialize)]
struct Event<'a> {
    r#type: Option<&'a str>,
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

fn is_empty(data: &[u8]) -> bool {
    if data.is_empty() {
        return true;
    }
    let Ok(event) = serde_json::from_slice::<Event<'_>>(data) else { return false };
    let says = |value: &&RawValue| !matches!(value.get(), "null" | "\"\"" | "[]" | "{}");
    let has_content = |choice: &Choice<'_>| {
        let mut delta = choice.delta.iter().flatten();
        delta.any(|(name, value)| *name != "role" && says(value))
            || choice.text.iter().chain(&choice.finish_reason).any(says)
    };
    match event {
        Event { choices: Some(choices), .. } => !choices.iter().any(has_content),
        Event { r#type: Some(kind), .. } => ANNOUNCEMENTS.contains(&kind),
        Event { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is passed on for each chunk.
    fn pass(chunks: &[&'static str]) -> (Vec<String>, Events) {
        let mut events = Events::default();
        let passed =
            chunks.iter().map(|chunk| String::from_utf8(events.push(&Bytes::from_static(chunk.as_bytes())).to_vec()));
        (passed.collect::<Result<_, _>>().unwrap(), events)
    }

    #[test]
    fn whole_events_are_passed_on_at_once_and_the_beginning_of_one_waits_for_its_end() {
        for (chunks, expected) in [
            (vec!["data: 1\n\n", "data: 2\n\n"], vec!["data: 1\n\n", "data: 2\n\n"]),
            (vec!["data: 1\n\ndata", ": 2\n", "\ndata: 3"], vec!["data: 1\n\n", "", "data: 2\n\n"]),
            (vec!["a\r\n", "\r\nb\r\n\r", "\nc"], vec!["", "a\r\n\r\n", "b\r\n\r\n"]),
            (vec!["a\r\rb", "\r", "\rc\r\r"], vec!["a\r\r", "", "b\r\rc\r\r"]),
            (vec!["a\n", "\n\n", "b\n\n"], vec!["", "a\n\n\n", "b\n\n"]),
            (vec![": comment\n\n"], vec![": comment\n\n"]),
        ] {
            assert_eq!(pass(&chunks).0, expected, "{chunks:?}");
        }
    }

    #[test]
    fn no_byte_is_lost_or_moved_wherever_a_stream_is_cut_into_chunks() {
        let text = "data: 1\n\n: c\r\n\r\nid: 3\ndata: x\ndata: y\n\ndata: tail";
        for first in 0..text.len() {
            for second in first..text.len() {
                let (passed, mut events) = pass(&[&text[..first], &text[first..second], &text[second..]]);
                let (rest, _) = events.finish();
                assert_eq!(passed.concat() + std::str::from_utf8(&rest).unwrap(), text);
                assert_eq!(rest, "data: tail");
            }
        }
    }

    #[test]
    fn an_end_is_half_an_event_unless_an_event_marks_the_end_or_nothing_is_left() {
        for (chunks, is_half, is_marked) in [
            (vec!["data: 1\n\n"], false, false),
            (vec!["data: 1\n\n", "\n"], false, false),
            (vec!["data: 1\n\ndata: 2"], true, false),
            (vec!["data: [DO", "NE]\n\n"], false, true),
            (vec!["data: 1\n\ndata: [DONE]"], false, true),
            (vec!["data: [DONE]\n\ndata: 2"], false, true),
            (vec!["data: {\"finish_reason\":null}\n\n"], false, false),
            (vec!["data: {\"finish_reason\":\"stop\"}\n\n"], false, true),
        ] {
            let (_, mut events) = pass(&chunks);
            assert_eq!((events.finish().1, events.is_marked()), (is_half, is_marked), "{chunks:?}");
        }
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

    #[test]
    fn a_broken_stream_ends_with_an_error_event_and_without_half_an_event() {
        let (passed, mut events) = pass(&["data: 1\n\ndata: {\"half"]);
        let end = String::from_utf8(events.error("it \"broke\"\noff").to_vec()).unwrap();
        assert_eq!(passed, ["data: 1\n\n"]);
        let data = end.strip_prefix("event: error\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
        let json: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(json["error"]["message"], "it \"broke\"\noff");
        assert!(!data.contains('\n'));
    }

    #[test]
    fn an_endless_event_is_passed_on_in_parts_and_the_error_event_still_stands_alone() {
        let long: &'static str = "x".repeat(MAX_EVENT).leak();
        let (passed, mut events) = pass(&[long, "y", "z"]);
        assert_eq!(passed.iter().map(String::len).collect::<Vec<_>>(), [0, MAX_EVENT + 1, 0]);
        assert!(events.error("m").starts_with(b"\n\nevent: error\n"));
        let (_, mut events) = pass(&[long, "y", "z\n\n"]);
        assert!(events.error("m").starts_with(b"event: error\n"));
    }
}
