//! The circuits below a provider: one for each model and kind of answer. One model's failures say nothing about another
//! one's, and a provider whose streams break off may answer whole requests well.
//!
//! Not here: the provider's own circuit: `provider`; what opens a circuit: `route::attempts`.

pub(crate) mod cooldown;
pub(crate) mod gate;
mod repeats;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use strum::{EnumCount, VariantArray};
use tokio::sync::broadcast::Sender;
use tokio::time::Instant;

use self::cooldown::Growing;
use self::gate::Gate;
use self::repeats::Repeats;
use super::config::Limits;
use super::counts::ModelCounts;
use crate::{CircuitBreaker, CircuitState, Config, Transition};

/// How an answer comes. Its text is a label in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EnumCount, VariantArray)]
#[non_exhaustive]
pub enum AnswerKind {
    /// At once, when it is complete.
    Whole,
    /// In pieces, while it is made.
    Stream,
    /// The number of a request's tokens, which takes no model's work.
    Count,
    /// Message by message in both directions, over a WebSocket.
    Session,
}

impl AnswerKind {
    /// The one that is called so.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::VARIANTS.iter().copied().find(|kind| kind.as_str() == text)
    }

    /// `whole`, `stream`, `count` or `session`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Stream => "stream",
            Self::Count => "count",
            Self::Session => "session",
        }
    }
}

/// A model's place among those of its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ModelId(u32);

/// The circuits of a provider's models. Each is made when it is needed first: a provider may serve a thousand models,
/// few of which are asked for.
pub(crate) struct Circuits {
    provider: String,
    config: Config,
    /// Is told of all transitions.
    listener: Sender<Transition>,
    /// By the clients' names, in alphabetical order. The first name is empty: it stands for requests without a model.
    models: Box<[OfModel]>,
}

struct OfModel {
    name: Box<str>,
    /// `None` if the number of its requests is not limited.
    gate: Option<Arc<Gate>>,
    /// Made with the first request.
    counts: OnceLock<Arc<ModelCounts>>,
    kinds: [OnceLock<Arc<Circuit>>; AnswerKind::COUNT],
}

impl Circuits {
    /// `before`: those of the same provider before a reload. They keep their state.
    pub(crate) fn new(
        provider: &str,
        config: Config,
        limits: Limits,
        models: &BTreeMap<String, String>,
        listener: &Sender<Transition>,
        before: Option<&Self>,
    ) -> Self {
        let of_model = |name: &str| {
            let old = before.and_then(|before| Some(&before.models[before.find(name)?.0 as usize]));
            let kinds = old.map(|old| old.kinds.clone()).unwrap_or_default();
            let gate = old.and_then(|old| old.gate.clone()).filter(|gate| gate.limits == limits);
            let gate = gate.or_else(|| Gate::new(limits).map(Arc::new));
            for circuit in kinds.iter().filter_map(OnceLock::get) {
                circuit.breaker.set_config(config);
            }
            let counts = old.map(|old| old.counts.clone()).unwrap_or_default();
            OfModel { name: name.into(), gate, counts, kinds }
        };
        let names = std::iter::once("").chain(models.keys().map(String::as_str));
        let (provider, listener) = (provider.to_owned(), listener.clone());
        Self { provider, config, listener, models: names.map(of_model).collect() }
    }

    pub(crate) fn find(&self, model: &str) -> Option<ModelId> {
        let at = self.models.binary_search_by(|known| (*known.name).cmp(model)).ok()?;
        u32::try_from(at).ok().map(ModelId)
    }

    /// For requests that name no model.
    pub(crate) const NO_MODEL: ModelId = ModelId(0);

    pub(crate) fn of(&self, model: ModelId, kind: AnswerKind) -> &Arc<Circuit> {
        let of_model = &self.models[model.0 as usize];
        of_model.kinds[kind as usize].get_or_init(|| {
            let name = format!("{}, {}, {}", self.provider, of_model.name, kind.as_str());
            let breaker = CircuitBreaker::new(name, self.config);
            breaker.attach(&self.listener);
            Arc::new(Circuit::new(breaker, model))
        })
    }

    /// The circuits that are not among `kept` will be told nothing any more: calls that wait for them pass.
    pub(crate) fn retire_all_but(&self, kept: Option<&Self>) {
        for of_model in &self.models {
            for (kind, circuit) in AnswerKind::VARIANTS.iter().zip(&of_model.kinds) {
                let Some(circuit) = circuit.get() else { continue };
                let new = kept
                    .and_then(|kept| kept.models[kept.find(&of_model.name)?.0 as usize].kinds[*kind as usize].get());
                if !new.is_some_and(|new| Arc::ptr_eq(new, circuit)) {
                    circuit.breaker.retire();
                }
            }
        }
    }

    /// Those of the same model for other kinds of answers.
    pub(crate) fn others(&self, model: ModelId, kind: AnswerKind) -> impl Iterator<Item = &Arc<Circuit>> {
        let others = AnswerKind::VARIANTS.iter().filter(move |other| **other != kind);
        others.map(move |other| self.of(model, *other))
    }

