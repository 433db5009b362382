//! One provider: its settings, its own circuit and those of its models, its counts, and the detectors of its silence.
//! All cores share it.
//!
//! Not here: how it is asked (`route`), and each core's connections to it (`core`).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Index;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::broadcast::Sender;
use tokio::time::Instant;

use super::circuits::cooldown::Growing;
use super::circuits::{AnswerKind, Circuit, Circuits, ModelId};
use super::config::ProviderConfig;
use super::keys::Keys;
use super::observe::metrics::ProviderMetrics;
use super::outcome::Outcome;
use super::place::Place;
use super::silence::Detectors;
use super::silence::allowance::Allowance;
use crate::{BreakerSnapshot, Cause, CircuitBreaker, Transition};

/// A provider's place in the configuration. It is meaningful only together with the configuration that it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProviderId(usize);

/// One value for each provider of a configuration.
pub(crate) struct PerProvider<T>(Vec<T>);

impl<T> PerProvider<T> {
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// The first value that `is_it`, with the id of its provider.
    pub(crate) fn find(&self, is_it: impl Fn(&T) -> bool) -> Option<ProviderId> {
        self.0.iter().position(is_it).map(ProviderId)
    }
}

impl PerProvider<()> {
    /// The ids of some providers by their positions in the configuration.
    pub(crate) fn ids(positions: &[usize]) -> impl Iterator<Item = ProviderId> {
        positions.iter().map(|position| ProviderId(*position))
    }
}

impl<T> FromIterator<T> for PerProvider<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

impl<T> Index<ProviderId> for PerProvider<T> {
    type Output = T;

    fn index(&self, id: ProviderId) -> &T {
        &self.0[id.0]
    }
}

/// A provider's models, and what is asked of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CircuitId {
    pub(crate) provider: ProviderId,
    pub(crate) model: ModelId,
    pub(crate) kind: AnswerKind,
}

/// A provider and its circuits.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) config: ProviderConfig,
    /// Its own circuit, above those of its models. It is also that of its key: cooldowns of it are the key's.
    pub(crate) breaker: Arc<CircuitBreaker>,
    pub(crate) circuits: Circuits,
    pub(crate) metrics: Arc<ProviderMetrics>,
    /// `None` if silence detection is switched off.
    pub(crate) silence: Option<Arc<Detectors>>,
    /// If it has several.
    pub(crate) keys: Option<Keys>,
    /// How long the key is out, if it has one.
    pub(crate) key_cooldowns: Arc<Growing>,
    /// How many of its requests may be sent to another provider as well.
    allowance: Allowance,
    /// Whose failures are in its row: the number of one model, [`SEVERAL`], or 0 if there are none.
    failing: AtomicU32,
    /// How many answers said that nothing is at the path, until one said something else; [`FOUND`] since then.
    missing: AtomicU32,
}

const SEVERAL: u32 = u32::MAX;

const FOUND: u32 = u32::MAX;
/// So many answers of that kind, and no other one, are no accident.
const MANY_MISSING: u32 = 3;

