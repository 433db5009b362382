//! What loom sees in place of `src/sync.rs`. tokio's `Notify`, `ArcSwap` and the clock are not instrumented where they
//! are dependencies: loom would report deadlocks that are not there and miss races that are.
//!
//! Each stand-in is at most as strong as what it stands for, so that no model passes by an ordering that the real thing
//! does not promise. What is kept in a [`Hidden`] lock is touched right after an operation that loom sees, and never
//! across one: loom switches threads only at those, so the two are one step, and the lock orders nothing that loom
//! believes in.

mod cell;
mod notify;
mod per_thread;
pub mod time;

use std::cell::Cell;
use std::future::Future;
use std::sync::PoisonError;

pub use cell::ArcSwap;
// Not seeded at random: each execution has to find a name in the same place.
pub(crate) use foldhash::fast::FixedState as RandomState;
pub(crate) use loom::sync::atomic::fence;
pub use notify::{Notified, Notify};
pub(crate) use per_thread::PerThread;
pub(crate) use std::sync::atomic::Ordering;
pub(crate) use time::{CoarseClock, Instant, timeout_at};
// It is used under a lock that loom sees, and has no operation that loom sees: each use of it is one step.
pub(crate) use tokio::sync::broadcast;

/// As in `src/sync.rs`.
pub(crate) mod unseen {
    pub(crate) use arc_swap::ArcSwap;
    pub(crate) use parking_lot::Mutex;
    pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
}

thread_local! {
    // All threads of a model are coroutines of one real thread.
    static DRAWN: Cell<u32> = const { Cell::new(0) };
}

/// Says what is drawn by chance from now on: a model explores what follows from each number by itself.
pub fn draw(number: u32) {
    DRAWN.set(number);
}

pub(crate) fn random() -> u32 {
    DRAWN.get()
}

/// The models' tasks may wait anywhere.
pub(crate) fn is_in_runtime() -> bool {
    true
}

/// As the real one, on a thread that loom sees.
pub(crate) fn block_until(deadline: Instant, future: impl Future<Output = ()>) {
    let _ = loom::future::block_on(timeout_at(deadline, future));
}

type ClockU64 = loom::sync::atomic::AtomicU64;

loom::lazy_static! {
    // Made anew in each execution.
    static ref CLOCK: time::Clock = time::Clock::new();
}

/// How a load of an atomic is issued. Loom misses some interleavings of a load and a later compare-and-swap (its issues
/// 166 and 392), and sees others only for plain loads, which may be stale; so every model runs both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loads {
    /// As loads.
    Plain,
    /// As `fetch_add(0)`.
    Rmw,
}

thread_local! {
    // All threads of a model are coroutines of one real thread.
    static LOADS: Cell<Loads> = const { Cell::new(Loads::Plain) };
}

/// Says how the models that run on this thread load.
pub fn set_loads(loads: Loads) {
    LOADS.set(loads);
}

thread_local! {
    // As above.
    static WRITES: Cell<usize> = const { Cell::new(0) };
}

/// How often the core has written to an atomic until now: stores and read-modify-writes, whether or not they changed
/// it.
pub fn writes() -> usize {
    WRITES.get()
}

fn written<T>(result: T) -> T {
    WRITES.set(WRITES.get() + 1);
    result
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        pub(crate) struct $name(loom::sync::atomic::$name);

        // As the real one has them, whether or not the core needs them today.
        #[allow(dead_code)]
        impl $name {
            pub(crate) fn new(value: $value) -> Self {
                Self(loom::sync::atomic::$name::new(value))
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                match LOADS.get() {
                    Loads::Plain => self.0.load(order),
                    Loads::Rmw => self.0.fetch_add(0, order),
                }
            }

            pub(crate) fn store(&self, value: $value, order: Ordering) {
                written(match LOADS.get() {
                    Loads::Plain => self.0.store(value, order),
                    // Loom does not keep a store from coming between a read-modify-write and what it read.
                    Loads::Rmw => drop(self.0.swap(value, order)),
                });
            }

            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                written(self.0.swap(value, order))
            }

            pub(crate) fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                written(self.0.fetch_add(value, order))
            }

            pub(crate) fn fetch_max(&self, value: $value, order: Ordering) -> $value {
                written(self.0.fetch_max(value, order))
            }

            pub(crate) fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                written(self.0.fetch_or(value, order))
            }

            pub(crate) fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                written(self.0.fetch_and(value, order))
            }

            pub(crate) fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                written(self.0.fetch_sub(value, order))
            }

            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                written(self.0.compare_exchange(current, new, success, failure))
            }
        }
    };
}

impl Default for AtomicU64 {
    fn default() -> Self {
        Self::new(0)
    }
}

atomic!(AtomicU64, u64);
atomic!(AtomicUsize, usize);

/// `parking_lot`'s, which knows no poison.
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Set once, and seen by those who see that it is set.
pub(crate) struct OnceLock<T> {
    value: std::sync::OnceLock<T>,
    is_set: AtomicUsize,
}

impl<T> OnceLock<T> {
    pub(crate) fn new() -> Self {
        Self { value: std::sync::OnceLock::new(), is_set: AtomicUsize::new(0) }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        if self.is_set.load(Ordering::Acquire) == 1 { self.value.get() } else { None }
    }

    /// By one thread at a time, here.
    pub(crate) fn get_or_init(&self, init: impl FnOnce() -> T) -> &T {
        let value = self.value.get_or_init(init);
        self.is_set.store(1, Ordering::Release);
        value
    }
}

/// Data that loom is not to see: this module's header says how it is used.
struct Hidden<T>(std::sync::Mutex<T>);

impl<T> Hidden<T> {
    fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
