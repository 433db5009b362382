//! Each step of a circuit: which word follows from a word and an event, as a pure function.
//!
//! Not here: whether a step happens, which the breaker's compare-and-swap decides; where the bits are: `word`.
//!
//! | event                         | `Closed`       | `Recovering`   | `Open`                  | `HalfOpen`, free | `HalfOpen`, probe in flight       |
//! |-------------------------------|----------------|----------------|-------------------------|------------------|-----------------------------------|
//! | a call comes                  | passes         | its turn; later `EndRamp` | rejected; later, or early, `Claim` | `Claim` | waits; after the lease `TakeOver` |
//! | a normal call succeeds        | `EndRow`       | `EndRow`       | -                       | -                | -                                 |
//! | a normal call fails           | counts; `Trip` | counts; `Trip` | -                       | -                | -                                 |
//! | a rate is reached             | `Trip`         | `Trip`         | -                       | -                | -                                 |
//! | calls go unanswered           | `Trip`         | `Trip`         | -                       | -                | -                                 |
//! | a silent call is answered     | -              | -              | `EndSilence` if silent  | -                | -                                 |
//! | a caller asks for a cooldown  | `Trip`         | `Trip`         | `Extend` if it ends later | `Reopen`       | -                                 |
//! | the probe succeeds            | -              | -              | -                       | -                | `GoodProbe`; the last `Close`     |
//! | the probe fails, or is silent | -              | -              | -                       | -                | `Reopen`                          |
//! | the probe asks for a cooldown | -              | -              | -                       | -                | `Reopen`                          |
//! | the probe is cancelled        | -              | -              | -                       | -                | `HandBack`                        |
//! | an order by hand              | the order      | the order      | the order               | the order        | the order                         |
//! | its registry needs room       | `Evict`        | later `Evict`  | -                       | -                | -                                 |
//!
//! What follows from what other processes tell: `word::step::heard`.
//!
//! `Close` leads to `Recovering` if there is a ramp, and to `Closed` otherwise. A failure that finds the ramp over
//! makes `EndRamp` first, and then counts. The orders are `Isolate`, `Disable`, `Reset` and `Remove`. While the circuit
//! is disabled, calls pass, and nothing but an order happens. An isolated circuit is open, never takes a probe, and can
//! be neither extended nor closed but by an order.
//!
//! A normal call's outcome counts only in the generation that admitted the call. A probe's outcome counts only if the
//! word is still exactly the one that the probe claimed. A cooldown is news of the moment in which it is told, so it
//! counts in every generation.

#[cfg(feature = "fleet")]
mod heard;
mod time;

pub(crate) use self::time::{FOREVER, MAX_DEADLINE_TICKS};
use self::time::{is_within, later_than, later_told, open_ticks_left, ticks_left};
use super::{MAX_STREAK, State, Word, generation_is_older, next_generation};
use crate::transition::Cause;

/// How far a coarse clock may be off: two ticks of a kernel timer that ticks 100 times a second.
pub(crate) const COARSE_ERROR: u32 = 20;

/// What a step needs of the configuration, in ticks.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_field_names, reason = "the unit is part of each")]
pub(crate) struct Limits {
    /// The longest that failures or silence keep the circuit open, 1 to [`MAX_DEADLINE_TICKS`].
    pub(crate) longest_open_ticks: u32,
    /// 1 to [`MAX_DEADLINE_TICKS`].
    pub(crate) lease_ticks: u32,
    /// 0 if there is no ramp, up to [`MAX_DEADLINE_TICKS`].
    pub(crate) ramp_ticks: u32,
}

/// How failures in a row count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// So many of them open a closed circuit. `None`: none are counted.
    pub(crate) threshold: Option<u32>,
    /// Failures that are further apart, in ticks, are no row. `None`: they are, however far.
    pub(crate) memory: Option<u32>,
    /// So many of them open a recovering circuit. `None`: none are counted.
    pub(crate) ramp_threshold: Option<u32>,
}

/// A step that may be made: the word that it starts from, the word that it leads to, and what it is.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transition {
    pub(crate) before: Word,
    pub(crate) after: Word,
    pub(crate) kind: Kind,
}

