//! The attempts of one request: which provider was asked, with which permit and ticket, and how it ended. Settling an
//! attempt is the one place where the gateway tells a breaker how a call went.
//!
//! Not here: asking a provider: `ask`; choosing one: `failover`; whose fault an outcome is: `outcome`.

mod told;

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::PermitType;
use crate::error::Escaped;
use crate::proxy::circuits::{AnswerKind, Circuit};
use crate::proxy::config::Cooldowns;
use crate::proxy::core::{Core, Local, Permits};
use crate::proxy::keys::{Keys, Turn};
use crate::proxy::observe::access_log::Skip;
use crate::proxy::outcome::{Outcome, Scope};
use crate::proxy::provider::{CircuitId, Provider, ProviderId};
use crate::proxy::request::Prepared;
use crate::proxy::silence::{Ticket, Watchers};
use crate::proxy::timers::Timer;
#[cfg(feature = "otel")]
use crate::proxy::traces::Traced;
use crate::silence::WatchedStream;

/// An attempt's place among those of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttemptId(usize);

struct Attempt {
    circuit: CircuitId,
    started: Instant,
    #[cfg(feature = "otel")]
    is_probe: bool,
    /// Whether it was sent to a silent provider, without permits, because no other candidate was left.
    through_silence: bool,
    /// `None` once they are resolved.
    permits: Option<Permits>,
    /// If the provider has several keys; `None` once it is known whether this one is good.
    turn: Option<Turn>,
    /// Which of them it is.
    key: usize,
    /// `None` once the request is answered, or if it is not watched.
    ticket: Option<Ticket>,
    /// `None` until it is settled.
    ended: Option<(Outcome, Duration)>,
}

pub(crate) struct Attempts {
    core: Arc<Core>,
    local: Arc<Local>,
    all: Vec<Attempt>,
    /// Candidates that were not asked.
    pub(crate) skipped: Vec<(ProviderId, Skip)>,
    content: Content,
    #[cfg(feature = "otel")]
    pub(crate) traced: Traced,
}

/// What the request consists of, to know it again if its client sends it again.
enum Content {
    /// The body is not kept for it.
    Unknown,
    /// While its body is kept anyway.
    Kept(Arc<Prepared>),
    Hashed(u64),
}

impl Content {
    fn hash(&self) -> Option<u64> {
        static STATE: LazyLock<foldhash::fast::RandomState> = LazyLock::new(Default::default);
        match self {
            Self::Unknown => None,
            Self::Hashed(hash) => Some(*hash),
            Self::Kept(request) => {
                let mut hasher = STATE.build_hasher();
                hasher.write(request.model().as_bytes());
                hasher.write(request.head.uri.path().as_bytes());
                hasher.write(&request.body);
                Some(hasher.finish())
            }
        }
    }
}

