//! The word: everything one load must decide, and the transitions between its values.
//!
//! Not here: atomics, clocks and waiting: everything is a pure function of the word and the time.
//!
//! | bits  | width | field           | note                                                              |
//! |-------|-------|-----------------|-------------------------------------------------------------------|
//! | 46-63 | 18    | generation      | +1 each time the circuit opens, failed probes included            |
//! | 43-45 | 3     | state           | `Closed`, `Open`, `HalfOpen`, or open because of silence          |
//! | 42    | 1     | probe in flight | `HalfOpen` with 0 is real: a cancelled probe was handed back      |
//! | 32-41 | 10    | failure count   | failures in a row while `Closed`; kept readable until it closes   |
//! | 0-31  | 32    | deadline        | `Open`: reopening. `HalfOpen`: end of the probe's lease. 1 ms ticks |
//!
//! | state      | a call                         | a success       | a failure         | the deadline passes              |
//! |------------|--------------------------------|-----------------|-------------------|----------------------------------|
//! | `Closed`   | passes                         | count = 0       | +1, or opens      | -                                |
//! | `Open`     | is refused                     | late, ignored   | late, ignored     | the next call claims the probe   |
//! | `HalfOpen` | waits, or claims a free probe  | probe's: closes | probe's: reopens  | the next call takes the probe over |
//!
//! *Silent* is `Open` for another reason: calls go unanswered instead of failing. It is entered from `Closed`, or from
//! `HalfOpen` when the probe itself goes unanswered, and it has one more way out: an answer that comes after all closes
//! it.
//!
//! Half of this file is its tests. Nothing in it reads a clock, an atomic or a configuration. A transition is a
//! function of the word, the tick and the limits that it is given; the caller's compare-and-swap decides whether it
//! happened.

use std::fmt;

const DEADLINE_BITS: u32 = 32;
const FAILURE_COUNT_BITS: u32 = 10;
const PROBE_BITS: u32 = 1;
const STATE_BITS: u32 = 3;
pub(crate) const GENERATION_BITS: u32 = 18;

const FAILURE_COUNT_SHIFT: u32 = DEADLINE_BITS;
const PROBE_SHIFT: u32 = FAILURE_COUNT_SHIFT + FAILURE_COUNT_BITS;
const STATE_SHIFT: u32 = PROBE_SHIFT + PROBE_BITS;
const GENERATION_SHIFT: u32 = STATE_SHIFT + STATE_BITS;

const _: () = assert!(GENERATION_SHIFT + GENERATION_BITS == u64::BITS);

const fn low_bits(width: u32) -> u64 {
    (1 << width) - 1
}

/// Set while a probe is in flight.
pub(crate) const PROBE_BIT: u64 = 1 << PROBE_SHIFT;

const STATE_MASK: u64 = low_bits(STATE_BITS) << STATE_SHIFT;
const FAILURE_COUNT_MASK: u64 = low_bits(FAILURE_COUNT_BITS) << FAILURE_COUNT_SHIFT;
const ONE_FAILURE: u64 = 1 << FAILURE_COUNT_SHIFT;
const GENERATION_MASK: u64 = low_bits(GENERATION_BITS) << GENERATION_SHIFT;
const GENERATION_LIMIT: u32 = 1 << GENERATION_BITS;

/// The highest failure threshold that the word can count to.
pub(crate) const MAX_FAILURE_COUNT: u32 = (1 << FAILURE_COUNT_BITS) - 1;

/// The longest that a deadline may lie ahead: far below the 49.7 days after which ticks wrap, so that a deadline ahead
/// can be told from one that passed.
pub(crate) const MAX_DEADLINE_TICKS: u32 = 24 * 60 * 60 * 1000;

/// How much older than a deadline's own clock reading another reading may be. A caller reads the clock and may be
/// descheduled while somebody else trips the breaker; without slack its older tick would make the new deadline look
/// passed.
const CLOCK_SLACK: u32 = 65_536;

/// How far a coarse clock may be off: two ticks of a kernel timer that ticks 100 times a second.
pub(crate) const COARSE_ERROR: u32 = 20;

/// State of a circuit. *Closed* means that traffic flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CircuitState {
    /// Calls pass, and failures in a row are counted.
    Closed,
    /// Calls are refused until the open time has passed; the next call after that is the probe.
    Open,
    /// One probe decides whether the circuit closes or opens again; other calls wait for it or are refused.
    HalfOpen,
}

