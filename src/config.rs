//! A breaker's settings, their defaults and their ranges.
//!
//! Not here: how settings are replaced while calls are under way: `settings`.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::word::step::MAX_DEADLINE_TICKS;
use crate::word::{MAX_FAILURES, MAX_GOOD_PROBES};

pub(crate) const MIN_DURATION: Duration = Duration::from_millis(1);
pub(crate) const MAX_DURATION: Duration = Duration::from_millis(MAX_DEADLINE_TICKS as u64);

/// A breaker's settings. They are checked when they are built.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use fusebox::Config;
///
/// let config = Config::builder().failure_threshold(5).open_for(Duration::from_secs(10)).build()?;
/// assert_eq!(config.failure_threshold(), 5);
///
/// let error = Config::builder().failure_threshold(0).build().unwrap_err();
/// assert_eq!(error.to_string(), "failure_threshold is 0, expected 1 to 1023");
/// # Ok::<(), fusebox::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    pub(crate) failure_threshold: u32,
    pub(crate) open_for: Duration,
    pub(crate) open_growth: u32,
    pub(crate) open_cap: Duration,
    pub(crate) open_jitter: u32,
    pub(crate) good_probes: u32,
    pub(crate) probe_lease: Duration,
    pub(crate) wait_limit: Duration,
    pub(crate) max_waiters: Option<usize>,
}

impl Default for Config {
    /// 3 failures, open for 30 s every time, one good probe, a probe lease of 60 s, a wait limit of 60 s, any number of
    /// waiters.
    fn default() -> Self {
        Self {
            failure_threshold: 3,
            open_for: Duration::from_secs(30),
            open_growth: 100,
            open_cap: Duration::from_secs(300),
            open_jitter: 0,
            good_probes: 1,
            probe_lease: Duration::from_secs(60),
            wait_limit: Duration::from_secs(60),
            max_waiters: None,
        }
    }
}

impl Config {
    /// Starts from the defaults.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::for_target(())
    }

    /// Starts from these settings.
    pub fn to_builder(self) -> ConfigBuilder {
        ConfigBuilder { target: (), config: self }
    }

    /// Failures in a row that open the circuit.
    pub fn failure_threshold(&self) -> u32 {
        self.failure_threshold
    }

    /// How long the circuit stays open before it takes a probe.
    pub fn open_for(&self) -> Duration {
        self.open_for
    }

    /// The open time after a failed recovery, in percent of the one before. 100: it does not grow.
    pub fn open_growth(&self) -> u32 {
        self.open_growth
    }

    /// The longest open time, if it grows or has jitter.
    pub fn open_cap(&self) -> Duration {
        self.open_cap
    }

    /// By how many percent an open time may be longer, at random.
    pub fn open_jitter(&self) -> u32 {
        self.open_jitter
    }

    /// How many probes in a row have to succeed before the circuit closes.
    pub fn good_probes(&self) -> u32 {
        self.good_probes
    }

    /// How long a probe may stay unresolved before another call takes it over.
    pub fn probe_lease(&self) -> Duration {
        self.probe_lease
    }

    /// How long one call waits at most for a probe in flight.
    pub fn wait_limit(&self) -> Duration {
        self.wait_limit
    }

    /// How many calls may wait at the same time. `None`: any number.
    pub fn max_waiters(&self) -> Option<usize> {
        self.max_waiters
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field, value, expected| Err(ConfigError::new(field, value, expected));
        for (field, value, range, expected) in [
            ("failure_threshold", self.failure_threshold, 1..=MAX_FAILURES, "1 to 1023"),
            ("open_growth", self.open_growth, 100..=1000, "100 (no growth) to 1000 percent"),
            ("open_jitter", self.open_jitter, 0..=100, "0 to 100 percent"),
            ("good_probes", self.good_probes, 1..=MAX_GOOD_PROBES, "1 to 63"),
        ] {
            if !range.contains(&value) {
                return wrong(field, value.to_string(), expected);
            }
        }
        for (field, value, min, expected) in [
            ("open_for", self.open_for, MIN_DURATION, "1 ms to 24 h"),
            ("open_cap", self.open_cap, MIN_DURATION, "1 ms to 24 h"),
            ("probe_lease", self.probe_lease, MIN_DURATION, "1 ms to 24 h"),
            ("wait_limit", self.wait_limit, Duration::ZERO, "0 to 24 h"),
        ] {
            if !(min..=MAX_DURATION).contains(&value) {
                return wrong(field, format!("{value:?}"), expected);
            }
        }
        if open_time_varies(self.open_growth, self.open_jitter) && self.open_cap < self.open_for {
            return wrong("open_cap", format!("{:?}", self.open_cap), "open_for to 24 h");
        }
        Ok(())
    }
}

