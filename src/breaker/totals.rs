//! How many calls there were of each kind since the breaker was made, where the settings ask for it.
//!
//! Not here: the last calls, which make up rates: `window`.

use super::CircuitBreaker;
use crate::sync::unseen::AtomicU64;
use crate::sync::{OnceLock, Ordering, PerThread};
use crate::word;

/// How many calls of each kind there were: see [`ConfigBuilder::totals`](crate::ConfigBuilder::totals).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Totals {
    /// Calls that were said to have succeeded, whether or not that counted for the circuit.
    pub successes: u64,
    /// Calls that were said to have failed, or to have been told to come back later.
    pub failures: u64,
    /// Calls that were rejected.
    pub rejections: u64,
    /// Calls that had to wait for a probe, or for their turn.
    pub waits: u64,
}

/// What became of a call.
#[derive(Clone, Copy)]
pub(crate) enum Told {
    Success,
    Failure,
    Rejection,
    Wait,
}

/// Each thread counts for itself, so that no two threads write to the same place. Allocated with the first call.
pub(super) struct Stripes(OnceLock<Box<PerThread<Stripe>>>);

#[derive(Default)]
struct Stripe([AtomicU64; 4]);

impl Stripes {
    pub(super) fn new() -> Self {
        Self(OnceLock::new())
    }

    fn add(&self, told: Told) {
        let stripes = self.0.get_or_init(|| Box::new(PerThread::new()));
        stripes.with(|stripe| stripe.0[told as usize].fetch_add(1, Ordering::Relaxed));
    }

    fn sum(&self) -> Totals {
        let mut sums = [0; 4];
        if let Some(stripes) = self.0.get() {
            stripes.for_each(|Stripe(counts)| {
                for (sum, count) in sums.iter_mut().zip(counts) {
                    *sum += count.load(Ordering::Relaxed);
                }
            });
        }
        let [successes, failures, rejections, waits] = sums;
        Totals { successes, failures, rejections, waits }
    }
}

impl CircuitBreaker {
    /// Counts a call if the settings ask for it. `word` is any word of this breaker that says whether calls are
    /// measured.
    #[inline]
    pub(crate) fn count(&self, word: u64, told: Told) {
        if word::is_measured(word) && self.settings.measures().totals() {
            self.totals.add(told);
        }
    }

    /// `None` if they are not counted.
    pub(super) fn totals(&self) -> Option<Totals> {
        self.settings.measures().totals().then(|| self.totals.sum())
    }
}
