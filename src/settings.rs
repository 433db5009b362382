//! A breaker's settings, which may be replaced while calls are under way.
//!
//! Not here: ranges and defaults: `config`.

use std::time::Duration;

use crate::clock::{duration, ticks};
use crate::config::Config;
use crate::sync::Ordering;
use crate::sync::unseen::{AtomicU32, AtomicUsize};
use crate::word::step::Limits;

/// Each value is independent: a reader that sees some old and some new values sees valid settings, even if they were
/// never set together. Nothing else is published with them, so that Relaxed is enough, and no model needs to see them.
pub(crate) struct Settings {
    failure_threshold: AtomicU32,
    open_ticks: AtomicU32,
    lease_ticks: AtomicU32,
    wait_limit_ticks: AtomicU32,
    /// `usize::MAX` stands for any number.
    max_waiters: AtomicUsize,
}

impl Settings {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            failure_threshold: AtomicU32::new(config.failure_threshold),
            open_ticks: AtomicU32::new(ticks(config.open_for)),
            lease_ticks: AtomicU32::new(ticks(config.probe_lease)),
            wait_limit_ticks: AtomicU32::new(ticks(config.wait_limit)),
            max_waiters: AtomicUsize::new(config.max_waiters.unwrap_or(usize::MAX)),
        }
    }

    pub(crate) fn set(&self, config: Config) {
        self.failure_threshold.store(config.failure_threshold, Ordering::Relaxed);
        self.open_ticks.store(ticks(config.open_for), Ordering::Relaxed);
        self.lease_ticks.store(ticks(config.probe_lease), Ordering::Relaxed);
        self.wait_limit_ticks.store(ticks(config.wait_limit), Ordering::Relaxed);
        self.max_waiters.store(config.max_waiters.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Config {
        let Limits { open_ticks, lease_ticks } = self.limits();
        let max_waiters = self.max_waiters();
        Config {
            failure_threshold: self.failure_threshold(),
            open_for: duration(open_ticks),
            probe_lease: duration(lease_ticks),
            wait_limit: self.wait_limit(),
            max_waiters: (max_waiters < usize::MAX).then_some(max_waiters),
        }
    }

    // Each has a getter of its own: the compiler does not remove an unused relaxed load.

    #[inline]
    pub(crate) fn failure_threshold(&self) -> u32 {
        self.failure_threshold.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn open_ticks(&self) -> u32 {
        self.open_ticks.load(Ordering::Relaxed)
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { open_ticks: self.open_ticks(), lease_ticks: self.lease_ticks.load(Ordering::Relaxed) }
    }

    pub(crate) fn wait_limit(&self) -> Duration {
        duration(self.wait_limit_ticks.load(Ordering::Relaxed))
    }

    pub(crate) fn max_waiters(&self) -> usize {
        self.max_waiters.load(Ordering::Relaxed)
    }
}
