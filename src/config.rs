//! A breaker's settings, their defaults and their ranges.
//!
//! Not here: how settings are replaced while calls are under way: `settings`.

mod builder;

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::word::step::MAX_DEADLINE_TICKS;
use crate::word::{MAX_FAILURES, MAX_SMALL_COUNT};
pub use builder::ConfigBuilder;

pub(crate) const DEFAULT_THRESHOLD: u32 = 3;
pub(crate) const MIN_DURATION: Duration = Duration::from_millis(1);
/// A window is divided into ten parts of whole ticks.
const MIN_WINDOW: Duration = Duration::from_millis(10);
/// The most calls that a window holds, and the highest minimum. A failure may look at all of them.
const MAX_WINDOW_CALLS: u32 = 10_000;
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
/// assert_eq!(config.failure_threshold(), Some(5));
///
/// let error = Config::builder().failure_threshold(0).build().unwrap_err();
/// assert_eq!(error.to_string(), "failure_threshold is 0, expected 1 to 1023");
/// # Ok::<(), fusebox::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    pub(crate) failure_threshold: Option<u32>,
    pub(crate) failure_memory: Option<Duration>,
    pub(crate) failure_rate: Option<u32>,
    pub(crate) slow_rate: Option<u32>,
    pub(crate) slow_after: Option<Duration>,
    pub(crate) window: Window,
    pub(crate) min_calls: u32,
    pub(crate) abandoned: Abandoned,
    pub(crate) open_for: Duration,
    pub(crate) open_growth: u32,
    pub(crate) open_cap: Duration,
    pub(crate) open_jitter: u32,
    pub(crate) good_probes: u32,
    pub(crate) ramp: Duration,
    pub(crate) ramp_from: u32,
    pub(crate) ramp_failures: Option<u32>,
    pub(crate) probe_lease: Duration,
    pub(crate) wait_limit: Duration,
    pub(crate) max_waiters: Option<usize>,
    #[cfg(feature = "metrics")]
    pub(crate) totals: bool,
}

/// The calls whose outcomes make up a rate. Made from a `Duration` or a number of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Window {
    /// Those of so much time. It advances in steps of a tenth: the rate is of the tenth that has begun, and of the nine
    /// before it.
    Time(Duration),
    /// So many, however long ago. All threads write to the same list, which costs more than a window of time.
    Calls(u32),
}

impl From<Duration> for Window {
    fn from(time: Duration) -> Self {
        Self::Time(time)
    }
}

impl From<u32> for Window {
    fn from(calls: u32) -> Self {
        Self::Calls(calls)
    }
}

/// What dropping an unresolved permit for a normal call counts as. A probe has a rule of its own: see
/// [`Permit`](crate::Permit#dropping).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Abandoned {
    /// Nothing.
    #[default]
    Ignored,
    /// A failure of type `dropped`, so that a timeout around a call is seen. Not if
    /// [`cancel_on_drop`](crate::Permit::cancel_on_drop) was called.
    Failure,
}

