//! A breaker's settings, their defaults and their ranges.
//!
//! Not here: how settings are replaced while calls are under way: `settings`.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::word::MAX_FAILURES;
use crate::word::step::MAX_DEADLINE_TICKS;

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
    pub(crate) probe_lease: Duration,
    pub(crate) wait_limit: Duration,
    pub(crate) max_waiters: Option<usize>,
}

impl Default for Config {
    /// 3 failures, open for 30 s, a probe lease of 60 s, a wait limit of 60 s, any number of waiters.
    fn default() -> Self {
        Self {
            failure_threshold: 3,
            open_for: Duration::from_secs(30),
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
        if !(1..=MAX_FAILURES).contains(&self.failure_threshold) {
            return wrong("failure_threshold", self.failure_threshold.to_string(), "1 to 1023");
        }
        for (field, value, min, expected) in [
            ("open_for", self.open_for, MIN_DURATION, "1 ms to 24 h"),
            ("probe_lease", self.probe_lease, MIN_DURATION, "1 ms to 24 h"),
            ("wait_limit", self.wait_limit, Duration::ZERO, "0 to 24 h"),
        ] {
            if !(min..=MAX_DURATION).contains(&value) {
                return wrong(field, format!("{value:?}"), expected);
            }
        }
        Ok(())
    }
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
