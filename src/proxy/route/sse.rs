//! Server-sent events, or lines of JSON, on their way to the client. It gets whole ones only, so that a stream of
//! events that breaks off can end with one that says so.
//!
//! Not here: what an event means: `meaning`.

use bytes::{Bytes, BytesMut};
use serde_json::Value;

use super::ending::is_json;
use super::inside::Inside;
use super::meaning::{Form, error_in, has_content, last_end, marks_the_end};

/// A longer event is passed on in parts. No provider sends one.
const MAX_EVENT: usize = 1 << 20;

/// Cuts a stream at the ends of events, or of lines.
pub(crate) struct Events {
    form: Form,
    /// The beginning of an event whose end has not come.
    held: BytesMut,
    /// Whether a part of that event has been passed on.
    within: bool,
    /// Whether an event that was passed on marks the end of the answer.
    marked: bool,
    /// Whether an event that was passed on is an error.
    failed: bool,
}

impl Events {
    pub(crate) fn new(form: Form) -> Self {
        Self { form, held: BytesMut::new(), within: false, marked: false, failed: false }
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// Whether a piece other than a comment has begun that has not ended.
    pub(crate) fn has_begun_a_piece(&self) -> bool {
        self.within || self.held.first().is_some_and(|first| *first != b':')
    }

    /// Whether what was passed on does not merely keep the stream alive.
    pub(crate) fn has_content(&self, passed: &[u8]) -> bool {
        !passed.is_empty() && has_content(self.form, passed)
    }

    /// What can be passed on after this chunk. It is empty if no event ends in the chunk.
    pub(crate) fn push(&mut self, chunk: &Bytes) -> (Bytes, Option<Inside>) {
        let passed = self.whole_events(chunk);
        let error = self.note(&passed);
        (passed, error)
    }

    /// Looks at events that are passed on. Returns the error that ends the answer, if one does.
    fn note(&mut self, events: &[u8]) -> Option<Inside> {
        if self.is_ended() {
            return None;
        }
        // First: some chunks with an error have a `finish_reason`.
        let error = error_in(self.form, events);
        self.failed = error.is_some();
        self.marked = !self.failed && marks_the_end(self.form, events);
        error
    }

    /// Whether an event that was passed on marks the end of the answer.
    pub(crate) fn is_marked(&self) -> bool {
        self.marked
    }

    /// Whether it does, or is an error: what comes after it, and whether the connection ends well, does not matter any
    /// more.
    pub(crate) fn is_ended(&self) -> bool {
        self.marked || self.failed
    }

    /// Whether all that came has been passed on, in whole events.
    pub(crate) fn is_between_events(&self) -> bool {
        self.held.is_empty() && !self.within
    }

    fn whole_events(&mut self, chunk: &Bytes) -> Bytes {
        if self.held.is_empty() {
            let end = last_end(self.form, chunk);
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
        let end = last_end(self.form, &self.held[seen..]);
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
        self.marked = self.marked || !self.failed && marks_the_end(self.form, &rest);
        let is_whole = rest.trim_ascii().is_empty() || self.form == Form::Lines && is_json(&rest);
        let is_half = !self.is_ended() && (self.within && self.form == Form::Events || !is_whole);
        (rest, is_half)
    }

    /// The event that replaces what is left if the stream breaks off. Every SDK of the protocol turns it into an error.
    pub(crate) fn end_with(&mut self, error: &Value) -> Bytes {
        self.held.clear();
        let end_of_what_was_passed = if self.within { "\n\n" } else { "" };
        format!("{end_of_what_was_passed}event: error\ndata: {error}\n\n").into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::answer::broken_stream;

    /// What is passed on for each chunk.
    fn pass(chunks: &[&'static str]) -> (Vec<String>, Events) {
        let mut events = Events::new(Form::Events);
        let passed =
            chunks.iter().map(|chunk| String::from_utf8(events.push(&Bytes::from_static(chunk.as_bytes())).0.to_vec()));
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
    fn a_broken_stream_ends_with_an_error_event_and_without_half_an_event() {
        let (passed, mut events) = pass(&["data: 1\n\ndata: {\"half"]);
        let end = String::from_utf8(events.end_with(&broken_stream("it \"broke\"\noff")).to_vec()).unwrap();
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
        assert!(events.end_with(&broken_stream("m")).starts_with(b"\n\nevent: error\n"));
        let (_, mut events) = pass(&[long, "y", "z\n\n"]);
        assert!(events.end_with(&broken_stream("m")).starts_with(b"event: error\n"));
    }
}
