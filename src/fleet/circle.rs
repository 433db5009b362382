//! Where a replica's breakers are.

use std::sync::Arc;
use std::time::Duration;

use crate::breaker::CircuitBreaker;
use crate::feed::Transition;
use crate::registry::CircuitBreakerRegistry;
use crate::sync::broadcast::Receiver;
use crate::transition::CircuitState;

/// The breakers of one replica.
pub(crate) trait Circle: Send + Sync + 'static {
    /// The breaker that is called so in the fleet.
    fn find(&self, name: &str) -> Option<Arc<CircuitBreaker>>;

    /// What a breaker of this name is called in the fleet. `None`: it is not shared.
    fn shared_name(&self, breaker: &str) -> Option<Arc<str>>;

    /// Those that are not closed, by their names in the fleet.
    fn not_closed(&self) -> Vec<Arc<str>>;

    /// The other circuits to which a cooldown of this one applies: when one of them closes, it is over for all.
    fn siblings(&self, name: &str) -> Vec<Arc<str>>;

    /// All transitions from now on.
    fn subscribe(&self) -> Receiver<Transition>;

    /// How long half of its calls take at most, if that is known.
    fn median_latency(&self, name: &str) -> Option<Duration>;
}

impl Circle for CircuitBreakerRegistry {
    fn find(&self, name: &str) -> Option<Arc<CircuitBreaker>> {
        self.get(name)
    }

    fn shared_name(&self, breaker: &str) -> Option<Arc<str>> {
        Some(breaker.into())
    }

    fn not_closed(&self) -> Vec<Arc<str>> {
        self.snapshots().into_iter().filter(|row| row.state != CircuitState::Closed).map(|row| row.name).collect()
    }

    fn siblings(&self, _: &str) -> Vec<Arc<str>> {
        Vec::new()
    }

    fn subscribe(&self) -> Receiver<Transition> {
        Self::subscribe(self)
    }

    fn median_latency(&self, _: &str) -> Option<Duration> {
        None
    }
}
