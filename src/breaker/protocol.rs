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

use super::totals::Told;
use super::{CircuitBreaker, Past};
use crate::error::{LastError, Rejection, RejectionReason};
use crate::event;
use crate::permit::Permit;
use crate::settings::{Measures, turn};
use crate::sync::{Ordering, random};
use crate::transition::Cause;
use crate::window::Call;
use crate::word::step::{self, Admit, Failed, Kind, Success, Transition};
use crate::word::{self, Failure, Word};

/// A call that may not pass now.
pub(super) enum Blocked {
    Rejected(Rejection),
    /// A probe of `generation` is in flight.
    ByProbe {
        generation: u32,
        lease_left: u32,
    },
    /// The circuit recovers in `generation`, and the call, which has drawn this number, has its turn later.
    ByRamp {
        generation: u32,
        drawn: u32,
        turn_left: u32,
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
    pub(super) fn look_again(&self) -> u64 {
        for _ in 0..32 {
            std::hint::spin_loop();
        }
        self.load()
    }

    /// Makes a transition, unless the word has changed since `before` was read. Whatever the kind, it goes the same
    /// way: publish, swap, confirm, notify, tell. `error` is what opens the circuit, or why it is isolated.
    #[cold]
    #[inline(never)]
    pub(super) fn commit(&self, transition: Transition, error: Option<&Arc<LastError>>) -> bool {
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
        if transition.frees_the_probe() {
            self.waiting.notify_one();
        } else if transition.ends_a_wait() {
            self.waiting.notify_all();
        }
        if transition.is_logged() || transition.begins_a_generation() {
            // A subscriber may panic. Until it returns, a claim belongs to a permit that hands the probe back.
            let claim = transition.is_claim().then(|| Permit::new(self, after.pack()).cancel_on_drop());
            event::emit(self, transition, past);
            claim.map(Permit::into_claim);
        }
        true
    }

    /// Makes the transition that `next` finds for the word as it is, whatever others do meanwhile. Returns the word
    /// that it leads to, if there was one.
    pub(super) fn commit_next(
        &self,
        error: Option<&Arc<LastError>>,
        next: impl Fn(Word) -> Option<Transition>,
    ) -> Option<Word> {
        let mut word = self.load();
        while let Some(transition) = next(Word::unpack(word)) {
            if self.commit(transition, error) {
                return Some(transition.after);
            }
            word = self.look_again();
        }
        None
    }

    /// The same, as long as the word is exactly `exact`, whether or not calls are measured.
    pub(super) fn commit_exactly(
        &self,
        exact: u64,
        error: Option<&Arc<LastError>>,
        next: impl Fn(Word) -> Option<Transition>,
    ) -> Option<Word> {
        let mut word = exact;
        while word::is_same_state(word, exact)
            && let Some(transition) = next(Word::unpack(word))
        {
            if self.commit(transition, error) {
                return Some(transition.after);
            }
            word = self.look_again();
        }
        None
    }

    /// The settings have changed: from now on calls are measured, or no longer. By one writer at a time.
    pub(super) fn set_measured(&self, measured: bool) {
        let mut word = self.load();
        while word::is_measured(word) != measured && !self.swap(word, word::with_measured(word, measured)) {
            word = self.look_again();
        }
    }

    // ---- admitting ----

    /// The word that a permit is made of.
    #[inline]
    pub(crate) fn try_acquire_word(&self) -> Result<u64, Rejection> {
        let word = self.load();
        if word::is_plain(word) { Ok(word) } else { self.try_acquire_blocked(word) }
    }

    #[cold]
    fn try_acquire_blocked(&self, word: u64) -> Result<u64, Rejection> {
        let answer = self.admit_at_once(word).map_err(|blocked| match blocked {
            Blocked::Rejected(rejection) => rejection,
            Blocked::ByProbe { lease_left, .. } => self.reject(RejectionReason::ProbeInFlight, None, lease_left),
            Blocked::ByRamp { turn_left, .. } => self.reject(RejectionReason::Recovering, None, turn_left),
        });
        answer.inspect_err(|_| self.count(Told::Rejection))
    }

    #[inline]
    pub(super) fn reject(&self, reason: RejectionReason, cause: Option<Cause>, ticks_left: u32) -> Rejection {
        Rejection::new(self.number, reason, cause, ticks_left)
    }

    #[inline]
    fn rejected_by_open(&self, cause: Cause, open_left: u32) -> Rejection {
        let reason = if cause == Cause::Silence { RejectionReason::Silent } else { RejectionReason::Open };
        self.reject(reason, Some(cause), open_left)
    }

    /// What a coarse clock can tell: the circuit is open, and its time is far from over.
    #[inline]
    pub(super) fn rejected_for_sure(&self, word: u64) -> Option<Rejection> {
        let (cause, until) = word::open_until(word)?;
        let about_now = self.clock.about_now();
        let open_left = step::open_left_for_sure(cause, until, about_now, self.settings.longest_open_ticks())?;
        Some(self.rejected_by_open(cause, open_left))
    }

    /// [`admit`](Self::admit), for a call that has not waited and finds `word` not plain.
    #[inline]
    pub(super) fn admit_at_once(&self, word: u64) -> Result<u64, Blocked> {
        if let Some(rejection) = self.rejected_for_sure(word) {
            return Err(Blocked::Rejected(rejection));
        }
        if word::passes(word) { Ok(self.granted(word)) } else { self.admit(word, self.clock.now(), None, random) }
    }

    /// Lets the call pass, makes it the probe, or says what is in the way. `waited_for` is the generation of the probe
    /// that the call has waited for: the call is rejected if the circuit has opened again, even if the new open time
    /// has passed already. So a failed probe does not turn its waiters into a row of probes. `draw` gives the number
    /// that decides when the call has its turn on a ramp.
    pub(super) fn admit(
        &self,
        mut word: u64,
        now: u32,
        waited_for: Option<u32>,
        draw: impl FnOnce() -> u32,
    ) -> Result<u64, Blocked> {
        let limits = self.settings.limits();
        loop {
            let before = Word::unpack(word);
            if waited_for.is_some_and(|generation| before.is_reopened_since(generation)) {
                let open_left = before.open_left(now, limits.longest_open_ticks);
                return Err(Blocked::Rejected(self.reject(RejectionReason::Reopened, before.cause(), open_left)));
            }
            let transition = match before.admit(now, limits) {
                Admit::Pass => return Ok(self.granted(word)),
                Admit::Claim(transition) | Admit::EndRamp(transition) => transition,
                Admit::Wait { lease_left } => {
                    return Err(Blocked::ByProbe { generation: before.generation, lease_left });
                }
                Admit::OnRamp { ramp_left } => {
                    let drawn = draw();
                    let turn = turn(limits.ramp_ticks, self.settings.ramp_from(), drawn);
                    let turn_left = turn.saturating_sub(limits.ramp_ticks.saturating_sub(ramp_left));
                    if turn_left == 0 {
                        return Ok(self.granted(word));
                    }
                    return Err(Blocked::ByRamp { generation: before.generation, drawn, turn_left });
                }
                Admit::Reject { open_left, cause } => {
                    return Err(Blocked::Rejected(self.rejected_by_open(cause, open_left)));
                }
            };
            if self.commit(transition, None) {
                let after = transition.after.pack();
                return Ok(if transition.is_claim() { after } else { self.granted(after) });
            }
            word = self.look_again();
        }
    }

    /// Whether a call would be admitted now, or may be if chance will have it. It claims nothing.
    pub(super) fn would_admit(&self, word: u64) -> bool {
        if word::passes(word) {
            return true;
        }
        let admit = Word::unpack(word).admit(self.clock.now(), self.settings.limits());
        matches!(admit, Admit::Pass | Admit::Claim(_) | Admit::EndRamp(_) | Admit::OnRamp { .. })
    }

    // ---- recording ----
    // Each returns whether it counted: not if it came too late.

    /// A call that was admitted by the word `granted` succeeded.
    #[inline]
    pub(crate) fn record_success(&self, granted: u64) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        word::is_clean(word) || self.succeeded(word, granted)
    }

