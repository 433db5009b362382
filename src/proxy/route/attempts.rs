//! The attempts of one request: which provider was asked, with which permit and ticket, and how it ended. Settling an
//! attempt is the one place where the gateway tells a breaker how a call went.
//!
//! Not here: asking a provider: `ask`; choosing one: `failover`.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::PermitType;
use crate::error::Escaped;
use crate::proxy::core::{Core, Local, ProviderPermit};
use crate::proxy::observe::access_log::AttemptLine;
use crate::proxy::outcome::Outcome;
use crate::proxy::provider::{Provider, ProviderId};
use crate::proxy::silence::{Awaited, PieceWatch, Ticket, Watchers};
use crate::proxy::timers::Timer;

/// An attempt's place among those of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttemptId(usize);

struct Attempt {
    provider: ProviderId,
    started: Instant,
    /// Whether it was sent to a silent provider, without a permit, because no other candidate was left.
    through_silence: bool,
    /// `None` once it is resolved.
    permit: Option<ProviderPermit>,
    /// `None` once the request is answered, or if it is not watched.
    ticket: Option<Ticket>,
    /// `None` until it is settled.
    ended: Option<(Outcome, Duration)>,
}

pub(crate) struct Attempts {
    core: Arc<Core>,
    local: Arc<Local>,
    all: Vec<Attempt>,
}

impl Attempts {
    /// For a request that is served by `core`. It keeps the configuration that it begins with.
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { local: core.local(), core, all: Vec::new() }
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

    /// Begins an attempt. Without a permit it goes through silence. `awaited` is the latency class to watch, or `None`.
    /// An unsettled permit is cancelled: a client that leaves says nothing about a provider.
    pub(crate) fn begin(
        &mut self,
        provider: ProviderId,
        permit: Option<ProviderPermit>,
        model: &str,
        awaited: Option<Awaited>,
    ) -> AttemptId {
        let started = Instant::now();
        let through_silence = permit.is_none();
        let is_probe = permit.as_ref().is_some_and(|permit| permit.kind() == PermitType::Probe);
        self.local.providers[provider].begin(started, is_probe, through_silence);
        let ticket =
            awaited.and_then(|awaited| self.watchers(provider)?.start(model, awaited, permit.as_ref(), started));
        let permit = permit.map(ProviderPermit::cancel_on_drop);
        self.all.push(Attempt { provider, started, through_silence, permit, ticket, ended: None });
        AttemptId(self.all.len() - 1)
    }

    /// A timer for waiting for an attempt's answer. It is woken when the provider is found silent.
    pub(crate) fn timer(&self, AttemptId(attempt): AttemptId) -> Timer {
        self.core.timers.timer_in(self.all[attempt].ticket.as_ref().map(Ticket::group))
    }

    pub(crate) fn provider(&self, AttemptId(attempt): AttemptId) -> ProviderId {
        self.all[attempt].provider
    }

    pub(crate) fn started(&self, AttemptId(attempt): AttemptId) -> Instant {
        self.all[attempt].started
    }

    /// Whether the provider was found silent, so that another one should be asked.
    pub(crate) fn is_silent(&self, AttemptId(attempt): AttemptId) -> bool {
        self.all[attempt].ticket.as_ref().is_some_and(Ticket::is_silent)
    }

    pub(crate) fn is_probe(&self, AttemptId(attempt): AttemptId) -> bool {
        self.all[attempt].permit.as_ref().is_some_and(|permit| permit.kind() == PermitType::Probe)
    }

    /// What watches the pieces of an attempt's stream.
    pub(crate) fn pieces(&self, attempt: AttemptId, model: &str) -> Option<PieceWatch> {
        self.watchers(self.provider(attempt))?.pieces(model)
    }

    fn watchers(&self, provider: ProviderId) -> Option<&Watchers> {
        self.local.watchers[provider].as_deref()
    }

    /// Notes that a good answer begins.
    pub(crate) fn first_byte(&mut self, AttemptId(attempt): AttemptId) {
        let attempt = &mut self.all[attempt];
        let now = Instant::now();
        if let Some(mut ticket) = attempt.ticket.take() {
            ticket.answered(now);
        }
        self.local.providers[attempt.provider].metrics.first_byte(now.saturating_duration_since(attempt.started));
    }

    /// If the attempt is a probe, the probe has succeeded; the rest of the answer is judged as an ordinary call.
    pub(crate) fn prove(&mut self, attempt: AttemptId) {
        if self.is_probe(attempt)
            && let attempt = &mut self.all[attempt.0]
            && let Some(probe) = attempt.permit.take()
        {
            self.local.providers[attempt.provider].note_success();
            probe.success();
            let permit = self.local.try_acquire(attempt.provider).map(ProviderPermit::cancel_on_drop).ok();
            attempt.permit = permit.filter(|permit| permit.kind() == PermitType::Normal);
        }
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

    /// Ends an attempt, unless it has ended, and tells the breaker how it went. Each failure is logged: the
    /// breaker logs only the one that it opens on, and lets few of them through.
    pub(crate) fn settle(&mut self, AttemptId(attempt): AttemptId, outcome: Outcome, message: &dyn fmt::Display) {
        let attempt = &mut self.all[attempt];
        if attempt.ended.is_some() {
            return;
        }
        let provider = &self.local.providers[attempt.provider];
        let took = attempt.started.elapsed();
        attempt.ended = Some((outcome, took));
        provider.metrics.end(outcome, took);
        attempt.ticket = None;
        if let Some(permit) = attempt.permit.take() {
            resolve(permit, provider, outcome, message);
        }
        // Last: a subscriber that panics must leave nothing behind that others wait for.
        if outcome.fails_its_permit() {
            let error_type = outcome.as_str();
            warn!(provider = provider.name(), error_type, error = %Escaped(message), "a provider failed");
        } else if outcome == Outcome::Shortage && self.core.app.may_log_shortage() {
            let error = Escaped(message);
            warn!(provider = provider.name(), %error, "the gateway has no room for another connection");
        }
    }

    /// Settles what has not ended: the client has left.
    pub(crate) fn settle_all(&mut self) {
        for attempt in 0..self.all.len() {
            self.settle(AttemptId(attempt), Outcome::ClientLeft, &"");
        }
    }

    /// The attempts for the access log.
    pub(crate) fn lines(&self) -> impl Iterator<Item = AttemptLine<'_>> + Clone {
        self.all.iter().map(|attempt| {
            let (outcome, took) = attempt.ended.unwrap_or_else(|| (Outcome::ClientLeft, attempt.started.elapsed()));
            let provider = self.local.providers[attempt.provider].name();
            AttemptLine { provider, outcome, through_silence: attempt.through_silence, took }
        })
    }
}

/// Tells a breaker how a call went.
fn resolve(permit: ProviderPermit, provider: &Provider, outcome: Outcome, message: &dyn fmt::Display) {
    if outcome.fails_its_permit() {
        provider.note_failure(outcome.is_broken_off());
        permit.failure(outcome.as_str(), message);
    } else if outcome.is_success() {
        // Not if the call is from before the circuit was open.
        if permit.succeed() {
            provider.note_success();
        }
    } else {
        permit.cancel();
    }
}
