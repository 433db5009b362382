//! What real threads use in place of `src/sync.rs`: the same, but for a clock that moves only when a thread moves it.

#[path = "../../../src/sync/per_thread.rs"]
mod per_thread;
#[path = "../../src/sync/time.rs"]
pub(crate) mod time;

use std::sync::{LazyLock, PoisonError};

pub(crate) use std::sync::OnceLock;
pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

pub(crate) use arc_swap::ArcSwap;
pub(crate) use foldhash::fast::RandomState;
pub(crate) use parking_lot::Mutex;
pub(crate) use per_thread::PerThread;
pub(crate) use time::{CoarseClock, Instant, timeout_at};
pub(crate) use tokio::sync::futures::Notified;
pub(crate) use tokio::sync::{Notify, broadcast};

/// As in `src/sync.rs`.
pub(crate) mod unseen {
    pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
}

/// The histories poll by hand.
pub(crate) fn is_in_runtime() -> bool {
    true
}

/// No history blocks.
pub(crate) fn block_until(_: Instant, _: impl Future<Output = ()>) {
    unreachable!("the calls of a history are tasks")
}

/// No chance: a history has to be repeatable.
pub(crate) fn random() -> u32 {
    0
}

pub(crate) type ClockU64 = AtomicU64;

pub(crate) static CLOCK: LazyLock<time::Clock> = LazyLock::new(time::Clock::new);

/// A lock, here.
pub(crate) struct Hidden<T>(std::sync::Mutex<T>);

impl<T> Hidden<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
