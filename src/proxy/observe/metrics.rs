//! What the gateway counts. Requests pay for the counting, so it is kept cheap.
//!
//! Not here: how the counts are shown: `page`.

mod page;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;
use strum::{EnumCount, IntoStaticStr, VariantArray};

use crate::proxy::outcome::Outcome;

/// The bounds of the histograms, in seconds: from an answer of a cache to one of a model that thinks.
const BOUNDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Counts in several copies, which are added up when they are read. Two threads that count in one place fight over a
/// cache line, which costs more than all the rest of counting.
#[derive(Debug, Default)]
struct Sharded<T>([CachePadded<T>; SHARDS]);

const SHARDS: usize = 16;

impl<T> Sharded<T> {
    /// The copy for this thread. Threads share one only if there are more threads than copies.
    fn mine(&self) -> &T {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static MINE: usize = THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS;
        }
        &self.0[MINE.with(|mine| *mine)]
    }

    fn sum(&self, of: impl Fn(&T) -> &AtomicU64) -> u64 {
        self.0.iter().map(|shard| of(shard).load(Ordering::Relaxed)).sum()
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A histogram of durations.
#[derive(Debug, Default)]
struct Times {
    /// Not cumulated. The last bucket is for what is above the last bound.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Times {
    fn record(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        count(&self.buckets[BOUNDS.partition_point(|bound| *bound < seconds)]);
        self.micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// The counts of one provider.
#[derive(Debug, Default)]
pub(crate) struct ProviderMetrics(Sharded<ProviderCounts>);

#[derive(Debug, Default)]
struct ProviderCounts {
    asked: AtomicU64,
    /// How many attempts have ended in each way.
    outcomes: [AtomicU64; Outcome::COUNT],
    probes: AtomicU64,
    rejections: AtomicU64,
    over_limit: AtomicU64,
    through_silence: AtomicU64,
    sent_twice: AtomicU64,
    first_byte: Times,
    whole: Times,
}

impl ProviderMetrics {
    pub(crate) fn begin(&self, is_probe: bool) {
        let mine = self.0.mine();
        count(&mine.asked);
        if is_probe {
            count(&mine.probes);
        }
    }

    /// To be called once for each [`begin`](Self::begin).
    pub(crate) fn end(&self, outcome: Outcome, took: Duration) {
        let mine = self.0.mine();
        count(&mine.outcomes[outcome as usize]);
        mine.whole.record(took);
    }

    pub(crate) fn first_byte(&self, took: Duration) {
        self.0.mine().first_byte.record(took);
    }

    pub(crate) fn reject(&self) {
        count(&self.0.mine().rejections);
    }

    pub(crate) fn overflow(&self) {
        count(&self.0.mine().over_limit);
    }

    pub(crate) fn pass_through_silence(&self) {
        count(&self.0.mine().through_silence);
    }

    pub(crate) fn send_twice(&self) {
        count(&self.0.mine().sent_twice);
    }

    /// Requests that were sent to it, or that its circuit kept from it.
    pub(crate) fn wanted(&self) -> u64 {
        self.asked() + self.0.sum(|counts| &counts.rejections)
    }

    /// Requests that were sent to it, probes included.
    pub(crate) fn asked(&self) -> u64 {
        self.0.sum(|counts| &counts.asked)
    }

    pub(crate) fn probes(&self) -> u64 {
        self.0.sum(|counts| &counts.probes)
    }

    pub(crate) fn outcome(&self, outcome: Outcome) -> u64 {
        self.0.sum(|counts| &counts.outcomes[outcome as usize])
    }

    pub(crate) fn in_flight(&self) -> u64 {
        // In this order: a request that begins and ends in between must not make the result negative.
        let over = Outcome::VARIANTS.iter().map(|outcome| self.outcome(*outcome)).sum();
        self.asked().saturating_sub(over)
    }
}

/// Why the gateway closed a client's connection. Its text is a label in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "snake_case")]
pub(crate) enum CloseReason {
    Malformed,
    #[strum(serialize = "headers_too_large")]
    TooLarge,
    HeaderTimeout,
    WriteTimeout,
    TlsHandshake,
}

impl CloseReason {
    fn as_str(self) -> &'static str {
        self.into_str()
    }
}

/// The counts of the whole gateway.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    providers: Mutex<BTreeMap<String, Arc<ProviderMetrics>>>,
    requests: Sharded<RequestCounts>,
    pub(crate) connections: AtomicI64,
    /// WebSocket sessions that are open.
    pub(crate) sessions: AtomicI64,
    closed: [AtomicU64; CloseReason::COUNT],
    pub(crate) reloads: AtomicU64,
    pub(crate) failed_reloads: AtomicU64,
}

#[derive(Debug, Default)]
struct RequestCounts {
    begun: AtomicU64,
    /// Requests that have ended, by the first digit of the status. 0 stands for a client that left before there was
    /// one.
    classes: [AtomicU64; 6],
    times: Times,
}

impl Metrics {
    /// The counts of a provider. They survive a reload.
    pub(crate) fn of(&self, provider: &str) -> Arc<ProviderMetrics> {
        Arc::clone(self.providers.lock().entry(provider.to_owned()).or_default())
    }

    pub(crate) fn keep_only(&self, is_kept: impl Fn(&str) -> bool) {
        self.providers.lock().retain(|name, _| is_kept(name));
    }

    pub(crate) fn begin(&self) {
        count(&self.requests.mine().begun);
    }

    pub(crate) fn close(&self, reason: CloseReason) {
        count(&self.closed[reason as usize]);
    }

    /// To be called once for each [`begin`](Self::begin).
    pub(crate) fn end(&self, status: Option<u16>, took: Duration) {
        let mine = self.requests.mine();
        count(&mine.classes[status.map_or(0, |status| usize::from(status / 100).min(5))]);
        // How long a session lasts is up to its client.
        if status != Some(101) {
            mine.times.record(took);
        }
    }
}