    /// The same, if something may have to be written.
    #[inline(never)]
    fn succeeded(&self, word: u64, granted: u64) -> bool {
        self.count(Told::Success);
        let generation = word::generation(granted);
        if !word::is_measured(word) || word::generation(word) != generation {
            return self.end_row(word, granted, false, None);
        }
        let measures = self.settings.measures();
        if measures.start() || !word::is_clean(word::with_measured(word, false)) {
            return self.succeeded_late_or_slowly(word, granted, measures);
        }
        if measures.count() {
            self.count_success(generation);
        }
        true
    }

    /// The same, if it matters when the call began, or if there is a row of failures.
    #[inline(never)]
    fn succeeded_late_or_slowly(&self, word: u64, granted: u64, measures: Measures) -> bool {
        let slow = self.measured(measures, granted, false).filter(|call| call.slow);
        if slow.is_none() && word::is_clean(word::with_measured(word, false)) {
            return true;
        }
        // Again, to see what was noted before each failure that is counted.
        let word = if measures.memory() { self.load() } else { word };
        self.end_row(word, granted, measures.memory(), slow)
    }

    /// Ends a row of failures, unless the call began before the newest one that failed and failures have a memory; and
    /// opens the circuit if the call is one slow call too many.
    #[cold]
    #[inline(never)]
    fn end_row(&self, mut word: u64, granted: u64, memory: bool, slow: Option<Call>) -> bool {
        let generation = word::generation(granted);
        loop {
            let outdated = memory && self.is_outdated(granted);
            #[cfg(feature = "fleet")]
            let outdated = outdated || Word::unpack(word).is_suspected_since(granted);
            match Word::unpack(word).succeeded(generation, outdated) {
                Success::Late => return false,
                Success::EndRow(end) if !self.commit(end, None) => word = self.look_again(),
                Success::Clean | Success::EndRow(_) => break,
            }
        }
        if let Some(call) = slow {
            self.trip_by_rate(call, None);
        }
        true
    }

