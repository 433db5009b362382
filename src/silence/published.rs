//! What each core publishes for the others: when the newest of its answered requests was started, and how surprising
//! its silent requests are.
//!
//! Not here: what follows from that: `detector`.

use std::time::Duration;

use crate::sync::unseen::AtomicUsize;
use crate::sync::{AtomicU64, Ordering};

use super::latencies::Latencies;

/// The silent requests of one core, or of all cores. Times are in microseconds of the detector's clock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Silent {
    pub(super) members: u32,
    pub(super) phi: f32,
    /// When the oldest of them was started. 0 if there is none.
    pub(super) oldest: u64,
}

impl Silent {
    pub(super) fn and(self, other: Self) -> Self {
        let oldest = match (self.oldest, other.oldest) {
            (0, oldest) | (oldest, 0) => oldest,
            (one, other) => one.min(other),
        };
        Self { members: self.members + other.members, phi: self.phi + other.phi, oldest }
    }

    pub(super) fn age(self, now: u64) -> Duration {
        if self.members == 0 { Duration::ZERO } else { Duration::from_micros(now.saturating_sub(self.oldest)) }
    }
}

const MEMBERS_BITS: u32 = 14;
const PHI_BITS: u32 = 14;
/// Phi is published in 64ths, rounded down.
const PHI_STEPS: f32 = 64.0;
const AS_OF_SHIFT: u32 = MEMBERS_BITS + PHI_BITS;

const fn most(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// A sum of surprises, in one word with the newest answer that was known when it was taken. Once a newer answer is
/// known, requests that are older than it are not silent, and a sum that still counts them has to be recognized as out
/// of date. 36 bits for that answer's time are enough: they repeat after 19 hours, long after a core with requests
/// under way has looked again.
fn pack(silent: Silent, as_of: u64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is not negative, and what is too large saturates"
    )]
    let phi = ((silent.phi * PHI_STEPS) as u64).min(most(PHI_BITS));
    as_of << AS_OF_SHIFT | phi << MEMBERS_BITS | u64::from(silent.members).min(most(MEMBERS_BITS))
}

/// The sum, if it was taken after this answer. `None` if it is out of date.
fn unpack(word: u64, as_of: u64, oldest: u64) -> Option<Silent> {
    #[expect(clippy::cast_possible_truncation, reason = "14 bits")]
    let members = (word & most(MEMBERS_BITS)) as u32;
    if members == 0 {
        return Some(Silent::default());
    }
    if word >> AS_OF_SHIFT != as_of << AS_OF_SHIFT >> AS_OF_SHIFT {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "14 bits")]
    let phi = (word >> MEMBERS_BITS & most(PHI_BITS)) as f32 / PHI_STEPS;
    Some(Silent { members, phi, oldest })
}

pub(super) struct Published {
    /// When the newest of the answered requests was started. 0 before the first answer.
    answered: AtomicU64,
    silent: AtomicU64,
    oldest: AtomicU64,
    /// It only decides when enough is learnt.
    pub(super) in_flight: AtomicUsize,
    /// Whether a watcher owns this.
    pub(super) taken: AtomicUsize,
    pub(super) latencies: Latencies,
}

impl Published {
    pub(super) fn new() -> Self {
        Self {
            answered: AtomicU64::new(0),
            silent: AtomicU64::new(0),
            oldest: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
            latencies: Latencies::new(),
        }
    }

    #[inline]
    pub(super) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Acquire)
    }

    /// Called by its own core alone, which knows that the answer is newer than the one before.
    #[inline]
    pub(super) fn set_answered(&self, started: u64) {
        self.answered.store(started, Ordering::Release);
    }

    /// By its own core alone.
    pub(super) fn set_silent(&self, silent: Silent, as_of: u64) {
        // A torn read underestimates the age by at most one tick.
        self.oldest.store(silent.oldest, Ordering::Relaxed);
        self.silent.store(pack(silent, as_of), Ordering::Release);
    }

    pub(super) fn silent(&self, as_of: u64) -> Option<Silent> {
        let word = self.silent.load(Ordering::Acquire);
        unpack(word, as_of, self.oldest.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_sum_can_be_read_until_a_newer_answer_is_known() {
        let published = Published::new();
        assert_eq!(published.silent(17).expect("nothing is never out of date").members, 0);
        published.set_silent(Silent { members: 3, phi: 9.5, oldest: 20 }, 17);
        let told = published.silent(17).expect("as of the same answer");
        assert_eq!((told.members, told.oldest), (3, 20));
        assert!((told.phi - 9.5).abs() < 0.1);
        assert!(published.silent(18).is_none());
        published.set_silent(Silent::default(), 17);
        assert!(published.silent(18).is_some());
    }

    #[test]
    fn values_above_the_maximum_are_reported_as_the_maximum() {
        let told = unpack(pack(Silent { members: u32::MAX, phi: f32::MAX, oldest: 1 }, u64::MAX), u64::MAX, 1)
            .expect("up to date");
        assert_eq!(told.members, 16_383);
        assert!(told.phi > 255.0);
    }

    #[test]
    fn the_oldest_request_of_two_cores_is_the_older_of_theirs() {
        let silent = |members, oldest| Silent { members, phi: 1.0, oldest };
        assert_eq!(silent(2, 7).and(silent(1, 5)).oldest, 5);
        assert_eq!(silent(2, 7).and(Silent::default()).oldest, 7);
        assert_eq!(Silent::default().and(silent(2, 7)).oldest, 7);
        assert_eq!(Silent::default().age(100), Duration::ZERO);
    }
}
