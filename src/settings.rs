//! A breaker's settings, which may be replaced while calls are under way.
//!
//! Not here: ranges and defaults: `config`.

use std::time::Duration;

use crate::clock::{duration, ticks};
use crate::config::{Config, MAX_DURATION, open_time_varies};
use crate::sync::unseen::{AtomicU32, AtomicUsize};
use crate::sync::{Mutex, Ordering, random};
use crate::word::step::Limits;

/// Each value is independent: a call that sees some old and some new values sees valid settings, even if they were
/// never set together. Nothing else is published with them, so that Relaxed is enough, and no model needs to see them.
pub(crate) struct Settings {
    /// Held by whoever replaces or reads all of them, so that none is lost between two writers. No call takes it.
    all: Mutex<()>,
    failure_threshold: AtomicU32,
    open_ticks: AtomicU32,
    open_growth: AtomicU32,
    open_cap_ticks: AtomicU32,
    open_jitter: AtomicU32,
    /// What follows from those four, for each call that is rejected.
    longest_open_ticks: AtomicU32,
    good_probes: AtomicU32,
    lease_ticks: AtomicU32,
    wait_limit_ticks: AtomicU32,
    /// `usize::MAX` stands for any number.
    max_waiters: AtomicUsize,
}

impl Settings {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            all: Mutex::new(()),
            failure_threshold: AtomicU32::new(config.failure_threshold),
            open_ticks: AtomicU32::new(ticks(config.open_for)),
            open_growth: AtomicU32::new(config.open_growth),
            open_cap_ticks: AtomicU32::new(ticks(config.open_cap)),
            open_jitter: AtomicU32::new(config.open_jitter),
            longest_open_ticks: AtomicU32::new(longest(config)),
            good_probes: AtomicU32::new(config.good_probes),
            lease_ticks: AtomicU32::new(ticks(config.probe_lease)),
            wait_limit_ticks: AtomicU32::new(ticks(config.wait_limit)),
            max_waiters: AtomicUsize::new(config.max_waiters.unwrap_or(usize::MAX)),
        }
    }

    pub(crate) fn set(&self, config: Config) {
        let _all = self.all.lock();
        self.failure_threshold.store(config.failure_threshold, Ordering::Relaxed);
        self.open_ticks.store(ticks(config.open_for), Ordering::Relaxed);
        self.open_growth.store(config.open_growth, Ordering::Relaxed);
        self.open_cap_ticks.store(ticks(config.open_cap), Ordering::Relaxed);
        self.open_jitter.store(config.open_jitter, Ordering::Relaxed);
        self.longest_open_ticks.store(longest(config), Ordering::Relaxed);
        self.good_probes.store(config.good_probes, Ordering::Relaxed);
        self.lease_ticks.store(ticks(config.probe_lease), Ordering::Relaxed);
        self.wait_limit_ticks.store(ticks(config.wait_limit), Ordering::Relaxed);
        self.max_waiters.store(config.max_waiters.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Config {
        let _all = self.all.lock();
        let max_waiters = self.max_waiters();
        Config {
            failure_threshold: self.failure_threshold(),
            open_for: duration(self.open_ticks.load(Ordering::Relaxed)),
            open_growth: self.open_growth.load(Ordering::Relaxed),
            open_cap: duration(self.open_cap_ticks.load(Ordering::Relaxed)),
            open_jitter: self.open_jitter.load(Ordering::Relaxed),
            good_probes: self.good_probes(),
            probe_lease: duration(self.lease_ticks.load(Ordering::Relaxed)),
            wait_limit: self.wait_limit(),
            max_waiters: (max_waiters < usize::MAX).then_some(max_waiters),
        }
    }

    // Each has a getter of its own: the compiler does not remove an unused relaxed load.

    #[inline]
    pub(crate) fn failure_threshold(&self) -> u32 {
        self.failure_threshold.load(Ordering::Relaxed)
    }

    /// How long the circuit is open after so many failed recoveries in a row.
    pub(crate) fn open_ticks_after(&self, failed_recoveries: u32) -> u32 {
        let base = self.open_ticks.load(Ordering::Relaxed);
        let (growth, jitter) = (self.open_growth.load(Ordering::Relaxed), self.open_jitter.load(Ordering::Relaxed));
        if !open_time_varies(growth, jitter) {
            return base;
        }
        let cap = self.open_cap_ticks.load(Ordering::Relaxed);
        lengthened(grown(base, growth, cap, failed_recoveries), jitter, cap, random)
    }

    #[inline]
    pub(crate) fn longest_open_ticks(&self) -> u32 {
        self.longest_open_ticks.load(Ordering::Relaxed)
    }

    pub(crate) fn good_probes(&self) -> u32 {
        self.good_probes.load(Ordering::Relaxed)
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { longest_open_ticks: self.longest_open_ticks(), lease_ticks: self.lease_ticks.load(Ordering::Relaxed) }
    }

    pub(crate) fn wait_limit(&self) -> Duration {
        duration(self.wait_limit_ticks.load(Ordering::Relaxed))
    }

    pub(crate) fn max_waiters(&self) -> usize {
        self.max_waiters.load(Ordering::Relaxed)
    }
}

/// A cooldown in ticks. One that is too long for the word becomes the longest one: the probe asks again then.
pub(crate) fn cooldown_ticks(duration: Duration) -> u32 {
    ticks(duration.min(MAX_DURATION))
}

fn longest(config: Config) -> u32 {
    ticks(if open_time_varies(config.open_growth, config.open_jitter) { config.open_cap } else { config.open_for })
}

/// `base`, made longer by `growth` percent for each of the `steps`, up to `cap`.
fn grown(base: u32, growth: u32, cap: u32, steps: u32) -> u32 {
    let mut ticks = base;
    for _ in 0..steps {
        let next = (u64::from(ticks) * u64::from(growth)).div_ceil(100);
        ticks = u32::try_from(next).map_or(cap, |next| next.min(cap));
    }
    ticks
}

/// `ticks`, made longer by up to `jitter` percent, up to `cap`. Jitter never shortens: a probe that comes earlier than
/// configured would surprise, and breakers that opened together drift apart all the same.
fn lengthened(ticks: u32, jitter: u32, cap: u32, random: impl FnOnce() -> u32) -> u32 {
    if jitter == 0 {
        return ticks;
    }
    let most = u64::from(ticks) * u64::from(jitter) / 100;
    let more = (most * u64::from(random())) >> 32;
    u32::try_from(u64::from(ticks) + more).map_or(cap, |ticks| ticks.min(cap))
}

#[cfg(test)]
mod tests {
    use super::{grown, lengthened};

    #[test]
    fn the_open_time_grows_with_each_failed_recovery_up_to_the_cap() {
        let times: Vec<_> = (0..6).map(|steps| grown(30_000, 200, 300_000, steps)).collect();
        assert_eq!(times, [30_000, 60_000, 120_000, 240_000, 300_000, 300_000]);
        assert_eq!(grown(1, 150, 10, 1), 2, "a growing time grows by a tick at least");
        assert_eq!(grown(86_400_000, 1000, 86_400_000, 15), 86_400_000);
    }

    #[test]
    fn jitter_only_lengthens_and_the_cap_comes_last() {
        assert_eq!(lengthened(1000, 50, 2000, || 0), 1000);
        assert_eq!(lengthened(1000, 50, 2000, || u32::MAX / 2), 1249);
        assert_eq!(lengthened(1000, 50, 2000, || u32::MAX), 1499);
        assert_eq!(lengthened(1000, 50, 1200, || u32::MAX), 1200);
        assert_eq!(lengthened(86_400_000, 100, 86_400_000, || u32::MAX), 86_400_000);
        assert_eq!(lengthened(1000, 0, 2000, || panic!("no chance is needed")), 1000);
    }
}
