//! What no breaker can be cheaper than: each does the least that an operation needs, and decides by it.

use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::{AsyncContender, Contender, each, upstream};

pub struct NoBreaker;

impl Contender for NoBreaker {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool + Send) -> u32 {
        each(fails, |fails| upstream(fails).is_ok())
    }
}

/// A breaker that looks at one word before the call, and once more after it if there are two loads.
#[derive(Default)]
pub struct Loads<const N: u32>(crossbeam_utils::CachePadded<AtomicU64>);

impl<const N: u32> Contender for Loads<N> {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool + Send) -> u32 {
        each(fails, |fails| {
            self.0.load(Ordering::Acquire) == 0
                && upstream(fails).is_ok()
                && (N == 1 || self.0.load(Ordering::Acquire) == 0)
        })
    }
}

/// The second of them, asked through a future that is ready at once.
#[derive(Default)]
pub struct ReadyFuture(Loads<2>);

impl AsyncContender for ReadyFuture {
    type Handle = ();

    fn handle(&self) {}

    async fn call(&self, (): &mut (), fails: bool) -> bool {
        let word = &self.0.0;
        let passes = std::future::ready(word.load(Ordering::Acquire)).await == 0;
        if passes {
            let _ = upstream(fails);
        }
        passes && word.load(Ordering::Acquire) == 0
    }
}

/// The same, polled once.
#[derive(Default)]
pub struct ReadyFuturePolled(Loads<2>);

impl Contender for ReadyFuturePolled {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool + Send) -> u32 {
        let word = &self.0.0;
        each(fails, |fails| {
            pin!(std::future::ready(word.load(Ordering::Acquire))).poll(&mut Context::from_waker(Waker::noop()))
                == Poll::Ready(0)
                && upstream(fails).is_ok()
                && word.load(Ordering::Acquire) == 0
        })
    }
}

/// A breaker that counts its calls.
#[derive(Default)]
pub struct Adds(crossbeam_utils::CachePadded<AtomicU64>);

impl Contender for Adds {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool + Send) -> u32 {
        each(fails, |fails| {
            let _ = upstream(fails);
            self.0.fetch_add(1, Ordering::Relaxed) < u64::MAX
        })
    }
}

/// A breaker that is open until a time.
pub struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Contender for Clock {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool + Send) -> u32 {
        each(fails, |fails| Instant::now() < black_box(self.0) && upstream(fails).is_ok())
    }
}
