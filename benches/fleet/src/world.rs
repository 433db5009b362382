//! Simulated replicas: what all simulations have in common.

use std::sync::Arc;
use std::time::Duration;

use fusebox::fleet::{Fleet, FleetConfig, Hub, Mode};
use fusebox::{CircuitBreaker, CircuitBreakerRegistry, Config};

pub(crate) const MODES: [(&str, Option<Mode>); 3] =
    [("alone", None), ("hint", Some(Mode::Hint)), ("quorum", Some(Mode::Quorum))];

pub(crate) struct Replica {
    pub(crate) breaker: Arc<CircuitBreaker>,
    _fleet: Option<Fleet>,
}

/// Each joins the fleet, unless they are alone.
pub(crate) fn replicas(number: usize, config: Config, mode: Option<Mode>, hub: &Hub) -> Vec<Replica> {
    let replica = |_| {
        let breakers = Arc::new(CircuitBreakerRegistry::with_config(["p"], config));
        let breaker = breakers.get("p").expect("it was inserted");
        Replica { breaker, _fleet: mode.map(|mode| FleetConfig::hub(hub).mode(mode).join(breakers)) }
    };
    (0..number).map(replica).collect()
}

/// Until the next call, if so many come in a second, by chance.
pub(crate) fn until_next(rate: f64) -> Duration {
    Duration::from_secs_f64(-fastrand::f64().max(1e-12).ln() / rate)
}

pub(crate) fn in_paused_time<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(future)
}
