//! A detector's own clock, in microseconds.

use std::time::{Duration, Instant};

/// When a detector was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Epoch(Instant);

/// What its clock shows then.
const EPOCH_MICROS: u64 = 1 << 40;

impl Epoch {
    pub(super) fn now() -> Self {
        Self(Instant::now())
    }

    /// Never 0. The caller's clock may be a paused one, which lags behind.
    #[inline]
    pub(super) fn micros(self, now: Instant) -> u64 {
        match now.checked_duration_since(self.0) {
            Some(since) => EPOCH_MICROS + micros(since),
            None => EPOCH_MICROS.saturating_sub(micros(self.0.saturating_duration_since(now))).max(1),
        }
    }

    /// `None` for a time before the detector was made.
    pub(super) fn instant(self, micros: u64) -> Option<Instant> {
        self.0.checked_add(Duration::from_micros(micros.checked_sub(EPOCH_MICROS)?))
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    duration.as_secs() * 1_000_000 + u64::from(duration.subsec_micros())
}