impl Default for Config {
    /// 3 failures in a row, no rates, open for 30 s every time, one good probe, no ramp, a probe lease of 60 s, a wait
    /// limit of 60 s, any number of waiters, no totals.
    fn default() -> Self {
        Self {
            failure_threshold: Some(DEFAULT_THRESHOLD),
            failure_memory: None,
            failure_rate: None,
            slow_rate: None,
            slow_after: None,
            window: Window::Time(Duration::from_secs(10)),
            min_calls: 20,
            abandoned: Abandoned::Ignored,
            open_for: Duration::from_secs(30),
            open_growth: 100,
            open_cap: Duration::from_secs(300),
            open_jitter: 0,
            good_probes: 1,
            ramp: Duration::ZERO,
            ramp_from: 10,
            ramp_failures: None,
            probe_lease: Duration::from_secs(60),
            wait_limit: Duration::from_secs(60),
            max_waiters: None,
            #[cfg(feature = "metrics")]
            totals: false,
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
        ConfigBuilder::starting_from(self)
    }

    /// Failures in a row that open the circuit. `None`: no number of them does.
    pub fn failure_threshold(&self) -> Option<u32> {
        self.failure_threshold
    }

    /// How far apart two failures of a row may be. `None`: any time.
    pub fn failure_memory(&self) -> Option<Duration> {
        self.failure_memory
    }

    /// The percentage of failed calls that opens the circuit.
    pub fn failure_rate(&self) -> Option<u32> {
        self.failure_rate
    }

    /// The percentage of slow calls that opens the circuit.
    pub fn slow_rate(&self) -> Option<u32> {
        self.slow_rate
    }

    /// How long a call takes at least that counts as slow.
    pub fn slow_after(&self) -> Option<Duration> {
        self.slow_after
    }

    /// The calls whose outcomes make up a rate.
    pub fn window(&self) -> Window {
        self.window
    }

    /// How many calls there have to be in the window before a rate opens the circuit.
    pub fn min_calls(&self) -> u32 {
        self.min_calls
    }

    /// What dropping an unresolved permit for a normal call counts as.
    pub fn abandoned(&self) -> Abandoned {
        self.abandoned
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

    /// For how long after closing only a share of the calls passes. Zero: there is no ramp.
    pub fn ramp(&self) -> Duration {
        self.ramp
    }

    /// The percentage of calls that passes at the beginning of the ramp.
    pub fn ramp_from(&self) -> u32 {
        self.ramp_from
    }

    /// Failures in a row that open the circuit during the ramp. `None`: as many as `failure_threshold`, but no more
    /// than 63.
    pub fn ramp_failures(&self) -> Option<u32> {
        self.ramp_failures
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

    /// Whether calls of each kind are counted.
    #[cfg(feature = "metrics")]
    pub fn totals(&self) -> bool {
        self.totals
    }

    fn check(&self) -> Result<(), ConfigError> {
        const PERCENT: &str = "1 to 100 percent";
        const TIME: &str = "1 ms to 24 h";
        let wrong = |field, value, expected| Err(ConfigError::new(field, value, expected));
        for (field, value, range, expected) in [
            ("failure_threshold", self.failure_threshold, 1..=MAX_FAILURES, "1 to 1023"),
            ("failure_rate", self.failure_rate, 1..=100, PERCENT),
            ("slow_rate", self.slow_rate, 1..=100, PERCENT),
            ("min_calls", Some(self.min_calls), 1..=MAX_WINDOW_CALLS, "1 to 10000"),
            ("open_growth", Some(self.open_growth), 100..=1000, "100 (no growth) to 1000 percent"),
            ("open_jitter", Some(self.open_jitter), 0..=100, "0 to 100 percent"),
            ("good_probes", Some(self.good_probes), 1..=MAX_SMALL_COUNT, "1 to 63"),
            ("ramp_from", Some(self.ramp_from), 1..=100, PERCENT),
            ("ramp_failures", self.ramp_failures, 1..=MAX_SMALL_COUNT, "1 to 63"),
        ] {
            if let Some(value) = value
                && !range.contains(&value)
            {
                return wrong(field, value.to_string(), expected);
            }
        }
        for (field, value, min, expected) in [
            ("failure_memory", self.failure_memory, MIN_DURATION, TIME),
            ("slow_after", self.slow_after, MIN_DURATION, TIME),
            ("open_for", Some(self.open_for), MIN_DURATION, TIME),
            ("open_cap", Some(self.open_cap), MIN_DURATION, TIME),
            ("ramp", Some(self.ramp), Duration::ZERO, "0 (no ramp) to 24 h"),
            ("probe_lease", Some(self.probe_lease), MIN_DURATION, TIME),
            ("wait_limit", Some(self.wait_limit), Duration::ZERO, "0 to 24 h"),
        ] {
            if let Some(value) = value
                && !(min..=MAX_DURATION).contains(&value)
            {
                return wrong(field, format!("{value:?}"), expected);
            }
        }
        match self.window {
            Window::Time(time) if !(MIN_WINDOW..=MAX_DURATION).contains(&time) => {
                return wrong("window", format!("{time:?}"), "10 ms to 24 h, or 1 to 10000 calls");
            }
            Window::Calls(calls) if !(1..=MAX_WINDOW_CALLS).contains(&calls) => {
                return wrong("window", format!("{calls} calls"), "10 ms to 24 h, or 1 to 10000 calls");
            }
            Window::Calls(calls) if self.min_calls > calls => {
                return wrong("min_calls", self.min_calls.to_string(), "1 to the calls that the window holds");
            }
            Window::Time(_) | Window::Calls(_) => {}
        }
        if self.slow_rate.is_some() && self.slow_after.is_none() {
            return wrong("slow_after", "not set".to_owned(), "1 ms to 24 h, since slow_rate is set");
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
