//! Time as the word counts it: 1 ms ticks since a breaker was made, modulo 2^32.
//!
//! Not here: deadlines, and what follows from them: `word`.

use std::time::Duration;

use crate::sync::{CoarseClock, Instant};

pub(crate) struct Clock {
    epoch: Instant,
    coarse: CoarseClock,
}

impl Clock {
    pub(crate) fn new() -> Self {
        // In this order: the coarse clock must not be ahead of the other one.
        Self { epoch: Instant::now(), coarse: CoarseClock::new() }
    }

    pub(crate) fn now(&self) -> u32 {
        self.tick_at(Instant::now())
    }

    /// The same, as a number that does not wrap.
    pub(crate) fn millis(&self) -> u64 {
        self.millis_at(Instant::now())
    }

    /// As [`now`](Self::now), but cheaper, and up to [`COARSE_ERROR`](crate::word::step::COARSE_ERROR) behind it, never
    /// ahead. It is further behind if the system is too busy to update its clock.
    #[inline]
    pub(crate) fn about_now(&self) -> u32 {
        self.coarse.now().map_or_else(|| self.now(), tick)
    }

    /// As [`about_now`](Self::about_now), as a number that does not wrap.
    #[inline]
    pub(crate) fn about_millis(&self) -> u64 {
        self.coarse.now().map_or_else(|| self.millis(), |millis| if millis > u64::MAX / 2 { 0 } else { millis })
    }

    pub(crate) fn tick_at(&self, instant: Instant) -> u32 {
        tick(self.millis_at(instant))
    }

    fn millis_at(&self, instant: Instant) -> u64 {
        #[expect(clippy::cast_possible_truncation, reason = "it lasts for half a million years")]
        let millis = instant.saturating_duration_since(self.epoch).as_millis() as u64;
        millis
    }
}

/// A time in ticks.
#[inline]
pub(crate) fn tick(millis: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "ticks wrap; the word's deadline rule allows for it")]
    let tick = millis as u32;
    tick
}

/// A configured duration in ticks, rounded up.
pub(crate) fn ticks(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos().div_ceil(1_000_000)).expect("the configuration's ranges are far below 2^32 ms")
}

pub(crate) fn duration(ticks: u32) -> Duration {
    Duration::from_millis(ticks.into())
}
