//! What no breaker can be cheaper than: each does the least that an operation needs, and decides by it.

use std::future::{Future, ready};
use std::hint::black_box;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crossbeam_utils::CachePadded;

use super::{Async, AsyncCall, Contender, Plain, upstream};

type Word = CachePadded<AtomicU64>;

pub fn no_breaker() -> impl Contender {
    Plain(|fails| upstream(fails).is_ok())
}

/// A look before the call.
pub fn one_load() -> impl Contender {
    let word = Word::default();
    Plain(move |fails| word.load(Ordering::Acquire) == 0 && upstream(fails).is_ok())
}

/// And one after it.
pub fn two_loads() -> impl Contender {
    let word = Word::default();
    Plain(move |fails| {
        word.load(Ordering::Acquire) == 0 && upstream(fails).is_ok() && word.load(Ordering::Acquire) == 0
    })
}

/// The first of the two through a future that is ready at once.
pub fn ready_future() -> impl Contender {
    Async(ReadyFuture(Word::default()))
}

struct ReadyFuture(Word);

impl AsyncCall for ReadyFuture {
    async fn call(&self, fails: bool) -> bool {
        ready(self.0.load(Ordering::Acquire)).await == 0
            && upstream(fails).is_ok()
            && self.0.load(Ordering::Acquire) == 0
    }
}

/// The same, polled once.
pub fn ready_future_polled() -> impl Contender {
    let word = Word::default();
    Plain(move |fails| {
        let polled = pin!(ready(word.load(Ordering::Acquire))).poll(&mut Context::from_waker(Waker::noop()));
        polled == Poll::Ready(0) && upstream(fails).is_ok() && word.load(Ordering::Acquire) == 0
    })
}

/// A count of all calls.
pub fn one_add() -> impl Contender {
    let word = Word::default();
    Plain(move |fails| {
        let _ = upstream(fails);
        word.fetch_add(1, Ordering::Relaxed) < u64::MAX
    })
}

/// Open until a time.
pub fn one_reading() -> impl Contender {
    let until = Instant::now();
    Plain(move |fails| Instant::now() < black_box(until) && upstream(fails).is_ok())
}
