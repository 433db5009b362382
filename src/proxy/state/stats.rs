//! What is counted of a provider, for programs that embed the gateway.

use std::collections::BTreeMap;

use strum::VariantArray;

use crate::proxy::circuits::AnswerKind;
use crate::proxy::observe::metrics::ProviderMetrics;
use crate::proxy::outcome::Outcome;
use crate::proxy::silence::Detectors;

/// What is counted of one provider.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProviderStats {
    /// Requests that were sent to it, probes included.
    pub requests: u64,
    /// Those of them that have not ended.
    pub in_flight: u64,
    /// Those of them that were probes.
    pub probes: u64,
    /// Those of them that got a complete answer.
    pub ok: u64,
    /// How many ended in each other way, by the names that `docs/METRICS.md` lists.
    pub other_outcomes: BTreeMap<&'static str, u64>,
    /// Whether the gateway knows how long whole answers take, of any model.
    pub has_learnt_answers: bool,
    /// Whether it knows how long the beginnings of streams take, of any model.
    pub has_learnt_streams: bool,
}

impl ProviderStats {
    pub(super) fn of(metrics: &ProviderMetrics, silence: Option<&Detectors>) -> Self {
        let known = silence.map(Detectors::snapshots).unwrap_or_default();
        let has_learnt = |wanted| known.iter().any(|(_, kind, snapshot)| *kind == wanted && snapshot.learnt);
        let others = Outcome::VARIANTS.iter().filter(|outcome| **outcome != Outcome::Ok);
        Self {
            requests: metrics.asked(),
            in_flight: metrics.in_flight(),
            probes: metrics.probes(),
            ok: metrics.outcome(Outcome::Ok),
            other_outcomes: others.map(|it| (it.as_str(), metrics.outcome(*it))).collect(),
            has_learnt_answers: has_learnt(AnswerKind::Whole),
            has_learnt_streams: has_learnt(AnswerKind::Stream),
        }
    }
}
