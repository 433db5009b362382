//! Counting what many threads do at once, without letting them fight over a cache line; and the counts of one model.
//!
//! Not here: what is counted of providers and of the gateway: `observe::metrics`.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use strum::{EnumCount, VariantArray};

use super::outcome::Outcome;

/// The bounds of the histograms, in seconds: from an answer of a cache to one of a model that thinks.
pub(crate) const BOUNDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Counts in several copies, which are added up when they are read. Two threads that count in one place fight over a
/// cache line, which costs more than all the rest of counting.
#[derive(Debug, Default)]
pub(crate) struct Sharded<T>([CachePadded<T>; SHARDS]);

const SHARDS: usize = 16;

impl<T> Sharded<T> {
    /// The copy for this thread. Threads share one only if there are more threads than copies.
    pub(crate) fn mine(&self) -> &T {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static MINE: usize = THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS;
        }
        &self.0[MINE.with(|mine| *mine)]
    }

    pub(crate) fn sum(&self, of: impl Fn(&T) -> &AtomicU64) -> u64 {
        self.0.iter().map(|shard| of(shard).load(Ordering::Relaxed)).sum()
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A histogram of durations.
#[derive(Debug, Default)]
pub(crate) struct Times {
    /// Not cumulated. The last bucket is for what is above the last bound.
    pub(crate) buckets: [AtomicU64; BOUNDS.len() + 1],
    pub(crate) micros: AtomicU64,
}

impl Times {
    pub(crate) fn record(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        count(&self.buckets[BOUNDS.partition_point(|bound| *bound < seconds)]);
        self.micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl<T> Sharded<T> {
    /// The buckets of a histogram.
    pub(crate) fn buckets(&self, of: impl Fn(&T) -> &Times) -> Buckets {
        std::array::from_fn(|index| self.sum(|counts| &of(counts).buckets[index]))
    }
}

/// How many times fell into each bucket of a histogram.
pub(crate) type Buckets = [u64; BOUNDS.len() + 1];

/// The time that this share of the times does not exceed, as far as the buckets tell. `None` if there are none.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
pub(crate) fn quantile(buckets: &Buckets, share: f64) -> Option<Duration> {
    let all: u64 = buckets.iter().sum();
    let wanted = share * all as f64;
    let mut below = 0.0;
    for (index, count) in buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
        let count = *count as f64;
        if below + count >= wanted {
            let from = index.checked_sub(1).map_or(0.0, |before| BOUNDS[before]);
            // Nothing is known of how long those take that take longest.
            let to = BOUNDS.get(index).copied().unwrap_or(from);
            return Some(Duration::from_secs_f64(from + (to - from) * ((wanted - below) / count).clamp(0.0, 1.0)));
        }
        below += count;
    }
    None
}

/// What is counted of one model at one provider.
#[derive(Debug, Default)]
pub(crate) struct ModelCounts(Sharded<OfModel>);

#[derive(Debug, Default)]
struct OfModel {
    asked: AtomicU64,
    outcomes: [AtomicU64; Outcome::COUNT],
    tokens_in: AtomicU64,
    tokens_out: AtomicU64,
    first_byte: Times,
}

impl ModelCounts {
    pub(crate) fn begin(&self) {
        count(&self.0.mine().asked);
    }

    /// To be called once for each [`begin`](Self::begin).
    pub(crate) fn end(&self, outcome: Outcome) {
        count(&self.0.mine().outcomes[outcome as usize]);
    }

    pub(crate) fn first_byte(&self, took: Duration) {
        self.0.mine().first_byte.record(took);
    }

    pub(crate) fn outcome(&self, outcome: Outcome) -> u64 {
        self.0.sum(|counts| &counts.outcomes[outcome as usize])
    }

    /// Tokens that answers say they took.
    pub(crate) fn tokens(&self, tokens_in: u64, tokens_out: u64) {
        let mine = self.0.mine();
        mine.tokens_in.fetch_add(tokens_in, Ordering::Relaxed);
        mine.tokens_out.fetch_add(tokens_out, Ordering::Relaxed);
    }

    /// All of them, in and out.
    pub(crate) fn all_tokens(&self) -> [u64; 2] {
        [self.0.sum(|counts| &counts.tokens_in), self.0.sum(|counts| &counts.tokens_out)]
    }

    pub(crate) fn tally(&self) -> Tally {
        Tally::of(|outcome| self.outcome(outcome), || self.0.sum(|counts| &counts.asked))
    }

    pub(crate) fn first_byte_sum(&self) -> Duration {
        Duration::from_micros(self.0.sum(|counts| &counts.first_byte.micros))
    }

    pub(crate) fn first_bytes(&self) -> Buckets {
        self.0.buckets(|counts| &counts.first_byte)
    }
}

/// How many requests there were so far, and how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) asked: u64,
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    /// Neither: the client's fault, a rate limit, a refused key, a client that left.
    pub(crate) other: u64,
}

impl Tally {
    pub(crate) fn of(outcome: impl Fn(Outcome) -> u64, asked: impl FnOnce() -> u64) -> Self {
        let mut tally = Self::default();
        for it in Outcome::VARIANTS {
            let part = match it {
                it if it.is_success() => &mut tally.ok,
                it if it.is_failure() => &mut tally.failed,
                _ => &mut tally.other,
            };
            *part += outcome(*it);
        }
        // Last: what ends in between has begun.
        tally.asked = asked();
        tally
    }

    pub(crate) fn in_flight(self) -> u64 {
        self.asked.saturating_sub(self.ok + self.failed + self.other)
    }

    /// What has come since.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            asked: self.asked.saturating_sub(before.asked),
            ok: self.ok.saturating_sub(before.ok),
            failed: self.failed.saturating_sub(before.failed),
            other: self.other.saturating_sub(before.other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_within_its_bucket() {
        let times = Times::default();
        for millis in 1..=100 {
            times.record(Duration::from_millis(millis));
        }
        let buckets: Buckets = std::array::from_fn(|index| times.buckets[index].load(Ordering::Relaxed));
        let of = |share| quantile(&buckets, share).unwrap().as_millis();
        assert!((45..=55).contains(&of(0.5)) && (95..=100).contains(&of(0.99)), "{} {}", of(0.5), of(0.99));
        assert_eq!(quantile(&Buckets::default(), 0.5), None);
        let mut slow = Buckets::default();
        slow[BOUNDS.len()] = 1;
        assert_eq!(quantile(&slow, 0.5), Some(Duration::from_secs(300)), "longer than that is not told apart");
    }
}