/// What a transition is: the table at the top says what leads to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A success ends a row of failures.
    EndRow,
    /// A closed circuit opens.
    Trip,
    /// A call becomes the probe.
    Claim,
    /// A call becomes the probe in place of one whose lease has ended.
    TakeOver,
    /// The probe is free again.
    HandBack,
    /// A half-open circuit opens: the probe failed, or was told to come back later.
    Reopen,
    /// An open circuit stays open for longer.
    Extend,
    /// The probe succeeded, and the circuit needs more good probes to close.
    GoodProbe,
    /// A half-open circuit closes, or begins to recover: the last probe that it needed succeeded.
    Close,
    /// A recovering circuit closes: its ramp is over.
    EndRamp,
    /// A silent circuit closes: an answer came after all.
    EndSilence,
    /// It is heard that the upstream fails: a closed circuit opens with the next failure.
    #[cfg(feature = "fleet")]
    Suspect,
    /// It is heard that a probe failed: the circuit stays open for longer, or opens again.
    #[cfg(feature = "fleet")]
    Postpone,
    /// It is heard that a probe succeeded: an open or half-open circuit closes, or begins to recover.
    #[cfg(feature = "fleet")]
    HearClosing,
    // Orders by hand.
    /// The circuit opens until another order.
    Isolate,
    /// Calls pass until another order.
    Disable,
    /// The circuit closes, and forgets its failures.
    Reset,
    /// The same, since nobody will report outcomes any more.
    Remove,
    /// The breaker leaves its registry: calls pass.
    Evict,
}

impl Kind {
    pub(crate) const fn is_order(self) -> bool {
        matches!(self, Self::Isolate | Self::Disable | Self::Reset | Self::Remove | Self::Evict)
    }
}

impl Transition {
    const fn new(kind: Kind, before: Word, after: State) -> Self {
        Self { before, after: Word { state: after, ..before }, kind }
    }

    /// Every opening and every order begins a generation, so that no call from before it counts after it.
    const fn opening(kind: Kind, before: Word, after: State) -> Self {
        let generation = next_generation(before.generation);
        Self { before, after: Word { generation, state: after, ..before }, kind }
    }

    pub(crate) const fn begins_a_generation(self) -> bool {
        self.after.generation != self.before.generation
    }

    /// Whether a call becomes the probe.
    pub(crate) const fn is_claim(self) -> bool {
        matches!(self.kind, Kind::Claim | Kind::TakeOver)
    }

    /// Whether it is logged. The others do not change the state.
    pub(crate) const fn is_logged(self) -> bool {
        match self.kind {
            Kind::EndRow | Kind::HandBack | Kind::GoodProbe | Kind::Evict => false,
            #[cfg(feature = "fleet")]
            Kind::Suspect => false,
            Kind::Remove => !matches!(self.before.state, State::Closed { .. }),
            Kind::Claim => matches!(self.before.state, State::Open { .. }),
            _ => true,
        }
    }

    /// Whether calls may wait for it. They wait while a probe is in flight, the circuit is silent or it recovers. A
    /// claim ends none of that: a waiter learns by its own timer that a lease has ended.
    pub(crate) const fn ends_a_wait(self) -> bool {
        !self.is_claim()
            && !matches!(self.kind, Kind::EndRow)
            && !matches!(self.before.state, State::Closed { .. } | State::Disabled)
    }

    /// Whether the probe is free again. Of those who wait, one can have it, and the others go on waiting.
    pub(crate) const fn frees_the_probe(self) -> bool {
        matches!(self.kind, Kind::HandBack | Kind::GoodProbe)
    }

    /// The failures in a row that it opens a closed circuit with.
    pub(crate) const fn failures(self) -> Option<u32> {
        match (self.before.failures(), self.after.cause()) {
            (Some(failures), Some(Cause::Failures)) => Some(failures + 1),
            (failures, _) => failures,
        }
    }
}