impl Provider {
    pub(crate) fn new(
        config: ProviderConfig,
        breaker: Arc<CircuitBreaker>,
        metrics: Arc<ProviderMetrics>,
        silence: Option<Arc<Detectors>>,
        listener: &Sender<Transition>,
        before: Option<&Self>,
    ) -> Self {
        let circuits = before.map(|before| &before.circuits);
        let circuits = Circuits::new(&config.name, config.breaker, config.limits, &config.models, listener, circuits);
        let key_cooldowns = before.map(|before| Arc::clone(&before.key_cooldowns)).unwrap_or_default();
        let keys = Keys::new(&config.name, config.api_keys.len(), config.breaker, listener);
        let (allowance, failing) = (Allowance::new(), AtomicU32::new(0));
        let missing = AtomicU32::new(0);
        Self { config, breaker, circuits, metrics, silence, keys, key_cooldowns, allowance, failing, missing }
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// A small part of a hash of its keys: enough to see that they were replaced, and too little to find them out.
    pub(crate) fn keys_mark(&self) -> u32 {
        let mut hasher = DefaultHasher::new();
        self.name().hash(&mut hasher);
        self.config.api_keys.iter().for_each(|key| key.expose().hash(&mut hasher));
        (hasher.finish() & 0xffff) as u32
    }

    /// The breaker of a place in this provider. It is made if it is a model's that nobody has asked for.
    pub(crate) fn breaker_at(&self, place: &Place<'_>) -> Option<Arc<CircuitBreaker>> {
        match (place.model, place.kind) {
            (None, None) => Some(Arc::clone(&self.breaker)),
            (None, Some(key)) => {
                let is_it = |breaker: &&Arc<CircuitBreaker>| Place::of(breaker.name()).kind == Some(key);
                self.keys.iter().flat_map(Keys::breakers).find(is_it).cloned()
            }
            (Some(model), kind) => {
                let kind = AnswerKind::parse(kind?)?;
                Some(Arc::clone(&self.circuits.of(self.circuits.find(model)?, kind).breaker))
            }
        }
    }

    pub(crate) fn circuit(&self, id: CircuitId) -> &Arc<Circuit> {
        self.circuits.of(id.model, id.kind)
    }

    /// Notes that a request is sent to it at `now`.
    pub(crate) fn begin(&self, now: Instant, is_probe: bool, through_silence: bool) {
        self.allowance.note(now, || self.metrics.wanted());
        self.metrics.begin(is_probe);
        if through_silence {
            self.metrics.pass_through_silence();
        }
    }

    /// Whether a request that waits for it may be sent to another provider as well, at `now`.
    pub(crate) fn may_send_twice(&self, now: Instant) -> bool {
        self.allowance.has_room(now, self.metrics.wanted())
    }

    /// Counts a request that waits for it and is sent to another provider as well. Returns whether it may.
    pub(crate) fn send_twice(&self, now: Instant) -> bool {
        let may = self.allowance.spend(now, self.metrics.wanted());
        if may {
            self.metrics.send_twice();
        }
        may
    }

    /// Notes what an attempt says of the provider's address. Returns whether it is to be told now that the address is
    /// probably wrong.
    pub(crate) fn note_address(&self, outcome: Outcome) -> bool {
        let before = self.missing.load(Ordering::Relaxed);
        if before == FOUND {
            return false;
        }
        if outcome.found_something() {
            self.missing.store(FOUND, Ordering::Relaxed);
        } else if outcome == Outcome::NotOffered && before < MANY_MISSING {
            // Of several at once each is counted, and one of them is the last.
            return self.missing.fetch_add(1, Ordering::Relaxed) + 1 == MANY_MISSING;
        }
        false
    }

    /// What is probably wrong with its settings: every answer so far, of several, found nothing at the path.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        let finds_nothing = (MANY_MISSING..FOUND).contains(&self.missing.load(Ordering::Relaxed));
        finds_nothing.then_some("every answer is a 404: look at its url")
    }

    /// Whether a failure of one of its circuits counts in the provider's own row of failures. One model alone never
    /// opens the provider's circuit: its failures say nothing about the other models.
    pub(crate) fn counts(&self, circuit: &Circuit) -> bool {
        let failing = self.failing.load(Ordering::Relaxed);
        let is_alone = failing == 0 || failing == circuit.model();
        let now = if is_alone { circuit.model() } else { SEVERAL };
        if failing != now {
            self.failing.store(now, Ordering::Relaxed);
        }
        !is_alone || !self.is_due()
    }

    /// Whether the next failure in a row would open its circuit.
    pub(crate) fn is_due(&self) -> bool {
        let threshold = self.config.breaker.failure_threshold();
        threshold.is_some_and(|threshold| self.breaker.failure_count() + 1 >= threshold)
    }

    /// Notes that a request succeeded.
    pub(crate) fn note_success(&self) {
        // Nearly always 0, so that cores share the line without writing to it.
        if self.failing.load(Ordering::Relaxed) != 0 {
            self.failing.store(0, Ordering::Relaxed);
        }
    }

    /// A probe of a model has succeeded. A rate limit is a model's, however it is asked to answer, so that its other
    /// cooldowns that have passed are over as well. Otherwise a kind of answer that nobody asks for would stay open.
    pub(crate) fn end_cooldowns(&self, id: CircuitId) {
        for other in self.circuits.others(id.model, id.kind) {
            let snapshot = other.breaker.snapshot();
            let is_over = snapshot.cause == Some(Cause::Cooldown) && snapshot.next_probe_in == Some(Duration::ZERO);
            if is_over && let Ok(permit) = other.breaker.try_acquire() {
                permit.success();
            }
        }
    }

    /// Whether its key is out, or all of its keys are, or about to be tried again: what there is to know of its circuit
    /// then.
    pub(crate) fn key_out(&self) -> Option<BreakerSnapshot> {
        Some(self.breaker.snapshot()).filter(|snapshot| snapshot.cause == Some(Cause::Cooldown))
    }

    /// The key may have been replaced, or its account refilled.
    pub(crate) fn forget_key_out(&self) {
        if let Some(keys) = &self.keys {
            keys.forget();
        }
        if self.key_out().is_some() {
            self.key_cooldowns.forget();
            self.breaker.reset();
        }
    }
}
