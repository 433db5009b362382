//! The word: a circuit's whole state in 64 bits, so that one load decides what becomes of a call.
//!
//! Not here: atomics, clocks and waiting. How one word follows from another: `word::step`.
//!
//! | bits  | width | field      | note                                                                                  |
//! |-------|-------|------------|---------------------------------------------------------------------------------------|
//! | 47-63 | 17    | generation | +1 with each opening, each extension of one, and each order by hand                   |
//! | 46    | 1     | measured   | whether there is more to a call than the row of failures: see `settings`              |
//! | 42-45 | 4     | phase      | the state, and what decides within it: see below                                      |
//! | 32-41 | 10    | count      | closed: failures in a row. Otherwise: failed recoveries in a row (4), and good probes |
//! |       |       |            | or, while recovering, failures in a row (6)                                           |
//! | 0-31  | 32    | deadline   | in ticks of 1 ms: see below                                                           |
//!
//! | phase     | state                         | deadline                                                           |
//! |-----------|-------------------------------|--------------------------------------------------------------------|
//! | 0         | closed                        | when the newest failure was told (30), suspected (1), by order (1)  |
//! | 1         | disabled                      | 0                                                                  |
//! | 2         | half-open, the probe is free  | when the last probe's lease would have ended                       |
//! | 3         | half-open, a probe in flight  | when its lease ends                                                |
//! | 4         | recovering                    | when all calls pass again                                          |
//! | 8 + cause | open                          | when the next call may be the probe                                |

pub(crate) mod step;

use crate::transition::{Cause, CircuitState};

const DEADLINE_BITS: u32 = 32;
const COUNT_BITS: u32 = 10;
const PHASE_BITS: u32 = 4;
pub(crate) const GENERATION_BITS: u32 = 17;

const COUNT_SHIFT: u32 = DEADLINE_BITS;
const PHASE_SHIFT: u32 = COUNT_SHIFT + COUNT_BITS;
const MEASURED_SHIFT: u32 = PHASE_SHIFT + PHASE_BITS;
const GENERATION_SHIFT: u32 = MEASURED_SHIFT + 1;

const _: () = assert!(GENERATION_SHIFT + GENERATION_BITS == u64::BITS);

const fn low_bits(width: u32) -> u64 {
    (1 << width) - 1
}

#[expect(clippy::cast_possible_truncation, reason = "no field is wider than 32 bits")]
const fn field(word: u64, shift: u32, width: u32) -> u32 {
    (word >> shift & low_bits(width)) as u32
}

const DEADLINE_MASK: u64 = low_bits(DEADLINE_BITS);
const COUNT_MASK: u64 = low_bits(COUNT_BITS) << COUNT_SHIFT;
const PHASE_MASK: u64 = low_bits(PHASE_BITS) << PHASE_SHIFT;
/// No bit of it is set while calls pass: the phases 0 and 1.
const BLOCKED_MASK: u64 = PHASE_MASK & !(1 << PHASE_SHIFT);
/// Set by the settings alone, and carried along by every transition. It joins masks that are tested anyway, so that
/// policies which nobody uses cost nothing.
const MEASURED_BIT: u64 = 1 << MEASURED_SHIFT;
const GENERATION_MASK: u64 = low_bits(GENERATION_BITS) << GENERATION_SHIFT;
const GENERATION_LIMIT: u32 = 1 << GENERATION_BITS;
const ONE_FAILURE: u64 = 1 << COUNT_SHIFT;

/// The highest failure threshold that the word can count to.
pub(crate) const MAX_FAILURES: u32 = (1 << COUNT_BITS) - 1;

// The two parts of the count while the circuit is not closed.
const SMALL_COUNT_BITS: u32 = 6;
/// The most good probes, and the most failures of a recovering circuit, that the word can count to.
pub(crate) const MAX_SMALL_COUNT: u32 = (1 << SMALL_COUNT_BITS) - 1;
const MAX_STREAK: u32 = (1 << (COUNT_BITS - SMALL_COUNT_BITS)) - 1;

const CLOSED: u32 = 0;
const DISABLED: u32 = 1;
const PROBE_FREE: u32 = 2;
const PROBE_IN_FLIGHT: u32 = 3;
const RECOVERING: u32 = 4;
const OPEN: u32 = 8;

/// What tells a probe in flight from a free one.
pub(crate) const PROBE_BIT: u64 = ((PROBE_FREE ^ PROBE_IN_FLIGHT) as u64) << PHASE_SHIFT;

// ---- questions that are asked of the raw word ----

/// Whether calls pass.
#[inline]
pub(crate) const fn passes(word: u64) -> bool {
    word & BLOCKED_MASK == 0
}

/// Whether calls pass, and there is nothing to remember about them: the one question of the hot path.
#[inline]
pub(crate) const fn is_plain(word: u64) -> bool {
    word & (BLOCKED_MASK | MEASURED_BIT) == 0
}

