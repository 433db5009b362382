//! What does not fit the word: how often the circuit opened, and the error that opened it last.
//!
//! Not here: anything that a call is decided by: that is the word alone.

use std::sync::Arc;

use crate::error::LastError;
use crate::sync::ArcSwap;
use crate::word::step::{Kind, Transition};
use crate::word::{Word, generation_is_older, next_generation};

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
    /// `Trip`, `Reopen` or `Extend`; `None` if it is an order.
    kind: Option<Kind>,
    /// The failures in a row before it, if it is a trip.
    failures: Option<u32>,
    /// What had happened before it.
    before: Before,
    /// Why the circuit is open, or was the last time.
    reason: Option<Reason>,
}

#[derive(Clone, Default)]
struct Before {
    counts: Counts,
    reason: Option<Reason>,
}

/// The error of an opening, which later orders carry on.
#[derive(Clone)]
struct Reason {
    generation: u32,
    error: Arc<LastError>,
}

impl Opening {
    /// This opening as a word of its generation shows it: the word knows of an order, and a rival of that order may
    /// have published here.
    fn as_told_by(&self, word: Word) -> Self {
        if !word.is_by_order() {
            return self.clone();
        }
        // Of the orders, only an isolation has a reason.
        let reason = if word.cause().is_some() { self.reason.clone() } else { self.before.reason.clone() };
        Self { kind: None, reason, ..self.clone() }
    }

    fn counts(&self) -> Counts {
        let before = self.before.counts;
        self.kind.map_or(before, |kind| before.after(kind, self.failures))
    }

    fn with_all_before(&self) -> Before {
        Before { counts: self.counts(), reason: self.reason.clone() }
    }

    /// What has happened, this opening included.
    fn past(&self) -> Past {
        Past { counts: self.counts(), last_error: self.reason.as_ref().map(|reason| Arc::clone(&reason.error)) }
    }

    /// The opening of `generation` had this error, whatever a loser published for it and an order has carried on.
    fn correct(&mut self, generation: u32, error: &Arc<LastError>) {
        for reason in [&mut self.reason, &mut self.before.reason].into_iter().flatten() {
            if reason.generation == generation {
                reason.error = Arc::clone(error);
            }
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// How often the circuit went from closed or recovering to open.
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

    /// Before the swap that makes `opening`. Returns the past as it is if that swap succeeds. An order without an error
    /// keeps the last one.
    pub(crate) fn publish(&self, opening: Transition, error: Option<&Arc<LastError>>) -> Past {
        let mut past = Past::default();
        self.openings.rcu(|openings| {
            let openings = openings.with_published(opening, error);
            if let Some(published) = &openings.published {
                past = published.as_told_by(opening.after).past();
            }
            openings
        });
        past
    }

    /// After it, by the caller that made it.
    pub(crate) fn confirm(&self, opening: Transition, error: Option<&Arc<LastError>>) {
        self.openings.rcu(|openings| openings.with_confirmed(opening, error));
    }

    /// The past of a word that was loaded before; at most an instant ahead of it.
    pub(crate) fn as_of(&self, word: Word) -> Past {
        let openings = self.openings.load();
        match openings.at(word.generation) {
            Some(opening) if opening.generation == word.generation => opening.as_told_by(word).past(),
            Some(later) => later.past(),
            None => Past::default(),
        }
    }
}

impl Openings {
    fn with_published(&self, opening: Transition, error: Option<&Arc<LastError>>) -> Self {
        let generation = opening.after.generation;
        let mut openings = self.clone();
        if self.published.as_ref().is_some_and(|published| generation_is_older(generation, published.generation)) {
            return openings;
        }
        // A word of the generation before was seen, so its opening has happened, whether or not it is confirmed yet.
        if let Some(last) = self.published.as_ref().filter(|last| next_generation(last.generation) == generation)
            && self.confirmed.as_ref().is_none_or(|old| generation_is_older(old.generation, last.generation))
        {
            openings.confirmed = Some(last.as_told_by(opening.before));
        }
        // In the generation before, the circuit was open first, then half-open, then closed. Of two callers that
        // publish the same opening, the one that saw the later state is right about what it is. The other one comes too
        // late. An order may come from each state, and yields to all: whether it made the opening is in the word.
        let kind = (!opening.kind.is_order()).then_some(opening.kind);
        let rival = self.published.as_ref().filter(|published| published.generation == generation);
        let right = rival.filter(|rival| rival.kind.map(rank) > kind.map(rank));
        let (kind, failures) = right.map_or((kind, opening.failures()), |right| (right.kind, right.failures));
        let before = openings.confirmed.as_ref().map_or_else(Before::default, Opening::with_all_before);
        let own = error.map(|error| Reason { generation, error: Arc::clone(error) });
        let reason = own.or_else(|| rival.and_then(|rival| rival.reason.clone())).or_else(|| before.reason.clone());
        openings.published = Some(Opening { generation, kind, failures, before, reason });
        openings
    }

    fn with_confirmed(&self, opening: Transition, error: Option<&Arc<LastError>>) -> Self {
        let generation = opening.after.generation;
        let mut openings = self.clone();
        if let Some(error) = error {
            for later in [&mut openings.confirmed, &mut openings.published].into_iter().flatten() {
                later.correct(generation, error);
            }
        }
        let known = [&self.confirmed, &self.published].into_iter().flatten().find(|it| it.generation == generation);
        // An opening that two others have followed is forgotten: the caller that confirms it was asleep for that long.
        if let Some(known) = known {
            let kind = (!opening.kind.is_order()).then_some(opening.kind);
            let (before, failures) = (known.before.clone(), opening.failures());
            let own = error.map(|error| Reason { generation, error: Arc::clone(error) });
            let reason = own.or_else(|| before.reason.clone());
            openings.confirmed = Some(Opening { generation, kind, failures, before, reason });
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
fn rank(opening: Kind) -> u8 {
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

    /// The word after an opening.
    fn opened(generation: u32) -> Word {
        Word { generation, measured: false, state: State::Open { cause: Cause::Failures, until: 0, streak: 0 } }
    }

    fn seen(history: &History, generation: u32) -> Option<String> {
        history.as_of(opened(generation)).last_error.map(|error| error.error_type().to_owned())
    }

    fn opening(generation: u32, kind: Kind) -> Transition {
        let state = match kind {
            Kind::Trip => State::Closed { failures: 2, told: 0, suspected: false, by_order: false },
            _ => State::HalfOpen { in_flight: true, lease_end: 0, streak: 0, good_probes: 0 },
        };
        let before = Word { generation: generation - 1, measured: false, state };
        Transition { before, after: opened(generation), kind }
    }

    fn publish(history: &History, generation: u32, kind: Kind, error_type: &str) -> Counts {
        history.publish(opening(generation, kind), Some(&error(error_type))).counts
    }

    fn confirm(history: &History, generation: u32, kind: Kind, error_type: &str) {
        history.confirm(opening(generation, kind), Some(&error(error_type)));
    }

    fn counts(history: &History, generation: u32) -> Counts {
        history.as_of(opened(generation)).counts
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
