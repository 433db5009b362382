//! The word: a circuit's whole state in 64 bits, so that one load decides what becomes of a call.
//!
//! Not here: atomics, clocks and waiting. How one word follows from another: `word::step`.
//!
//! | bits  | width | field      | note                                                                                 |
//! |-------|-------|------------|--------------------------------------------------------------------------------------|
//! | 46-63 | 18    | generation | +1 with each opening, each extension of one, and each order by hand                  |
//! | 42-45 | 4     | phase      | the state, and what decides within it: see below                                     |
//! | 32-41 | 10    | count      | closed: failures in a row. Otherwise: failed recoveries in a row (4), good probes (6) |
//! | 0-31  | 32    | deadline   | in ticks of 1 ms: see below                                                          |
//!
//! | phase     | state                         | deadline                                     |
//! |-----------|-------------------------------|----------------------------------------------|
//! | 0         | closed                        | 1 if an order began this generation, or 0    |
//! | 1         | disabled                      | 0                                            |
//! | 2         | half-open, the probe is free  | when the last probe's lease would have ended |
//! | 3         | half-open, a probe in flight  | when its lease ends                          |
//! | 8 + cause | open                          | when the next call may be the probe          |

pub(crate) mod step;

use crate::transition::{Cause, CircuitState};

const DEADLINE_BITS: u32 = 32;
const COUNT_BITS: u32 = 10;
const PHASE_BITS: u32 = 4;
pub(crate) const GENERATION_BITS: u32 = 18;

const COUNT_SHIFT: u32 = DEADLINE_BITS;
const PHASE_SHIFT: u32 = COUNT_SHIFT + COUNT_BITS;
const GENERATION_SHIFT: u32 = PHASE_SHIFT + PHASE_BITS;

const _: () = assert!(GENERATION_SHIFT + GENERATION_BITS == u64::BITS);

const fn low_bits(width: u32) -> u64 {
    (1 << width) - 1
}

#[expect(clippy::cast_possible_truncation, reason = "no field is wider than 32 bits")]
const fn field(word: u64, shift: u32, width: u32) -> u32 {
    (word >> shift & low_bits(width)) as u32
}

const COUNT_MASK: u64 = low_bits(COUNT_BITS) << COUNT_SHIFT;
const PHASE_MASK: u64 = low_bits(PHASE_BITS) << PHASE_SHIFT;
/// No bit of it is set while calls pass: the phases 0 and 1.
const BLOCKED_MASK: u64 = PHASE_MASK & !(1 << PHASE_SHIFT);
const GENERATION_MASK: u64 = low_bits(GENERATION_BITS) << GENERATION_SHIFT;
const GENERATION_LIMIT: u32 = 1 << GENERATION_BITS;
const ONE_FAILURE: u64 = 1 << COUNT_SHIFT;

/// The highest failure threshold that the word can count to.
pub(crate) const MAX_FAILURES: u32 = (1 << COUNT_BITS) - 1;

// The two parts of the count while the circuit is not closed.
const GOOD_PROBES_BITS: u32 = 6;
pub(crate) const MAX_GOOD_PROBES: u32 = (1 << GOOD_PROBES_BITS) - 1;
const MAX_STREAK: u32 = (1 << (COUNT_BITS - GOOD_PROBES_BITS)) - 1;

const CLOSED: u32 = 0;
const DISABLED: u32 = 1;
const PROBE_FREE: u32 = 2;
const PROBE_IN_FLIGHT: u32 = 3;
const OPEN: u32 = 8;

/// What tells a probe in flight from a free one.
pub(crate) const PROBE_BIT: u64 = ((PROBE_FREE ^ PROBE_IN_FLIGHT) as u64) << PHASE_SHIFT;

// ---- questions that are asked of the raw word ----

/// Whether calls pass: the one question of the hot path.
#[inline]
pub(crate) const fn passes(word: u64) -> bool {
    word & BLOCKED_MASK == 0
}

/// Whether a success of a normal call has nothing to reset, whatever its generation: the rule that keeps the hot path
/// free of writes.
#[inline]
pub(crate) const fn is_clean(word: u64) -> bool {
    word & (PHASE_MASK | COUNT_MASK) == 0
}

pub(crate) const fn has_probe_in_flight(word: u64) -> bool {
    word & PHASE_MASK == (PROBE_IN_FLIGHT as u64) << PHASE_SHIFT
}

/// Why an open circuit is open, and until which tick. `None` in every other state.
#[inline]
pub(crate) const fn open_until(word: u64) -> Option<(Cause, u32)> {
    let phase = field(word, PHASE_SHIFT, PHASE_BITS);
    if phase < OPEN { None } else { Some((cause_of(phase), field(word, 0, DEADLINE_BITS))) }
}

/// What a failure of a normal call does.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The circuit is no longer closed in the generation of the call.
    Late,
    /// One more, below the threshold: the word that follows.
    Count(u64),
    /// The threshold is reached: see [`Word::tripped`].
    Trip,
}

/// A normal call that was admitted by the word `granted` failed. Asked of the raw word, since calls of all
/// threads may fail at once: decoding writes to the stack, and the swap would wait for those writes.
#[inline]
pub(crate) const fn failure(word: u64, granted: u64, failure_threshold: u32) -> Failure {
    // Not a comparison of the two phases: a disabled circuit counts nothing.
    if word & (GENERATION_MASK | PHASE_MASK) != granted & GENERATION_MASK {
        return Failure::Late;
    }
    if (word & COUNT_MASK) + ONE_FAILURE < failure_threshold as u64 * ONE_FAILURE {
        Failure::Count(word + ONE_FAILURE)
    } else {
        Failure::Trip
    }
}