    pub(crate) fn gate(&self, model: ModelId) -> Option<&Gate> {
        self.models[model.0 as usize].gate.as_deref()
    }

    /// What is counted of a model.
    pub(crate) fn counts(&self, model: ModelId) -> &ModelCounts {
        self.models[model.0 as usize].counts.get_or_init(Arc::default)
    }

    /// The same, if it was asked for.
    pub(crate) fn known_counts(&self, model: ModelId) -> Option<&ModelCounts> {
        self.models[model.0 as usize].counts.get().map(|counts| &**counts)
    }

    /// The same of all models that were asked for, in alphabetical order.
    pub(crate) fn all_counts(&self) -> impl Iterator<Item = (&str, &ModelCounts)> {
        self.models.iter().filter_map(|of_model| Some((&*of_model.name, &**of_model.counts.get()?)))
    }

    pub(crate) fn name(&self, model: ModelId) -> &str {
        &self.models[model.0 as usize].name
    }

    /// Those that have been used, or are not closed, with the model of each.
    pub(crate) fn known(&self) -> impl Iterator<Item = (&str, AnswerKind, &Circuit)> {
        self.models.iter().flat_map(|of_model| {
            let known = AnswerKind::VARIANTS.iter().zip(&of_model.kinds);
            let known = known.filter_map(|(kind, circuit)| Some((&*of_model.name, *kind, &**circuit.get()?)));
            known.filter(|(_, _, circuit)| circuit.is_used() || circuit.breaker.state() != CircuitState::Closed)
        })
    }
}

impl fmt::Debug for Circuits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.known().map(|(_, _, circuit)| &circuit.breaker)).finish()
    }
}

/// One model's circuit for one kind of answer, with what is known of its failures.
pub(crate) struct Circuit {
    pub(crate) breaker: Arc<CircuitBreaker>,
    /// Unlike that of any other model of its provider, and never 0.
    model: u32,
    repeats: Repeats,
    pub(crate) cooldowns: Growing,
    is_used: AtomicBool,
    breaks_off: AtomicBool,
    /// How often it had opened when silence was noted last.
    silences: AtomicU64,
}

impl Circuit {
    fn new(breaker: CircuitBreaker, ModelId(model): ModelId) -> Self {
        Self {
            breaker: Arc::new(breaker),
            model: model + 1,
            repeats: Repeats::default(),
            cooldowns: Growing::default(),
            is_used: AtomicBool::new(false),
            breaks_off: AtomicBool::new(false),
            silences: AtomicU64::new(0),
        }
    }

    /// The number of its model.
    pub(crate) fn model(&self) -> u32 {
        self.model
    }

    /// Notes that a request is sent.
    pub(crate) fn begin(&self) {
        // Cores share the line without writing to it.
        if !self.is_used() {
            self.is_used.store(true, Ordering::Relaxed);
        }
    }

    fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }

    /// Whether it is open because of silence, or probes whether the silence is over.
    pub(crate) fn is_silent(&self) -> bool {
        let snapshot = self.breaker.snapshot();
        let was_silent = || snapshot.last_error.is_some_and(|error| error.error_type() == "silent");
        snapshot.silent || snapshot.state == CircuitState::HalfOpen && was_silent()
    }

    /// Whether a silence has not been noted yet: many requests find out about the same one.
    pub(crate) fn is_new_silence(&self) -> bool {
        let trips = self.breaker.trip_count();
        self.silences.swap(trips, Ordering::Relaxed) != trips
    }

    /// Whether the failure of a request counts: not if the same one has just failed here. `hash` stands for its
    /// content; `None` if that is not known.
    pub(crate) fn is_news(&self, hash: Option<u64>, now: Instant) -> bool {
        hash.is_none_or(|hash| self.repeats.is_news(hash, now))
    }

    /// Notes that a request failed. Call it before the breaker is told: the failure may open the circuit, and the next
    /// probe asks how.
    pub(crate) fn note_failure(&self, breaks_off: bool) {
        // Late failures do not change why the circuit is open.
        if self.breaker.state() != CircuitState::Open {
            self.breaks_off.store(breaks_off, Ordering::Relaxed);
        }
    }

    /// Notes that streams have stopped in the middle, which opened the circuit.
    pub(crate) fn note_stall(&self) {
        self.breaks_off.store(true, Ordering::Relaxed);
    }

    /// Notes that a request succeeded.
    pub(crate) fn note_success(&self) {
        // Nearly always false, so that cores share the line without writing to it.
        if self.breaks_off() {
            self.breaks_off.store(false, Ordering::Relaxed);
        }
    }

    /// Whether it is open because streams stop in the middle.
    pub(crate) fn stalls(&self) -> bool {
        self.breaks_off() && self.breaker.state() == CircuitState::Open
    }

    /// Whether the last failure, with no success since, was an answer that began well and broke off. Then a good first
    /// byte proves nothing.
    pub(crate) fn breaks_off(&self) -> bool {
        self.breaks_off.load(Ordering::Relaxed)
    }
}
