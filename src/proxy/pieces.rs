//! Bodies come in pieces, with pauses: what reading them has in common in both directions.

use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::SizeHint;
use tokio::time::Instant;

use super::timers::Timer;

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

/// The wait for the next piece. Its time runs only while somebody is ready for that piece.
pub(crate) struct Pause {
    timer: Timer,
    /// While it runs.
    until: Option<Instant>,
}

impl Pause {
    pub(crate) fn new(timer: Timer) -> Self {
        Self { timer, until: None }
    }

    /// Ready when it has lasted too long. `until` says when that is, at its beginning.
    pub(crate) fn poll(&mut self, until: impl FnOnce() -> Instant, cx: &mut Context<'_>) -> Poll<()> {
        let until = *self.until.get_or_insert_with(until);
        self.timer.poll_until(until, cx)
    }

    /// The piece has come.
    pub(crate) fn end(&mut self) {
        self.until = None;
    }
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

    #[tokio::test(start_paused = true)]
    async fn a_pause_ends_in_time_and_begins_anew_with_the_next_piece() {
        use std::future::poll_fn;
        use std::sync::Arc;
        use std::time::Duration;

        use crate::proxy::timers::Timers;

        let mut pause = Pause::new(Arc::<Timers>::default().timer());
        let begun = Instant::now();
        let wait = async |pause: &mut Pause| {
            let until = || Instant::now() + Duration::from_secs(1);
            poll_fn(|cx| pause.poll(until, cx)).await;
        };
        tokio::select! {
            biased;
            () = wait(&mut pause) => panic!("it has not lasted"),
            () = tokio::time::sleep(Duration::from_millis(600)) => {}
        }
        pause.end();
        wait(&mut pause).await;
        assert_eq!(begun.elapsed(), Duration::from_millis(1600));
    }
}
