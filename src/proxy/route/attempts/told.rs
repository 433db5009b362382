//! What is told of a request's attempts when it is over.

use super::{Attempt, Attempts};
use crate::proxy::observe::access_log::{AttemptLine, Skip, SkippedLine};
use crate::proxy::observe::facts::Usage;
use crate::proxy::outcome::Outcome;
use crate::proxy::provider::{CircuitId, ProviderId};

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

    fn answered(&self) -> Option<CircuitId> {
        let is_it = |attempt: &&Attempt| attempt.ended.is_some_and(|(outcome, _)| outcome.is_success());
        self.all.iter().find(is_it).map(|attempt| attempt.circuit)
    }

    /// Counts the request for those who would have been asked first, had all been well, and for who answered.
    pub(crate) fn note_moves(&self) {
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
            self.core.app.metrics.move_on(name(from), name(to));
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
