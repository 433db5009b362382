//! Snapshots and transitions, to be written.

use std::time::{Duration, SystemTime};

use serde::de::{self, Deserializer, Unexpected};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::duration;
use crate::breaker::BreakerSnapshot;
#[cfg(feature = "metrics")]
use crate::breaker::Totals;
use crate::error::LastError;
use crate::feed::Transition;
use crate::transition::{Cause, CircuitState};
use crate::window::LastCalls;

impl Serialize for CircuitState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for CircuitState {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let all = [Self::Closed, Self::Open, Self::HalfOpen, Self::Recovering, Self::Disabled];
        let expected = "closed, open, half_open, recovering or disabled";
        all.into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| de::Error::invalid_value(Unexpected::Str(&text), &expected))
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Cause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let expected = "failures, rate, slow, silence, cooldown or isolated";
        Self::ALL
            .iter()
            .copied()
            .find(|cause| cause.as_str() == text)
            .ok_or_else(|| de::Error::invalid_value(Unexpected::Str(&text), &expected))
    }
}

#[derive(Serialize)]
struct ErrorRow<'a> {
    error_type: &'a str,
    message: &'a str,
    #[serde(with = "duration")]
    age: Duration,
}

impl Serialize for LastError {
    /// Its type, message and age.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let age = Duration::from_millis(u64::try_from(self.age().as_millis()).unwrap_or(u64::MAX));
        ErrorRow { error_type: self.error_type(), message: self.message(), age }.serialize(serializer)
    }
}

#[derive(Serialize)]
struct CallsRow {
    calls: u64,
    failures: u64,
    slow: u64,
}

impl Serialize for LastCalls {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { calls, failures, slow } = *self;
        CallsRow { calls, failures, slow }.serialize(serializer)
    }
}

#[cfg(feature = "metrics")]
#[derive(Serialize)]
struct TotalsRow {
    successes: u64,
    failures: u64,
    rejections: u64,
    waits: u64,
}

#[cfg(feature = "metrics")]
impl Serialize for Totals {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { successes, failures, rejections, waits } = *self;
        TotalsRow { successes, failures, rejections, waits }.serialize(serializer)
    }
}

#[derive(Serialize)]
struct SnapshotRow<'a> {
    name: &'a str,
    state: CircuitState,
    cause: Option<Cause>,
    silent: bool,
    failure_count: u32,
    probe_in_flight: bool,
    waiters: usize,
    trip_count: u64,
    failed_probe_count: u64,
    last_calls: Option<LastCalls>,
    #[cfg(feature = "metrics")]
    #[serde(skip_serializing_if = "Option::is_none")]
    totals: Option<Totals>,
    #[serde(with = "duration::optional")]
    next_probe_in: Option<Duration>,
    last_error: Option<&'a LastError>,
}

impl Serialize for BreakerSnapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        SnapshotRow {
            name: self.name(),
            state: self.state,
            cause: self.cause,
            silent: self.silent,
            failure_count: self.failure_count,
            probe_in_flight: self.probe_in_flight,
            waiters: self.waiters,
            trip_count: self.trip_count,
            failed_probe_count: self.failed_probe_count,
            last_calls: self.last_calls,
            #[cfg(feature = "metrics")]
            totals: self.totals,
            next_probe_in: self.next_probe_in,
            last_error: self.last_error.as_deref(),
        }
        .serialize(serializer)
    }
}

#[derive(Serialize)]
struct TransitionRow<'a> {
    breaker: &'a str,
    from: CircuitState,
    to: CircuitState,
    cause: Option<Cause>,
    generation: u32,
    trip_count: u64,
    failure_count: u32,
    last_error: Option<&'a LastError>,
    #[serde(with = "duration::time")]
    at: SystemTime,
}

impl Serialize for Transition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        TransitionRow {
            breaker: &self.breaker,
            from: self.from,
            to: self.to,
            cause: self.cause,
            generation: self.generation,
            trip_count: self.trip_count,
            failure_count: self.failure_count,
            last_error: self.last_error.as_deref(),
            at: self.at,
        }
        .serialize(serializer)
    }
}
