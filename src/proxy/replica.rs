//! The gateway as a replica of a fleet (`[fleet]`): which of its circuits are shared, and by which names.
//!
//! A circuit's name in the fleet ends with a mark of the provider's URL and keys: what fails with one key, or at one
//! address, says nothing of a provider of the same name elsewhere. So a key that is being replaced is not put out by
//! the replicas that still have the old one.
//!
//! Not here: what replicas tell each other: `fleet`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;

use super::circuits::AnswerKind;
use super::keys::Keys;
use super::place::{Place, unmarked};
use super::provider::Provider;
use super::state::{AppState, Live};
use crate::fleet::{Circle, Fleet};
use crate::{CircuitBreaker, CircuitState, Transition};

/// The circuits of a gateway.
struct Replica(Arc<AppState>);

/// Joins the fleet that the gateway was configured for when it started, if any.
pub(crate) fn join(app: &Arc<AppState>) -> Option<Fleet> {
    let config = app.fleet_started_with.clone()?;
    let fleet = config.join_circle(Arc::new(Replica(Arc::clone(app))));
    // It is served once.
    let _ = app.fleet.set(fleet.figures());
    Some(fleet)
}

/// 16 bits of its URL and 16 bits of its keys: too little to find them out.
fn mark(provider: &Provider) -> u32 {
    let mut hasher = DefaultHasher::new();
    provider.config.url.to_string().hash(&mut hasher);
    let url = (hasher.finish() & 0xffff) as u32;
    url << 16 | provider.keys_mark()
}

fn shared(name: &str, provider: &Provider) -> Arc<str> {
    format!("{name}#{:08x}", mark(provider)).into()
}

fn provider_of<'a>(live: &'a Live, place: &Place<'_>) -> Option<&'a Arc<Provider>> {
    live.providers.iter().find(|provider| provider.name() == place.provider)
}

impl Circle for Replica {
    fn find(&self, name: &str) -> Option<Arc<CircuitBreaker>> {
        let live = self.0.live();
        let place = Place::of(unmarked(name));
        let provider = provider_of(&live, &place)?;
        (*shared(unmarked(name), provider) == *name).then(|| provider.breaker_at(&place))?
    }

    fn shared_name(&self, breaker: &str) -> Option<Arc<str>> {
        let live = self.0.live();
        provider_of(&live, &Place::of(breaker)).map(|provider| shared(breaker, provider))
    }

    fn not_closed(&self) -> Vec<Arc<str>> {
        let live = self.0.live();
        let mut found = Vec::new();
        for provider in live.providers.iter() {
            let keys = provider.keys.iter().flat_map(Keys::breakers);
            let models = provider.circuits.known().map(|(.., circuit)| &circuit.breaker);
            let open = [&provider.breaker].into_iter().chain(keys).chain(models);
            let open = open.filter(|breaker| breaker.state() != CircuitState::Closed);
            found.extend(open.map(|breaker| shared(breaker.name(), provider)));
        }
        found
    }

    /// A rate limit is a model's, however it is asked to answer.
    fn siblings(&self, name: &str) -> Vec<Arc<str>> {
        let live = self.0.live();
        let place = Place::of(unmarked(name));
        let (Some(provider), Some(model)) = (provider_of(&live, &place), place.model) else { return Vec::new() };
        let of_model = provider.circuits.known().filter(|(known, ..)| *known == model);
        of_model
            .map(|(.., circuit)| shared(circuit.breaker.name(), provider))
            .filter(|other| **other != *name)
            .collect()
    }

    fn subscribe(&self) -> Receiver<Transition> {
        self.0.chronicle.listener().subscribe()
    }

    fn median_latency(&self, name: &str) -> Option<Duration> {
        let live = self.0.live();
        let place = Place::of(unmarked(name));
        let kind = AnswerKind::parse(place.kind?)?;
        provider_of(&live, &place)?.silence.as_ref()?.median(place.model?, kind)
    }
}
