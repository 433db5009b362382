//! Pauses of an upstream that end by themselves: for a moment it answers nothing, as when it schedules its work anew,
//! and then what it was sent before. A silence is believed only when it has lasted longer than those.
//!
//! Not here: streams that pause: `stalls`.

use super::looks::TICK_MICROS;
use crate::sync::Ordering;
use crate::sync::unseen::{AtomicU64, Mutex};

/// How many of the last pauses are known.
const KNOWN: usize = 16;
/// They are forgotten when there has been none for ten minutes. Times are in microseconds.
const MEMORY: u64 = 600_000_000;
/// A longer one is an outage, and must not delay the alarm at the next outage.
const LONGEST: u64 = 1_000_000;

/// What all cores know of an upstream's pauses.
#[derive(Default)]
pub(super) struct Pauses {
    usual: AtomicU64,
    forgotten_at: AtomicU64,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    lengths: [u64; KNOWN],
    at: usize,
    /// When the newest one ended.
    ended: u64,
}

impl Pauses {
    /// How long a silence has to last before it is more than a pause: twice as long as two of the last pauses did. One
    /// alone may have been an outage.
    pub(super) fn usual(&self, now: u64) -> u64 {
        if now < self.forgotten_at.load(Ordering::Relaxed) { self.usual.load(Ordering::Relaxed) } else { 0 }
    }

    fn add(&self, begun: u64, ended: u64) {
        // A core that holds the lock reports the same pause.
        let Some(mut last) = self.last.try_lock() else { return };
        if ended >= self.forgotten_at.load(Ordering::Relaxed) {
            last.lengths = [0; KNOWN];
        }
        // Reports that overlap are of one pause: each core sees it, and its end may come in steps.
        if begun >= last.ended {
            last.at = (last.at + 1) % KNOWN;
            let at = last.at;
            last.lengths[at] = 0;
        }
        let at = last.at;
        last.lengths[at] = last.lengths[at].max(ended.saturating_sub(begun));
        last.ended = last.ended.max(ended);
        let mut sorted = last.lengths.map(|length| if length > LONGEST { 0 } else { length });
        sorted.sort_unstable();
        self.usual.store(2 * sorted[KNOWN - 2], Ordering::Relaxed);
        self.forgotten_at.store(last.ended + MEMORY, Ordering::Relaxed);
    }
}

/// A surprising silence, as one core sees it. Times are in microseconds.
#[derive(Clone, Copy)]
pub(super) struct Pause {
    /// When the newest of the answered requests was started.
    as_of: u64,
    begun: u64,
    /// The last look at which it was surprising.
    surprising: u64,
    /// The last look before its end.
    seen: u64,
}

impl Pause {
    pub(super) fn new(as_of: u64, begun: u64, now: u64) -> Self {
        Self { as_of, begun, surprising: now, seen: now }
    }

    /// The same silence as `before`, if there was one.
    pub(super) fn after(self, before: Option<Self>) -> Self {
        Self { begun: before.map_or(self.begun, |before| before.begun.min(self.begun)), ..self }
    }

    /// `None` if the silence is over. If a request is answered that was silent, it was a pause; if only newer ones are,
    /// it was an outage.
    pub(super) fn go_on(self, newest: u64, now: u64, pauses: &Pauses) -> Option<Self> {
        if newest == self.as_of {
            return Some(Self { seen: now, ..self });
        }
        if newest <= self.surprising {
            // It ended between two looks.
            pauses.add(self.begun, self.seen + TICK_MICROS);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1000;

    #[test]
    fn a_silence_is_more_than_a_pause_when_it_lasts_twice_as_long_as_two_pauses_did() {
        let pauses = Pauses::default();
        assert_eq!(pauses.usual(0), 0);
        pauses.add(1000 * MS, 1100 * MS);
        assert_eq!(pauses.usual(1100 * MS), 0, "one may have been an outage");
        pauses.add(2000 * MS, 2060 * MS);
        assert_eq!(pauses.usual(2060 * MS), 120 * MS);
        pauses.add(3000 * MS, 3200 * MS);
        assert_eq!(pauses.usual(3200 * MS), 200 * MS);
    }

    #[test]
    fn what_each_core_tells_of_one_pause_counts_once() {
        let pauses = Pauses::default();
        pauses.add(1000 * MS, 1100 * MS);
        pauses.add(1010 * MS, 1200 * MS);
        pauses.add(1005 * MS, 1150 * MS);
        assert_eq!(pauses.usual(1200 * MS), 0);
        pauses.add(2000 * MS, 2300 * MS);
        assert_eq!(pauses.usual(2300 * MS), 2 * 190 * MS);
    }

    #[test]
    fn pauses_are_forgotten_after_ten_minutes_without_one_and_after_sixteen_others() {
        let pauses = Pauses::default();
        for at in [1000 * MS, 2000 * MS] {
            pauses.add(at, at + 500 * MS);
        }
        let end = 2500 * MS;
        assert_eq!((pauses.usual(end + MEMORY - 1), pauses.usual(end + MEMORY)), (1000 * MS, 0));
        pauses.add(end + MEMORY, end + MEMORY + 60 * MS);
        assert_eq!(pauses.usual(end + MEMORY + 60 * MS), 0);
        for number in 0..KNOWN as u64 {
            let at = end + MEMORY + (number + 1) * 1000 * MS;
            pauses.add(at, at + 80 * MS);
        }
        assert_eq!(pauses.usual(end + MEMORY + 20_000 * MS), 160 * MS);
    }

    #[test]
    fn an_outage_is_no_pause() {
        let pauses = Pauses::default();
        for at in [1000 * MS, 9000 * MS] {
            pauses.add(at, at + LONGEST + 1);
        }
        assert_eq!(pauses.usual(12_000 * MS), 0, "it lasted for too long");
        for at in [13_000 * MS, 16_000 * MS] {
            pauses.add(at, at + 2000 * MS);
            pauses.add(at + 1500 * MS, at + 2010 * MS);
        }
        assert_eq!(pauses.usual(19_000 * MS), 0, "what is answered last is a part of it");
        for at in [20_000 * MS, 21_000 * MS] {
            let pause = Pause::new(at - 1, at, at + 50 * MS);
            let pause = pause.go_on(at - 1, at + 90 * MS, &pauses).expect("nothing was answered");
            assert!(pause.go_on(at + 60 * MS, at + 95 * MS, &pauses).is_none());
        }
        assert_eq!(pauses.usual(22_000 * MS), 0, "what was sent then was never answered");
        for at in [30_000 * MS, 31_000 * MS] {
            let pause = Pause::new(at - 1, at, at + 50 * MS);
            assert!(pause.go_on(at + 10 * MS, at + 95 * MS, &pauses).is_none());
        }
        assert_eq!(pauses.usual(32_000 * MS), 2 * 55 * MS);
    }
}