impl Attempts {
    /// For a request that is served by `core`. It keeps the configuration that it begins with.
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            local: core.local(),
            core,
            all: Vec::new(),
            skipped: Vec::new(),
            content: Content::Unknown,
            #[cfg(feature = "otel")]
            traced: Traced::default(),
        }
    }

    /// Says what the request consists of, if its whole body is there.
    pub(crate) fn set_request(&mut self, request: &Arc<Prepared>) {
        self.content = Content::Kept(Arc::clone(request));
    }

    /// Lets go of the request's body.
    pub(crate) fn forget_request(&mut self) {
        let is_needed = self.all.iter().any(|attempt| attempt.ended.is_none());
        let hash = if is_needed { self.content.hash() } else { None };
        self.content = hash.map_or(Content::Unknown, Content::Hashed);
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    pub(crate) fn local(&self) -> &Arc<Local> {
        &self.local
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Begins an attempt. Without permits it goes through silence. `is_watched` is for silence.
    /// Unsettled permits are cancelled: a client that leaves says nothing about a provider.
    pub(crate) fn begin(
        &mut self,
        id: CircuitId,
        permits: Option<Permits>,
        model: &str,
        is_watched: bool,
    ) -> AttemptId {
        let started = Instant::now();
        let through_silence = permits.is_none();
        let is_probe = permits.as_ref().is_some_and(Permits::is_probe);
        let provider = &self.local.providers[id.provider];
        provider.begin(started, is_probe, through_silence);
        provider.circuit(id).begin();
        provider.circuits.counts(id.model).begin();
        let ticket = is_watched.then_some(id.kind).and_then(|kind| {
            let permit = permits.as_ref().map(|permits| &permits.circuit);
            self.watchers(id.provider)?.start(model, kind, &circuits(provider, id), permit, started)
        });
        let permits = permits.map(Permits::cancel_on_drop);
        let turn = provider.keys.as_ref().map(|keys| keys.turn(id.model, started));
        let key = turn.as_ref().map_or(0, |turn| turn.key);
        self.all.push(Attempt {
            circuit: id,
            started,
            #[cfg(feature = "otel")]
            is_probe,
            through_silence,
            permits,
            turn,
            key,
            ticket,
            ended: None,
        });
        AttemptId(self.all.len() - 1)
    }

    /// A timer for waiting for an attempt's answer. It is woken when the provider is found silent.
    pub(crate) fn timer(&self, AttemptId(attempt): AttemptId) -> Timer {
        self.core.timers.timer_in(self.all[attempt].ticket.as_ref().map(Ticket::group))
    }

    /// Within which a stream's first piece has to be whole once it has begun.
    pub(crate) fn patience(&self, AttemptId(attempt): AttemptId) -> Option<Duration> {
        let Attempt { circuit, ticket, .. } = &self.all[attempt];
        let slowest = self.local.providers[circuit.provider].config.timeouts.min_rate;
        slowest.map(|rate| Duration::from_secs_f64(1.0 / rate)).or_else(|| ticket.as_ref()?.unseen())
    }

    pub(crate) fn provider(&self, AttemptId(attempt): AttemptId) -> ProviderId {
        self.all[attempt].circuit.provider
    }

    pub(crate) fn started(&self, AttemptId(attempt): AttemptId) -> Instant {
        self.all[attempt].started
    }

    /// Which of the provider's keys it is sent with.
    pub(crate) fn key(&self, AttemptId(attempt): AttemptId) -> usize {
        self.all[attempt].key
    }

    /// Whether an attempt has failed because of its key alone, and the provider has another one that this request has
    /// not been sent with. Then it may be asked again.
    pub(crate) fn has_another_key(&self, AttemptId(attempt): AttemptId) -> Option<CircuitId> {
        let Attempt { circuit: id, ended, .. } = &self.all[attempt];
        let keys = self.local.providers[id.provider].keys.as_ref()?;
        let (outcome, _) = ended.as_ref()?;
        let is_the_keys = outcome.scope() == Scope::Key || *outcome == Outcome::RateLimited;
        let tried = self.all.iter().filter(|attempt| attempt.circuit == *id).count();
        let is_left = tried < keys.len() && keys.none_free_for(id.model, Instant::now()).is_none();
        (is_the_keys && is_left).then_some(*id)
    }

    /// Whether the provider was found silent, so that another one should be asked.
    pub(crate) fn is_silent(&self, AttemptId(attempt): AttemptId) -> bool {
        self.all[attempt].ticket.as_ref().is_some_and(Ticket::is_silent)
    }

    pub(crate) fn is_probe(&self, AttemptId(attempt): AttemptId) -> bool {
        self.all[attempt].permits.as_ref().is_some_and(Permits::is_probe)
    }

    /// The circuit that an attempt is told to.
    pub(crate) fn circuit(&self, AttemptId(attempt): AttemptId) -> &Arc<Circuit> {
        let id = self.all[attempt].circuit;
        self.local.providers[id.provider].circuit(id)
    }

    /// What watches the pieces of an attempt's stream.
    pub(crate) fn pieces(&self, AttemptId(attempt): AttemptId, model: &str) -> Option<WatchedStream> {
        let Attempt { circuit: id, permits, .. } = &self.all[attempt];
        let circuits = circuits(&self.local.providers[id.provider], *id);
        // A request for a whole answer that comes as a stream has a permit of another circuit.
        let permit = permits.as_ref().filter(|_| id.kind == AnswerKind::Stream).map(|permits| &permits.circuit);
        self.watchers(id.provider)?.pieces(model, &circuits, permit)
    }

    fn watchers(&self, provider: ProviderId) -> Option<&Watchers> {
        self.local.watchers[provider].as_deref()
    }

    /// Notes that a good answer begins.
    pub(crate) fn first_byte(&mut self, AttemptId(at): AttemptId) {
        let attempt = &mut self.all[at];
        let now = Instant::now();
        if let Some(mut ticket) = attempt.ticket.take() {
            ticket.answered(now);
        }
        if let Some(mut turn) = attempt.turn.take() {
            turn.succeed();
        }
        let provider = &self.local.providers[attempt.circuit.provider];
        let took = now.saturating_duration_since(attempt.started);
        provider.metrics.first_byte(took);
        #[cfg(feature = "otel")]
        self.traced.first_byte(at);
        provider.circuits.counts(attempt.circuit.model).first_byte(took);
    }

    /// If the attempt is a probe, the probe has succeeded; the rest of the answer is judged as an ordinary call.
    pub(crate) fn prove(&mut self, attempt: AttemptId) {
        let attempt = &mut self.all[attempt.0];
        let Some(permits) = attempt.permits.take_if(|permits| permits.is_probe()) else { return };
        let id = attempt.circuit;
        let provider = &self.local.providers[id.provider];
        provider.circuit(id).note_success();
        provider.note_success();
        let place = permits.place;
        permits.provider.success();
        permits.circuit.success();
        provider.end_cooldowns(id);
        let permits = self.local.try_circuits(id).ok().map(|permits| Permits { place, ..permits.cancel_on_drop() });
        attempt.permits = permits.filter(|permits| !permits.is_probe());
    }

    /// Another provider has answered before this silent one. Keeps waiting for `answer`, which returns whether it is an
    /// answer, to learn how long the silence was.
    pub(crate) fn listen(&mut self, attempt: AttemptId, answer: impl Future<Output = bool> + Send + 'static) {
        let ticket = self.all[attempt.0].ticket.take();
        self.settle(attempt, Outcome::Silent, &"");
        if let Some(ticket) = ticket
            && let Some(watchers) = self.watchers(self.provider(attempt))
        {
            watchers.listen(answer, ticket);
        }
    }

    /// As [`settle_until`](Self::settle_until), of a provider that has not said when to come back.
    pub(crate) fn settle(&mut self, attempt: AttemptId, outcome: Outcome, message: &dyn fmt::Display) {
        self.settle_until(attempt, outcome, None, message);
    }

    /// Ends an attempt, unless it has ended, and tells the circuits how it went. `later` is how long the provider has
    /// asked to wait. Each failure is logged: a breaker logs only the one that it opens on, and lets few of them
    /// through.
    pub(crate) fn settle_until(
        &mut self,
        AttemptId(attempt): AttemptId,
        outcome: Outcome,
        later: Option<Duration>,
        message: &dyn fmt::Display,
    ) {
        let attempt = &mut self.all[attempt];
        if attempt.ended.is_some() {
            return;
        }
        let id = attempt.circuit;
        let provider = &self.local.providers[id.provider];
        let took = attempt.started.elapsed();
        attempt.ended = Some((outcome, took));
        provider.metrics.end(outcome, took);
        provider.circuits.counts(id.model).end(outcome);
        let is_misplaced = provider.note_address(outcome);
        attempt.ticket = None;
        let turn = attempt.turn.take();
        let limits = &self.local.cooldowns;
        let hash = || self.content.hash();
        let blamed = Blamed { provider, id, limits, key: attempt.key };
        let cooldown = blamed.tell(turn, attempt.permits.take(), outcome, later, hash, message);
        if outcome.is_failure() || outcome.is_cooldown() || outcome == Outcome::Redirected {
            let model = provider.circuits.name(id.model);
            self.core.app.chronicle.note_failure(provider.name(), model, outcome, message);
        }
        // Last: a subscriber that panics must leave nothing behind that others wait for.
        let (error_type, scope) = (outcome.as_str(), outcome.scope().as_str());
        if let Some(cooldown) = cooldown {
            let (error, seconds) = (Escaped(message), cooldown.as_secs_f64());
            let (name, model) = (provider.name(), provider.circuits.name(id.model));
            let key = provider.keys.as_ref().map(|_| attempt.key + 1);
            warn!(provider = name, model, key, scope, error_type, seconds, %error, "a provider is to be asked later");
        } else if outcome.fails_its_permit() || outcome == Outcome::Redirected {
            warn!(provider = provider.name(), scope, error_type, error = %Escaped(message), "a provider failed");
        } else if is_misplaced {
            warn!(provider = provider.name(), url = %provider.config.url, "every answer of a provider is a 404");
        } else if outcome == Outcome::Shortage && self.core.app.may_log_shortage() {
            let error = Escaped(message);
            warn!(provider = provider.name(), %error, "the gateway has no room for another connection");
        }
    }

    /// A good answer has used up a limit of the provider: the model is asked again when that is over.
    pub(crate) fn use_up(&self, AttemptId(attempt): AttemptId, later: Duration) {
        let id = self.all[attempt].circuit;
        let (provider, limits) = (&self.local.providers[id.provider], &self.local.cooldowns);
        let blamed = Blamed { provider, id, limits, key: self.all[attempt].key };
        blamed.cool_down(None, None, Outcome::RateLimited, Some(later), &"the last answer used up a limit");
    }

    /// Settles what has not ended: the client has left.
    pub(crate) fn settle_all(&mut self) {
        for attempt in 0..self.all.len() {
            self.settle(AttemptId(attempt), Outcome::ClientLeft, &"");
        }
    }
}

/// Finds the circuits of the same model.
fn circuits(provider: &Provider, id: CircuitId) -> impl Fn(AnswerKind) -> Arc<Circuit> {
    move |kind| Arc::clone(provider.circuits.of(id.model, kind))
}

/// How long a provider is not asked for a model that it does not know.
const UNKNOWN_MODEL: Duration = Duration::from_secs(300);

/// Whose circuits are told of an outcome.
struct Blamed<'a> {
    provider: &'a Provider,
    id: CircuitId,
    limits: &'a Cooldowns,
    /// The place of the key that was sent.
    key: usize,
}

