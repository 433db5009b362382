//! Replicas, and what happens to them.

use std::sync::Arc;
use std::time::Duration;

use fusebox::fleet::{Fleet, FleetConfig, Hub};
use fusebox::{CircuitBreaker, CircuitBreakerRegistry, CircuitState, Config, ConfigBuilder, OwnedPermit, PermitType};
use tokio::time::sleep;

pub(crate) const MILLI: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const OPEN_FOR: Duration = Duration::from_secs(5);

/// One replica, with a breaker for the upstream `p`.
pub(crate) struct Replica {
    pub(crate) breakers: Arc<CircuitBreakerRegistry>,
    pub(crate) breaker: Arc<CircuitBreaker>,
    pub(crate) fleet: Option<Fleet>,
}

pub(crate) fn settings() -> ConfigBuilder {
    Config::builder().failure_threshold(3).open_for(OPEN_FOR)
}

impl Replica {
    pub(crate) fn new(config: FleetConfig) -> Self {
        Self::with(settings().build().unwrap(), config)
    }

    pub(crate) fn with(breaker: Config, config: FleetConfig) -> Self {
        let breakers = Arc::new(CircuitBreakerRegistry::with_config(["p"], breaker));
        let fleet = Some(config.join(Arc::clone(&breakers)));
        Self { breaker: breakers.get("p").unwrap(), breakers, fleet }
    }

    pub(crate) fn state(&self) -> CircuitState {
        self.breaker.state()
    }

    pub(crate) fn fleet(&self) -> &Fleet {
        self.fleet.as_ref().unwrap()
    }

    pub(crate) fn fail(&self) {
        self.breaker.try_acquire().expect("closed").failure("5xx", 503);
    }

    pub(crate) fn succeed(&self) {
        self.breaker.try_acquire().expect("closed").success();
    }

    /// As many failures as open it.
    pub(crate) fn open(&self) {
        while self.state() == CircuitState::Closed {
            self.fail();
        }
    }

    /// The permit for the probe, if this call is it.
    pub(crate) fn probe(&self) -> Option<OwnedPermit> {
        let permit = Arc::clone(&self.breaker).try_acquire_owned().ok()?;
        (permit.kind() == PermitType::Probe).then_some(permit)
    }

    /// How many times it has said something of this kind.
    pub(crate) fn said(&self, kind: &str) -> u64 {
        self.fleet().snapshot().published[kind]
    }

    /// Whether one replica probes for all, as far as this one knows.
    pub(crate) fn is_agreed(&self) -> bool {
        self.fleet().snapshot().circuits.get("p").is_some_and(|circuit| circuit.agreed)
    }
}

/// Replicas that have joined.
pub(crate) async fn fleet_of(number: usize, hub: &Hub, config: impl Fn(FleetConfig) -> FleetConfig) -> Vec<Replica> {
    let replicas = (0..number).map(|_| Replica::new(config(FleetConfig::hub(hub)))).collect();
    soon().await;
    replicas
}

pub(crate) fn hub() -> Hub {
    Hub::new(MILLI)
}

/// Long enough for everybody to hear of everything, and for objections.
pub(crate) async fn soon() {
    sleep(MILLI * 30).await;
}

/// All of them have opened by failures of their own.
pub(crate) async fn all_open(replicas: &[Replica]) {
    for replica in replicas {
        replica.open();
        soon().await;
    }
}

/// Those replicas that get the probe now.
pub(crate) fn probes(replicas: &[Replica]) -> Vec<(usize, OwnedPermit)> {
    replicas.iter().enumerate().filter_map(|(at, replica)| Some((at, replica.probe()?))).collect()
}

/// The next probe that one of the replicas gets within `limit`, asking each of them again and again.
pub(crate) async fn next_probe(replicas: &[Replica], limit: Duration) -> Option<(usize, OwnedPermit)> {
    let started = tokio::time::Instant::now();
    while started.elapsed() < limit {
        if let Some(found) = probes(replicas).pop() {
            return Some(found);
        }
        sleep(MILLI).await;
    }
    None
}
