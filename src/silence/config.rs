//! The settings for noticing silence, their defaults and their ranges.

use std::time::Duration;

use crate::clock::ticks;
use crate::config::{ConfigError, MAX_DURATION, MIN_DURATION};
use crate::sync::Ordering;
use crate::sync::unseen::AtomicU32;

/// When silence raises an alarm. The values are checked when it is built.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use fusebox::silence::Config;
///
/// let config = Config::builder().phi(12.0).ceiling(Duration::from_secs(10)).build()?;
/// assert_eq!(config.floor(), Duration::from_millis(20));
///
/// let error = Config::builder().phi(0.0).build().unwrap_err();
/// assert_eq!(error.to_string(), "phi is 0, expected 1 to 100");
/// # Ok::<(), fusebox::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    pub(super) phi: f32,
    pub(super) floor: Duration,
    pub(super) ceiling: Option<Duration>,
}

impl Default for Config {
    /// Phi 9, a floor of 20 ms, no ceiling.
    fn default() -> Self {
        Self { phi: 9.0, floor: Duration::from_millis(20), ceiling: None }
    }
}

impl Config {
    /// Starts from the defaults.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder(Self::default())
    }

    /// Starts from these settings.
    pub fn to_builder(self) -> ConfigBuilder {
        ConfigBuilder(self)
    }

    /// The phi that raises an alarm.
    pub fn phi(&self) -> f32 {
        self.phi
    }

    /// The shortest wait of the oldest silent request that raises an alarm.
    pub fn floor(&self) -> Duration {
        self.floor
    }

    /// The wait that raises an alarm however long answers take. `None`: there is no such wait.
    pub fn ceiling(&self) -> Option<Duration> {
        self.ceiling
    }
}

/// Builds a [`Config`] from the defaults and what is set.
#[derive(Clone, Copy, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct ConfigBuilder(Config);

impl ConfigBuilder {
    /// The phi that raises an alarm: 1 to 100, default 9.
    pub fn phi(mut self, phi: f32) -> Self {
        self.0.phi = phi;
        self
    }

    /// How long the oldest silent request must have waited: 0 to 24 h, default 20 ms. Without it, an upstream that
    /// answers within a millisecond would be judged silent at every hiccup.
    pub fn floor(mut self, floor: Duration) -> Self {
        self.0.floor = floor;
        self
    }

    /// How long the oldest of at least `failure_threshold` silent requests may wait, whatever was learnt: 1 ms to 24 h.
    /// Default `None`: there is no limit.
    pub fn ceiling(mut self, ceiling: impl Into<Option<Duration>>) -> Self {
        self.0.ceiling = ceiling.into();
        self
    }

    /// The settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a value out of its range.
    pub fn build(self) -> Result<Config, ConfigError> {
        let Config { phi, floor, ceiling } = self.0;
        if !(1.0..=100.0).contains(&phi) {
            return Err(ConfigError::new("phi", phi.to_string(), "1 to 100"));
        }
        if floor > MAX_DURATION {
            return Err(ConfigError::new("floor", format!("{floor:?}"), "0 to 24 h"));
        }
        match ceiling {
            Some(ceiling) if !(MIN_DURATION..=MAX_DURATION).contains(&ceiling) => {
                Err(ConfigError::new("ceiling", format!("{ceiling:?}"), "1 ms to 24 h"))
            }
            _ => Ok(self.0),
        }
    }
}

/// The settings that apply to waits, for all cores.
pub(super) struct Bounds {
    floor_ms: AtomicU32,
    /// 0 stands for no ceiling.
    ceiling_ms: AtomicU32,
}

impl Bounds {
    pub(super) fn new(config: Config) -> Self {
        let bounds = Self { floor_ms: AtomicU32::new(0), ceiling_ms: AtomicU32::new(0) };
        bounds.set(config);
        bounds
    }

    pub(super) fn set(&self, config: Config) {
        self.floor_ms.store(ticks(config.floor), Ordering::Relaxed);
        self.ceiling_ms.store(config.ceiling.map_or(0, ticks), Ordering::Relaxed);
    }

    pub(super) fn floor(&self) -> Duration {
        Duration::from_millis(self.floor_ms.load(Ordering::Relaxed).into())
    }

    pub(super) fn ceiling(&self) -> Option<Duration> {
        let ceiling = self.ceiling_ms.load(Ordering::Relaxed);
        (ceiling > 0).then(|| Duration::from_millis(ceiling.into()))
    }
}
