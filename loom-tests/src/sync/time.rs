//! A clock that stands still until somebody lets time pass, and the timers that wait for it. The histories of real
//! threads mount this file, too.

use std::future::{Future, poll_fn};
use std::ops::Add;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::{CLOCK, ClockU64, Hidden};
use crate::production::word::step::COARSE_ERROR;

/// All there is to it.
pub(crate) struct Clock {
    // Relaxed everywhere: a clock never goes backwards for a thread that has read it, and orders nothing else.
    millis: ClockU64,
    timers: Hidden<Timers>,
}

#[derive(Default)]
struct Timers {
    next: usize,
    waiting: Vec<(usize, Instant, Waker)>,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { millis: ClockU64::new(0), timers: Hidden::new(Timers::default()) }
    }

    /// What no other thread has gone beyond.
    #[allow(dead_code, reason = "the models do not ask")]
    pub(crate) fn millis(&self) -> u64 {
        self.millis.fetch_add(0, Relaxed)
    }
}

/// As far ahead of the clock as a coarse one may be.
pub(crate) struct CoarseClock;

#[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "as the real one")]
impl CoarseClock {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn now(&self) -> Option<u64> {
        Some(CLOCK.millis.load(Relaxed) + u64::from(COARSE_ERROR))
    }
}

/// A point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instant(u64);

impl Instant {
    pub(crate) fn now() -> Self {
        Self(CLOCK.millis.load(Relaxed))
    }

    pub(crate) fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + millis(duration))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("a model's durations are short")
}

/// Advances the time, and wakes the timers that expire.
#[allow(unreachable_pub, reason = "where the histories mount it")]
pub fn advance(by: Duration) {
    let now = Instant(CLOCK.millis.fetch_add(millis(by), Relaxed)) + by;
    let due: Vec<_> = CLOCK.timers.with(|timers| timers.waiting.extract_if(.., |(_, at, _)| *at <= now).collect());
    for (_, _, waker) in due {
        waker.wake();
    }
}

/// The deadline has passed.
pub(crate) struct Elapsed;

/// Waits for `future`, but no longer than until `deadline`.
pub(crate) async fn timeout_at<F: Future>(deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut timer = Timer { deadline, id: None };
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => timer.poll(cx).map(Err),
    })
    .await
}

struct Timer {
    deadline: Instant,
    id: Option<usize>,
}

impl Timer {
    fn poll(&mut self, cx: &Context<'_>) -> Poll<Elapsed> {
        let waker = cx.waker().clone();
        let old = self.take();
        self.id = Some(CLOCK.timers.with(|timers| {
            timers.next += 1;
            timers.waiting.push((timers.next, self.deadline, waker));
            timers.next
        }));
        drop(old);
        // After it is there to be woken; and not a load, whose stale time would wait for an advance that has already
        // been.
        if Instant(CLOCK.millis.fetch_add(0, Relaxed)) >= self.deadline {
            return Poll::Ready(Elapsed);
        }
        Poll::Pending
    }

    /// The waker goes to the caller: dropping it may be an operation that loom sees.
    fn take(&mut self) -> Option<Waker> {
        let id = self.id.take()?;
        CLOCK.timers.with(|timers| {
            let at = timers.waiting.iter().position(|(waiting, ..)| *waiting == id)?;
            Some(timers.waiting.swap_remove(at).2)
        })
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        drop(self.take());
    }
}
