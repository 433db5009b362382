//! Cooldowns whose end nobody has told: they grow while what caused them repeats.
//!
//! Not here: reading an end that was told: `later`.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct Growing(Mutex<Option<Last>>);

/// The newest cooldown.
#[derive(Clone, Copy, Debug)]
struct Last {
    length: Duration,
    ends: Instant,
}

impl Growing {
    /// The length of the cooldown that begins, or goes on, `now`: `first`, and twice the last one up to `max` if the
    /// cause is back within the time that the last one lasted. During a cooldown it is the rest of it: requests that
    /// were under way tell nothing new.
    pub(crate) fn begin(&self, now: Instant, first: Duration, max: Duration) -> Duration {
        let mut last = self.0.lock();
        let length = match *last {
            Some(last) if now < last.ends => return last.ends - now,
            Some(last) if now < last.ends + last.length => (last.length * 2).min(max),
            _ => first.min(max),
        };
        *last = Some(Last { length, ends: now + length });
        length
    }

    pub(crate) fn forget(&self) {
        *self.0.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_cooldown_grows_while_its_cause_repeats_and_requests_under_way_do_not_extend_it() {
        const FIRST: Duration = Duration::from_secs(5);
        const MAX: Duration = Duration::from_secs(15);
        let growing = Growing::default();
        let start = Instant::now();
        let at = |seconds| growing.begin(start + Duration::from_secs(seconds), FIRST, MAX).as_secs();
        assert_eq!((at(0), at(1), at(4)), (5, 4, 1));
        assert_eq!(at(6), 10, "it came back");
        assert_eq!((at(16), at(31)), (15, 15), "the longest one");
        assert_eq!(at(46 + 16), 5, "it had been well for longer than the last one lasted");
        growing.forget();
        assert_eq!(at(63), 5);
    }
}