/// Whether not every open time is the same, so that they need a cap.
pub(crate) const fn open_time_varies(growth: u32, jitter: u32) -> bool {
    growth > 100 || jitter > 0
}

/// Builds settings from the defaults and what is set. The builder of [`Config::builder`] builds a [`Config`], and the
/// one of [`CircuitBreaker::builder`](crate::CircuitBreaker::builder) builds the breaker.
///
/// Durations are kept in whole milliseconds, rounded up.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct ConfigBuilder<Target = ()> {
    target: Target,
    config: Config,
}

impl<Target> ConfigBuilder<Target> {
    pub(crate) fn for_target(target: Target) -> Self {
        Self { target, config: Config::default() }
    }

    /// What the builder is for, and the checked settings.
    pub(crate) fn into_parts(self) -> Result<(Target, Config), ConfigError> {
        self.config.check()?;
        Ok((self.target, self.config))
    }

    /// Failures in a row that open the circuit: 1 to 1023, default 3.
    pub fn failure_threshold(mut self, failures: u32) -> Self {
        self.config.failure_threshold = failures;
        self
    }

    /// How long the circuit stays open before it takes a probe: 1 ms to 24 h, default 30 s.
    pub fn open_for(mut self, duration: Duration) -> Self {
        self.config.open_for = duration;
        self
    }

    /// Makes the open time grow: after each failed probe it is so many percent of the open time before. 100 to 1000,
    /// default 100, which is no growth; 200 doubles it each time. It starts again from `open_for` once the circuit has
    /// closed. See [`open_cap`](Self::open_cap).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use fusebox::Config;
    ///
    /// // 5 s, 10 s, 20 s, 40 s, 60 s, 60 s, ..., each up to a fifth longer, but never more than 60 s.
    /// let seconds = Duration::from_secs;
    /// let config =
    ///     Config::builder().open_for(seconds(5)).open_growth(200).open_cap(seconds(60)).open_jitter(20).build()?;
    /// # assert_eq!((config.open_growth(), config.open_cap(), config.open_jitter()), (200, seconds(60), 20));
    /// # Ok::<(), fusebox::ConfigError>(())
    /// ```
    pub fn open_growth(mut self, percent: u32) -> Self {
        self.config.open_growth = percent;
        self
    }

    /// The longest open time, if it grows or has jitter: `open_for` to 24 h, default 5 min. A cooldown may be longer.
    pub fn open_cap(mut self, duration: Duration) -> Self {
        self.config.open_cap = duration;
        self
    }

    /// Makes each open time up to so many percent longer, at random, so that breakers which opened together do not
    /// probe together. 0 to 100, default 0.
    pub fn open_jitter(mut self, percent: u32) -> Self {
        self.config.open_jitter = percent;
        self
    }

    /// How many probes in a row have to succeed before the circuit closes: 1 to 63, default 1. They come one at a time.
    /// A cancelled probe does not count, and a failed one opens the circuit again. A waiter waits for the whole series,
    /// or becomes one of the probes.
    pub fn good_probes(mut self, probes: u32) -> Self {
        self.config.good_probes = probes;
        self
    }

    /// How long a probe may stay unresolved before another call takes it over: 1 ms to 24 h, default 60 s. It should be
    /// longer than a healthy call takes, or a slow probe's answer comes too late to count.
    pub fn probe_lease(mut self, duration: Duration) -> Self {
        self.config.probe_lease = duration;
        self
    }

    /// How long one call waits at most for a probe in flight: 0 (reject at once) to 24 h, default 60 s.
    pub fn wait_limit(mut self, duration: Duration) -> Self {
        self.config.wait_limit = duration;
        self
    }

    /// How many calls may wait for a probe at the same time. Further ones are rejected. Default `None`: any number.
    pub fn max_waiters(mut self, waiters: impl Into<Option<usize>>) -> Self {
        self.config.max_waiters = waiters.into();
        self
    }
}

impl ConfigBuilder {
    /// Builds the settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a value out of its range.
    pub fn build(self) -> Result<Config, ConfigError> {
        self.into_parts().map(|((), config)| config)
    }
}

/// A setting is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConfigError {
    field: &'static str,
    value: String,
    expected: &'static str,
}

impl ConfigError {
    pub(crate) fn new(field: &'static str, value: String, expected: &'static str) -> Self {
        Self { field, value, expected }
    }

    /// The name of the setting, which is the name of its builder method.
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// The value that was given.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// The values that are valid.
    pub fn expected(&self) -> &'static str {
        self.expected
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, expected {}", self.field, self.value, self.expected)
    }
}

impl Error for ConfigError {}
