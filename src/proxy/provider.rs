//! One provider: its settings, its breaker, what is counted of it, and what is known of its silence. All cores share it.
//!
//! Not here: how it is asked (`attempt`), and each core's connections to it (`cores`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use super::config::ProviderConfig;
use super::metrics::ProviderMetrics;
use super::silence::Detectors;
use crate::CircuitBreaker;

/// A provider and its breaker.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) config: ProviderConfig,
    pub(crate) breaker: Arc<CircuitBreaker>,
    pub(crate) metrics: Arc<ProviderMetrics>,
    /// `None`: silence is not looked at.
    pub(crate) silence: Option<Arc<Detectors>>,
    since: Instant,
    /// When the newest request was sent that failed, in microseconds after `since`.
    newest_failure: AtomicU64,
}

impl Provider {
    pub(crate) fn new(
        config: ProviderConfig,
        breaker: Arc<CircuitBreaker>,
        metrics: Arc<ProviderMetrics>,
        silence: Option<Arc<Detectors>>,
    ) -> Self {
        Self { config, breaker, metrics, silence, since: Instant::now(), newest_failure: AtomicU64::new(0) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// A request failed that was sent then.
    pub(crate) fn note_failure(&self, sent: Instant) {
        self.newest_failure.fetch_max(self.micros(sent), Ordering::Relaxed);
    }

    /// Whether a request failed that was sent later. What was sent before an outage may well be answered during it; that says
    /// nothing about now, and must not end a row of failures.
    pub(crate) fn has_failed_since(&self, sent: Instant) -> bool {
        self.newest_failure.load(Ordering::Relaxed) > self.micros(sent)
    }

    /// Never 0: no failure has been at 0.
    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.since).as_micros()).unwrap_or(u64::MAX).saturating_add(1)
    }
}
