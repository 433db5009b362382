//! What there is to a call besides the row of failures, where the settings ask for more: when it began, and the rates
//! of calls that fail or are slow.
//!
//! Not here: how the last calls are counted (`window`), and the swaps (`breaker::protocol`).

use std::fmt;
use std::sync::Arc;

use super::CircuitBreaker;
use crate::clock::{duration, tick};
use crate::error::LastError;
use crate::settings::Measures;
use crate::sync::Ordering;
use crate::transition::Cause;
use crate::window::{Call, LastCalls};
use crate::word::{self, Word};

impl CircuitBreaker {
    /// The word of a permit for a normal call that `word` lets pass.
    #[inline(never)]
    pub(super) fn granted(&self, word: u64) -> u64 {
        if !word::is_measured(word) {
            return word::normal_permit(word);
        }
        let measures = self.settings.measures();
        let started = measures.start().then(|| self.clock.now());
        word::measured_permit(word, started, measures.drop_fails())
    }

    /// Counts a call that succeeded in time, or where the time does not matter.
    #[inline]
    pub(super) fn count_success(&self, generation: u32) {
        let at = self.clock.about_millis();
        self.settings.tally.add(Call { generation, at, failed: false, slow: false });
    }

    /// Counts a call that was admitted by the word `granted`, if calls are counted.
    pub(super) fn measured(&self, measures: Measures, granted: u64, failed: bool) -> Option<Call> {
        if !measures.count() {
            return None;
        }
        let (at, slow) = if measures.slow() { self.whether_slow(granted) } else { (self.clock.about_millis(), false) };
        let call = Call { generation: word::generation(granted), at, failed, slow };
        self.settings.tally.add(call);
        Some(call)
    }

    #[inline(never)]
    fn whether_slow(&self, granted: u64) -> (u64, bool) {
        let at = self.clock.millis();
        let took = word::started(granted).map_or(0, |started| tick(at).wrapping_sub(started));
        (at, took >= self.settings.slow_after_ticks())
    }

    /// Opens the circuit if a call that failed or was slow, and was counted, brings a rate to its limit. `error` is
    /// that of a call that failed.
    #[cold]
    pub(super) fn trip_by_rate(&self, call: Call, error: Option<(&str, &dyn fmt::Display)>) -> bool {
        let Some((cause, counts)) = self.settings.tally.reached(call) else { return false };
        let LastCalls { calls, failures, slow } = counts;
        let error = match (cause, error) {
            (Cause::Rate, Some((error_type, message))) => LastError::new(error_type, message),
            // A slow success brought the calls up to the minimum.
            (Cause::Rate, None) => LastError::new("rate", &format_args!("{failures} of {calls} calls failed")),
            _ => {
                let after = duration(self.settings.slow_after_ticks());
                LastError::new("slow", &format_args!("{slow} of {calls} calls took {after:?} or longer"))
            }
        };
        self.trip_generation(call.generation, cause, &Arc::new(error))
    }

    /// Notes when a call that failed began.
    pub(super) fn note_failed(&self, granted: u64) {
        self.newest_failed.fetch_max(self.began(granted), Ordering::Release);
    }

    /// Whether a call began before the newest one that failed. If nobody noted when it began, it has just begun.
    pub(super) fn is_outdated(&self, granted: u64) -> bool {
        self.began(granted) < self.newest_failed.load(Ordering::Acquire)
    }

    fn began(&self, granted: u64) -> u64 {
        let now = self.clock.millis();
        let ago = word::started(granted).map_or(0, |started| tick(now).wrapping_sub(started));
        now.saturating_sub(ago.into())
    }

    pub(super) fn last_calls(&self, word: Word) -> Option<LastCalls> {
        let is_counted = self.settings.measures().count();
        is_counted.then(|| self.settings.tally.counts(word.generation, self.clock.about_millis()))
    }
}