// ---- the decoded word ----

/// A word, decoded: for everything but the hot path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) generation: u32,
    pub(crate) state: State,
}

/// What a word says besides its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// So many failures in a row. `by_order`: nothing but an order by hand began this generation.
    Closed { failures: u32, by_order: bool },
    /// By hand: calls pass, and nothing is counted.
    Disabled,
    /// Until the tick `until`.
    Open { cause: Cause, until: u32, streak: u32 },
    /// So many probes in a row have succeeded since the circuit was open. `lease_end` is that of the probe in flight,
    /// or of the last one that was.
    HalfOpen { in_flight: bool, lease_end: u32, streak: u32, good_probes: u32 },
}

impl Word {
    /// A new breaker's.
    pub(crate) const INITIAL: Self = Self { generation: 0, state: State::Closed { failures: 0, by_order: false } };

    pub(crate) const fn unpack(word: u64) -> Self {
        let count = field(word, COUNT_SHIFT, COUNT_BITS);
        let (good_probes, streak) = (count & MAX_GOOD_PROBES, count >> GOOD_PROBES_BITS);
        let deadline = field(word, 0, DEADLINE_BITS);
        let state = match field(word, PHASE_SHIFT, PHASE_BITS) {
            CLOSED => State::Closed { failures: count, by_order: deadline != 0 },
            DISABLED => State::Disabled,
            PROBE_FREE => State::HalfOpen { in_flight: false, lease_end: deadline, streak, good_probes },
            PROBE_IN_FLIGHT => State::HalfOpen { in_flight: true, lease_end: deadline, streak, good_probes },
            phase => State::Open { cause: cause_of(phase), until: deadline, streak },
        };
        Self { generation: field(word, GENERATION_SHIFT, GENERATION_BITS), state }
    }

    pub(crate) const fn pack(self) -> u64 {
        let (phase, count, deadline) = match self.state {
            State::Closed { failures, by_order } => (CLOSED, failures, by_order as u32),
            State::Disabled => (DISABLED, 0, 0),
            State::Open { cause, until, streak } => (OPEN + cause as u32, streak << GOOD_PROBES_BITS, until),
            State::HalfOpen { in_flight, lease_end, streak, good_probes } => (
                if in_flight { PROBE_IN_FLIGHT } else { PROBE_FREE },
                streak << GOOD_PROBES_BITS | good_probes,
                lease_end,
            ),
        };
        debug_assert!(self.generation < GENERATION_LIMIT && count <= MAX_FAILURES);
        (self.generation as u64) << GENERATION_SHIFT
            | (phase as u64) << PHASE_SHIFT
            | (count as u64) << COUNT_SHIFT
            | deadline as u64
    }

    pub(crate) const fn circuit_state(self) -> CircuitState {
        match self.state {
            State::Closed { .. } => CircuitState::Closed,
            State::Open { .. } => CircuitState::Open,
            State::HalfOpen { .. } => CircuitState::HalfOpen,
            State::Disabled => CircuitState::Disabled,
        }
    }

    /// Failures in a row. `None` after an opening: then they are in the history.
    pub(crate) const fn failures(self) -> Option<u32> {
        match self.state {
            State::Closed { failures, .. } => Some(failures),
            State::Disabled | State::Open { cause: Cause::Isolated, .. } => Some(0),
            State::Open { .. } | State::HalfOpen { .. } => None,
        }
    }

    /// Why the circuit is open. `None` unless it is.
    pub(crate) const fn cause(self) -> Option<Cause> {
        match self.state {
            State::Open { cause, .. } => Some(cause),
            State::Closed { .. } | State::HalfOpen { .. } | State::Disabled => None,
        }
    }

    pub(crate) const fn has_probe_in_flight(self) -> bool {
        matches!(self.state, State::HalfOpen { in_flight: true, .. })
    }

    /// Whether an order by hand began its generation, and not an opening.
    pub(crate) const fn is_by_order(self) -> bool {
        matches!(
            self.state,
            State::Closed { by_order: true, .. } | State::Disabled | State::Open { cause: Cause::Isolated, .. }
        )
    }

    pub(crate) const fn is_closed_in(self, generation: u32) -> bool {
        matches!(self.state, State::Closed { .. }) && self.generation == generation
    }
}

/// Not by [`Cause::ALL`]: a rejection would take a quarter longer.
const fn cause_of(phase: u32) -> Cause {
    match phase - OPEN {
        0 => Cause::Failures,
        1 => Cause::Silence,
        2 => Cause::Cooldown,
        3 => Cause::Isolated,
        _ => panic!("no transition writes this phase"),
    }
}

/// The generation after `generation`, which wraps within its field.
pub(crate) const fn next_generation(generation: u32) -> u32 {
    (generation + 1) % GENERATION_LIMIT
}

/// Whether `generation` comes before `other`, where the two are less than half of all generations apart.
pub(crate) const fn generation_is_older(generation: u32, other: u32) -> bool {
    let behind = other.wrapping_sub(generation) % GENERATION_LIMIT;
    0 < behind && behind < GENERATION_LIMIT / 2
}

#[cfg(test)]
mod tests;
