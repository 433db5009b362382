//! What is told of a request's attempts when it is over.

use super::{Attempt, Attempts};
use crate::proxy::observe::access_log::{AttemptLine, Skip, SkippedLine};
#[cfg(feature = "otel")]
use crate::proxy::observe::facts::Facts;
use crate::proxy::observe::facts::Usage;
use crate::proxy::outcome::Outcome;
use crate::proxy::provider::{CircuitId, ProviderId};
#[cfg(feature = "otel")]
use crate::proxy::traces::{AttemptSpan, RequestSpan, Traced};

impl Attempts {
    /// The attempts for the access log.
    pub(crate) fn lines(&self) -> impl Iterator<Item = AttemptLine<'_>> + Clone {
        self.all.iter().map(|attempt| {
            let (outcome, took) = attempt.ended.unwrap_or_else(|| (Outcome::ClientLeft, attempt.started.elapsed()));
            let provider = self.local.providers[attempt.circuit.provider].name();
            AttemptLine { provider, outcome, through_silence: attempt.through_silence, took }
        })
    }

    /// The candidates that were not asked, for the access log.
    pub(crate) fn skipped(&self) -> impl Iterator<Item = SkippedLine<'_>> {
        let of =
            |(id, skip): &(ProviderId, Skip)| SkippedLine { provider: self.local.providers[*id].name(), skip: *skip };
        self.skipped.iter().map(of)
    }

    /// Begins the trace of the request, if it is to have one.
    #[cfg(feature = "otel")]
    pub(crate) fn traced_as(self, headers: &http::HeaderMap) -> Self {
        let traced = Traced::begin(self.core.app.traces.get(), headers);
        Self { traced, ..self }
    }

    /// Sends the spans of the request, if its trace is taken.
    #[cfg(feature = "otel")]
    pub(crate) fn send_spans(&mut self, facts: &Facts) {
        let local = std::sync::Arc::clone(&self.local);
        let span = |attempt: &Attempt| {
            let (outcome, took) = attempt.ended.unwrap_or_else(|| (Outcome::ClientLeft, attempt.started.elapsed()));
            let provider = &local.providers[attempt.circuit.provider];
            (provider, attempt.started, took, outcome, attempt.is_probe)
        };
        let spans = self.all.iter().map(span).map(|(provider, started, took, outcome, is_probe)| AttemptSpan {
            provider: provider.name(),
            host: provider.config.url.host().unwrap_or_default(),
            port: provider.config.url.port_u16(),
            started,
            took,
            outcome,
            is_probe,
        });
        let token = facts.token.map(|place| &*local.server.auth_tokens[place].name);
        self.traced.end(&RequestSpan { facts, token }, spans);
    }

    fn answered(&self) -> Option<CircuitId> {
        let is_it = |attempt: &&Attempt| attempt.ended.is_some_and(|(outcome, _)| outcome.is_success());
        self.all.iter().find(is_it).map(|attempt| attempt.circuit)
    }

    /// Counts the request for those who would have been asked first, had all been well, and for who answered.
    pub(crate) fn note_failovers(&self) {
        if self.all.len() + self.skipped.len() < 2 {
            return;
        }
        let Some(to) = self.answered().map(|id| id.provider) else { return };
        let mut from: Vec<ProviderId> = Vec::new();
        let passed_over = self.skipped.iter().map(|(id, _)| *id).chain(self.all.iter().map(|it| it.circuit.provider));
        for id in passed_over.filter(|id| *id != to) {
            if !from.contains(&id) {
                from.push(id);
            }
        }
        let name = |id: ProviderId| self.local.providers[id].name();
        for from in from {
            self.core.app.metrics.fail_over(name(from), name(to));
        }
    }

    pub(crate) fn note_usage(&self, usage: Usage) {
        if usage != Usage::default()
            && let Some(id) = self.answered()
        {
            let counts = self.local.providers[id.provider].circuits.counts(id.model);
            counts.tokens(usage.tokens_in.unwrap_or_default(), usage.tokens_out.unwrap_or_default());
        }
    }
}
