//! What does not fit the word: how often the circuit opened, and the error that opened it last.
//!
//! Not here: anything that a call is decided by: that is the word alone.

use std::sync::Arc;

use crate::error::LastError;
use crate::sync::{ArcSwap, AtomicU64, Ordering};
use crate::word::{generation_is_older, next_generation};

/// Counters, each exact and at most an instant behind the word, and the last error.
///
/// An error is *published* before the compare-and-swap that opens the circuit and *confirmed* after it, by whoever won.
/// Without the first, a reader of the open word may find no error; without the second, a caller that lost (a failure that
/// raced, a probe whose lease was over) has the last word on why the circuit opened.
pub(crate) struct History {
    trips: AtomicU64,
    failed_probes: AtomicU64,
    errors: ArcSwap<Errors>,
}

#[derive(Clone, Default)]
struct Errors {
    /// Of an opening that has happened.
    confirmed: Option<OpeningError>,
    /// Of one that is about to happen, has just happened, or never will.
    published: Option<OpeningError>,
}

#[derive(Clone)]
struct OpeningError {
    /// The generation that the opening begins.
    generation: u32,
    error: Arc<LastError>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self {
            trips: AtomicU64::new(0),
            failed_probes: AtomicU64::new(0),
            errors: ArcSwap::from_pointee(Errors::default()),
        }
    }

    pub(crate) fn trips(&self) -> u64 {
        self.trips.load(Ordering::Relaxed)
    }

    pub(crate) fn failed_probes(&self) -> u64 {
        self.failed_probes.load(Ordering::Relaxed)
    }

    pub(crate) fn count_trip(&self) {
        self.trips.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_failed_probe(&self) {
        self.failed_probes.fetch_add(1, Ordering::Relaxed);
    }

    /// Before the swap that begins `generation`.
    pub(crate) fn publish(&self, generation: u32, error: &Arc<LastError>) {
        let new = OpeningError { generation, error: Arc::clone(error) };
        self.errors.rcu(|errors| errors.with_published(&new));
    }

    /// After it, by the caller that made it.
    pub(crate) fn confirm(&self, generation: u32, error: &Arc<LastError>) {
        let new = OpeningError { generation, error: Arc::clone(error) };
        self.errors.rcu(|errors| errors.with_confirmed(&new));
    }

    /// The error that opened the circuit last, for a word of `generation` that was loaded before.
    pub(crate) fn last_error(&self, generation: u32) -> Option<Arc<LastError>> {
        self.errors.load().at(generation).map(|opening| Arc::clone(&opening.error))
    }
}

impl Errors {
    fn with_published(&self, new: &OpeningError) -> Self {
        let mut errors = self.clone();
        if self.published.as_ref().is_some_and(|published| generation_is_older(new.generation, published.generation)) {
            return errors;
        }
        // A word of the generation before was seen, so its opening has happened, whether or not that is confirmed yet.
        if let Some(last) = self.published.as_ref().filter(|last| next_generation(last.generation) == new.generation)
            && self.confirmed.as_ref().is_none_or(|old| generation_is_older(old.generation, last.generation))
        {
            errors.confirmed = Some(last.clone());
        }
        errors.published = Some(new.clone());
        errors
    }

    fn with_confirmed(&self, new: &OpeningError) -> Self {
        let mut errors = self.clone();
        if self.confirmed.as_ref().is_none_or(|old| !generation_is_older(new.generation, old.generation)) {
            errors.confirmed = Some(new.clone());
        }
        errors
    }

    fn at(&self, generation: u32) -> Option<&OpeningError> {
        let of_this = |opening: &&OpeningError| opening.generation == generation;
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
        history.last_error(generation).map(|error| error.error_type().to_owned())
    }

    #[test]
    fn an_opening_that_is_not_yet_confirmed_has_its_error() {
        let history = History::new();
        assert_eq!(seen(&history, 0), None);
        history.publish(1, &error("a"));
        assert_eq!(seen(&history, 1).as_deref(), Some("a"));
    }

    #[test]
    fn what_did_not_open_the_circuit_is_not_why_it_opened() {
        let history = History::new();
        history.publish(1, &error("lost to a success"));
        assert_eq!(seen(&history, 0), None);
        history.publish(1, &error("a"));
        history.confirm(1, &error("a"));
        history.publish(2, &error("lost to a success"));
        assert_eq!(seen(&history, 1).as_deref(), Some("a"));
    }

    #[test]
    fn who_lost_the_race_to_open_does_not_have_the_last_word() {
        let history = History::new();
        history.publish(1, &error("winner"));
        history.publish(1, &error("loser"));
        history.confirm(1, &error("winner"));
        assert_eq!(seen(&history, 1).as_deref(), Some("winner"));
        history.publish(1, &error("late loser"));
        assert_eq!(seen(&history, 1).as_deref(), Some("winner"));
    }

    #[test]
    fn the_next_opening_keeps_the_error_of_one_that_is_not_confirmed_yet() {
        let history = History::new();
        history.publish(1, &error("a"));
        history.publish(2, &error("b"));
        assert_eq!(seen(&history, 1).as_deref(), Some("a"));
        assert_eq!(seen(&history, 2).as_deref(), Some("b"));
        history.confirm(1, &error("a"));
        assert_eq!((seen(&history, 1).as_deref(), seen(&history, 2).as_deref()), (Some("a"), Some("b")));
    }

    #[test]
    fn a_late_comer_does_not_replace_the_error_of_a_newer_opening() {
        let history = History::new();
        history.publish(1, &error("a"));
        history.publish(2, &error("b"));
        history.confirm(2, &error("b"));
        history.confirm(1, &error("a"));
        history.publish(1, &error("late"));
        assert_eq!(seen(&history, 2).as_deref(), Some("b"));
        history.publish(3, &error("not yet"));
        assert_eq!(seen(&history, 2).as_deref(), Some("b"));
    }
}
