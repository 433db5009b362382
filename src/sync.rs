//! The one door to everything that a model checker has to see: atomics, the snapshot cell, the lock of the registry's
//! writers, `Notify` and time. It has re-exports and a small clock. The models mount a file of the same shape in its
//! place.

mod blocking;
mod coarse;
mod per_thread;
mod random;

pub(crate) use std::sync::OnceLock;
pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

pub(crate) use arc_swap::ArcSwap;
pub(crate) use blocking::{block_until, is_in_runtime};
pub(crate) use coarse::CoarseClock;
pub(crate) use foldhash::fast::RandomState;
pub(crate) use parking_lot::Mutex;
pub(crate) use per_thread::PerThread;
pub(crate) use random::random;
pub(crate) use tokio::sync::futures::Notified;
pub(crate) use tokio::sync::{Notify, broadcast};
pub(crate) use tokio::time::{Instant, timeout_at};

/// Atomics that no rule depends on. No model sees them.
pub(crate) mod unseen {
    pub(crate) use arc_swap::ArcSwap;
    pub(crate) use parking_lot::Mutex;
    pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
}