/// What a call meets.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admit {
    /// Closed: the call passes, and there is nothing to write.
    Pass,
    /// The probe is free: whoever makes this transition is the probe.
    Claim(Transition),
    /// A probe is in flight, and its lease runs for so many more ticks.
    Wait { lease_left: u32 },
    /// Open for so many more ticks.
    Reject { open_left: u32, cause: Cause },
    /// Recovering: whether the call passes is a matter of chance and of the ticks that are left.
    OnRamp { ramp_left: u32 },
    /// Recovering, and the ramp is over: after this transition the call passes.
    EndRamp(Transition),
}

/// What a success of a normal call does.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Success {
    /// The circuit is no longer closed in the generation of the call.
    Late,
    /// Nothing was counted: there is nothing to write.
    Clean,
    /// It ends a row of failures.
    EndRow(Transition),
}

/// What a failure of a normal call does.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The circuit is no longer closed or recovering in the generation of the call.
    Late,
    /// Failures in a row do not matter.
    NotCounted,
    /// One more, below the threshold: the word that follows.
    Count(Word),
    /// The ramp is over: after this transition the failure counts.
    EndRamp(Transition),
    /// The threshold is reached: see [`Word::tripped`].
    Trip,
}

/// Ticks until an open circuit takes its probe, by a clock that may be off by [`COARSE_ERROR`]: `None` where a better
/// clock could see no tick left. Asked of the raw word, for each call that is rejected.
#[inline]
pub(crate) const fn open_left_for_sure(cause: Cause, until: u32, about_now: u32, longest: u32) -> Option<u32> {
    match open_ticks_left(cause, until, about_now, longest) {
        0..=COARSE_ERROR => None,
        open_left => Some(open_left),
    }
}

impl Word {
    /// Whether the circuit has opened again since a probe of `generation` was in flight.
    pub(crate) const fn is_reopened_since(self, generation: u32) -> bool {
        matches!(self.state, State::Open { .. }) && generation_is_older(generation, self.generation)
    }

    /// Ticks until an open circuit takes its probe, or [`FOREVER`]; 0 in every other state.
    pub(crate) const fn open_left(self, now: u32, longest: u32) -> u32 {
        match self.state {
            State::Open { cause, until, .. } => open_ticks_left(cause, until, now, longest),
            State::Closed { .. } | State::HalfOpen { .. } | State::Recovering { .. } | State::Disabled => 0,
        }
    }

    /// A call comes.
    pub(crate) const fn admit(self, now: u32, limits: Limits) -> Admit {
        self.admit_early(now, limits, 0)
    }

    /// A call comes that may be the probe when so many ticks of the open time are left.
    pub(crate) const fn admit_early(self, now: u32, limits: Limits, early: u32) -> Admit {
        let new_lease_end = now.wrapping_add(limits.lease_ticks);
        let (kind, lease_end, streak, good_probes) = match self.state {
            State::Closed { .. } | State::Disabled => return Admit::Pass,
            State::Recovering { until, .. } => {
                return match ticks_left(until, now, limits.ramp_ticks) {
                    0 => Admit::EndRamp(self.closes(Kind::EndRamp)),
                    ramp_left => Admit::OnRamp { ramp_left },
                };
            }
            State::Open { cause, streak, .. } => match self.open_left(now, limits.longest_open_ticks) {
                open_left if open_left <= early => (Kind::Claim, new_lease_end, streak, 0),
                open_left => return Admit::Reject { open_left, cause },
            },
            State::HalfOpen { in_flight: false, lease_end, streak, good_probes } => {
                (Kind::Claim, later_than(lease_end, new_lease_end), streak, good_probes)
            }
            State::HalfOpen { in_flight: true, lease_end, streak, good_probes } => {
                match ticks_left(lease_end, now, limits.lease_ticks) {
                    0 => (Kind::TakeOver, later_than(lease_end, new_lease_end), streak, good_probes),
                    lease_left => return Admit::Wait { lease_left },
                }
            }
        };
        Admit::Claim(Transition::new(kind, self, State::HalfOpen { in_flight: true, lease_end, streak, good_probes }))
    }

    /// Whether a recovering circuit's ramp is over, so that it is closed for all who ask.
    pub(crate) const fn is_ramp_over(self, now: u32, ramp_ticks: u32) -> bool {
        matches!(self.state, State::Recovering { until, .. } if ticks_left(until, now, ramp_ticks) == 0)
    }

