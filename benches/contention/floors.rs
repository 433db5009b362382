//! What no breaker can be cheaper than: each does the least that an operation needs, and decides by it.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use fusebox_benches::Suite;

use crate::{Contender, Expect, FAILURE, REJECTED, SUCCESS, add, each, each_async, upstream};

pub(crate) fn add_all(suite: &mut Suite) {
    add(suite, SUCCESS, "floor: no breaker", NoBreaker, Expect::AllPass, |_| false);
    add(suite, SUCCESS, "floor: one acquire load", Loads::<1>::default(), Expect::AllPass, |_| false);
    add(suite, SUCCESS, "floor: two acquire loads", Loads::<2>::default(), Expect::AllPass, |_| false);
    add(suite, SUCCESS, "floor: a ready future and two loads", ReadyFuture::default(), Expect::AllPass, |_| false);
    add(suite, SUCCESS, "floor: one shared `fetch_add`", Adds::default(), Expect::AllPass, |_| false);
    add(suite, FAILURE, "floor: one shared `fetch_add`", Adds::default(), Expect::AllPass, |_| true);
    add(suite, REJECTED, "floor: one reading of `Instant`", Clock(Instant::now()), Expect::NonePasses, |_| false);
}

struct NoBreaker;

impl Contender for NoBreaker {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool) -> u32 {
        each(fails, |fails| upstream(fails).is_ok())
    }
}

/// A breaker that looks at one word before the call, and once more after it if there are two loads.
#[derive(Default)]
struct Loads<const N: u32>(crossbeam_utils::CachePadded<AtomicU64>);

impl<const N: u32> Contender for Loads<N> {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool) -> u32 {
        each(fails, |fails| {
            self.0.load(Ordering::Acquire) == 0
                && upstream(fails).is_ok()
                && (N == 1 || self.0.load(Ordering::Acquire) == 0)
        })
    }
}

/// The second of them, asked through a future that is ready at once.
#[derive(Default)]
struct ReadyFuture(Loads<2>);

impl Contender for ReadyFuture {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool) -> u32 {
        let word = &self.0.0;
        each_async(fails, async |fails| {
            std::future::ready(word.load(Ordering::Acquire)).await == 0
                && upstream(fails).is_ok()
                && word.load(Ordering::Acquire) == 0
        })
    }
}

/// A breaker that counts its calls.
#[derive(Default)]
struct Adds(crossbeam_utils::CachePadded<AtomicU64>);

impl Contender for Adds {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool) -> u32 {
        each(fails, |fails| {
            let _ = upstream(fails);
            self.0.fetch_add(1, Ordering::Relaxed) < u64::MAX
        })
    }
}

/// A breaker that is open until a time.
struct Clock(Instant);

impl Contender for Clock {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool) -> u32 {
        each(fails, |fails| Instant::now() < black_box(self.0) && upstream(fails).is_ok())
    }
}
