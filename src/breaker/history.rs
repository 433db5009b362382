//! What does not fit the word: how often the circuit opened, and the error that opened it last.
//!
//! Not here: anything that a call is decided by: that is the word alone.

use std::sync::Arc;

use crate::error::LastError;
use crate::sync::ArcSwap;
use crate::word::{generation_is_older, next_generation};

/// The openings that matter: the last one that has happened, and the next one.
///
/// An opening is *published* before the compare-and-swap that makes it and *confirmed* after it, by whoever won.
/// Without the first, a reader of the open word may find no error; without the second, a caller that lost (a failure
/// that raced, a probe whose lease was over) has the last word on why the circuit opened.
pub(crate) struct History {
    errors: ArcSwap<Errors>,
}

#[derive(Clone, Default)]
struct Errors {
    /// Of an opening that has happened.
    confirmed: Option<Opening>,
    /// Of one that is about to happen, has just happened, or never will.
    published: Option<Opening>,
}

/// What opened a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Calls of a closed circuit: failures, or silence.
    Calls,
    /// The probe of a half-open one.
    Probe,
}

#[derive(Clone)]
struct Opening {
    /// The generation that it begins.
    generation: u32,
    cause: Cause,
    /// How often the circuit went from closed to open, and how many probes failed, this opening included.
    counts: Counts,
    error: Arc<LastError>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    trips: u64,
    failed_probes: u64,
}

impl Counts {
    fn with(self, cause: Cause) -> Self {
        match cause {
            Cause::Calls => Self { trips: self.trips + 1, ..self },
            Cause::Probe => Self { failed_probes: self.failed_probes + 1, ..self },
        }
    }
}

/// What had happened by the beginning of a generation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Past {
    pub(crate) trips: u64,
    pub(crate) failed_probes: u64,
    pub(crate) last_error: Option<Arc<LastError>>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self { errors: ArcSwap::from_pointee(Errors::default()) }
    }

    /// Before the swap that begins `generation`. Returns the past as it is if that swap succeeds.
    pub(crate) fn publish(&self, generation: u32, cause: Cause, error: &Arc<LastError>) -> Past {
        let mut counts = Counts::default();
        self.errors.rcu(|errors| {
            let errors = errors.with_published(generation, cause, error);
            counts = errors.published.as_ref().map_or(counts, |opening| opening.counts);
            errors
        });
        Past { trips: counts.trips, failed_probes: counts.failed_probes, last_error: Some(Arc::clone(error)) }
    }

    /// After it, by the caller that made it.
    pub(crate) fn confirm(&self, generation: u32, error: &Arc<LastError>) {
        self.errors.rcu(|errors| errors.with_confirmed(generation, error));
    }

    /// The past of a word of `generation` that was loaded before; at most an instant ahead of it.
    pub(crate) fn as_of(&self, generation: u32) -> Past {
        self.errors.load().at(generation).map_or_else(Past::default, |opening| {
            let Counts { trips, failed_probes } = opening.counts;
            Past { trips, failed_probes, last_error: Some(Arc::clone(&opening.error)) }
        })
    }
}

impl Errors {
    fn with_published(&self, generation: u32, cause: Cause, error: &Arc<LastError>) -> Self {
        let mut errors = self.clone();
        if self.published.as_ref().is_some_and(|published| generation_is_older(generation, published.generation)) {
            return errors;
        }
        // A word of the generation before was seen, so its opening has happened, whether or not that is confirmed yet.
        if let Some(last) = self.published.as_ref().filter(|last| next_generation(last.generation) == generation)
            && self.confirmed.as_ref().is_none_or(|old| generation_is_older(old.generation, last.generation))
        {
            errors.confirmed = Some(last.clone());
        }
        let rival = self.published.as_ref().filter(|published| published.generation == generation);
        // Whoever names calls as the cause has seen the circuit closed in the generation before, and from there no
        // probe opens it: a probe that says otherwise comes too late.
        let cause = if rival.is_some_and(|rival| rival.cause == Cause::Calls) { Cause::Calls } else { cause };
        let before = errors.confirmed.as_ref().map_or_else(Counts::default, |last| last.counts);
        errors.published = Some(Opening { generation, cause, counts: before.with(cause), error: Arc::clone(error) });
        errors
    }

    fn with_confirmed(&self, generation: u32, error: &Arc<LastError>) -> Self {
        let mut errors = self.clone();
        let known = [&self.confirmed, &self.published].into_iter().flatten().find(|it| it.generation == generation);
        // Nothing is known any more of one that two others have followed: who confirms it has been asleep for that
        // long.
        if let Some(opening) = known {
            errors.confirmed = Some(Opening { error: Arc::clone(error), ..opening.clone() });
        }
        errors
    }

