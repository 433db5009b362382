//! A breaker as it was at one moment.
//!
//! Not here: its transitions, as they happen: `feed`.

use std::sync::Arc;
use std::time::Duration;

use super::CircuitBreaker;
use super::history::Counts;
#[cfg(feature = "metrics")]
use super::totals::Totals;
use crate::breaker::Past;
use crate::clock::duration;
use crate::error::LastError;
use crate::transition::{Cause, CircuitState};
use crate::window::LastCalls;
use crate::word::step::FOREVER;

impl CircuitBreaker {
    /// What there is to say about it now, for health pages and metrics.
    pub fn snapshot(&self) -> BreakerSnapshot {
        let word = self.decoded();
        let Past { counts: Counts { trips, failed_probes, failures }, last_error } = self.past(word);
        BreakerSnapshot {
            name: Arc::clone(&self.name),
            state: self.state_of(word),
            cause: word.cause(),
            silent: word.cause() == Some(Cause::Silence),
            failure_count: word.failures().unwrap_or(failures),
            probe_in_flight: word.has_probe_in_flight(),
            waiters: self.waiting.count(),
            trip_count: trips,
            failed_probe_count: failed_probes,
            next_probe_in: (word.circuit_state() == CircuitState::Open)
                .then(|| word.open_left(self.clock.now(), self.settings.longest_open_ticks()))
                .filter(|left| *left != FOREVER)
                .map(duration),
            last_calls: self.last_calls(word),
            #[cfg(feature = "metrics")]
            totals: self.totals(),
            last_error,
        }
    }
}

/// A breaker as [`CircuitBreaker::snapshot`] saw it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BreakerSnapshot {
    /// The breaker's name.
    pub name: Arc<str>,
    /// See [`CircuitBreaker::state`].
    pub state: CircuitState,
    /// Why the circuit is open. `None` unless it is.
    pub cause: Option<Cause>,
    /// Whether the cause is [`Cause::Silence`].
    pub silent: bool,
    /// See [`CircuitBreaker::failure_count`].
    pub failure_count: u32,
    /// Whether a probe is in flight.
    pub probe_in_flight: bool,
    /// Calls that wait for the probe.
    pub waiters: usize,
    /// See [`CircuitBreaker::trip_count`].
    pub trip_count: u64,
    /// Probes that failed, ever.
    pub failed_probe_count: u64,
    /// What is in the window. `None` if there is neither a `failure_rate` nor a `slow_rate`.
    pub last_calls: Option<LastCalls>,
    /// How many calls of each kind there were. `None` unless they are [counted](crate::ConfigBuilder::totals).
    #[cfg(feature = "metrics")]
    pub totals: Option<Totals>,
    /// While open: how long until a call becomes the next probe, zero if the next one does. `None` while isolated.
    pub next_probe_in: Option<Duration>,
    /// The failure that opened the circuit last.
    pub last_error: Option<Arc<LastError>>,
}

impl BreakerSnapshot {
    /// The breaker's name, to be compared with a text.
    pub fn name(&self) -> &str {
        &self.name
    }
}
