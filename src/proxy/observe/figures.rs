//! What has come of requests in the last minute, second by second: for the page of operators.
//!
//! Not here: counting: `counts` and `metrics`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;

use crate::proxy::counts::{BOUNDS, Buckets, Tally, quantile};
use crate::proxy::observe::metrics::Metrics;
use crate::proxy::provider::Provider;

/// How many seconds are kept.
pub(crate) const KEPT: usize = 60;

/// No provider is called so.
pub(crate) const CLIENTS: &str = "";

/// The figures of providers and their models.
#[derive(Default)]
pub(crate) struct Figures(Mutex<Sampled>);

#[derive(Default)]
struct Sampled {
    seconds: u64,
    /// By provider and model. The provider's own have no model, and those of all clients an empty name.
    tracks: HashMap<(String, Option<String>), Track>,
    /// How many requests went on from one provider to another, in each second.
    failovers: BTreeMap<(String, String), Failovers>,
}

#[derive(Default)]
struct Failovers {
    all: u64,
    seconds: VecDeque<u64>,
}

struct Track {
    last: Tally,
    /// The oldest first.
    seconds: VecDeque<Second>,
    /// The histogram as it was half a minute to a minute ago, and later.
    buckets: [Buckets; 2],
}

impl Default for Track {
    fn default() -> Self {
        Self { last: Tally::default(), seconds: VecDeque::new(), buckets: [[0; BOUNDS.len() + 1]; 2] }
    }
}

/// How the requests ended that ended in one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Second {
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    pub(crate) other: u64,
}

/// What is known of the last minute.
#[derive(Clone, Debug, Default)]
pub(crate) struct Minute {
    /// The oldest first, [`KEPT`] at most.
    pub(crate) seconds: Vec<Second>,
    /// Of the first byte, in the last half to whole minute.
    pub(crate) median: Option<Duration>,
    pub(crate) p99: Option<Duration>,
}

impl Figures {
    /// To be called each second.
    pub(crate) fn sample<'a>(&self, metrics: &Metrics, providers: impl Iterator<Item = &'a Provider>) {
        let mut sampled = self.0.lock();
        let before = std::mem::take(&mut *sampled);
        sampled.seconds = before.seconds + 1;
        let rotates = sampled.seconds.is_multiple_of(KEPT as u64 / 2);
        let (mut tracks, mut old_failovers) = (before.tracks, before.failovers);
        let mut track = |key: (String, Option<String>), tally: Tally, buckets: Buckets| {
            let mut track = tracks.remove(&key).unwrap_or_default();
            track.add(tally);
            if rotates {
                track.buckets = [track.buckets[1], buckets];
            }
            sampled.tracks.insert(key, track);
        };
        track((CLIENTS.to_owned(), None), metrics.tally(), metrics.times());
        for provider in providers {
            let name = provider.name();
            track((name.to_owned(), None), provider.metrics.tally(), provider.metrics.first_bytes());
            for (model, counts) in provider.circuits.all_counts() {
                track((name.to_owned(), Some(model.to_owned())), counts.tally(), counts.first_bytes());
            }
        }
        for (between, all) in metrics.failovers() {
            let mut failovers = old_failovers.remove(&between).unwrap_or_default();
            push(&mut failovers.seconds, all.saturating_sub(failovers.all));
            failovers.all = all;
            sampled.failovers.insert(between, failovers);
        }
    }

    /// The last minute of a provider, or of one of its models. `now` is its histogram.
    pub(crate) fn minute(&self, provider: &str, model: Option<&str>, now: &Buckets) -> Minute {
        let sampled = self.0.lock();
        let Some(track) = sampled.tracks.get(&(provider.to_owned(), model.map(str::to_owned))) else {
            return Minute { seconds: Vec::new(), median: quantile(now, 0.5), p99: quantile(now, 0.99) };
        };
        let lately: Buckets = std::array::from_fn(|index| now[index].saturating_sub(track.buckets[0][index]));
        let seconds = track.seconds.iter().copied().collect();
        Minute { seconds, median: quantile(&lately, 0.5), p99: quantile(&lately, 0.99) }
    }

    /// How many requests went on from one provider to another in the last minute, and in all.
    pub(crate) fn failovers(&self) -> Vec<(String, String, u64, u64)> {
        let sampled = self.0.lock();
        let failovers = sampled.failovers.iter();
        failovers.map(|((from, to), it)| (from.clone(), to.clone(), it.seconds.iter().sum(), it.all)).collect()
    }
}

impl Track {
    fn add(&mut self, now: Tally) {
        let Tally { ok, failed, other, .. } = now.since(self.last);
        self.last = now;
        push(&mut self.seconds, Second { ok, failed, other });
    }
}

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Figures").finish_non_exhaustive()
    }
}

fn push<T>(seconds: &mut VecDeque<T>, new: T) {
    if seconds.len() == KEPT {
        seconds.pop_front();
    }
    seconds.push_back(new);
}
