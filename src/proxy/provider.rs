//! One provider: its settings, its breaker, its counts, and the detectors of its silence. All cores share it.
//!
//! Not here: how it is asked (`route`), and each core's connections to it (`core`).

use std::ops::Index;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;

use super::config::ProviderConfig;
use super::observe::metrics::ProviderMetrics;
use super::silence::Detectors;
use super::silence::allowance::Allowance;
use crate::{CircuitBreaker, CircuitState};

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
    pub(crate) fn ids(positions: &[usize]) -> Box<[ProviderId]> {
        positions.iter().map(|position| ProviderId(*position)).collect()
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

/// A provider and its breaker.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) config: ProviderConfig,
    pub(crate) breaker: Arc<CircuitBreaker>,
    pub(crate) metrics: Arc<ProviderMetrics>,
    /// `None` if silence detection is switched off.
    pub(crate) silence: Option<Arc<Detectors>>,
    /// How many of its requests may be sent to another provider as well.
    allowance: Allowance,
    breaks_off: AtomicBool,
}

impl Provider {
    pub(crate) fn new(
        config: ProviderConfig,
        breaker: Arc<CircuitBreaker>,
        metrics: Arc<ProviderMetrics>,
        silence: Option<Arc<Detectors>>,
        breaks_off: bool,
    ) -> Self {
        Self { config, breaker, metrics, silence, allowance: Allowance::new(), breaks_off: AtomicBool::new(breaks_off) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// Notes that a request is sent to it at `now`.
    pub(crate) fn begin(&self, now: Instant, is_probe: bool, through_silence: bool) {
        self.allowance.note(now, || self.metrics.wanted());
        self.metrics.begin(is_probe);
        if through_silence {
            self.metrics.pass_through_silence();
        }
    }

    /// Whether its circuit is open because of silence, or probes whether the silence is over.
    pub(crate) fn is_silent(&self) -> bool {
        let snapshot = self.breaker.snapshot();
        let was_silent = || snapshot.last_error.is_some_and(|error| error.error_type() == "silent");
        snapshot.silent || snapshot.state == CircuitState::HalfOpen && was_silent()
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

    /// Notes that a request failed. Call it before the breaker is told: the failure may open
    /// the circuit, and the next probe asks how.
    pub(crate) fn note_failure(&self, breaks_off: bool) {
        // Late failures do not change why the circuit is open.
        if self.breaker.state() != CircuitState::Open {
            self.breaks_off.store(breaks_off, Ordering::Relaxed);
        }
    }

    /// Notes that a request succeeded.
    pub(crate) fn note_success(&self) {
        // Nearly always false, so that cores share the line without writing to it.
        if self.breaks_off() {
            self.breaks_off.store(false, Ordering::Relaxed);
        }
    }

    /// Whether the last failure, with no success since, was an answer that began well and broke off. Of such a provider
    /// a good first byte proves nothing.
    pub(crate) fn breaks_off(&self) -> bool {
        self.breaks_off.load(Ordering::Relaxed)
    }
}
