//! The protocol: every load and every compare-and-swap of a breaker's word.
//!
//! Not here: which word follows from which (`word::step`), how a call waits (`breaker::wait`), and the public methods
//! (`breaker`).
//!
//! # Orderings
//!
//! `docs/PROOF.md` names the model that fails without each of them, and how to run it.
//!
//! - The load that admits a call, a waiter's second look and the look after a failed swap are Acquire. They pair with
//!   the Release of the swaps that open and close: whoever sees an opening finds the error published before it; whoever
//!   sees a closing sees what the probe's caller did before it.
//! - There is one swap with one pair of orderings. A claim, a count and a reset publish nothing, and Relaxed would be
//!   enough for them. Every write is a read-modify-write, and so continues the release sequence of the last opening; a
//!   plain store would end it.
//! - `record_success` loads Relaxed: it reads nothing but the word, and usually writes nothing.
//! - No wakeup is lost: a waiter subscribes to `notify` first and reads the word second; `commit` changes the word
//!   first and notifies second. However they interleave, one sees the other, without `SeqCst` and without a flag for
//!   "somebody waits".

use std::fmt;
use std::sync::Arc;

use super::{CircuitBreaker, Past};
use crate::error::{LastError, Rejection, RejectionReason};
use crate::event;
use crate::permit::Permit;
use crate::sync::Ordering;
use crate::transition::Cause;
use crate::word::step::{self, Admit, Kind, Success, Transition};
use crate::word::{self, Failure, Word};

/// A call that may not pass now.
pub(super) enum Blocked {
    Rejected(Rejection),
    /// A probe of `generation` is in flight.
    ByProbe {
        generation: u32,
        lease_left: u32,
    },
}

impl CircuitBreaker {
    #[inline]
    pub(crate) fn load(&self) -> u64 {
        self.word.load(Ordering::Acquire)
    }

    pub(super) fn decoded(&self) -> Word {
        Word::unpack(self.load())
    }

    pub(super) fn past(&self, word: Word) -> Past {
        self.history.as_of(word)
    }

