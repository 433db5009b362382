//! What follows from what other processes tell (feature `fleet`).
//!
//! | what is heard             | `Closed`  | `Recovering` | `Open`                     | `HalfOpen`, free | `HalfOpen`, probe in flight |
//! |---------------------------|-----------|--------------|----------------------------|------------------|-----------------------------|
//! | the upstream may fail     | `Suspect` | -            | -                          | -                | -                           |
//! | the upstream fails        | `Trip`    | `Trip`       | -                          | -                | -                           |
//! | a probe failed            | -         | -            | `Postpone` if it ends later | `Postpone`      | `Postpone`                  |
//! | a probe succeeded         | `EndRow` if suspected | -  | `HearClosing`              | `HearClosing`    | `HearClosing`               |
//!
//! The breaker decides which word that may be: never one with a probe in flight that a call of this process holds.

use super::time::told_since;
use super::{Kind, Limits, MAX_STREAK, Row, State, Transition, Word};
use crate::transition::Cause;
use crate::word::{started, told_at};

impl Word {
    /// The next failure in a row opens the circuit, as if all but one had happened here. `None` if that is so already,
    /// or where no failures in a row are counted.
    pub(crate) fn suspected(self, now: u32, row: Row) -> Option<Transition> {
        let State::Closed { suspected: false, by_order, .. } = self.state else { return None };
        let failures = row.threshold?.checked_sub(1).filter(|failures| *failures > 0)?;
        let state = State::Closed { failures, told: told_at(now), suspected: true, by_order };
        Some(Transition::new(Kind::Suspect, self, state))
    }

    /// The suspicion has turned out to be wrong elsewhere, or nobody stands by it any more.
    pub(crate) const fn trusted(self) -> Option<Transition> {
        match self.state {
            State::Closed { suspected: true, by_order, .. } => {
                let state = State::Closed { failures: 0, told: 0, suspected: false, by_order };
                Some(Transition::new(Kind::EndRow, self, state))
            }
            _ => None,
        }
    }

    /// Whether the circuit is suspected, and the call that `granted` admitted began before that. Its success says
    /// nothing about the time since.
    pub(crate) const fn is_suspected_since(self, granted: u64) -> bool {
        let State::Closed { suspected: true, told, .. } = self.state else { return false };
        match (started(granted), Self::unpack(granted).state) {
            (Some(tick), _) => told_since(told, tick) == 0,
            (None, State::Closed { suspected: true, told: seen, .. }) => seen != told,
            (None, _) => true,
        }
    }

    /// A probe failed, and nobody is to probe for so many ticks. If that `is_news`, it is a failed recovery here, too.
    /// `None` if the circuit is open for as long already.
    pub(crate) const fn postponed(self, now: u32, ticks: u32, is_news: bool, limits: Limits) -> Option<Transition> {
        let (State::Open { streak, .. } | State::HalfOpen { streak, .. }) = self.state else { return None };
        if self.open_left(now, limits.longest_open_ticks) >= ticks {
            return None;
        }
        let streak = if is_news && streak < MAX_STREAK { streak + 1 } else { streak };
        Some(self.opens(Kind::Postpone, Cause::Fleet, now.wrapping_add(ticks), streak))
    }

    /// A probe of another process succeeded.
    pub(crate) const fn heard_closing(self, now: u32, ramp_ticks: u32) -> Option<Transition> {
        let streak = match self.state {
            State::Open { cause, streak, .. } if !matches!(cause, Cause::Isolated) => streak,
            State::HalfOpen { streak, .. } => streak,
            _ => return None,
        };
        let ramp = State::Recovering { until: now.wrapping_add(ramp_ticks), streak, failures: 0 };
        Some(Transition::new(Kind::HearClosing, self, if ramp_ticks == 0 { State::CLEAN } else { ramp }))
    }
}
