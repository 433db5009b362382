//! What does not fit the word: how often the circuit opened, and the error that opened it last.
//!
//! Not here: anything that a call is decided by: that is the word alone.

use std::sync::Arc;

use crate::error::LastError;
use crate::sync::ArcSwap;
use crate::word::step::{Kind, Transition};
use crate::word::{generation_is_older, next_generation};

/// The openings that matter: the last one that has happened, and the next one.
///
/// An opening is *published* before the compare-and-swap that makes it, and *confirmed* after it by the caller that
/// made it. Without the first step, a reader of the open word may find no error. Without the second, a caller that lost
/// (a failure that raced, a probe whose lease was over) has the last word on why the circuit opened.
pub(crate) struct History {
    openings: ArcSwap<Openings>,
}

#[derive(Clone, Default)]
struct Openings {
    /// It has happened.
    confirmed: Option<Opening>,
    /// It is about to happen, has just happened, or never will.
    published: Option<Opening>,
}

#[derive(Clone)]
struct Opening {
    /// The generation that it begins.
    generation: u32,
    /// `Trip`, `Reopen` or `Extend`.
    kind: Kind,
    /// The failures in a row before it, if it is a trip.
    failures: Option<u32>,
    /// What had happened before it.
    before: Counts,
    error: Arc<LastError>,
}

impl Opening {
    /// What has happened, this opening included.
    fn counts(&self) -> Counts {
        self.before.after(self.kind, self.failures)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// How often the circuit went from closed to open.
    pub(crate) trips: u64,
    /// How many probes failed.
    pub(crate) failed_probes: u64,
    /// The failures in a row at the last trip.
    pub(crate) failures: u32,
}

impl Counts {
    fn after(self, kind: Kind, failures: Option<u32>) -> Self {
        let failures = failures.unwrap_or(self.failures);
        match kind {
            Kind::Trip => Self { trips: self.trips + 1, failures, ..self },
            Kind::Reopen => Self { failed_probes: self.failed_probes + 1, failures, ..self },
            _ => self,
        }
    }
}

/// What had happened by the beginning of a generation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Past {
    pub(crate) counts: Counts,
    pub(crate) last_error: Option<Arc<LastError>>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self { openings: ArcSwap::from_pointee(Openings::default()) }
    }

    /// Before the swap that makes `opening`. Returns the past as it is if that swap succeeds.
    pub(crate) fn publish(&self, opening: Transition, error: &Arc<LastError>) -> Past {
        let mut counts = Counts::default();
        self.openings.rcu(|openings| {
            let openings = openings.with_published(opening, error);
            counts = openings.published.as_ref().map_or(counts, Opening::counts);
            openings
        });
        Past { counts, last_error: Some(Arc::clone(error)) }
    }

    /// After it, by the caller that made it.
    pub(crate) fn confirm(&self, opening: Transition, error: &Arc<LastError>) {
        self.openings.rcu(|openings| openings.with_confirmed(opening, error));
    }

    /// The past of a word of `generation` that was loaded before; at most an instant ahead of it.
    pub(crate) fn as_of(&self, generation: u32) -> Past {
        self.openings.load().at(generation).map_or_else(Past::default, |opening| Past {
            counts: opening.counts(),
            last_error: Some(Arc::clone(&opening.error)),
        })
    }
}

impl Openings {
    fn with_published(&self, opening: Transition, error: &Arc<LastError>) -> Self {
        let (generation, kind) = (opening.after.generation, opening.kind);
        let mut openings = self.clone();
        if self.published.as_ref().is_some_and(|published| generation_is_older(generation, published.generation)) {
            return openings;
        }
        // A word of the generation before was seen, so its opening has happened, whether or not it is confirmed yet.
        if let Some(last) = self.published.as_ref().filter(|last| next_generation(last.generation) == generation)
            && self.confirmed.as_ref().is_none_or(|old| generation_is_older(old.generation, last.generation))
        {
            openings.confirmed = Some(last.clone());
        }
        let rival = self.published.as_ref().filter(|published| published.generation == generation);
        // In the generation before, the circuit was open first, then half-open, then closed. Of two callers that
        // publish the same opening, the one that saw the later state is right about what it is. The other one comes too
        // late.
        let kind = rival.map_or(kind, |rival| if order(rival.kind) > order(kind) { rival.kind } else { kind });
        let before = openings.confirmed.as_ref().map_or_else(Counts::default, Opening::counts);
        let failures = opening.failures();
        openings.published = Some(Opening { generation, kind, failures, before, error: Arc::clone(error) });
        openings
    }

    fn with_confirmed(&self, opening: Transition, error: &Arc<LastError>) -> Self {
        let (generation, kind) = (opening.after.generation, opening.kind);
        let mut openings = self.clone();
        let known = [&self.confirmed, &self.published].into_iter().flatten().find(|it| it.generation == generation);
        // An opening that two others have followed is forgotten: the caller that confirms it was asleep for that long.
        if let Some(&Opening { before, .. }) = known {
            let failures = opening.failures();
            openings.confirmed = Some(Opening { generation, kind, failures, before, error: Arc::clone(error) });
        }
        openings
    }

    fn at(&self, generation: u32) -> Option<&Opening> {
        let of_this = |opening: &&Opening| opening.generation == generation;
        let confirmed = self.confirmed.as_ref();
        confirmed.filter(of_this).or_else(|| self.published.as_ref().filter(of_this)).or(confirmed)
    }
}

