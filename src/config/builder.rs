//! How a breaker's settings are put together.
//!
//! Not here: which are valid: `config`.

use std::time::Duration;

use super::{Abandoned, Config, ConfigError, Window};

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

    /// Failures in a row that open the circuit: 1 to 1023, default 3. `None`: no number of them does, and none are
    /// counted.
    pub fn failure_threshold(mut self, failures: impl Into<Option<u32>>) -> Self {
        self.config.failure_threshold = failures.into();
        self
    }

    /// How far apart two failures of a row may be: 1 ms to 24 h. Failures further apart are no row, so that three of
    /// them in three weeks do not open the circuit. And a success of a call that began before the newest failed call
    /// did ends no row, since it says nothing about the time since. Default `None`: any time, and any success ends a
    /// row.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// use fusebox::{CircuitBreaker, CircuitState};
    ///
    /// let memory = Duration::from_millis(1);
    /// let breaker = CircuitBreaker::builder("openai").failure_threshold(2).failure_memory(memory).build()?;
    /// breaker.try_acquire()?.failure("timeout", "");
    /// tokio::time::sleep(Duration::from_millis(20)).await;
    /// breaker.try_acquire()?.failure("timeout", "too long after the first one");
    /// assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn failure_memory(mut self, duration: impl Into<Option<Duration>>) -> Self {
        self.config.failure_memory = duration.into();
        self
    }

    /// Opens the circuit when at least so many percent of the calls in the [`window`](Self::window) have failed, and
    /// there are at least [`min_calls`](Self::min_calls) of them: 1 to 100, default `None`. It is asked with each call
    /// that fails or is slow, so that a success never opens the circuit. It applies besides `failure_threshold`: either
    /// opens the circuit.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::{Cause, CircuitBreaker};
    ///
    /// let breaker = CircuitBreaker::builder("openai").failure_rate(50).min_calls(4).build()?;
    /// breaker.try_acquire()?.success();
    /// breaker.try_acquire()?.failure("5xx", 503);
    /// breaker.try_acquire()?.success();
    /// // Two of four.
    /// breaker.try_acquire()?.failure("5xx", 503);
    /// assert_eq!(breaker.try_acquire().unwrap_err().cause(), Some(Cause::Rate));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn failure_rate(mut self, percent: impl Into<Option<u32>>) -> Self {
        self.config.failure_rate = percent.into();
        self
    }

    /// Opens the circuit when at least so many percent of the calls in the window were slow, as
    /// [`failure_rate`](Self::failure_rate) does for calls that failed: 1 to 100, default `None`. It needs
    /// [`slow_after`](Self::slow_after).
    pub fn slow_rate(mut self, percent: impl Into<Option<u32>>) -> Self {
        self.config.slow_rate = percent.into();
        self
    }

    /// A call that takes at least this long counts as slow, whether it succeeds or fails: 1 ms to 24 h. It is measured
    /// from the permit to its outcome. A record [by name](crate::CircuitBreakerRegistry#by-name) does not know when its
    /// call began, and never counts as slow.
    pub fn slow_after(mut self, duration: impl Into<Option<Duration>>) -> Self {
        self.config.slow_after = duration.into();
        self
    }

    /// The calls whose outcomes make up a rate: those of the last 10 ms to 24 h, or the last 1 to 10,000. Default:
    /// those of the last 10 s. Calls from before the circuit was open never count.
    pub fn window(mut self, window: impl Into<Window>) -> Self {
        self.config.window = window.into();
        self
    }

    /// How many calls there have to be in the window before a rate opens the circuit: 1 to 10,000, and no more than the
    /// window holds. Default 20.
    pub fn min_calls(mut self, calls: u32) -> Self {
        self.config.min_calls = calls;
        self
    }

    /// What dropping an unresolved permit for a normal call counts as. Default: nothing.
    ///
    /// # Examples
    ///
    /// A timeout around a call drops it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::future::pending;
    /// use std::time::Duration;
    ///
    /// use fusebox::{Abandoned, CircuitBreaker, CircuitState};
    ///
    /// let breaker =
    ///     CircuitBreaker::builder("openai").failure_threshold(1).abandoned(Abandoned::Failure).build()?;
    /// let hangs = pending::<Result<(), std::io::Error>>();
    /// assert!(tokio::time::timeout(Duration::from_millis(1), breaker.call(hangs)).await.is_err());
    /// assert_eq!(breaker.state(), CircuitState::Open);
    /// # Ok(())
    /// # }
    /// ```
    pub fn abandoned(mut self, abandoned: Abandoned) -> Self {
        self.config.abandoned = abandoned;
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

    /// For how long after closing only a share of the calls passes, which grows evenly from
    /// [`ramp_from`](Self::ramp_from) to all: 0 to 24 h, default 0, which is no ramp. An upstream that is just back is
    /// not hit by everybody at once. Chance decides which calls pass. The others are rejected with
    /// [`Recovering`](crate::RejectionReason::Recovering), or wait for their turn. A call that passes is a normal one.
    /// While the ramp lasts, [`ramp_failures`](Self::ramp_failures) in a row open the circuit, which counts as another
    /// failed recovery.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// use fusebox::{CircuitBreaker, CircuitState};
    ///
    /// let ramp = Duration::from_millis(50);
    /// let breaker =
    ///     CircuitBreaker::builder("openai").open_for(Duration::from_millis(1)).ramp(ramp).ramp_from(10).build()?;
    /// breaker.trip_for(Duration::from_millis(1), "429", "");
    /// tokio::time::sleep(Duration::from_millis(20)).await;
    /// breaker.acquire().await?.success();
    /// assert_eq!(breaker.state(), CircuitState::Recovering);
    /// // It waits for its turn.
    /// breaker.acquire().await?.success();
    /// # Ok(())
    /// # }
    /// ```
    pub fn ramp(mut self, duration: Duration) -> Self {
        self.config.ramp = duration;
        self
    }

    /// The percentage of calls that passes at the beginning of the ramp: 1 to 100, default 10.
    pub fn ramp_from(mut self, percent: u32) -> Self {
        self.config.ramp_from = percent;
        self
    }

    /// Failures in a row that open the circuit during the ramp: 1 to 63. Default `None`: as many as
    /// `failure_threshold`, but no more than 63. Be careful with 1: an upstream that fails one call in a hundred then
    /// hardly ever gets to the end of a ramp.
    pub fn ramp_failures(mut self, failures: impl Into<Option<u32>>) -> Self {
        self.config.ramp_failures = failures.into();
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

    /// Counts successes, failures, rejections and waits, for
    /// [`BreakerSnapshot::totals`](crate::BreakerSnapshot::totals): for metrics. Each thread counts for itself. Off by
    /// default, and then it costs nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::CircuitBreaker;
    ///
    /// let breaker = CircuitBreaker::builder("openai").totals(true).build()?;
    /// breaker.try_acquire()?.success();
    /// breaker.try_acquire()?.failure("5xx", 503);
    /// let totals = breaker.snapshot().totals.unwrap();
    /// assert_eq!((totals.successes, totals.failures, totals.rejections), (1, 1, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "metrics")]
    pub fn totals(mut self, are_counted: bool) -> Self {
        self.config.totals = are_counted;
        self
    }
}

impl ConfigBuilder {
    pub(super) fn starting_from(config: Config) -> Self {
        Self { target: (), config }
    }

    /// Builds the settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a value out of its range.
    pub fn build(self) -> Result<Config, ConfigError> {
        self.into_parts().map(|((), config)| config)
    }
}