    #[inline]
    fn swap(&self, from: u64, to: u64) -> bool {
        self.word.compare_exchange(from, to, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// After a swap that failed. It first leaves the word to the others: cores that fight over a cache line get less
    /// done than one that has it to itself for a moment (Dice, Hendler, Mirsky: Lightweight Contention Management for
    /// Efficient Compare-and-Swap Operations, 2013).
    #[cold]
    fn look_again(&self) -> u64 {
        for _ in 0..32 {
            std::hint::spin_loop();
        }
        self.load()
    }

    /// Makes a transition, unless the word has changed since `before` was read. Whatever the kind, it goes the same
    /// way: publish, swap, confirm, notify, log. `error` is what opens the circuit, or why it is isolated.
    #[cold]
    #[inline(never)]
    fn commit(&self, transition: Transition, error: Option<&Arc<LastError>>) -> bool {
        let Transition { before, after, .. } = transition;
        // Before the swap: after it, other transitions may have followed.
        let past = if transition.begins_a_generation() {
            self.history.publish(transition, error)
        } else if transition.is_logged() {
            self.past(before)
        } else {
            Past::default()
        };
        if !self.swap(before.pack(), after.pack()) {
            return false;
        }
        if transition.begins_a_generation() {
            self.history.confirm(transition, error);
        }
        if transition.ends_a_wait() {
            self.waiting.notify();
        }
        if transition.is_logged() {
            // A subscriber may panic. Until it returns, a claim belongs to a permit that hands the probe back.
            let claim = transition.is_claim().then(|| Permit::new(self, after.pack()).cancel_on_drop());
            event::emit(self, transition, &past);
            claim.map(Permit::into_claim);
        }
        true
    }

    /// Makes the transition that `next` finds for the word as it is, whatever others do meanwhile. Returns whether
    /// there was one.
    fn commit_next(&self, error: Option<&Arc<LastError>>, next: impl Fn(Word) -> Option<Transition>) -> bool {
        let mut word = self.load();
        while let Some(transition) = next(Word::unpack(word)) {
            if self.commit(transition, error) {
                return true;
            }
            word = self.look_again();
        }
        false
    }

    // ---- admitting ----

    /// The word that a permit is made of.
    #[inline]
    pub(crate) fn try_acquire_word(&self) -> Result<u64, Rejection> {
        let word = self.load();
        if word::passes(word) { Ok(word) } else { self.try_acquire_blocked(word) }
    }

    #[cold]
    fn try_acquire_blocked(&self, word: u64) -> Result<u64, Rejection> {
        self.admit_at_once(word).map_err(|blocked| match blocked {
            Blocked::Rejected(rejection) => rejection,
            Blocked::ByProbe { lease_left, .. } => self.reject(RejectionReason::ProbeInFlight, None, lease_left),
        })
    }

    #[inline]
    pub(super) fn reject(&self, reason: RejectionReason, cause: Option<Cause>, ticks_left: u32) -> Rejection {
        Rejection::new(self.number, reason, cause, ticks_left)
    }

    #[inline]
    fn blocked_by_open(&self, cause: Cause, open_left: u32) -> Blocked {
        let reason = if cause == Cause::Silence { RejectionReason::Silent } else { RejectionReason::Open };
        Blocked::Rejected(self.reject(reason, Some(cause), open_left))
    }

    /// [`admit`](Self::admit), for a call that has not waited and finds `word` not closed.
    #[inline]
    pub(super) fn admit_at_once(&self, word: u64) -> Result<u64, Blocked> {
        match step::open_left_for_sure(word, self.clock.about_now(), self.settings.longest_open_ticks()) {
            Some((open_left, cause)) => Err(self.blocked_by_open(cause, open_left)),
            None => self.admit(word, self.clock.now(), None),
        }
    }

    /// Lets the call pass, makes it the probe, or says what is in the way. `waited_for` is the generation of the probe
    /// that the call has waited for: the call is rejected if the circuit has opened again, even if the new open time
    /// has passed already. So a failed probe does not turn its waiters into a row of probes.
    pub(super) fn admit(&self, mut word: u64, now: u32, waited_for: Option<u32>) -> Result<u64, Blocked> {
        let limits = self.settings.limits();
        loop {
            let before = Word::unpack(word);
            if waited_for.is_some_and(|generation| before.is_reopened_since(generation)) {
                let open_left = before.open_left(now, limits.longest_open_ticks);
                return Err(Blocked::Rejected(self.reject(RejectionReason::Reopened, before.cause(), open_left)));
            }
            let claim = match before.admit(now, limits) {
                Admit::Pass => return Ok(word),
                Admit::Claim(claim) => claim,
                Admit::Wait { lease_left } => {
                    return Err(Blocked::ByProbe { generation: before.generation, lease_left });
                }
                Admit::Reject { open_left, cause } => return Err(self.blocked_by_open(cause, open_left)),
            };
            if self.commit(claim, None) {
                return Ok(claim.after.pack());
            }
            word = self.look_again();
        }
    }

    /// Whether a call would be admitted now. It claims nothing.
    pub(super) fn would_admit(&self, word: u64) -> bool {
        if word::passes(word) {
            return true;
        }
        if step::open_left_for_sure(word, self.clock.about_now(), self.settings.longest_open_ticks()).is_some() {
            return false;
        }
        let admit = Word::unpack(word).admit(self.clock.now(), self.settings.limits());
        matches!(admit, Admit::Pass | Admit::Claim(_))
    }

    // ---- recording ----
    // Each returns whether it counted: not if it came too late.

    /// A call that was admitted by the word `granted` succeeded.
    #[inline]
    pub(crate) fn record_success(&self, granted: u64) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        word::is_clean(word) || self.end_row(word, granted)
    }

    #[cold]
    fn end_row(&self, mut word: u64, granted: u64) -> bool {
        let generation = Word::unpack(granted).generation;
        loop {
            match Word::unpack(word).succeeded(generation) {
                Success::Late => return false,
                Success::Clean => return true,
                Success::EndRow(end) if self.commit(end, None) => return true,
                Success::EndRow(_) => word = self.look_again(),
            }
        }
    }

    /// A call that was admitted by the word `granted` failed.
    #[inline]
    pub(crate) fn record_failure(&self, granted: u64, error_type: &str, message: &dyn fmt::Display) -> bool {
        let mut word = self.load();
        let failure_threshold = self.settings.failure_threshold();
        loop {
            let done = match word::failure(word, granted, failure_threshold) {
                Failure::Late => return false,
                Failure::Count(counted) => self.swap(word, counted),
                Failure::Trip => self.trip(word, error_type, message),
            };
            if done {
                return true;
            }
            word = self.look_again();
        }
    }

    #[cold]
    fn trip(&self, word: u64, error_type: &str, message: &dyn fmt::Display) -> bool {
        let error = Arc::new(LastError::new(error_type, message));
        let trip = Word::unpack(word).tripped(Cause::Failures, self.clock.now(), self.settings.open_ticks_after(0));
        self.commit(trip, Some(&error))
    }

    /// The probe that holds `claimed` succeeded.
    #[cold]
    pub(crate) fn probe_succeeded(&self, claimed: u64) -> bool {
        let succeeded = Word::unpack(claimed).probe_succeeded(self.settings.good_probes());
        succeeded.is_some_and(|transition| self.commit(transition, None))
    }

    /// The probe that holds `claimed` failed.
    #[cold]
    pub(crate) fn probe_failed(&self, claimed: u64, error: &Arc<LastError>) -> bool {
        self.reopen(claimed, Cause::Failures, error)
    }

    fn reopen(&self, claimed: u64, cause: Cause, error: &Arc<LastError>) -> bool {
        let open_ticks = |streak| self.settings.open_ticks_after(streak);
        let reopen = Word::unpack(claimed).probe_failed(cause, self.clock.now(), open_ticks);
        reopen.is_some_and(|reopen| self.commit(reopen, Some(error)))
    }

    /// The probe that holds `claimed` was cancelled.
    #[cold]
    pub(crate) fn probe_cancelled(&self, claimed: u64) -> bool {
        Word::unpack(claimed).probe_cancelled().is_some_and(|hand_back| self.commit(hand_back, None))
    }

    // ---- cooldowns ----

    /// A caller asks for a cooldown.
    #[cold]
    pub(crate) fn cool_down(&self, ticks: u32, error: &Arc<LastError>) -> bool {
        // Read once: of two cooldowns of one length that are told at once, the second one need not extend the first.
        let now = self.clock.now();
        self.commit_next(Some(error), |word| word.cooled_down(now, ticks, self.settings.longest_open_ticks()))
    }

    /// The probe that holds `claimed` asks for a cooldown. If it does not hold the probe any more, it is a caller like
    /// any other.
    #[cold]
    pub(crate) fn probe_cooled_down(&self, claimed: u64, ticks: u32, error: &Arc<LastError>) -> bool {
        let reopen = Word::unpack(claimed).probe_cooled_down(self.clock.now(), ticks);
        reopen.is_some_and(|reopen| self.commit(reopen, Some(error))) || self.cool_down(ticks, error)
    }

    // ---- orders by hand ----

    /// An order is carried out in whatever state the circuit is.
    #[cold]
    pub(crate) fn order(&self, order: Kind, reason: Option<&Arc<LastError>>) {
        self.commit_next(reason, |word| Some(word.ordered(order)));
    }

    // ---- silence ----

    /// Calls that were admitted in `generation` go unanswered. Failures and successes in between do not matter, unless
    /// one of them ended that generation.
    #[cold]
    pub(crate) fn fall_silent(&self, generation: u32, error: &Arc<LastError>) -> bool {
        self.commit_next(Some(error), |word| {
            let trip = || word.tripped(Cause::Silence, self.clock.now(), self.settings.open_ticks_after(0));
            word.is_closed_in(generation).then(trip)
        })
    }

    /// The probe that holds `claimed` goes unanswered.
    #[cold]
    pub(crate) fn probe_fell_silent(&self, claimed: u64, error: &Arc<LastError>) -> bool {
        self.reopen(claimed, Cause::Silence, error)
    }

    /// An answer came after all, which ends the silence of the word `silent`. Another thread that changes the word
    /// meanwhile has claimed the probe, which decides then, or has ended the same silence.
    #[cold]
    pub(crate) fn end_silence(&self, silent: u64) -> bool {
        Word::unpack(silent).silence_ended().is_some_and(|end| self.commit(end, None))
    }
}
