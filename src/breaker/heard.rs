//! What other processes have found out (feature `fleet`): the seam between a breaker and what it is told.
//!
//! None of it touches a probe that a call of this process holds: that decides, as it does without a fleet.
//!
//! Not here: what is to be believed of what is told: `fleet`; which word follows from it: `word::step`.

use std::sync::Arc;
use std::time::Duration;

use super::CircuitBreaker;
use crate::clock::ticks;
use crate::config::MAX_DURATION;
use crate::error::LastError;
use crate::permit::{OwnedPermit, Permit};
use crate::settings::cooldown_ticks;
use crate::transition::Cause;
use crate::word::step::Admit;
use crate::word::{State, Word};

/// What has become of a suspicion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suspicion {
    /// No call has ended since it was heard.
    Stands,
    /// A call that began after it has succeeded.
    Refuted,
    /// The circuit has opened, or somebody has given an order.
    Over,
}

impl CircuitBreaker {
    /// The next failure opens the circuit, and the next success of a call that begins from now on forgets that. Returns
    /// the generation; `None` if it is suspected already, not closed, or counts no failures in a row.
    pub(crate) fn suspect(&self) -> Option<u32> {
        let (now, row) = (self.clock.now(), self.settings.row());
        self.commit_next(None, |word| word.suspected(now, row)).map(|word| word.generation)
    }

    /// Forgets a suspicion that nobody stands by any more.
    pub(crate) fn trust(&self) {
        self.commit_next(None, Word::trusted);
    }

    /// What has become of the suspicion of `generation`.
    pub(crate) fn suspicion(&self, generation: u32) -> Suspicion {
        let word = self.decoded();
        match word.state {
            _ if word.generation != generation => Suspicion::Over,
            State::Closed { suspected: true, .. } => Suspicion::Stands,
            State::Closed { .. } => Suspicion::Refuted,
            _ => Suspicion::Over,
        }
    }

    /// Opens a closed or recovering circuit on hearsay for as long as is `left`. Returns the generation that begins.
    pub(crate) fn open_on_hearsay(&self, left: Duration, error: &Arc<LastError>) -> Option<u32> {
        let (now, left) = (self.clock.now(), cooldown_ticks(left));
        let opened = self.commit_next(Some(error), |word| {
            word.can_trip().then(|| word.tripped(Cause::Fleet, now, self.settings.limits(), |_| left))
        });
        opened.map(|word| word.generation)
    }

    /// Another process was told to come back after `left`: as [`trip_for`](Self::trip_for). Returns the generation that
    /// begins.
    pub(crate) fn cool_down_on_hearsay(&self, left: Duration, error: &Arc<LastError>) -> Option<u32> {
        let (now, left) = (self.clock.now(), cooldown_ticks(left));
        let opened = self.commit_next(Some(error), |word| word.cooled_down(now, left, self.settings.limits()));
        opened.map(|word| word.generation)
    }

    /// Keeps an open circuit open for as long as is `left`, since a probe has failed: another process's, which
    /// `is_news` here, or one that was counted here already. Returns the generation that begins.
    pub(crate) fn postpone(&self, left: Duration, is_news: bool, error: &Arc<LastError>) -> Option<u32> {
        let (now, left) = (self.clock.now(), cooldown_ticks(left));
        let postponed = self.commit_next(Some(error), |word| {
            (!word.has_probe_in_flight()).then(|| word.postponed(now, left, is_news, self.settings.limits())).flatten()
        });
        postponed.map(|word| word.generation)
    }

    /// Closes the circuit that opened in `generation`, since a probe of another process has succeeded. Returns whether
    /// it did.
    pub(crate) fn close_on_hearsay(&self, generation: u32) -> bool {
        let (now, ramp_ticks) = (self.clock.now(), self.settings.ramp_ticks());
        let closed = self.commit_next(None, |word| {
            let is_meant = word.generation == generation && !word.has_probe_in_flight();
            is_meant.then(|| word.heard_closing(now, ramp_ticks)).flatten()
        });
        closed.is_some()
    }

    /// The number of the opening, or of the order by hand, that came last.
    pub(crate) fn generation(&self) -> u32 {
        self.decoded().generation
    }

    /// Claims the probe of an open circuit that would take it within `ahead`, so that no call does. Calls wait for its
    /// result meanwhile. Dropping the permit hands the probe back to them. `None` if the circuit is not open, isolated,
    /// or a call has the probe.
    pub(crate) fn hold_probe(self: &Arc<Self>, ahead: Duration) -> Option<OwnedPermit> {
        let (now, limits, ahead) = (self.clock.now(), self.settings.limits(), ticks(ahead.min(MAX_DURATION)));
        let claimed = self.commit_next(None, |word| match (word.state, word.admit_early(now, limits, ahead)) {
            (State::Open { .. } | State::HalfOpen { in_flight: false, .. }, Admit::Claim(claim)) => Some(claim),
            _ => None,
        })?;
        Some(Permit::new(Arc::clone(self), claimed.pack()).cancel_on_drop())
    }

    /// What [`hold_probe`](Self::hold_probe) claimed is resolved by the failure of another process's probe.
    pub(crate) fn held_probe_failed(&self, held: OwnedPermit, left: Duration, error: &Arc<LastError>) -> Option<u32> {
        let (now, left) = (self.clock.now(), cooldown_ticks(left));
        let limits = self.settings.limits();
        let postponed =
            self.commit_exactly(held.into_claim(), Some(error), |word| word.postponed(now, left, true, limits));
        postponed.map(|word| word.generation)
    }

    /// What [`hold_probe`](Self::hold_probe) claimed is resolved by the success of another process's probe.
    pub(crate) fn held_probe_succeeded(&self, held: OwnedPermit) -> bool {
        let (now, ramp_ticks) = (self.clock.now(), self.settings.ramp_ticks());
        self.commit_exactly(held.into_claim(), None, |word| word.heard_closing(now, ramp_ticks)).is_some()
    }
}
