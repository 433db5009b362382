//! Whether a JSON document that ended with its connection is whole. HTTP does not say, so what it ends with has to.
//!
//! Not here: streams of events or lines, which have marks: `sse`.

use serde::de::IgnoredAny;

/// The last byte that is no space, of an answer that may have been broken off.
#[derive(Default)]
pub(crate) struct Ending(u8);

impl Ending {
    pub(crate) fn push(&mut self, piece: &[u8]) {
        self.0 = piece.trim_ascii_end().last().copied().unwrap_or(self.0);
    }

    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.0, b'}' | b']')
    }
}

pub(crate) fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_whole_if_it_ends_like_one() {
        for (pieces, whole) in [
            (&["{\"a\":1", "}"][..], true),
            (&["[1]", " \n", ""], true),
            (&["{\"a\":1"], false),
            (&["{}", "{\"a\""], false),
        ] {
            let mut ending = Ending::default();
            for piece in pieces {
                ending.push(piece.as_bytes());
            }
            assert_eq!(ending.is_whole(), whole, "{pieces:?}");
        }
    }
}