    /// A call that was admitted by the word `granted` failed.
    #[inline]
    pub(crate) fn record_failure(&self, granted: u64, error_type: &str, message: &dyn fmt::Display) -> bool {
        let mut word = self.load();
        let failure_threshold = self.settings.failure_threshold();
        loop {
            let done = match word::failure(word, granted, failure_threshold) {
                Failure::Other => return self.failed(word, granted, error_type, message),
                Failure::Count(counted) => self.swap(word, counted),
                Failure::Trip => self.trip(word, error_type, message),
            };
            if done {
                return true;
            }
            word = self.look_again();
        }
    }

    /// The same, if the circuit is not closed in the generation of the call, or if calls are measured.
    #[cold]
    #[inline(never)]
    fn failed(&self, mut word: u64, granted: u64, error_type: &str, message: &dyn fmt::Display) -> bool {
        self.count(Told::Failure);
        let generation = word::generation(granted);
        if word::generation(word) != generation {
            return false;
        }
        let mut call = None;
        if word::is_measured(word) {
            let measures = self.settings.measures();
            call = self.measured(measures, granted, true);
            // Before the count: whoever finds the count finds this.
            if measures.memory() {
                self.note_failed(granted);
            }
        }
        let (row, limits) = (self.settings.row(), self.settings.limits());
        // A closed circuit never begins to recover, so that nobody asks for the time later.
        let now = if row.memory.is_some() || !word::passes(word) { self.clock.now() } else { 0 };
        loop {
            let done = match Word::unpack(word).failed(generation, now, row, limits) {
                Failed::Late => return false,
                Failed::NotCounted => true,
                Failed::Count(counted) => self.swap(word, counted.pack()),
                Failed::EndRamp(end) => {
                    self.commit(end, None);
                    false
                }
                Failed::Trip if self.trip(word, error_type, message) => return true,
                Failed::Trip => false,
            };
            if done {
                break;
            }
            word = self.look_again();
        }
        if let Some(call) = call {
            self.trip_by_rate(call, Some((error_type, message)));
        }
        true
    }

