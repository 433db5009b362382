//! Carrying out an operator's orders.
//!
//! Not here: which orders there are: `orders`; how they come in: `admin`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use strum::VariantArray;
use tracing::info;

use super::AppState;
use crate::error::Escaped;
use crate::proxy::circuits::AnswerKind;
use crate::proxy::keys::Keys;
use crate::proxy::orders::{Given, Order, Target};
use crate::proxy::provider::Provider;
use crate::proxy::wall_clock;
use crate::{Cause, CircuitBreaker, CircuitState};

/// Which circuits an operator means.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'a> {
    pub(crate) provider: &'a str,
    /// `None`: the provider's own circuit.
    pub(crate) model: Option<&'a str>,
    /// `None`: every kind of answer.
    pub(crate) kind: Option<AnswerKind>,
}

/// There is no such circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    Provider,
    Model,
}

impl AppState {
    fn provider(&self, name: &str) -> Result<Arc<Provider>, Unknown> {
        let live = self.live();
        let id = live.providers.find(|known| known.name() == name).ok_or(Unknown::Provider)?;
        Ok(Arc::clone(&live.providers[id]))
    }

    fn circuits_of(scope: Scope<'_>, provider: &Provider) -> Result<Vec<(Target, Arc<CircuitBreaker>)>, Unknown> {
        let name = provider.name().to_owned();
        let Some(model) = scope.model else {
            return Ok(vec![(Target { provider: name, of_model: None }, Arc::clone(&provider.breaker))]);
        };
        let id = provider.circuits.find(model).ok_or(Unknown::Model)?;
        let kinds = AnswerKind::VARIANTS.iter().copied().filter(|kind| scope.kind.is_none_or(|wanted| wanted == *kind));
        let target = |kind| Target { provider: name.clone(), of_model: Some((model.to_owned(), kind)) };
        Ok(kinds.map(|kind| (target(kind), Arc::clone(&provider.circuits.of(id, kind).breaker))).collect())
    }

    /// Isolates or disables circuits until they are released.
    pub(crate) fn give_order(&self, scope: Scope<'_>, given: &Given) -> Result<(), Unknown> {
        for (target, breaker) in Self::circuits_of(scope, &*self.provider(scope.provider)?)? {
            // Before the order, so that whoever is told of its transition finds it.
            self.orders.give(target, given.clone());
            carry_out(&breaker, given);
        }
        Ok(())
    }

    /// Ends orders. Returns how many there were: a circuit that is open by itself stays as it is.
    pub(crate) fn release(&self, scope: Scope<'_>) -> Result<usize, Unknown> {
        let circuits = Self::circuits_of(scope, &*self.provider(scope.provider)?)?;
        let mut released = 0;
        for (target, breaker) in circuits {
            self.orders.take(&target);
            released += usize::from(release(&breaker));
        }
        Ok(released)
    }

    /// Closes circuits whatever their state, and forgets failures, cooldowns and orders. Of a provider also its keys'
    /// and its models'.
    pub(crate) fn reset(&self, scope: Scope<'_>) -> Result<(), Unknown> {
        let provider = self.provider(scope.provider)?;
        let mut circuits = Self::circuits_of(scope, &provider)?;
        if scope.model.is_none() {
            provider.key_cooldowns.forget();
            provider.keys.iter().for_each(Keys::forget);
            let known: Vec<_> = provider.circuits.known().map(|(model, kind, _)| (model.to_owned(), kind)).collect();
            for (model, kind) in known {
                let scope = Scope { model: Some(&model), kind: Some(kind), ..scope };
                circuits.extend(Self::circuits_of(scope, &provider)?);
            }
        }
        for (target, breaker) in circuits {
            if let Some((model, kind)) = &target.of_model
                && let Some(model) = provider.circuits.find(model)
            {
                provider.circuits.of(model, *kind).cooldowns.forget();
            }
            self.orders.take(&target);
            breaker.reset();
        }
        Ok(())
    }

    /// Releases circuits whose orders end, until it is dropped.
    pub(crate) async fn end_orders(&self) {
        loop {
            let changed = self.orders.changed.notified();
            match self.orders.next_end() {
                None => changed.await,
                Some(end) => {
                    let left = end.duration_since(wall_clock::now()).unwrap_or_default();
                    // The wall clock may be set meanwhile.
                    let _ = tokio::time::timeout(left.min(LOOK_AGAIN), changed).await;
                }
            }
            self.end_orders_now(wall_clock::now());
        }
    }

    fn end_orders_now(&self, now: SystemTime) {
        for (target, given) in self.orders.take_ended(now) {
            let Ok(provider) = self.provider(&target.provider) else { continue };
            let (model, kind) = target.of_model.as_ref().map(|(model, kind)| (model.as_str(), *kind)).unzip();
            let scope = Scope { provider: provider.name(), model, kind };
            let circuits = Self::circuits_of(scope, &provider).unwrap_or_default();
            let released = circuits.iter().filter(|(_, breaker)| release(breaker)).count();
            let (model, kind, reason) = (model.map(Escaped), kind.map(AnswerKind::as_str), Escaped(&given.reason));
            if released > 0 {
                info!(provider = provider.name(), model = model.map(tracing::field::display), kind, %reason, "an order has ended");
            }
        }
    }

    /// Forgets orders for circuits that are gone.
    pub(super) fn keep_orders(&self) {
        self.orders.keep_only(|target| {
            let Ok(provider) = self.provider(&target.provider) else { return false };
            target.of_model.as_ref().is_none_or(|(model, _)| provider.circuits.find(model).is_some())
        });
    }
}

/// How long a change of the wall clock may go unnoticed.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

fn carry_out(breaker: &CircuitBreaker, given: &Given) {
    match given.order {
        Order::Isolate => breaker.isolate(&*given.reason),
        Order::Disable => breaker.disable(),
    }
}

/// Returns whether an order was in force.
fn release(breaker: &CircuitBreaker) -> bool {
    let snapshot = breaker.snapshot();
    let is_ordered = snapshot.cause == Some(Cause::Isolated) || snapshot.state == CircuitState::Disabled;
    if is_ordered {
        breaker.reset();
    }
    is_ordered
}
