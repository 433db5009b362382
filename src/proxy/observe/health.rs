//! What `GET /health` says.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::fleet::FleetSnapshot;
use crate::proxy::keys::Keys;
use crate::proxy::provider::Provider;
use crate::{BreakerSnapshot, Cause, CircuitState};

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

/// One circuit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CircuitHealth {
    /// `closed`, `recovering`, `open`, `half_open` or `disabled`. A circuit whose open time has passed is shown as
    /// half-open: its next request is the probe.
    pub state: &'static str,
    /// How many failures in a row were counted.
    pub failure_count: u32,
    /// Why the circuit is open: `failures`, `silence`, `cooldown`, `fleet` or `isolated`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'static str>,
    /// The outcome that opened it, such as `5xx`, `429` or `key_refused`, unless it is closed. `docs/METRICS.md` lists
    /// them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Milliseconds until it is tried again, while it is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_in_ms: Option<u64>,
    /// What was silent, if silence opened it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A provider's key that is out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KeyHealth {
    /// `key_refused` or `no_credit`.
    pub error: String,
    /// Milliseconds until it is tried again.
    pub retry_in_ms: u64,
}

/// One provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ProviderHealth {
    /// Its own circuit. If that is closed and those of all its models are not, it is the best of them.
    #[serde(flatten)]
    pub circuit: CircuitHealth,
    /// Why its key is out, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyHealth>,
    /// Those of its several keys that are out, by their numbers in the configuration, from 1 on.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<usize, KeyHealth>,
    /// What is probably wrong with its settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<&'static str>,
    /// Those of its models' circuits that are not closed: by model, then by kind of answer (`whole`, `stream`,
    /// `count`, `session`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, BTreeMap<&'static str, CircuitHealth>>,
}

/// The body of `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// The gateway as a whole.
    pub status: HealthStatus,
    /// By name.
    pub providers: BTreeMap<String, ProviderHealth>,
    /// The replicas that tell each other what they find out, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FleetHealth>,
}

/// The fleet that this gateway is a replica of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FleetHealth {
    /// Whether its Redis is reached. If not, each circuit does what it does alone.
    pub up: bool,
    /// How many replicas there are, this one included.
    pub replicas: usize,
}

impl Health {
    /// Looks at every circuit.
    pub(crate) fn of<'a>(providers: impl Iterator<Item = &'a Provider>, fleet: Option<&FleetSnapshot>) -> Self {
        let (mut all_closed, mut all_refuse) = (true, true);
        let mut shown = BTreeMap::new();
        for provider in providers {
            let own = provider.breaker.snapshot();
            let known: Vec<_> = provider
                .circuits
                .known()
                .map(|(model, kind, circuit)| (model, kind, circuit.breaker.snapshot()))
                .collect();
            let best = best(provider, &own, known.iter().map(|(model, _, snapshot)| (*model, snapshot)));
            all_closed &= passes(&own) && known.iter().all(|(_, _, snapshot)| passes(snapshot));
            // A silent provider is asked all the same if no other one is left.
            all_refuse &= visible(best) == CircuitState::Open && !best.silent;
            let key = provider.key_out().map(|out| KeyHealth {
                error: out.last_error.as_ref().map(|error| error.error_type().to_owned()).unwrap_or_default(),
                retry_in_ms: in_ms(out.next_probe_in.unwrap_or_default()),
            });
            let out = provider.keys.iter().flat_map(Keys::out);
            let keys =
                out.map(|(number, error, left)| (number, KeyHealth { error, retry_in_ms: in_ms(left) })).collect();
            let mut circuit = CircuitHealth::of(best);
            let counts = known.iter().map(|(_, _, snapshot)| snapshot.failure_count);
            circuit.failure_count = counts.fold(own.failure_count, u32::max);
            let mut models: BTreeMap<String, BTreeMap<_, _>> = BTreeMap::new();
            for (model, kind, snapshot) in known.iter().filter(|(_, _, snapshot)| !passes(snapshot)) {
                let of_model = models.entry((*model).to_owned()).or_default();
                of_model.insert(kind.as_str(), CircuitHealth::of(snapshot));
            }
            let hint = provider.hint();
            shown.insert(provider.name().to_owned(), ProviderHealth { circuit, key, keys, hint, models });
        }
        let status = match (all_closed, all_refuse) {
            (true, _) => HealthStatus::Ok,
            (false, true) => HealthStatus::Unhealthy,
            (false, false) => HealthStatus::Degraded,
        };
        let fleet = fleet.map(|seen| FleetHealth { up: seen.up, replicas: seen.replicas });
        Self { status, providers: shown, fleet }
    }
}

/// What a request meets at best: the provider's own circuit, unless that lets it pass and no model's does.
fn best<'a>(
    provider: &Provider,
    own: &'a BreakerSnapshot,
    known: impl Iterator<Item = (&'a str, &'a BreakerSnapshot)> + Clone,
) -> &'a BreakerSnapshot {
    let is_known = |model: &String| known.clone().any(|(known, _)| known == model);
    if !passes(own) || !provider.config.models.keys().all(is_known) {
        return own;
    }
    let best = known.map(|(_, snapshot)| snapshot).min_by_key(|snapshot| rank(visible(snapshot)));
    best.filter(|best| !passes(best)).unwrap_or(own)
}

fn rank(state: CircuitState) -> u8 {
    match state {
        CircuitState::Closed | CircuitState::Disabled => 0,
        CircuitState::Recovering => 1,
        CircuitState::HalfOpen => 2,
        CircuitState::Open => 3,
    }
}

impl CircuitHealth {
    fn of(snapshot: &BreakerSnapshot) -> Self {
        let error = snapshot.last_error.as_ref().filter(|_| !passes(snapshot));
        Self {
            state: visible(snapshot).as_str(),
            failure_count: snapshot.failure_count,
            cause: snapshot.cause.map(Cause::as_str),
            error: error.map(|error| error.error_type().to_owned()),
            retry_in_ms: snapshot.next_probe_in.map(in_ms),
            // Any other error's text may tell what is not meant for the public.
            reason: error.filter(|_| snapshot.silent).map(ToString::to_string),
        }
    }
}

pub(crate) fn in_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn passes(snapshot: &BreakerSnapshot) -> bool {
    matches!(snapshot.state, CircuitState::Closed | CircuitState::Disabled)
}

/// The state to show. The breaker itself becomes half-open only with the next call. If a load balancer kept that call
/// away because of a 503 from here, the circuit would stay open for good.
pub(crate) fn visible(snapshot: &BreakerSnapshot) -> CircuitState {
    match snapshot.state {
        CircuitState::Open if snapshot.next_probe_in == Some(Duration::ZERO) => CircuitState::HalfOpen,
        state => state,
    }
}