    /// A normal call that was admitted in `generation` succeeded. `outdated`: it began before the newest call that
    /// failed, and so says nothing about the time since.
    pub(crate) const fn succeeded(self, generation: u32, outdated: bool) -> Success {
        if self.generation != generation {
            return Success::Late;
        }
        let clean = match self.state {
            State::Closed { failures: 0, .. } | State::Recovering { failures: 0, .. } => return Success::Clean,
            State::Closed { .. } | State::Recovering { .. } if outdated => return Success::Clean,
            State::Closed { by_order, .. } => State::Closed { failures: 0, told: 0, suspected: false, by_order },
            State::Recovering { until, streak, .. } => State::Recovering { until, streak, failures: 0 },
            State::Open { .. } | State::HalfOpen { .. } | State::Disabled => return Success::Late,
        };
        Success::EndRow(Transition::new(Kind::EndRow, self, clean))
    }

    /// A normal call that was admitted in `generation` failed. [`failure`](super::failure) is the same, where calls are
    /// not measured and the circuit is closed.
    pub(crate) fn failed(self, generation: u32, now: u32, row: Row, limits: Limits) -> Failed {
        if self.generation != generation {
            return Failed::Late;
        }
        let (failures, threshold) = match self.state {
            State::Closed { failures, told, .. } => {
                let goes_on = row.memory.is_none_or(|memory| is_within(told, now, memory));
                (if goes_on { failures + 1 } else { 1 }, row.threshold)
            }
            State::Recovering { .. } if self.is_ramp_over(now, limits.ramp_ticks) => {
                return Failed::EndRamp(self.closes(Kind::EndRamp));
            }
            State::Recovering { failures, .. } => (failures + 1, row.ramp_threshold),
            State::Open { .. } | State::HalfOpen { .. } | State::Disabled => return Failed::Late,
        };
        let Some(threshold) = threshold else { return Failed::NotCounted };
        if failures >= threshold {
            return Failed::Trip;
        }
        let state = match self.state {
            State::Recovering { until, streak, .. } => State::Recovering { until, streak, failures },
            State::Closed { told, suspected, by_order, .. } => {
                let told = match row.memory {
                    Some(_) => later_told(told, now),
                    None if suspected => told,
                    None => 0,
                };
                State::Closed { failures, told, suspected, by_order }
            }
            other => other,
        };
        Failed::Count(Word { state, ..self })
    }

    /// A closed or recovering circuit opens. `open_ticks` says how long after so many failed recoveries in a row: this
    /// is another one, if the circuit recovers.
    pub(crate) fn tripped(
        self,
        cause: Cause,
        now: u32,
        limits: Limits,
        open_ticks: impl FnOnce(u32) -> u32,
    ) -> Transition {
        let streak = match self.state {
            State::Recovering { streak, .. } if !self.is_ramp_over(now, limits.ramp_ticks) => {
                (streak + 1).min(MAX_STREAK)
            }
            _ => 0,
        };
        self.opens(Kind::Trip, cause, now.wrapping_add(open_ticks(streak)), streak)
    }

    /// A silent call was answered after all. `None` where that decides nothing.
    pub(crate) const fn silence_ended(self) -> Option<Transition> {
        let is_silent = matches!(self.state, State::Open { cause: Cause::Silence, .. });
        if is_silent { Some(self.closes(Kind::EndSilence)) } else { None }
    }

    /// A caller asks for a cooldown of `ticks`. `None` if the circuit is open for as long already, or if a probe is in
    /// flight, which decides. If the probe is free, this call knows what a probe would find out.
    pub(crate) const fn cooled_down(self, now: u32, ticks: u32, limits: Limits) -> Option<Transition> {
        let until = now.wrapping_add(ticks);
        match self.state {
            // The upstream lives, so this is no failed recovery, and no complete one.
            State::Recovering { streak, .. } if !self.is_ramp_over(now, limits.ramp_ticks) => {
                Some(self.opens(Kind::Trip, Cause::Cooldown, until, streak))
            }
            State::Closed { .. } | State::Recovering { .. } => Some(self.opens(Kind::Trip, Cause::Cooldown, until, 0)),
            State::Open { streak, .. } if self.open_left(now, limits.longest_open_ticks) < ticks => {
                Some(self.opens(Kind::Extend, Cause::Cooldown, until, streak))
            }
            State::HalfOpen { in_flight: false, streak, .. } => {
                Some(self.opens(Kind::Reopen, Cause::Cooldown, until, streak))
            }
            State::Open { .. } | State::HalfOpen { .. } | State::Disabled => None,
        }
    }