/// Whether a success of a normal call has nothing to reset and nothing to count, whatever its generation: the rule that
/// keeps the hot path free of writes.
#[inline]
pub(crate) const fn is_clean(word: u64) -> bool {
    word & (PHASE_MASK | COUNT_MASK | MEASURED_BIT) == 0
}

/// Whether two words are the same but for whether calls are measured: settings may be replaced while a probe is in
/// flight or a circuit is silent.
pub(crate) const fn is_same_state(word: u64, other: u64) -> bool {
    (word ^ other) & !MEASURED_BIT == 0
}

/// Whether outcomes of normal calls count.
pub(crate) const fn is_normal(word: u64) -> bool {
    passes(word) || word & PHASE_MASK == (RECOVERING as u64) << PHASE_SHIFT
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
    /// The circuit is not closed in the generation of the call, or calls are measured: see `Word::failed`.
    Other,
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
    if word & (GENERATION_MASK | PHASE_MASK | MEASURED_BIT) != granted & GENERATION_MASK {
        return Failure::Other;
    }
    if (word & COUNT_MASK) + ONE_FAILURE < failure_threshold as u64 * ONE_FAILURE {
        Failure::Count(word + ONE_FAILURE)
    } else {
        Failure::Trip
    }
}

// ---- the word of a permit ----
// A permit for a normal call keeps the word that granted it. If calls are measured, what that word counts is replaced
// by what the permit has to remember.

/// The deadline is the tick in which the call began.
const STARTED_BIT: u64 = ONE_FAILURE;
/// Dropping the permit counts as a failure.
const DROP_FAILS_BIT: u64 = ONE_FAILURE << 1;

/// The word of a normal permit that `word` grants, which may be a recovering one: closed, and with nothing counted. By
/// the deadline of a closed one it is known whether the call began before a suspicion.
pub(crate) const fn normal_permit(word: u64) -> u64 {
    let kept = if passes(word) { word & (PHASE_MASK | DEADLINE_MASK) } else { 0 };
    word & (GENERATION_MASK | MEASURED_BIT) | kept
}

/// The same for a call that is measured. `started` is the tick in which it begins, if that matters: then it tells calls
/// from before a suspicion as well.
pub(crate) const fn measured_permit(word: u64, started: Option<u32>, drop_fails: bool) -> u64 {
    let permit = match started {
        Some(tick) => {
            let phase = if passes(word) { word & PHASE_MASK } else { 0 };
            word & GENERATION_MASK | MEASURED_BIT | phase | STARTED_BIT | tick as u64
        }
        None => normal_permit(word) | MEASURED_BIT,
    };
    if drop_fails { permit | DROP_FAILS_BIT } else { permit }
}

/// When a measured call began. `None` if nobody noted it.
pub(crate) const fn started(permit: u64) -> Option<u32> {
    if permit & MEASURED_BIT != 0 && permit & STARTED_BIT != 0 { Some(field(permit, 0, DEADLINE_BITS)) } else { None }
}

/// Of the word of a normal permit: whether dropping it counts as a failure.
#[inline]
pub(crate) const fn drop_fails(permit: u64) -> bool {
    permit & (MEASURED_BIT | DROP_FAILS_BIT) == MEASURED_BIT | DROP_FAILS_BIT
}

/// The word of a permit that may be dropped: it changes nothing then, and if it is the probe's, it hands the probe
/// back.
#[inline]
pub(crate) const fn droppable(permit: u64) -> u64 {
    match (passes(permit), is_measured(permit)) {
        (true, true) => permit & !DROP_FAILS_BIT,
        (true, false) => permit,
        (false, _) => permit & !PROBE_BIT,
    }
}

/// The generation of a call.
pub(crate) const fn generation(word: u64) -> u32 {
    field(word, GENERATION_SHIFT, GENERATION_BITS)
}

pub(crate) const fn is_measured(word: u64) -> bool {
    word & MEASURED_BIT != 0
}

/// The same word, for settings by which calls are measured or not.
pub(crate) const fn with_measured(word: u64, measured: bool) -> u64 {
    if measured { word | MEASURED_BIT } else { word & !MEASURED_BIT }
}

// ---- the decoded word ----

/// A word, decoded: for everything but the hot path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) generation: u32,
    /// Whether there is more to a call than the row of failures.
    pub(crate) measured: bool,
    pub(crate) state: State,
}

/// What a word says besides its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// So many failures in a row, and when the newest one was told: 0 if that does not matter, or [`told_at`] a tick.
    /// `suspected`: some of them are hearsay, and `told` is when it was heard. `by_order`: nothing but an order by hand
    /// began this generation.
    Closed { failures: u32, told: u32, suspected: bool, by_order: bool },
    /// By hand: calls pass, and nothing is counted.
    Disabled,
    /// Until the tick `until`.
    Open { cause: Cause, until: u32, streak: u32 },
    /// So many probes in a row have succeeded since the circuit was open. `lease_end` is that of the probe in flight,
    /// or of the last one that was.
    HalfOpen { in_flight: bool, lease_end: u32, streak: u32, good_probes: u32 },
    /// A growing share of calls passes, and from the tick `until` on all of them. So many of them failed in a row.
    Recovering { until: u32, streak: u32, failures: u32 },
}

