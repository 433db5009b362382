//! What the gateway counts. Requests pay for the counting, so it is kept cheap.
//!
//! Not here: how the counts are shown: `page`.

pub(crate) mod page;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use parking_lot::Mutex;
use strum::{EnumCount, IntoStaticStr, VariantArray};

use crate::proxy::counts::{Buckets, Sharded, Tally, Times, count};
use crate::proxy::outcome::Outcome;

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

    pub(crate) fn tally(&self) -> Tally {
        Tally::of(|outcome| self.outcome(outcome), || self.asked())
    }

    pub(crate) fn first_bytes(&self) -> Buckets {
        self.0.buckets(|counts| &counts.first_byte)
    }

    pub(crate) fn rejections(&self) -> u64 {
        self.0.sum(|counts| &counts.rejections)
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
    /// How many requests went on from one provider to another.
    failovers: Mutex<HashMap<String, HashMap<String, u64>>>,
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
        let mut failovers = self.failovers.lock();
        failovers.retain(|from, _| is_kept(from));
        failovers.values_mut().for_each(|to| to.retain(|to, _| is_kept(to)));
    }

    /// A request went on from one provider to another, or was kept from it. That is rare enough for a lock.
    pub(crate) fn fail_over(&self, from: &str, to: &str) {
        let mut failovers = self.failovers.lock();
        match failovers.get_mut(from).and_then(|failovers| failovers.get_mut(to)) {
            Some(count) => *count += 1,
            None => drop(failovers.entry(from.to_owned()).or_default().insert(to.to_owned(), 1)),
        }
    }

    /// How many there were, from whom to whom.
    pub(crate) fn failovers(&self) -> Vec<((String, String), u64)> {
        let failovers = self.failovers.lock();
        let of = |(from, to): (&String, &HashMap<String, u64>)| {
            let of = |(to, count): (&String, &u64)| ((from.clone(), to.clone()), *count);
            to.iter().map(of).collect::<Vec<_>>()
        };
        failovers.iter().flat_map(of).collect()
    }

    pub(crate) fn begin(&self) {
        count(&self.requests.mine().begun);
    }

    pub(crate) fn close(&self, reason: CloseReason) {
        count(&self.closed[reason as usize]);
    }

    /// How requests of clients have ended: with an answer, with a 5xx, or in another way.
    pub(crate) fn tally(&self) -> Tally {
        let class = |index: usize| self.requests.sum(|counts| &counts.classes[index]);
        let (ok, failed, other) = ((1..=3).map(class).sum(), class(5), class(0) + class(4));
        Tally { ok, failed, other, asked: self.requests.sum(|counts| &counts.begun) }
    }

    pub(crate) fn times(&self) -> Buckets {
        self.requests.buckets(|counts| &counts.times)
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
