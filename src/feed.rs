//! Telling subscribers of transitions, in the order in which those were made.
//!
//! Not here: what there is to tell, and how it is logged: `event`.
//!
//! A caller makes a transition by a swap and tells of it afterwards, so two callers may tell in the other order. Which
//! one comes first follows from generation and state: a generation enters each state once, and each change begins where
//! the one before it ended. A change that is told too early is kept until that one has been told.

use std::sync::Arc;
use std::time::SystemTime;

use crate::error::LastError;
use crate::sync::Mutex;
use crate::sync::broadcast::{self, Receiver, Sender};
use crate::transition::{Cause, CircuitState};
use crate::word::{Word, generation_is_older};

/// A change of a circuit from one state to another, as it is logged and as
/// [subscribers](crate::CircuitBreaker::subscribe) are told of it.
///
/// The [`generation`](Self::generation) orders the transitions of one breaker. Subscribers are told in that order. In
/// the log, those of several threads may be out of order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Transition {
    /// The breaker's name.
    pub breaker: Arc<str>,
    /// The state before.
    pub from: CircuitState,
    /// The state after. It is the same if a probe was taken over, or if an open circuit stays open for longer.
    pub to: CircuitState,
    /// Why the circuit is open now. `None` unless it is.
    pub cause: Option<Cause>,
    /// The number of the opening, or of the order by hand, that this transition makes or belongs to. It is 0 before the
    /// first one, and wraps after 131,071.
    pub generation: u32,
    /// How often the circuit went from closed or recovering to open, this transition included.
    pub trip_count: u64,
    /// The failures in a row that opened the circuit last.
    pub failure_count: u32,
    /// The failure that opened the circuit last.
    pub last_error: Option<Arc<LastError>>,
    /// When it was made, by the system's clock.
    pub at: SystemTime,
}

/// How many transitions of one breaker are kept for a subscriber that is slow.
const KEPT: usize = 64;

/// How many changes wait for one that has not been told: its thread may have panicked before it told, and nobody is to
/// wait for that for ever. When they are told after all, they fit into what is kept.
const MOST_EARLY: usize = KEPT / 2;

/// Who has subscribed to a breaker. Its lock is taken when the state changes, and by no other call.
pub(crate) struct Feed(Mutex<Option<Box<Channel>>>);

struct Channel {
    /// To those who have subscribed to this breaker.
    own: Option<Sender<Transition>>,
    /// Of the registries that have it, and subscribers.
    registries: Vec<Sender<Transition>>,
    /// Where the last change that was told ended.
    last: Place,
    early: Vec<Change>,
}

/// From one place to another, and what subscribers are told of it, if anything.
struct Change {
    from: Place,
    to: Place,
    told: Option<Transition>,
}

/// A generation and a state.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place(u32, CircuitState);

impl Place {
    const fn of(word: Word) -> Self {
        Self(word.generation, word.circuit_state())
    }

    const fn is_before(self, other: Self) -> bool {
        generation_is_older(self.0, other.0) || self.0 == other.0 && rank(self.1) < rank(other.1)
    }
}

/// In which order a generation enters its states.
const fn rank(state: CircuitState) -> u32 {
    match state {
        CircuitState::Open => 0,
        CircuitState::HalfOpen => 1,
        CircuitState::Recovering => 2,
        CircuitState::Closed | CircuitState::Disabled => 3,
    }
}

impl Feed {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// `now` reads the word. It does so under the lock: whoever has told already has changed the word before, and
    /// whoever has not will find the subscriber.
    pub(crate) fn subscribe(&self, now: impl FnOnce() -> Word) -> Receiver<Transition> {
        let mut feed = self.0.lock();
        let own = &mut Channel::open(&mut feed, now).own;
        own.get_or_insert_with(|| broadcast::channel(KEPT).0).subscribe()
    }

    /// The subscribers of a registry are told, too.
    pub(crate) fn attach(&self, registry: &Sender<Transition>, now: impl FnOnce() -> Word) {
        let mut feed = self.0.lock();
        Channel::open(&mut feed, now).registries.push(registry.clone());
    }

    pub(crate) fn detach(&self, registry: &Sender<Transition>) {
        if let Some(channel) = &mut *self.0.lock() {
            channel.registries.retain(|known| !known.same_channel(registry));
        }
    }

    /// The word has changed from `before` to `after`.
    pub(crate) fn tell(&self, before: Word, after: Word, told: Option<&Transition>) {
        if let Some(channel) = &mut *self.0.lock() {
            channel.early.push(Change { from: Place::of(before), to: Place::of(after), told: told.cloned() });
            channel.send_what_is_due();
        }
    }
}

