//! State that leaves the process and comes back (feature `serde`): settings, snapshots, and which circuits are open.
//!
//! Not here: what a circuit does with what comes back: `breaker`.

mod config;
mod duration;
mod snapshot;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::serde::{Deserialize, Serialize};

use crate::breaker::{BreakerSnapshot, CircuitBreaker};
use crate::config::MAX_DURATION;
use crate::registry::CircuitBreakerRegistry;
use crate::transition::{Cause, CircuitState};

/// The circuits of a registry that are not closed, as [`CircuitBreakerRegistry::export`] saw them. Times are those of
/// the system's clock, so that another process can read them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Exported {
    /// When it was exported.
    #[serde(with = "duration::time")]
    pub at: SystemTime,
    /// Sorted by name.
    pub breakers: Vec<ExportedBreaker>,
}

/// A circuit that is not closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ExportedBreaker {
    /// The breaker's name.
    pub name: String,
    /// Open, half-open or disabled.
    pub state: CircuitState,
    /// Why it is open. `None` unless it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// When it takes a probe. `None` unless it is open, and while it is isolated.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "duration::optional_time")]
    pub probe_at: Option<SystemTime>,
    /// Type and message of the failure that opened it, or the reason why it is isolated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ExportedError>,
}

/// Why a circuit is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ExportedError {
    /// See [`LastError::error_type`](crate::LastError::error_type).
    pub error_type: String,
    /// See [`LastError::message`](crate::LastError::message).
    pub message: String,
}

impl Exported {
    pub(crate) fn of(snapshots: impl IntoIterator<Item = BreakerSnapshot>) -> Self {
        let at = wall_clock();
        let export = |snapshot: BreakerSnapshot| {
            let is_exported =
                matches!(snapshot.state, CircuitState::Open | CircuitState::HalfOpen | CircuitState::Disabled);
            is_exported.then(|| ExportedBreaker {
                name: snapshot.name.to_string(),
                state: snapshot.state,
                cause: snapshot.cause,
                probe_at: snapshot.next_probe_in.map(|left| at + left),
                error: snapshot.last_error.map(|error| ExportedError {
                    error_type: error.error_type().to_owned(),
                    message: error.message().to_owned(),
                }),
            })
        };
        Self { at, breakers: snapshots.into_iter().filter_map(export).collect() }
    }

    /// Restores those whose breakers `find` knows. Returns what was refused.
    pub(crate) fn restore(&self, find: impl Fn(&ExportedBreaker) -> Option<Arc<CircuitBreaker>>) -> Vec<RestoreError> {
        let now = wall_clock();
        let restore = |row: &ExportedBreaker| find(row).ok_or(Refused::Unknown)?.restore_from(row, self.at, now);
        let refused = |row: &ExportedBreaker| {
            let refused = restore(row).err()?;
            Some(RestoreError { name: row.name.clone(), refused })
        };
        self.breakers.iter().filter_map(refused).collect()
    }
}

impl CircuitBreakerRegistry {
    /// The circuits that are open, half-open or disabled: for a process that is about to end, so that the next one need
    /// not find out again what is down. A recovering circuit counts as closed. Counters are not exported: they begin
    /// anew in each process.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::{CircuitBreakerRegistry, CircuitState, Exported};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let before = CircuitBreakerRegistry::new(["openai", "anthropic"]);
    /// for _ in 0..3 {
    ///     before.record_failure("openai", "5xx", 503);
    /// }
    /// let text = serde_json::to_string(&before.export())?;
    ///
    /// let after = CircuitBreakerRegistry::new(["openai", "anthropic"]);
    /// let exported: Exported = serde_json::from_str(&text)?;
    /// assert!(after.restore(&exported).is_empty());
    /// assert_eq!(after.state("openai"), Some(CircuitState::Open));
    /// # Ok(())
    /// # }
    /// ```
    pub fn export(&self) -> Exported {
        Exported::of(self.snapshots())
    }

