//! Whether an answer that ended with its connection is whole. HTTP does not say, so what it consists of has to.
//!
//! Not here: streams of events, which have marks: `sse`.

use bytes::{Bytes, BytesMut};
use serde::de::IgnoredAny;

/// A longer line is not looked at.
const MAX_LINE: usize = 1 << 20;

/// What came last of an answer that may have been broken off.
pub(crate) enum Ending {
    /// Of a JSON document: the last byte that is no space.
    Document(u8),
    /// Of lines of JSON: the line that has not ended. `None` if it is too long.
    Line(Option<BytesMut>),
}

impl Ending {
    pub(crate) fn of_a_document() -> Self {
        Self::Document(0)
    }

    pub(crate) fn of_lines() -> Self {
        Self::Line(Some(BytesMut::new()))
    }

    pub(crate) fn push(&mut self, piece: &Bytes) {
        match self {
            Self::Document(last) => *last = piece.trim_ascii_end().last().copied().unwrap_or(*last),
            Self::Line(line) => {
                if let Some(end) = memchr::memrchr(b'\n', piece) {
                    *line = Some(BytesMut::from(&piece[end + 1..]));
                } else if let Some(begun) = line {
                    begun.extend_from_slice(piece);
                }
                line.take_if(|line| line.len() > MAX_LINE);
            }
        }
    }

    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Self::Document(last) => matches!(last, b'}' | b']'),
            Self::Line(None) => true,
            Self::Line(Some(line)) => line.trim_ascii().is_empty() || is_json(line),
        }
    }
}

pub(crate) fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_whole(mut ending: Ending, pieces: &[&'static str]) -> bool {
        for piece in pieces {
            ending.push(&Bytes::from_static(piece.as_bytes()));
        }
        ending.is_whole()
    }

    #[test]
    fn a_document_is_whole_if_it_ends_like_one() {
        for (pieces, whole) in [
            (&["{\"a\":1", "}"][..], true),
            (&["[1]", " \n", ""], true),
            (&["{\"a\":1"], false),
            (&["{}", "{\"a\""], false),
        ] {
            assert_eq!(is_whole(Ending::of_a_document(), pieces), whole, "{pieces:?}");
        }
    }

    #[test]
    fn lines_are_whole_if_the_last_one_has_ended_or_is_json() {
        let long: &'static str = "x".repeat(MAX_LINE + 1).leak();
        for (pieces, whole) in [
            (&["{\"a\":1}\n"][..], true),
            (&["{\"a\":1}\n{\"b\"", ":2}"], true),
            (&["{\"a\":1}\n{\"b\"", ":"], false),
            (&["{\"a\":1", "}\n", "{"], false),
            (&[long, "y"], true),
            (&[long, "\n", "{"], false),
        ] {
            assert_eq!(is_whole(Ending::of_lines(), pieces), whole);
        }
    }
}