impl Channel {
    fn open(feed: &mut Option<Box<Self>>, now: impl FnOnce() -> Word) -> &mut Self {
        feed.get_or_insert_with(|| {
            Box::new(Self { own: None, registries: Vec::new(), last: Place::of(now()), early: Vec::new() })
        })
    }

    fn send_what_is_due(&mut self) {
        loop {
            while let Some(change) = self.take_next() {
                self.last = change.to;
                if let Some(told) = change.told {
                    self.send(&told);
                }
            }
            // What was made before somebody subscribed, or told long after an order ended its generation.
            let last = self.last;
            self.early.retain(|change| !change.from.is_before(last));
            if self.early.len() <= MOST_EARLY {
                return;
            }
            let places = self.early.iter().map(|change| change.from);
            self.last = places.reduce(|a, b| if b.is_before(a) { b } else { a }).unwrap_or(last);
        }
    }

    /// What begins where the last change ended. A takeover ends there as well, and comes first.
    fn take_next(&mut self) -> Option<Change> {
        let is_next = |change: &Change| change.from == self.last;
        let takeover = self.early.iter().position(|change| is_next(change) && change.to == self.last);
        let at = takeover.or_else(|| self.early.iter().position(is_next))?;
        Some(self.early.remove(at))
    }

    fn send(&self, told: &Transition) {
        for sender in self.own.iter().chain(&self.registries) {
            // Nobody may be left who listens.
            let _ = sender.send(told.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::{Feed, MOST_EARLY, Transition};
    use crate::sync::broadcast::Receiver;
    use crate::transition::Cause;
    use crate::word::{State, Word};

    const fn of(generation: u32, state: State) -> Word {
        Word { generation, measured: false, state }
    }

    const fn open(generation: u32) -> Word {
        of(generation, State::Open { cause: Cause::Cooldown, until: 0, streak: 0 })
    }

    const fn probing(generation: u32) -> Word {
        of(generation, State::HalfOpen { in_flight: true, lease_end: 0, streak: 0, good_probes: 0 })
    }

    fn tell(feed: &Feed, before: Word, after: Word) {
        let told = Transition {
            breaker: Arc::from("openai"),
            from: before.circuit_state(),
            to: after.circuit_state(),
            cause: after.cause(),
            generation: after.generation,
            trip_count: 0,
            failure_count: 0,
            last_error: None,
            at: SystemTime::UNIX_EPOCH,
        };
        feed.tell(before, after, Some(&told));
    }

    fn generations(told: &mut Receiver<Transition>) -> Vec<u32> {
        std::iter::from_fn(|| told.try_recv().ok()).map(|told| told.generation).collect()
    }

    #[test]
    fn what_is_told_too_early_waits_for_what_came_before_it() {
        let feed = Feed::new();
        let mut told = feed.subscribe(|| Word::INITIAL);
        tell(&feed, open(2), open(3));
        tell(&feed, open(1), open(2));
        assert!(generations(&mut told).is_empty());
        tell(&feed, Word::INITIAL, open(1));
        assert_eq!(generations(&mut told), [1, 2, 3]);
    }

    #[test]
    fn nobody_waits_for_ever_for_a_transition_that_is_never_told() {
        let feed = Feed::new();
        let mut told = feed.subscribe(|| Word::INITIAL);
        let last = u32::try_from(MOST_EARLY).unwrap() + 1;
        for generation in 1..last {
            tell(&feed, open(generation), open(generation + 1));
        }
        assert!(generations(&mut told).is_empty(), "the first one may come yet");
        tell(&feed, open(last), open(last + 1));
        assert_eq!(generations(&mut told), (2..=last + 1).collect::<Vec<_>>());
        tell(&feed, Word::INITIAL, open(1));
        assert!(generations(&mut told).is_empty(), "it is out of date");
    }

    #[test]
    fn a_takeover_is_told_before_its_probe_ends_and_not_after_its_generation() {
        let feed = Feed::new();
        let mut told = feed.subscribe(|| open(1));
        tell(&feed, probing(1), open(2));
        tell(&feed, probing(1), probing(1));
        tell(&feed, open(1), probing(1));
        assert_eq!(generations(&mut told), [1, 1, 2]);
        tell(&feed, probing(1), probing(1));
        tell(&feed, open(2), probing(2));
        assert_eq!(generations(&mut told), [2]);
    }
}