impl CircuitState {
    /// The name used in logs and on health pages: `closed`, `open` or `half_open`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

impl fmt::Display for CircuitState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether calls pass: the one question of the hot path, asked of the raw word.
#[inline]
pub(crate) const fn is_closed(word: u64) -> bool {
    word & STATE_MASK == 0
}

/// Whether a success of an ordinary call has nothing to reset, whatever its generation: the rule that keeps the hot
/// path free of writes.
#[inline]
pub(crate) const fn is_clean(word: u64) -> bool {
    word & (STATE_MASK | FAILURE_COUNT_MASK) == 0
}

/// An ordinary call that was admitted by the closed word `granted` failed. Asked of the raw word, for calls of all
/// threads may fail at once: what decoding writes to the stack, the swap that follows would wait for.
#[inline]
pub(crate) const fn failure(word: u64, granted: u64, failure_threshold: u32) -> Failure {
    if (word ^ granted) & (GENERATION_MASK | STATE_MASK) != 0 {
        return Failure::Late;
    }
    if (word & FAILURE_COUNT_MASK) + ONE_FAILURE < failure_threshold as u64 * ONE_FAILURE {
        Failure::Count(word + ONE_FAILURE)
    } else {
        Failure::Trip
    }
}

/// What a transition needs of the configuration, in the word's own units.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// 1 to [`MAX_DEADLINE_TICKS`].
    pub(crate) open_ticks: u32,
    /// 1 to [`MAX_DEADLINE_TICKS`].
    pub(crate) lease_ticks: u32,
}

/// A word, decoded: for everything but the hot path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) generation: u32,
    pub(crate) state: CircuitState,
    /// `Open` only: not failures opened it, but silence.
    pub(crate) silent: bool,
    pub(crate) probe_in_flight: bool,
    pub(crate) failure_count: u32,
    deadline: u32,
}

/// What a call meets.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admit {
    /// Closed: pass, nothing to write.
    Pass,
    /// The probe is free: whoever swaps this in is the probe.
    Claim(Snapshot),
    /// A probe is in flight, and its lease runs for so many more ticks.
    Wait { lease_left: u32 },
    /// Open for so many more ticks.
    Refuse { open_left: u32 },
}

/// What a success of an ordinary call does.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Success {
    /// The circuit is no longer closed in the generation that the call belongs to.
    Late,
    /// Nothing was counted, nothing to write.
    Clean,
    /// It ends a row of failures.
    Reset(Snapshot),
}

/// What a failure of an ordinary call does.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The circuit is no longer closed in the generation that the call belongs to.
    Late,
    /// One more, below the threshold: the word that follows.
    Count(u64),
    /// The threshold is reached: see [`Snapshot::tripped`].
    Trip,
}

/// What the end of a probe does.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeEnd {
    /// No probe is in flight.
    Late,
    /// The word that follows.
    Resolve(Snapshot),
}

impl Snapshot {
    /// A new breaker's.
    pub(crate) const INITIAL: Self = Self {
        generation: 0,
        state: CircuitState::Closed,
        silent: false,
        probe_in_flight: false,
        failure_count: 0,
        deadline: 0,
    };

    pub(crate) const fn unpack(word: u64) -> Self {
        const fn field(word: u64, shift: u32, width: u32) -> u32 {
            #[expect(clippy::cast_possible_truncation, reason = "no field is wider than 32 bits")]
            let value = (word >> shift & low_bits(width)) as u32;
            value
        }
        let (state, silent) = match field(word, STATE_SHIFT, STATE_BITS) {
            0 => (CircuitState::Closed, false),
            1 => (CircuitState::Open, false),
            2 => (CircuitState::HalfOpen, false),
            3 => (CircuitState::Open, true),
            _ => panic!("no transition writes this state"),
        };
        Self {
            generation: field(word, GENERATION_SHIFT, GENERATION_BITS),
            state,
            silent,
            probe_in_flight: field(word, PROBE_SHIFT, PROBE_BITS) == 1,
            failure_count: field(word, FAILURE_COUNT_SHIFT, FAILURE_COUNT_BITS),
            deadline: field(word, 0, DEADLINE_BITS),
        }
    }

    pub(crate) const fn pack(self) -> u64 {
        debug_assert!(self.generation < GENERATION_LIMIT && self.failure_count <= MAX_FAILURE_COUNT);
        let state: u64 = match (self.state, self.silent) {
            (CircuitState::Closed, _) => 0,
            (CircuitState::Open, false) => 1,
            (CircuitState::HalfOpen, _) => 2,
            (CircuitState::Open, true) => 3,
        };
        (self.generation as u64) << GENERATION_SHIFT
            | state << STATE_SHIFT
            | (self.probe_in_flight as u64) << PROBE_SHIFT
            | (self.failure_count as u64) << FAILURE_COUNT_SHIFT
            | self.deadline as u64
    }

    pub(crate) const fn is_closed_in(self, generation: u32) -> bool {
        matches!(self.state, CircuitState::Closed) && self.generation == generation
    }

    /// Whether the circuit is open again since a probe of `generation` was in flight: it failed, or it closed the
    /// circuit and that has tripped since.
    pub(crate) const fn is_reopened_since(self, generation: u32) -> bool {
        matches!(self.state, CircuitState::Open) && self.generation == next_generation(generation)
    }

    /// Ticks until the deadline, 0 if it has passed; `ahead` is the longest that it was set ahead. Not a signed
    /// comparison: that would take a deadline for one to come during half of the 49.7 days in which ticks wrap.
    const fn ticks_left(self, now: u32, ahead: u32) -> u32 {
        let left = self.deadline.wrapping_sub(now);
        if left <= ahead + CLOCK_SLACK { left } else { 0 }
    }

