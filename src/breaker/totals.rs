//! How many calls there were of each kind since the breaker was made, where the settings ask for it (feature
//! `metrics`).
//!
//! Not here: the last calls, which make up rates: `window`.

#[cfg(feature = "metrics")]
pub(super) use counted::Stripes;
#[cfg(feature = "metrics")]
pub use counted::Totals;

use super::CircuitBreaker;

/// What became of a call.
#[derive(Clone, Copy)]
pub(crate) enum Told {
    Success,
    Failure,
    Rejection,
    Wait,
}

impl CircuitBreaker {
    /// Without the feature nobody can ask for it, and a call does not even ask whether somebody did.
    #[cfg(not(feature = "metrics"))]
    #[inline]
    #[expect(clippy::unused_self)]
    pub(crate) fn count(&self, _: Told) {}
}

#[cfg(feature = "metrics")]
mod counted {
    use std::task::Poll;

    use super::{CircuitBreaker, Told};
    use crate::sync::unseen::AtomicU64;
    use crate::sync::{OnceLock, Ordering, PerThread};

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

    /// Each thread counts for itself, so that no two threads write to the same place. Allocated with the first call.
    pub(in crate::breaker) struct Stripes(OnceLock<Box<PerThread<Stripe>>>);

    #[derive(Default)]
    struct Stripe([AtomicU64; 4]);

    impl Stripes {
        pub(in crate::breaker) fn new() -> Self {
            Self(OnceLock::new())
        }

        #[inline(never)]
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
        /// Counts a call if the settings ask for it.
        #[inline]
        pub(crate) fn count(&self, told: Told) {
            if self.settings.measures().totals() {
                self.totals.add(told);
            }
        }

        /// Counts a rejection. Callers leave it out where the feature is off: a function that does nothing cost
        /// `acquire().await` nine instructions there.
        #[inline]
        pub(in crate::breaker) fn counted<T, E>(&self, answer: Poll<Result<T, E>>) -> Poll<Result<T, E>> {
            if let Poll::Ready(Err(_)) = answer {
                self.count(Told::Rejection);
            }
            answer
        }

        /// `None` if they are not counted.
        pub(in crate::breaker) fn totals(&self) -> Option<Totals> {
            self.settings.measures().totals().then(|| self.totals.sum())
        }
    }
}
