//! What `GET /health` says.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::{BreakerSnapshot, CircuitBreakerRegistry, CircuitState};

/// The whole gateway's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum HealthStatus {
    /// Every circuit is closed.
    Ok,
    /// A circuit is not closed, but requests can be served.
    Degraded,
    /// Every circuit is open, and not only because of silence: no request can be served.
    Unhealthy,
}

/// One provider's circuit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ProviderHealth {
    /// `closed`, `recovering`, `open`, `half_open` or `disabled`. A circuit whose open time has passed is shown as
    /// half-open: its next request is the probe.
    pub state: &'static str,
    /// How many failures in a row were counted.
    pub failure_count: u32,
    /// Why the circuit is open, if silence opened it and not failures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The body of `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// The gateway as a whole.
    pub status: HealthStatus,
    /// By name.
    pub providers: BTreeMap<String, ProviderHealth>,
}

impl Health {
    /// Looks at every breaker.
    pub fn of(breakers: &CircuitBreakerRegistry) -> Self {
        let snapshots = breakers.snapshots();
        // A silent provider is asked all the same if no other one is left.
        let refuses = |snapshot: &BreakerSnapshot| visible(snapshot) == CircuitState::Open && !snapshot.silent;
        let status = if snapshots.iter().all(|snapshot| passes(snapshot.state)) {
            HealthStatus::Ok
        } else if snapshots.iter().all(refuses) {
            HealthStatus::Unhealthy
        } else {
            HealthStatus::Degraded
        };
        let provider = |snapshot: &BreakerSnapshot| {
            let state = visible(snapshot).as_str();
            // Any other error's text may tell what is not meant for the public.
            let reason = snapshot.last_error.as_ref().filter(|_| snapshot.silent).map(ToString::to_string);
            (snapshot.name.to_string(), ProviderHealth { state, failure_count: snapshot.failure_count, reason })
        };
        Self { status, providers: snapshots.iter().map(provider).collect() }
    }
}

fn passes(state: CircuitState) -> bool {
    matches!(state, CircuitState::Closed | CircuitState::Disabled)
}

/// The state to show. The breaker itself becomes half-open only with the next call. If a load balancer kept that call
/// away because of a 503 from here, the circuit would stay open for good.
fn visible(snapshot: &BreakerSnapshot) -> CircuitState {
    match snapshot.state {
        CircuitState::Open if snapshot.next_probe_in == Some(Duration::ZERO) => CircuitState::HalfOpen,
        state => state,
    }
}