    /// Opens the circuits that were open, until the time at which they would have taken a probe; a half-open one takes
    /// it at once. Isolated and disabled ones are isolated and disabled again. Each opening is a trip of this process,
    /// and told as one.
    ///
    /// Returns what was refused, and why; everything else is restored. A circuit that is not closed any more is left as
    /// it is.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use fusebox::CircuitBreakerRegistry;
    ///
    /// let before = CircuitBreakerRegistry::new(["openai"]);
    /// before.get("openai").unwrap().trip_for(Duration::from_secs(60), "429", "");
    /// let mut exported = before.export();
    /// exported.breakers[0].probe_at = Some(exported.at + Duration::from_secs(1_000_000));
    ///
    /// let after = CircuitBreakerRegistry::new(["openai"]);
    /// let refused = after.restore(&exported);
    /// assert!(refused[0].to_string().starts_with("openai: its probe is due in 11days 13h"));
    /// ```
    #[must_use = "what is refused is not restored"]
    pub fn restore(&self, exported: &Exported) -> Vec<RestoreError> {
        exported.restore(|row| self.get(&row.name))
    }
}

impl CircuitBreaker {
    fn restore_from(&self, row: &ExportedBreaker, exported_at: SystemTime, now: SystemTime) -> Result<(), Refused> {
        let (error_type, message) = match &row.error {
            Some(error) => (&*error.error_type, &*error.message),
            None => ("restored", ""),
        };
        let (cause, due) = match (row.state, row.cause, row.probe_at) {
            (CircuitState::Disabled, ..) => return self.restore_by_hand(|| self.disable()),
            (CircuitState::Open, Some(Cause::Isolated), _) => return self.restore_by_hand(|| self.isolate(message)),
            (CircuitState::Open, Some(cause), Some(probe_at)) => (cause, probe_at),
            // Its probe was due, and is so now.
            (CircuitState::HalfOpen, ..) => (Cause::Failures, exported_at),
            _ => return Err(Refused::Incomplete),
        };
        let longest =
            if matches!(cause, Cause::Cooldown | Cause::Fleet) { MAX_DURATION } else { self.longest_open_time() };
        let left = match due.duration_since(now) {
            Ok(left) if left > longest => return Err(Refused::TooFarAhead { left, longest }),
            Ok(left) => left,
            Err(past) if past.duration() > longest => return Err(Refused::TooOld { ago: past.duration(), longest }),
            Err(_) => Duration::ZERO,
        };
        if self.restore_open(cause, left, error_type, message) { Ok(()) } else { Err(Refused::NotClosed) }
    }

    fn restore_by_hand(&self, order: impl FnOnce()) -> Result<(), Refused> {
        if self.state() == CircuitState::Closed {
            order();
            Ok(())
        } else {
            Err(Refused::NotClosed)
        }
    }
}

/// Why a circuit was not restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreError {
    name: String,
    refused: Refused,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Refused {
    Unknown,
    NotClosed,
    Incomplete,
    TooFarAhead { left: Duration, longest: Duration },
    TooOld { ago: Duration, longest: Duration },
}

impl RestoreError {
    /// The breaker's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        match self.refused {
            Refused::Unknown => f.write_str("there is no breaker of this name"),
            Refused::NotClosed => f.write_str("the circuit is not closed any more, and stays as it is"),
            Refused::Incomplete => f.write_str("an open circuit has a cause, and a time at which its probe is due"),
            Refused::TooFarAhead { left, longest } => {
                let (left, longest) = (duration::shown(left), duration::shown(longest));
                write!(f, "its probe is due in {left}, expected at most the longest open time, {longest}")
            }
            Refused::TooOld { ago, longest } => {
                let (ago, longest) = (duration::shown(ago), duration::shown(longest));
                write!(f, "its probe was due {ago} ago, expected at most the longest open time, {longest}")
            }
        }
    }
}

impl Error for RestoreError {}

#[expect(clippy::disallowed_methods, reason = "what is exported is read by other processes")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