    /// An order by hand.
    pub(crate) const fn ordered(self, order: Kind) -> Transition {
        let after = match order {
            Kind::Isolate => State::Open { cause: Cause::Isolated, until: 0, streak: 0 },
            Kind::Disable | Kind::Evict => State::Disabled,
            _ => State::Closed { failures: 0, told: 0, suspected: false, by_order: true },
        };
        Transition::opening(order, self, after)
    }

    /// The breaker leaves its registry. Failures in a row do not keep it, or a name that failed once would stay for
    /// ever.
    pub(crate) const fn evicted(self, now: u32, ramp_ticks: u32) -> Option<Transition> {
        let is_closed = matches!(self.state, State::Closed { .. }) || self.is_ramp_over(now, ramp_ticks);
        if is_closed { Some(self.ordered(Kind::Evict)) } else { None }
    }

    // Of the word that a probe claimed. `None` if no probe is in flight, as in the word of a permit that stands in for
    // a probe by name.

    /// The probe succeeded, and `needed` good ones in a row close the circuit, or begin the ramp if there is one.
    pub(crate) const fn probe_succeeded(self, needed: u32, now: u32, ramp_ticks: u32) -> Option<Transition> {
        match self.state {
            State::HalfOpen { in_flight: true, streak, good_probes, .. } if good_probes + 1 >= needed => {
                let until = now.wrapping_add(ramp_ticks);
                let ramp = State::Recovering { until, streak, failures: 0 };
                Some(Transition::new(Kind::Close, self, if ramp_ticks == 0 { State::CLEAN } else { ramp }))
            }
            State::HalfOpen { in_flight: true, lease_end, streak, good_probes } => {
                let free = State::HalfOpen { in_flight: false, lease_end, streak, good_probes: good_probes + 1 };
                Some(Transition::new(Kind::GoodProbe, self, free))
            }
            _ => None,
        }
    }

    /// The probe failed, or goes unanswered. `open_ticks` says how long the circuit is open after so many failed
    /// recoveries in a row.
    pub(crate) fn probe_failed(
        self,
        cause: Cause,
        now: u32,
        open_ticks: impl FnOnce(u32) -> u32,
    ) -> Option<Transition> {
        match self.state {
            State::HalfOpen { in_flight: true, streak, .. } => {
                let streak = (streak + 1).min(MAX_STREAK);
                Some(self.opens(Kind::Reopen, cause, now.wrapping_add(open_ticks(streak)), streak))
            }
            _ => None,
        }
    }

    /// The probe asks for a cooldown of `ticks`. The upstream lives, so this is no failed recovery.
    pub(crate) const fn probe_cooled_down(self, now: u32, ticks: u32) -> Option<Transition> {
        let State::HalfOpen { in_flight: true, streak, .. } = self.state else { return None };
        Some(self.opens(Kind::Reopen, Cause::Cooldown, now.wrapping_add(ticks), streak))
    }

    /// The probe was cancelled, and the next caller may have it. The end of its lease stays, so that the next claim
    /// differs from it.
    pub(crate) const fn probe_cancelled(self) -> Option<Transition> {
        match self.state {
            State::HalfOpen { in_flight: true, lease_end, streak, good_probes } => {
                let free = State::HalfOpen { in_flight: false, lease_end, streak, good_probes };
                Some(Transition::new(Kind::HandBack, self, free))
            }
            _ => None,
        }
    }

    const fn opens(self, kind: Kind, cause: Cause, until: u32, streak: u32) -> Transition {
        Transition::opening(kind, self, State::Open { cause, until, streak })
    }

    const fn closes(self, kind: Kind) -> Transition {
        Transition::new(kind, self, State::CLEAN)
    }
}

#[cfg(test)]
mod tests;
