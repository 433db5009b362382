//! Bodies come in pieces: what reading them has in common in both directions.
//!
//! Not here: limits of time and size: those who read have them.

use bytes::{Bytes, BytesMut};
use http_body::SizeHint;

/// Room for several pieces at first: events are small, and many.
const MIN_SEVERAL: usize = 4 << 10;

/// The pieces of a body so far. Most bodies come in one piece, which then need not be copied.
#[derive(Default)]
pub(crate) struct Pieces {
    only: Bytes,
    several: BytesMut,
}

impl Pieces {
    pub(crate) fn push(&mut self, piece: Bytes) {
        if self.len() == 0 {
            self.only = piece;
        } else {
            if self.several.is_empty() {
                self.several.reserve(MIN_SEVERAL.max(2 * (self.only.len() + piece.len())));
            }
            self.several.extend_from_slice(&std::mem::take(&mut self.only));
            self.several.extend_from_slice(&piece);
        }
    }

    pub(crate) fn len(&self) -> u64 {
        (self.only.len() + self.several.len()) as u64
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        if self.several.is_empty() { self.only } else { self.several.freeze() }
    }
}

/// The size of a body of which a piece was read ahead.
pub(crate) fn size_with(ahead: Option<&Bytes>, rest: &SizeHint) -> SizeHint {
    let ahead = ahead.map_or(0, Bytes::len) as u64;
    let mut hint = SizeHint::new();
    // The upper bound first: `SizeHint` asserts that the lower one is not above it.
    if let Some(upper) = rest.upper() {
        hint.set_upper(upper + ahead);
    }
    hint.set_lower(rest.lower() + ahead);
    hint
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_whole_and_a_single_one_is_not_copied() {
        let mut pieces = Pieces::default();
        let piece = Bytes::from_static(b"one");
        pieces.push(Bytes::new());
        pieces.push(piece.clone());
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces.into_bytes().as_ptr(), piece.as_ptr());

        let mut pieces = Pieces::default();
        for piece in ["a", "", "b", "c"] {
            pieces.push(piece.into());
        }
        assert_eq!((pieces.len(), pieces.into_bytes()), (3, Bytes::from_static(b"abc")));
    }
}
