//! When a watcher looked, and how long it was held up. A look that comes late says that its caller was held up, and
//! then everything seems silent.

pub(super) const TICK_MICROS: u64 = 5_000;
/// A look that comes later than this was held up.
const LATE_MICROS: u64 = 5 * TICK_MICROS / 2;
/// A look that comes later than this shows that the core or the whole machine is overloaded.
const VERY_LATE_MICROS: u64 = 3 * TICK_MICROS;
/// For this long after such a look no alarm is raised: answers are late because of the overload.
const CALM_MICROS: u64 = 10 * TICK_MICROS;

/// Times are in microseconds of the detector's clock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Looks {
    pub(super) last: u64,
    /// How long the caller had been held up by the last look.
    pub(super) held_up: u64,
    /// When a look last came very late.
    disturbed: u64,
}

impl Looks {
    /// As another watcher knows it.
    pub(super) fn of(last: u64, held_up: u64) -> Self {
        Self { last, held_up, disturbed: 0 }
    }

    /// There is something to look at again.
    pub(super) fn resume(&mut self, now: u64) {
        self.last = now;
    }

    pub(super) fn look(&mut self, now: u64) {
        self.held_up = self.held_up_by(now);
        if now.saturating_sub(self.last) > VERY_LATE_MICROS {
            self.disturbed = now;
        }
        self.last = now;
    }

    /// How long the caller has been held up so far.
    #[inline]
    pub(super) fn held_up_by(&self, now: u64) -> u64 {
        let since = now.saturating_sub(self.last);
        if since > LATE_MICROS { self.held_up + since - TICK_MICROS } else { self.held_up }
    }

    pub(super) fn is_calm(&self, now: u64) -> bool {
        self.disturbed == 0 || now.saturating_sub(self.disturbed) >= CALM_MICROS
    }
}