impl State {
    /// Closed, with nothing to remember.
    pub(crate) const CLEAN: Self = Self::Closed { failures: 0, told: 0, suspected: false, by_order: false };
}

/// The latest time that a closed word can remember.
pub(crate) const LAST_TOLD: u32 = u32::MAX >> 2;

/// A tick as a closed word remembers it: it has two bits less than a deadline, and so wraps after 12.4 days. It is
/// never 0, which stands for none.
pub(crate) const fn told_at(tick: u32) -> u32 {
    let told = tick & LAST_TOLD;
    if told == 0 { 1 } else { told }
}

impl Word {
    /// A new breaker's.
    pub(crate) const INITIAL: Self = Self { generation: 0, measured: false, state: State::CLEAN };

    pub(crate) const fn unpack(word: u64) -> Self {
        let count = field(word, COUNT_SHIFT, COUNT_BITS);
        let (small, streak) = (count & MAX_SMALL_COUNT, count >> SMALL_COUNT_BITS);
        let deadline = field(word, 0, DEADLINE_BITS);
        let state = match field(word, PHASE_SHIFT, PHASE_BITS) {
            CLOSED => State::Closed {
                failures: count,
                told: deadline >> 2,
                suspected: deadline & 2 != 0,
                by_order: deadline & 1 != 0,
            },
            DISABLED => State::Disabled,
            PROBE_FREE => State::HalfOpen { in_flight: false, lease_end: deadline, streak, good_probes: small },
            PROBE_IN_FLIGHT => State::HalfOpen { in_flight: true, lease_end: deadline, streak, good_probes: small },
            RECOVERING => State::Recovering { until: deadline, streak, failures: small },
            phase => State::Open { cause: cause_of(phase), until: deadline, streak },
        };
        Self { generation: generation(word), measured: is_measured(word), state }
    }

    pub(crate) const fn pack(self) -> u64 {
        let (phase, count, deadline) = match self.state {
            State::Closed { failures, told, suspected, by_order } => {
                (CLOSED, failures, told << 2 | (suspected as u32) << 1 | by_order as u32)
            }
            State::Disabled => (DISABLED, 0, 0),
            State::Open { cause, until, streak } => (OPEN + cause as u32, streak << SMALL_COUNT_BITS, until),
            State::HalfOpen { in_flight, lease_end, streak, good_probes } => (
                if in_flight { PROBE_IN_FLIGHT } else { PROBE_FREE },
                streak << SMALL_COUNT_BITS | good_probes,
                lease_end,
            ),
            State::Recovering { until, streak, failures } => (RECOVERING, streak << SMALL_COUNT_BITS | failures, until),
        };
        debug_assert!(self.generation < GENERATION_LIMIT && count <= MAX_FAILURES);
        (self.generation as u64) << GENERATION_SHIFT
            | (self.measured as u64) << MEASURED_SHIFT
            | (phase as u64) << PHASE_SHIFT
            | (count as u64) << COUNT_SHIFT
            | deadline as u64
    }

    pub(crate) const fn circuit_state(self) -> CircuitState {
        match self.state {
            State::Closed { .. } => CircuitState::Closed,
            State::Open { .. } => CircuitState::Open,
            State::HalfOpen { .. } => CircuitState::HalfOpen,
            State::Recovering { .. } => CircuitState::Recovering,
            State::Disabled => CircuitState::Disabled,
        }
    }

    /// Failures in a row. `None` after an opening: then they are in the history.
    pub(crate) const fn failures(self) -> Option<u32> {
        match self.state {
            State::Closed { failures, .. } | State::Recovering { failures, .. } => Some(failures),
            State::Disabled | State::Open { cause: Cause::Isolated, .. } => Some(0),
            State::Open { .. } | State::HalfOpen { .. } => None,
        }
    }

    /// Why the circuit is open. `None` unless it is.
    pub(crate) const fn cause(self) -> Option<Cause> {
        match self.state {
            State::Open { cause, .. } => Some(cause),
            State::Closed { .. } | State::HalfOpen { .. } | State::Recovering { .. } | State::Disabled => None,
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

    /// Whether outcomes of normal calls can open it: the circuit is closed or recovering.
    pub(crate) const fn can_trip(self) -> bool {
        matches!(self.state, State::Closed { .. } | State::Recovering { .. })
    }
}

/// By the phase without its highest bit. No transition writes the last one.
const CAUSES: [Cause; 8] = [
    Cause::Failures,
    Cause::Rate,
    Cause::Slow,
    Cause::Silence,
    Cause::Cooldown,
    Cause::Fleet,
    Cause::Isolated,
    Cause::Isolated,
];

/// Not by [`Cause::ALL`]: a rejection would take a quarter longer.
const fn cause_of(phase: u32) -> Cause {
    CAUSES[(phase & 7) as usize]
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
