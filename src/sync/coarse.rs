//! A cheap clock for rejecting calls. Reading it costs a fifth of reading an `Instant`, but it advances in steps: on
//! Linux of 1 to 10 ms, by the kernel's timer. So it may decide that a call is rejected, and never that a call passes:
//! see [`open_left_for_sure`](crate::word::step::open_left_for_sure).

/// Milliseconds since it was made, modulo 2^64.
pub(crate) struct CoarseClock {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    epoch: u64,
}

#[cfg(any(target_os = "linux", target_os = "android"))]
impl CoarseClock {
    pub(crate) fn new() -> Self {
        // The epoch comes from the precise clock, rounded up. An epoch from the coarse clock, which lags, could put
        // this clock ahead of the precise one, and a caller would be told to come back too early.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Self { epoch: ticks(now) + 1 }
    }

    /// For an instant after it was made, it wraps below zero. `None` if the system has no such clock, or if tests may
    /// pause tokio's time in this build: the system's clock would not pause.
    #[inline]
    pub(crate) fn now(&self) -> Option<u64> {
        (!TIME_CAN_BE_PAUSED).then(|| system_ticks().wrapping_sub(self.epoch))
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn system_ticks() -> u64 {
    ticks(rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse))
}

#[cfg(any(target_os = "linux", target_os = "android"))]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "neither is negative, and a second is short"
)]
fn ticks(time: rustix::time::Timespec) -> u64 {
    (time.tv_sec as u64).wrapping_mul(1000).wrapping_add(u64::from(time.tv_nsec as u32 / 1_000_000))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
impl CoarseClock {
    pub(crate) fn new() -> Self {
        Self {}
    }

    pub(crate) fn now(&self) -> Option<u64> {
        None
    }
}

/// Whether tokio is built with its feature `test-util`, which any crate of the build may enable. Then
/// `tokio::time::pause` exists, and the glob import below shadows the constant of that name.
const TIME_CAN_BE_PAUSED: bool = {
    #[allow(unused_imports, clippy::wildcard_imports, reason = "that is the question")]
    use tokio::time::*;
    is_function(&pause)
};

#[allow(dead_code, non_upper_case_globals, reason = "stands in for a function that may not be there")]
const pause: NoFunction = NoFunction;

struct NoFunction;

trait MaybeFunction {
    const IS_FUNCTION: bool;
}

impl MaybeFunction for NoFunction {
    const IS_FUNCTION: bool = false;
}

impl<F: Fn()> MaybeFunction for F {
    const IS_FUNCTION: bool = true;
}

const fn is_function<T: MaybeFunction>(_: &T) -> bool {
    T::IS_FUNCTION
}

#[cfg(test)]
mod tests {
    #[test]
    fn these_tests_can_pause_tokio_s_time_and_so_nothing_here_reads_the_system_s() {
        const { assert!(super::TIME_CAN_BE_PAUSED) };
        assert_eq!(super::CoarseClock::new().now(), None);
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[test]
    fn a_tick_is_a_millisecond() {
        let ticks = |tv_sec, tv_nsec| super::ticks(rustix::time::Timespec { tv_sec, tv_nsec });
        assert_eq!(ticks(0, 999_999), 0);
        assert_eq!(ticks(2, 999_999_999), 2999);
    }
}
