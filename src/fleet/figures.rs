//! What a replica counts of its fleet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::message::Kind;

#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(super) up: AtomicBool,
    pub(super) refused: AtomicBool,
    pub(super) replicas: AtomicUsize,
    published: [AtomicU64; 4],
    heard: [AtomicU64; 4],
    dropped: AtomicU64,
    hearsay_openings: AtomicU64,
    suspicions: AtomicU64,
    refuted: AtomicU64,
    leases: [AtomicU64; 4],
    circuits: Mutex<BTreeMap<Arc<str>, CircuitFigures>>,
}

/// What has become of asking to be the one that probes.
#[derive(Clone, Copy)]
pub(super) enum LeaseResult {
    Granted,
    Held,
    Failed,
    Error,
}

impl Figures {
    pub(super) fn publish(&self, kind: Kind) {
        add(&self.published[kind as usize]);
    }

    pub(super) fn hear(&self, kind: Kind) {
        add(&self.heard[kind as usize]);
    }

    pub(super) fn drop_one(&self) {
        add(&self.dropped);
    }

    pub(super) fn open_on_hearsay(&self) {
        add(&self.hearsay_openings);
    }

    pub(super) fn suspect(&self) {
        add(&self.suspicions);
    }

    pub(super) fn refute(&self) {
        add(&self.refuted);
    }

    pub(super) fn lease(&self, result: LeaseResult) {
        add(&self.leases[result as usize]);
    }

    /// `None` if there is nothing to tell of it.
    pub(super) fn show(&self, name: &Arc<str>, figures: Option<CircuitFigures>) {
        let mut circuits = self.circuits.lock();
        match figures {
            Some(figures) => drop(circuits.insert(Arc::clone(name), figures)),
            None => drop(circuits.remove(name)),
        }
    }

    pub(crate) fn snapshot(&self) -> FleetSnapshot {
        let of = |kinds: &[AtomicU64; 4]| kinds.each_ref().map(get);
        let by_kind = |kinds| Kind::ALL.map(Kind::as_str).into_iter().zip(of(kinds)).collect();
        let leases = ["granted", "held", "failed", "error"].into_iter().zip(of(&self.leases)).collect();
        FleetSnapshot {
            up: self.up.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            replicas: self.replicas.load(Ordering::Relaxed),
            published: by_kind(&self.published),
            heard: by_kind(&self.heard),
            dropped: get(&self.dropped),
            hearsay_openings: get(&self.hearsay_openings),
            suspicions: get(&self.suspicions),
            refuted: get(&self.refuted),
            leases,
            circuits: self.circuits.lock().iter().map(|(name, figures)| (name.to_string(), *figures)).collect(),
        }
    }
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

fn get(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

/// What a replica sees of its fleet, and has done for it since it joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FleetSnapshot {
    /// Whether the store is reached. If not, each breaker does what it does alone.
    pub up: bool,
    /// Whether the store takes nothing new, as a Redis that has reached its `maxmemory`: then news are heard, and each
    /// replica probes by itself.
    pub refused: bool,
    /// The replicas of the group that were there at the last look, this one included.
    pub replicas: usize,
    /// Messages that were sent, by kind: `open`, `alive`, `closed` and `failed`.
    pub published: BTreeMap<&'static str, u64>,
    /// Messages of others about breakers that are known here, by kind.
    pub heard: BTreeMap<&'static str, u64>,
    /// Messages that were not sent, since too many waited.
    pub dropped: u64,
    /// Circuits that opened because others said so.
    pub hearsay_openings: u64,
    /// How often a closed circuit was suspected.
    pub suspicions: u64,
    /// How many of the suspicions a good call has refuted.
    pub refuted: u64,
    /// How often this replica asked to be the one that probes, by the answer: `granted`, `held` by another one,
    /// `failed` a moment ago, or `error`.
    pub leases: BTreeMap<&'static str, u64>,
    /// The breakers of which somebody says something, by name.
    pub circuits: BTreeMap<String, CircuitFigures>,
}

/// What is said of a breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CircuitFigures {
    /// The replicas that say that the upstream fails, this one included.
    pub openers: usize,
    /// The replicas that say that it lives.
    pub objectors: usize,
    /// Whether one replica probes for all.
    pub agreed: bool,
    /// Whether the next failure opens the circuit.
    pub suspected: bool,
}

impl CircuitFigures {
    pub(super) fn new(openers: usize, objectors: usize, agreed: bool, suspected: bool) -> Self {
        Self { openers, objectors, agreed, suspected }
    }
}