    /// Ticks until an open circuit takes its probe; 0 in every other state.
    pub(crate) const fn open_left(self, now: u32, open_ticks: u32) -> u32 {
        match self.state {
            CircuitState::Open => self.ticks_left(now, open_ticks),
            CircuitState::Closed | CircuitState::HalfOpen => 0,
        }
    }

    /// The same by a clock that may be off by [`COARSE_ERROR`]: `None` where a better one could see no tick left.
    pub(crate) const fn open_left_for_sure(self, about_now: u32, open_ticks: u32) -> Option<u32> {
        match self.open_left(about_now, open_ticks) {
            0..=COARSE_ERROR => None,
            open_left => Some(open_left),
        }
    }

    /// Ticks until the lease of the probe in flight ends; 0 without one.
    pub(crate) const fn lease_left(self, now: u32, lease_ticks: u32) -> u32 {
        if self.probe_in_flight { self.ticks_left(now, lease_ticks) } else { 0 }
    }

    /// A call comes.
    pub(crate) const fn admit(self, now: u32, limits: Limits) -> Admit {
        let lease_end = now.wrapping_add(limits.lease_ticks);
        let deadline = match self.state {
            CircuitState::Closed => return Admit::Pass,
            CircuitState::Open => match self.open_left(now, limits.open_ticks) {
                0 => lease_end,
                open_left => return Admit::Refuse { open_left },
            },
            CircuitState::HalfOpen => match self.lease_left(now, limits.lease_ticks) {
                0 => later_than(self.deadline, lease_end),
                lease_left => return Admit::Wait { lease_left },
            },
        };
        Admit::Claim(Self { state: CircuitState::HalfOpen, silent: false, probe_in_flight: true, deadline, ..self })
    }

    /// An ordinary call that was admitted in `generation` succeeded.
    pub(crate) const fn success(self, generation: u32) -> Success {
        if !self.is_closed_in(generation) {
            Success::Late
        } else if self.failure_count == 0 {
            Success::Clean
        } else {
            Success::Reset(self.closed())
        }
    }

    /// A failure reached the threshold.
    pub(crate) const fn tripped(self, now: u32, open_ticks: u32) -> Self {
        Self { failure_count: self.failure_count + 1, ..self }.opened(now, open_ticks)
    }

    /// What was asked while the circuit was closed goes unanswered.
    pub(crate) const fn fallen_silent(self, now: u32, open_ticks: u32) -> Self {
        Self { silent: true, ..self.opened(now, open_ticks) }
    }

    /// An answer came after all: `None` where that decides nothing.
    pub(crate) const fn silence_ended(self) -> Option<Self> {
        if self.silent { Some(self.closed()) } else { None }
    }

    /// The probe in flight succeeded.
    pub(crate) const fn probe_success(self) -> ProbeEnd {
        if self.probe_in_flight { ProbeEnd::Resolve(self.closed()) } else { ProbeEnd::Late }
    }

    /// The probe in flight failed.
    pub(crate) const fn probe_failure(self, now: u32, open_ticks: u32) -> ProbeEnd {
        if self.probe_in_flight { ProbeEnd::Resolve(self.opened(now, open_ticks)) } else { ProbeEnd::Late }
    }

    /// The probe in flight goes unanswered.
    pub(crate) const fn probe_fallen_silent(self, now: u32, open_ticks: u32) -> ProbeEnd {
        if self.probe_in_flight { ProbeEnd::Resolve(self.fallen_silent(now, open_ticks)) } else { ProbeEnd::Late }
    }

    /// The probe in flight was called off, and the next caller may have it. The old end of its lease stays, for the
    /// next claim to tell itself from.
    pub(crate) const fn probe_cancel(self) -> ProbeEnd {
        if self.probe_in_flight { ProbeEnd::Resolve(Self { probe_in_flight: false, ..self }) } else { ProbeEnd::Late }
    }

    const fn opened(self, now: u32, open_ticks: u32) -> Self {
        Self {
            generation: next_generation(self.generation),
            state: CircuitState::Open,
            silent: false,
            probe_in_flight: false,
            deadline: now.wrapping_add(open_ticks),
            ..self
        }
    }

    const fn closed(self) -> Self {
        Self { generation: self.generation, ..Self::INITIAL }
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

/// `lease_end`, or one tick after `old` where that is not later: no two probes of a generation may have the same word,
/// since a probe is resolved by comparing it. Only a clock reading that is a little older, or a probe handed back
/// within the tick it was claimed in, puts `old` ahead; anything further ahead passed long ago, and ticks have wrapped
/// since.
const fn later_than(old: u32, lease_end: u32) -> u32 {
    if old.wrapping_sub(lease_end) < CLOCK_SLACK { old.wrapping_add(1) } else { lease_end }
}

#[cfg(test)]
mod tests;
