//! Collecting a body from the pieces in which it comes, in either direction.
//!
//! Not here: limits of time and size: the callers have them.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body::SizeHint;

use super::budget::{Budget, FREE, Share};

/// The capacity at the second piece. Events are small and many.
const MIN_SEVERAL: usize = 4 << 10;

/// The pieces of a body so far. Most bodies come in one piece, which is not copied.
#[derive(Default)]
pub(crate) struct Pieces {
    only: Bytes,
    several: BytesMut,
    share: Option<Share>,
}

impl Pieces {
    /// Whether there is room to hold `bytes` more.
    pub(crate) fn has_room(&mut self, bytes: usize, budget: &Arc<Budget>) -> bool {
        let length = self.len() + bytes as u64;
        length <= FREE || {
            let share = self.share.get_or_insert_with(|| Share::new(Arc::clone(budget)));
            // A buffer that pieces are copied into grows by doubling.
            let room = if self.only.is_empty() && self.several.is_empty() { length } else { 2 * length };
            share.grow_to(room)
        }
    }

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

    pub(crate) fn so_far(&self) -> &[u8] {
        if self.several.is_empty() { &self.only } else { &self.several }
    }

    pub(crate) fn len(&self) -> u64 {
        (self.only.len() + self.several.len()) as u64
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        let Self { only, several, share } = self;
        let capacity = several.capacity();
        let bytes = if several.is_empty() { only } else { several.freeze() };
        let Some(mut share) = share else { return bytes };
        // A body may be held for long, and should not keep unused capacity.
        let bytes = if capacity > bytes.len() + bytes.len() / 4 { Bytes::copy_from_slice(&bytes) } else { bytes };
        share.shrink_to(bytes.len().max(capacity.min(bytes.len() + bytes.len() / 4)) as u64);
        share.with(bytes)
    }
}

/// The size of a body of which `ahead` bytes have been read, and `rest` is to come.
pub(crate) fn size_with(ahead: u64, rest: &SizeHint) -> SizeHint {
    let mut hint = SizeHint::new();
    // The upper bound first: `SizeHint` panics if the lower one is above it.
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
    fn pieces_are_joined_and_a_single_one_is_not_copied() {
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