impl Blamed<'_> {
    /// Tells the circuits how a call went. Returns for how long its scope is out, if it is.
    fn tell(
        &self,
        turn: Option<Turn>,
        permits: Option<Permits>,
        outcome: Outcome,
        later: Option<Duration>,
        hash: impl FnOnce() -> Option<u64>,
        message: &dyn fmt::Display,
    ) -> Option<Duration> {
        if outcome.is_cooldown() {
            return Some(self.cool_down(turn, permits, outcome, later, message));
        }
        if let Some(mut turn) = turn.filter(|_| outcome.found_something()) {
            turn.succeed();
        }
        let is_probe = permits.as_ref().is_some_and(Permits::is_probe);
        let Permits { provider: above, circuit: permit, place: _place } = permits?;
        let circuit = self.provider.circuit(self.id);
        match outcome.scope() {
            _ if outcome.is_success() => {
                // Not if the call is from before the circuit was open.
                if permit.succeed() {
                    circuit.note_success();
                }
                if is_probe {
                    self.provider.end_cooldowns(self.id);
                }
                if above.succeed() {
                    self.provider.note_success();
                }
            }
            Scope::Provider => {
                permit.cancel();
                above.failure(outcome.as_str(), message);
            }
            Scope::Model if outcome == Outcome::Silent => {
                permit.cancel();
                // A suspicion opens the model's circuit alone. For the provider it counts, but never opens.
                if circuit.is_new_silence() && !self.provider.is_due() && self.provider.counts(circuit) {
                    above.failure(outcome.as_str(), message);
                } else {
                    above.cancel();
                }
            }
            // A probe decides, whatever its request.
            Scope::Model if is_probe || circuit.is_news(hash(), Instant::now()) => {
                circuit.note_failure(outcome.is_broken_off());
                permit.failure(outcome.as_str(), message);
                if above.kind() == PermitType::Probe || self.provider.counts(circuit) {
                    above.failure(outcome.as_str(), message);
                } else {
                    above.cancel();
                }
            }
            Scope::Model | Scope::Nobody | Scope::Key => {
                permit.cancel();
                above.cancel();
            }
        }
        None
    }

    /// Takes the model out, or the key, and returns for how long.
    fn cool_down(
        &self,
        turn: Option<Turn>,
        permits: Option<Permits>,
        outcome: Outcome,
        later: Option<Duration>,
        message: &dyn fmt::Display,
    ) -> Duration {
        let (now, limits, text) = (Instant::now(), self.limits, outcome.as_str());
        let (above, permit) = permits.map_or((None, None), |both| (Some(both.provider), Some(both.circuit)));
        let keys = self.provider.keys.as_ref();
        if outcome.scope() == Scope::Key {
            drop(permit);
            let (base, max) = (limits.key, limits.key_max());
            let length = match keys {
                None => self.provider.key_cooldowns.begin(now, base, max),
                Some(keys) => keys.put_out(self.key, turn, (base, max), text, message),
            };
            // With several keys, the provider is out when all of them are.
            let Some(left) = keys.map_or(Some(length), Keys::all_out) else { return length };
            match above {
                Some(above) => above.cool_down(left, text, message),
                None => drop(self.provider.breaker.trip_for(left, text, message)),
            }
            return length;
        }
        drop(above);
        if let Some(mut turn) = turn {
            turn.succeed();
        }
        let circuit = self.provider.circuit(self.id);
        let length = match later {
            _ if outcome == Outcome::UnknownModel => UNKNOWN_MODEL,
            Some(later) => later.min(limits.max),
            None => circuit.cooldowns.begin(now, limits.default, limits.max),
        };
        let whole = length;
        let length = match keys.filter(|_| outcome == Outcome::RateLimited) {
            None => length,
            Some(keys) => {
                keys.rest(self.key, self.id.model, now + length);
                // The model is out when no key is left for it.
                let Some(left) = keys.none_free_for(self.id.model, now) else { return whole };
                left
            }
        };
        match permit {
            Some(permit) => permit.cool_down(length, text, message),
            None => drop(circuit.breaker.trip_for(length, text, message)),
        }
        // It is the model's, however it is asked to answer.
        for other in self.provider.circuits.others(self.id.model, self.id.kind) {
            other.breaker.trip_for(length, text, message);
        }
        whole
    }
}