    #[cold]
    fn trip(&self, word: u64, error_type: &str, message: &dyn fmt::Display) -> bool {
        let error = Arc::new(LastError::new(error_type, message));
        self.commit(self.tripped(Word::unpack(word), Cause::Failures), Some(&error))
    }

    fn tripped(&self, word: Word, cause: Cause) -> Transition {
        word.tripped(cause, self.clock.now(), self.settings.limits(), |streak| self.settings.open_ticks_after(streak))
    }

    /// Opens the circuit because of calls that were admitted in `generation`. Failures and successes in between do not
    /// matter, unless one of them ended that generation.
    #[cold]
    pub(super) fn trip_generation(&self, generation: u32, cause: Cause, error: &Arc<LastError>) -> bool {
        self.commit_next(Some(error), |word| {
            (word.can_trip() && word.generation == generation).then(|| self.tripped(word, cause))
        })
        .is_some()
    }

    /// The probe that holds `claimed` succeeded.
    #[cold]
    pub(crate) fn probe_succeeded(&self, claimed: u64) -> bool {
        self.count(Told::Success);
        let (needed, ramp_ticks) = (self.settings.good_probes(), self.settings.ramp_ticks());
        let now = self.clock.now();
        self.commit_exactly(claimed, None, |word| word.probe_succeeded(needed, now, ramp_ticks)).is_some()
    }

    /// The probe that holds `claimed` failed.
    #[cold]
    pub(crate) fn probe_failed(&self, claimed: u64, error: &Arc<LastError>) -> bool {
        self.count(Told::Failure);
        self.reopen(claimed, Cause::Failures, error)
    }

    fn reopen(&self, claimed: u64, cause: Cause, error: &Arc<LastError>) -> bool {
        let open_ticks = |streak| self.settings.open_ticks_after(streak);
        let now = self.clock.now();
        self.commit_exactly(claimed, Some(error), |word| word.probe_failed(cause, now, open_ticks)).is_some()
    }

    /// The probe that holds `claimed` was cancelled.
    #[cold]
    pub(crate) fn probe_cancelled(&self, claimed: u64) -> bool {
        self.commit_exactly(claimed, None, Word::probe_cancelled).is_some()
    }

    // ---- cooldowns ----

    /// A caller asks for a cooldown.
    #[cold]
    pub(crate) fn cool_down(&self, ticks: u32, error: &Arc<LastError>) -> bool {
        // Read once: of two cooldowns of one length that are told at once, the second one need not extend the first.
        let now = self.clock.now();
        self.commit_next(Some(error), |word| word.cooled_down(now, ticks, self.settings.limits())).is_some()
    }

    /// The probe that holds `claimed` asks for a cooldown. If it does not hold the probe any more, it is a caller like
    /// any other.
    #[cold]
    pub(crate) fn probe_cooled_down(&self, claimed: u64, ticks: u32, error: &Arc<LastError>) -> bool {
        let now = self.clock.now();
        self.commit_exactly(claimed, Some(error), |word| word.probe_cooled_down(now, ticks)).is_some()
            || self.cool_down(ticks, error)
    }

    // ---- orders by hand ----

    /// An order is carried out in whatever state the circuit is.
    #[cold]
    pub(crate) fn order(&self, order: Kind, reason: Option<&Arc<LastError>>) {
        self.commit_next(reason, |word| Some(word.ordered(order)));
    }

    /// It leaves its registry, unless its state forbids that. From then on it lets calls pass and counts nothing: after
    /// a late lookup, no circuit may open that the registry does not show.
    #[cold]
    pub(crate) fn evict(&self) -> bool {
        let (now, ramp_ticks) = (self.clock.now(), self.settings.ramp_ticks());
        self.commit_next(None, |word| word.evicted(now, ramp_ticks)).is_some()
    }

    // ---- silence ----

    /// Calls that were admitted in `generation` go unanswered.
    pub(crate) fn fall_silent(&self, generation: u32, error: &Arc<LastError>) -> bool {
        self.trip_generation(generation, Cause::Silence, error)
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
        self.commit_exactly(silent, None, Word::silence_ended).is_some()
    }
}