    fn at(&self, generation: u32) -> Option<&Opening> {
        let of_this = |opening: &&Opening| opening.generation == generation;
        let confirmed = self.confirmed.as_ref();
        confirmed.filter(of_this).or_else(|| self.published.as_ref().filter(of_this)).or(confirmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(error_type: &str) -> Arc<LastError> {
        Arc::new(LastError::new(error_type, &""))
    }

    fn seen(history: &History, generation: u32) -> Option<String> {
        history.as_of(generation).last_error.map(|error| error.error_type().to_owned())
    }

    fn publish(history: &History, generation: u32, cause: Cause) -> (u64, u64) {
        let past = history.publish(generation, cause, &error("a"));
        (past.trips, past.failed_probes)
    }

    fn counts(history: &History, generation: u32) -> (u64, u64) {
        let past = history.as_of(generation);
        (past.trips, past.failed_probes)
    }

    #[test]
    fn an_opening_that_is_not_yet_confirmed_has_its_error() {
        let history = History::new();
        assert_eq!(seen(&history, 0), None);
        history.publish(1, Cause::Calls, &error("a"));
        assert_eq!(seen(&history, 1).as_deref(), Some("a"));
    }

    #[test]
    fn what_did_not_open_the_circuit_is_not_why_it_opened() {
        let history = History::new();
        history.publish(1, Cause::Calls, &error("lost to a success"));
        assert_eq!(seen(&history, 0), None);
        history.publish(1, Cause::Calls, &error("a"));
        history.confirm(1, &error("a"));
        history.publish(2, Cause::Calls, &error("lost to a success"));
        assert_eq!(seen(&history, 1).as_deref(), Some("a"));
    }

    #[test]
    fn who_lost_the_race_to_open_does_not_have_the_last_word() {
        let history = History::new();
        history.publish(1, Cause::Calls, &error("winner"));
        history.publish(1, Cause::Calls, &error("loser"));
        history.confirm(1, &error("winner"));
        assert_eq!(seen(&history, 1).as_deref(), Some("winner"));
        history.publish(1, Cause::Calls, &error("late loser"));
        assert_eq!(seen(&history, 1).as_deref(), Some("winner"));
    }

    #[test]
    fn the_next_opening_keeps_the_error_of_one_that_is_not_confirmed_yet() {
        let history = History::new();
        history.publish(1, Cause::Calls, &error("a"));
        history.publish(2, Cause::Calls, &error("b"));
        assert_eq!(seen(&history, 1).as_deref(), Some("a"));
        assert_eq!(seen(&history, 2).as_deref(), Some("b"));
        history.confirm(1, &error("a"));
        assert_eq!((seen(&history, 1).as_deref(), seen(&history, 2).as_deref()), (Some("a"), Some("b")));
    }

    #[test]
    fn a_late_comer_does_not_replace_the_error_of_a_newer_opening() {
        let history = History::new();
        history.publish(1, Cause::Calls, &error("a"));
        history.publish(2, Cause::Calls, &error("b"));
        history.confirm(2, &error("b"));
        history.confirm(1, &error("a"));
        history.publish(1, Cause::Calls, &error("late"));
        assert_eq!(seen(&history, 2).as_deref(), Some("b"));
        history.publish(3, Cause::Calls, &error("not yet"));
        assert_eq!(seen(&history, 2).as_deref(), Some("b"));
    }

    #[test]
    fn an_opening_knows_how_many_there_were_before_it_whoever_confirms_when() {
        let history = History::new();
        assert_eq!(publish(&history, 1, Cause::Calls), (1, 0));
        assert_eq!(publish(&history, 2, Cause::Probe), (1, 1));
        assert_eq!(publish(&history, 3, Cause::Calls), (2, 1));
        history.confirm(2, &error("a"));
        assert_eq!((counts(&history, 2), counts(&history, 3)), ((1, 1), (2, 1)));
        history.confirm(3, &error("a"));
        history.confirm(1, &error("a"));
        assert_eq!(publish(&history, 4, Cause::Probe), (2, 2));
    }

    #[test]
    fn a_late_probe_does_not_change_what_an_opening_counts_as() {
        let history = History::new();
        publish(&history, 1, Cause::Calls);
        // A probe of generation 1 that another call has taken over since; that one closed the circuit, and calls open
        // it.
        publish(&history, 2, Cause::Probe);
        assert_eq!(publish(&history, 2, Cause::Calls), (2, 0));
        publish(&history, 2, Cause::Probe);
        history.confirm(2, &error("b"));
        assert_eq!(counts(&history, 2), (2, 0));
    }
}