/// Orders openings by the state that they start from.
fn order(opening: Kind) -> u8 {
    match opening {
        Kind::Trip => 2,
        Kind::Reopen => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transition::Cause;
    use crate::word::{State, Word};

    fn error(error_type: &str) -> Arc<LastError> {
        Arc::new(LastError::new(error_type, &""))
    }

    fn seen(history: &History, generation: u32) -> Option<String> {
        history.as_of(generation).last_error.map(|error| error.error_type().to_owned())
    }

    fn opening(generation: u32, kind: Kind) -> Transition {
        let state = match kind {
            Kind::Trip => State::Closed { failures: 2 },
            _ => State::HalfOpen { in_flight: true, lease_end: 0, streak: 0, good_probes: 0 },
        };
        let open = State::Open { cause: Cause::Failures, until: 0, streak: 0 };
        let before = Word { generation: generation - 1, state };
        Transition { before, after: Word { generation, state: open }, kind }
    }

    fn publish(history: &History, generation: u32, kind: Kind, error_type: &str) -> Counts {
        history.publish(opening(generation, kind), &error(error_type)).counts
    }

    fn confirm(history: &History, generation: u32, kind: Kind, error_type: &str) {
        history.confirm(opening(generation, kind), &error(error_type));
    }

    fn counts(history: &History, generation: u32) -> Counts {
        history.as_of(generation).counts
    }

    /// All trips here are at three failures.
    fn so_many(trips: u64, failed_probes: u64) -> Counts {
        Counts { trips, failed_probes, failures: 3 }
    }

    #[test]
    fn an_opening_that_is_not_yet_confirmed_has_its_error() {
        let history = History::new();
        assert_eq!(seen(&history, 0), None);
        publish(&history, 1, Kind::Trip, "a");
        assert_eq!(seen(&history, 1).as_deref(), Some("a"));
    }

    #[test]
    fn an_opening_that_lost_its_race_is_not_told() {
        let history = History::new();
        publish(&history, 1, Kind::Trip, "lost to a success");
        assert_eq!(seen(&history, 0), None);
        publish(&history, 1, Kind::Trip, "a");
        confirm(&history, 1, Kind::Trip, "a");
        publish(&history, 2, Kind::Trip, "lost to a success");
        assert_eq!(seen(&history, 1).as_deref(), Some("a"));
    }

    #[test]
    fn a_caller_that_lost_the_race_to_open_does_not_have_the_last_word() {
        let history = History::new();
        publish(&history, 1, Kind::Trip, "winner");
        publish(&history, 1, Kind::Trip, "loser");
        confirm(&history, 1, Kind::Trip, "winner");
        assert_eq!(seen(&history, 1).as_deref(), Some("winner"));
        publish(&history, 1, Kind::Trip, "late loser");
        assert_eq!(seen(&history, 1).as_deref(), Some("winner"));
    }

    #[test]
    fn the_next_opening_keeps_the_error_of_one_that_is_not_confirmed_yet() {
        let history = History::new();
        publish(&history, 1, Kind::Trip, "a");
        publish(&history, 2, Kind::Trip, "b");
        assert_eq!(seen(&history, 1).as_deref(), Some("a"));
        assert_eq!(seen(&history, 2).as_deref(), Some("b"));
        confirm(&history, 1, Kind::Trip, "a");
        assert_eq!((seen(&history, 1).as_deref(), seen(&history, 2).as_deref()), (Some("a"), Some("b")));
    }

    #[test]
    fn a_late_opening_does_not_replace_the_error_of_a_newer_one() {
        let history = History::new();
        publish(&history, 1, Kind::Trip, "a");
        publish(&history, 2, Kind::Trip, "b");
        confirm(&history, 2, Kind::Trip, "b");
        confirm(&history, 1, Kind::Trip, "a");
        publish(&history, 1, Kind::Trip, "late");
        assert_eq!(seen(&history, 2).as_deref(), Some("b"));
        publish(&history, 3, Kind::Trip, "not yet");
        assert_eq!(seen(&history, 2).as_deref(), Some("b"));
    }

    #[test]
    fn the_counts_are_exact_in_whatever_order_openings_are_confirmed() {
        let history = History::new();
        assert_eq!(publish(&history, 1, Kind::Trip, "a"), so_many(1, 0));
        assert_eq!(publish(&history, 2, Kind::Reopen, "a"), so_many(1, 1));
        assert_eq!(publish(&history, 3, Kind::Trip, "a"), so_many(2, 1));
        confirm(&history, 2, Kind::Reopen, "a");
        assert_eq!((counts(&history, 2), counts(&history, 3)), (so_many(1, 1), so_many(2, 1)));
        confirm(&history, 3, Kind::Trip, "a");
        confirm(&history, 1, Kind::Trip, "a");
        assert_eq!(publish(&history, 4, Kind::Reopen, "a"), so_many(2, 2));
    }

    #[test]
    fn a_late_probe_does_not_change_what_an_opening_counts_as() {
        let history = History::new();
        publish(&history, 1, Kind::Trip, "a");
        // A probe of generation 1 that another call has taken over since; that one closed the circuit, and calls open
        // it.
        publish(&history, 2, Kind::Reopen, "a");
        assert_eq!(publish(&history, 2, Kind::Trip, "a"), so_many(2, 0));
        publish(&history, 2, Kind::Reopen, "a");
        confirm(&history, 2, Kind::Trip, "b");
        assert_eq!(counts(&history, 2), so_many(2, 0));
    }
}
