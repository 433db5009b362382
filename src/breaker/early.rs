//! A probe before the open time has passed, for a call that has nobody else to ask.
//!
//! Not here: which word follows from it: `word::step`.

use std::time::Duration;

use super::CircuitBreaker;
use crate::clock::{duration, ticks};
use crate::config::MAX_DURATION;
use crate::error::Rejection;
use crate::permit::Permit;
use crate::word::step::{Admit, FOREVER};
use crate::word::{State, Word};

impl CircuitBreaker {
    /// As [`try_acquire`](Self::try_acquire), for a call that has nobody else to ask: it may be the probe as soon as
    /// the circuit has been open for `after`, which is a fraction of the open time. The open time spares an upstream
    /// and its callers, and a caller that has no other upstream is not spared anything by it. There is one probe all
    /// the same, and a failed one begins a new open time: so there is at most one probe in `after`.
    ///
    /// A cooldown is not shortened: the upstream has said when to come back. Neither is an isolation.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use fusebox::{CircuitBreaker, PermitType};
    ///
    /// let breaker = CircuitBreaker::builder("openai").failure_threshold(1).build()?;
    /// breaker.try_acquire()?.failure("5xx", 503);
    /// assert!(breaker.try_acquire_early(Duration::from_secs(1)).is_err(), "it has not been open for a second");
    /// let probe = breaker.try_acquire_early(Duration::ZERO)?;
    /// assert_eq!(probe.kind(), PermitType::Probe);
    /// assert!(breaker.try_acquire_early(Duration::ZERO).is_err(), "and there is one probe");
    /// probe.success();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_acquire_early(&self, after: Duration) -> Result<Permit<&Self>, Rejection> {
        self.try_acquire_early_word(ticks(after.min(MAX_DURATION))).map(|word| Permit::new(self, word))
    }

    /// How long until [`try_acquire_early`](Self::try_acquire_early) may make a call the probe of an open circuit: zero
    /// if it would now, and if the circuit is not open. `None` while it is isolated.
    pub fn early_probe_in(&self, after: Duration) -> Option<Duration> {
        let word = self.decoded();
        let left = word.open_left(self.clock.now(), self.settings.longest_open_ticks());
        let early = self.early_ticks(word, ticks(after.min(MAX_DURATION)));
        (left != FOREVER).then(|| duration(left.saturating_sub(early)))
    }

    /// As [`try_acquire_word`](Self::try_acquire_word), for a call that may be the probe once the circuit has been open
    /// for `after` ticks. The claim is the same swap from the word that was seen, so there is one probe all the same.
    #[cold]
    fn try_acquire_early_word(&self, after: u32) -> Result<u64, Rejection> {
        let (now, limits) = (self.clock.now(), self.settings.limits());
        let mut word = self.load();
        while let Admit::Claim(claim) = {
            let before = Word::unpack(word);
            before.admit_early(now, limits, self.early_ticks(before, after))
        } {
            if self.commit(claim, None) {
                return Ok(claim.after.pack());
            }
            word = self.look_again();
        }
        self.try_acquire_word()
    }

    /// How many ticks before the circuit reopens a call may be its probe, if that may be early.
    fn early_ticks(&self, word: Word, after: u32) -> u32 {
        match word.state {
            State::Open { streak, cause, .. } if cause.is_a_guess() => self.settings.early_ticks_after(streak, after),
            _ => 0,
        }
    }
}
