//! The word: everything one load must decide, and the transitions between its values.
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
//! `HalfOpen` when the probe itself goes unanswered, and it has one more way out: an answer that comes after all closes it.
//!
//! Half of this file is its tests. Nothing in it reads a clock, an atomic or a configuration. A transition is a function of the word, the tick and
//! the limits that it is given; the caller's compare-and-swap decides whether it happened.

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

/// The longest that a deadline may lie ahead: far below the 49.7 days after which ticks wrap, so that a deadline ahead can
/// be told from one that passed.
pub(crate) const MAX_DEADLINE_TICKS: u32 = 24 * 60 * 60 * 1000;

/// How much older than a deadline's own clock reading another reading may be. A caller reads the clock and may be
/// descheduled while somebody else trips the breaker; without slack its older tick would make the new deadline look passed.
const CLOCK_SLACK: u32 = 65_536;

/// How far a coarse clock may be off: two ticks of a kernel timer that ticks 100 times a second.
pub(crate) const COARSE_ERROR: u32 = 20;

/// State of a circuit. *Closed* means that traffic flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

/// Whether a success of an ordinary call has nothing to reset, whatever its generation: the rule that keeps the hot path
/// free of writes.
#[inline]
pub(crate) const fn is_clean(word: u64) -> bool {
    word & (STATE_MASK | FAILURE_COUNT_MASK) == 0
}

/// An ordinary call that was admitted by the closed word `granted` failed. Asked of the raw word, for calls of all threads
/// may fail at once: what decoding writes to the stack, the swap that follows would wait for.
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

    /// Whether the circuit is open again since a probe of `generation` was in flight: it failed, or it closed the circuit
    /// and that has tripped since.
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

    /// The probe in flight was called off, and the next caller may have it. The old end of its lease stays, for the next
    /// claim to tell itself from.
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
/// since a probe is resolved by comparing it. Only a clock reading that is a little older, or a probe handed back within
/// the tick it was claimed in, puts `old` ahead; anything further ahead passed long ago, and ticks have wrapped since.
const fn later_than(old: u32, lease_end: u32) -> u32 {
    if old.wrapping_sub(lease_end) < CLOCK_SLACK { old.wrapping_add(1) } else { lease_end }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CircuitState::{Closed, HalfOpen, Open};

    const LIMITS: Limits = Limits { open_ticks: 30_000, lease_ticks: 60_000 };
    const LAST_GENERATION: u32 = GENERATION_LIMIT - 1;

    fn closed(generation: u32, failure_count: u32) -> Snapshot {
        Snapshot { generation, failure_count, ..Snapshot::INITIAL }
    }

    fn open(generation: u32, deadline: u32) -> Snapshot {
        Snapshot { generation, state: Open, failure_count: 3, deadline, ..Snapshot::INITIAL }
    }

    fn silent(generation: u32, deadline: u32) -> Snapshot {
        Snapshot { silent: true, ..open(generation, deadline) }
    }

    fn probing(generation: u32, lease_end: u32) -> Snapshot {
        Snapshot { state: HalfOpen, probe_in_flight: true, ..open(generation, lease_end) }
    }

    fn handed_back(generation: u32, lease_end: u32) -> Snapshot {
        Snapshot { probe_in_flight: false, ..probing(generation, lease_end) }
    }

    #[test]
    fn every_field_comes_back_from_its_edges() {
        for generation in [0, 1, LAST_GENERATION] {
            for (state, silent) in [(Closed, false), (Open, false), (HalfOpen, false), (Open, true)] {
                for probe_in_flight in [false, true] {
                    for failure_count in [0, 1, MAX_FAILURE_COUNT] {
                        for deadline in [0, 1, u32::MAX] {
                            let snapshot =
                                Snapshot { generation, state, silent, probe_in_flight, failure_count, deadline };
                            assert_eq!(Snapshot::unpack(snapshot.pack()), snapshot);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn each_field_has_bits_of_its_own() {
        let full = Snapshot {
            generation: LAST_GENERATION,
            state: Closed,
            silent: false,
            probe_in_flight: true,
            failure_count: MAX_FAILURE_COUNT,
            deadline: u32::MAX,
        };
        assert_eq!(full.pack(), !STATE_MASK);
        assert_eq!(Snapshot::INITIAL.pack(), 0);
    }

    #[test]
    fn the_raw_questions_agree_with_the_decoded_word() {
        for (snapshot, closed_now, clean) in [
            (Snapshot::INITIAL, true, true),
            (closed(LAST_GENERATION, 0), true, true),
            (closed(0, 1), true, false),
            (closed(0, MAX_FAILURE_COUNT), true, false),
            (open(0, 0), false, false),
            (Snapshot { failure_count: 0, ..open(1, 5) }, false, false),
            (Snapshot { failure_count: 0, ..silent(1, 5) }, false, false),
            (probing(1, 5), false, false),
            (handed_back(1, 5), false, false),
        ] {
            assert_eq!(is_closed(snapshot.pack()), closed_now, "{snapshot:?}");
            assert_eq!(is_clean(snapshot.pack()), clean, "{snapshot:?}");
        }
    }

    #[test]
    fn a_closed_circuit_passes_every_call() {
        for failure_count in [0, 2, MAX_FAILURE_COUNT] {
            assert_eq!(closed(7, failure_count).admit(u32::MAX, LIMITS), Admit::Pass);
        }
    }

    #[test]
    fn an_open_circuit_refuses_until_its_deadline_and_then_gives_the_probe_away() {
        assert_eq!(open(1, 30_000).admit(0, LIMITS), Admit::Refuse { open_left: 30_000 });
        assert_eq!(open(1, 30_000).admit(29_999, LIMITS), Admit::Refuse { open_left: 1 });
        assert_eq!(open(1, 30_000).admit(30_000, LIMITS), Admit::Claim(probing(1, 90_000)));
    }

    #[test]
    fn a_probe_is_waited_for_until_its_lease_ends_and_then_taken_over() {
        assert_eq!(probing(1, 90_000).admit(30_000, LIMITS), Admit::Wait { lease_left: 60_000 });
        assert_eq!(probing(1, 90_000).admit(89_999, LIMITS), Admit::Wait { lease_left: 1 });
        assert_eq!(probing(1, 90_000).admit(90_000, LIMITS), Admit::Claim(probing(1, 150_000)));
    }

    #[test]
    fn a_probe_that_was_handed_back_is_free_at_once() {
        assert_eq!(handed_back(1, 90_000).admit(40_000, LIMITS), Admit::Claim(probing(1, 100_000)));
    }

    #[test]
    fn no_claim_repeats_the_word_of_an_earlier_one() {
        let mut word = probing(1, 90_000);
        for older_reading in [30_000, 30_000, 29_990] {
            let ProbeEnd::Resolve(free) = word.probe_cancel() else { panic!("a probe is in flight") };
            let Admit::Claim(next) = free.admit(older_reading, LIMITS) else { panic!("the probe is free") };
            assert_eq!(next.deadline, word.deadline + 1);
            word = next;
        }
        assert_eq!(handed_back(1, u32::MAX).admit(u32::MAX - 60_000, LIMITS), Admit::Claim(probing(1, 0)));
    }

    #[test]
    fn a_probe_claimed_after_weeks_of_idling_gets_a_whole_lease() {
        for days in [1, 10, 24, 25, 40, 49] {
            let now: u32 = 30_000 + days * 86_400_000;
            let claimed = probing(1, now.wrapping_add(60_000));
            assert_eq!(handed_back(1, 90_000).admit(now, LIMITS), Admit::Claim(claimed), "after {days} days");
            assert_eq!(probing(1, 90_000).admit(now, LIMITS), Admit::Claim(claimed), "after {days} days");
            assert_eq!(claimed.admit(now, LIMITS), Admit::Wait { lease_left: 60_000 });
        }
    }

    #[test]
    fn a_reading_from_just_before_the_trip_sees_the_circuit_open() {
        let open = closed(0, 2).tripped(100_000, LIMITS.open_ticks);
        assert_eq!(open.open_left(99_999, LIMITS.open_ticks), 30_001);
        assert_eq!(open.open_left(100_000 - CLOCK_SLACK, LIMITS.open_ticks), 30_000 + CLOCK_SLACK);
        assert_eq!(open.open_left(100_000 - CLOCK_SLACK - 1, LIMITS.open_ticks), 0);
    }

    #[test]
    fn a_coarse_clock_refuses_only_what_a_better_one_would() {
        let open = open(1, 30_000);
        assert_eq!(open.open_left_for_sure(0, LIMITS.open_ticks), Some(30_000));
        assert_eq!(open.open_left_for_sure(30_000 - COARSE_ERROR - 1, LIMITS.open_ticks), Some(COARSE_ERROR + 1));
        for about_now in [30_000 - COARSE_ERROR, 29_999, 30_000, 30_001, 90_000_000] {
            assert_eq!(open.open_left_for_sure(about_now, LIMITS.open_ticks), None);
        }
        for other in [closed(1, 2), probing(1, 30_000), handed_back(1, 30_000)] {
            assert_eq!(other.open_left_for_sure(0, LIMITS.open_ticks), None);
        }
    }

    #[test]
    fn a_deadline_beyond_the_wrap_counts_down_across_it() {
        let open = closed(0, 2).tripped(u32::MAX - 10, LIMITS.open_ticks);
        assert_eq!(open.deadline, 29_989);
        for (now, left) in [(u32::MAX - 10, 30_000), (u32::MAX, 29_990), (0, 29_989), (29_988, 1), (29_989, 0)] {
            assert_eq!(open.open_left(now, LIMITS.open_ticks), left, "at {now}");
        }
    }

    #[test]
    fn the_longest_deadline_is_told_from_one_that_passed() {
        let limits = Limits { open_ticks: MAX_DEADLINE_TICKS, ..LIMITS };
        let open = open(1, MAX_DEADLINE_TICKS);
        assert_eq!(open.open_left(0, limits.open_ticks), MAX_DEADLINE_TICKS);
        assert_eq!(open.open_left(MAX_DEADLINE_TICKS, limits.open_ticks), 0);
        assert_eq!(open.open_left(49 * 86_400_000, limits.open_ticks), 0);
    }

    #[test]
    fn an_open_time_that_passed_weeks_ago_does_not_block() {
        for days in [1, 10, 24, 25, 40, 49] {
            let now = days * 86_400_000;
            assert_eq!(open(1, 30_000).open_left(now, LIMITS.open_ticks), 0, "after {days} days");
        }
    }

    #[test]
    fn a_success_resets_a_count_of_its_own_generation_and_nothing_else() {
        assert_eq!(closed(1, 0).success(1), Success::Clean);
        assert_eq!(closed(1, 2).success(1), Success::Reset(closed(1, 0)));
        assert_eq!(closed(1, 2).success(0), Success::Late);
        for other in [open(1, 9), silent(1, 9), probing(1, 9), handed_back(1, 9)] {
            assert_eq!(other.success(1), Success::Late);
        }
    }

    #[test]
    fn a_failure_counts_in_its_own_generation_and_trips_at_the_threshold() {
        let failure = |word: Snapshot, granted: Snapshot| failure(word.pack(), granted.pack(), 3);
        assert_eq!(failure(closed(1, 0), closed(1, 0)), Failure::Count(closed(1, 1).pack()));
        assert_eq!(failure(closed(1, 1), closed(1, 0)), Failure::Count(closed(1, 2).pack()));
        assert_eq!(failure(closed(1, 1), closed(1, 2)), Failure::Count(closed(1, 2).pack()));
        assert_eq!(failure(closed(1, 2), closed(1, 0)), Failure::Trip);
        for granted in [closed(0, 0), closed(2, 0), closed(0, 2)] {
            assert_eq!(failure(closed(1, 2), granted), Failure::Late);
        }
        for other in [open(1, 9), silent(1, 9), probing(1, 9), handed_back(1, 9)] {
            assert_eq!(failure(other, closed(1, 0)), Failure::Late);
        }
        assert_eq!(closed(1, 2).tripped(500, LIMITS.open_ticks), open(2, 30_500));
    }

    #[test]
    fn the_highest_threshold_is_reached_without_leaving_its_field() {
        let mut word = closed(3, 0);
        for count in 1..MAX_FAILURE_COUNT {
            assert_eq!(
                failure(word.pack(), closed(3, 0).pack(), MAX_FAILURE_COUNT),
                Failure::Count(closed(3, count).pack())
            );
            word = closed(3, count);
        }
        assert_eq!(failure(word.pack(), closed(3, 0).pack(), MAX_FAILURE_COUNT), Failure::Trip);
        let open = word.tripped(0, LIMITS.open_ticks);
        assert_eq!(Snapshot::unpack(open.pack()).failure_count, MAX_FAILURE_COUNT);
    }

    #[test]
    fn a_probe_in_flight_closes_reopens_or_is_handed_back() {
        assert_eq!(probing(1, 90_000).probe_success(), ProbeEnd::Resolve(closed(1, 0)));
        assert_eq!(probing(1, 90_000).probe_failure(500, LIMITS.open_ticks), ProbeEnd::Resolve(open(2, 30_500)));
        assert_eq!(probing(1, 90_000).probe_cancel(), ProbeEnd::Resolve(handed_back(1, 90_000)));
    }

    #[test]
    fn without_a_probe_in_flight_its_end_changes_nothing() {
        for other in [closed(1, 2), open(1, 9), silent(1, 9), handed_back(1, 9)] {
            assert_eq!(other.probe_success(), ProbeEnd::Late);
            assert_eq!(other.probe_fallen_silent(500, LIMITS.open_ticks), ProbeEnd::Late);
            assert_eq!(other.probe_failure(500, LIMITS.open_ticks), ProbeEnd::Late);
            assert_eq!(other.probe_cancel(), ProbeEnd::Late);
        }
    }

    #[test]
    fn silence_opens_the_circuit_and_rejects_like_any_opening() {
        let silent_now = Snapshot { failure_count: 2, ..silent(2, 30_500) };
        assert_eq!(closed(1, 2).fallen_silent(500, LIMITS.open_ticks), silent_now);
        assert_eq!(silent_now.admit(600, LIMITS), Admit::Refuse { open_left: 29_900 });
        let probe = Snapshot { failure_count: 2, ..probing(2, 90_500) };
        assert_eq!(silent_now.admit(30_500, LIMITS), Admit::Claim(probe));
        assert_eq!(
            probe.probe_failure(40_000, LIMITS.open_ticks),
            ProbeEnd::Resolve(Snapshot { failure_count: 2, ..open(3, 70_000) })
        );
    }

    #[test]
    fn a_probe_that_goes_unanswered_is_silence_in_the_next_generation() {
        assert_eq!(
            probing(1, 90_000).probe_fallen_silent(500, LIMITS.open_ticks),
            ProbeEnd::Resolve(silent(2, 30_500))
        );
    }

    #[test]
    fn an_answer_ends_silence_and_nothing_else() {
        assert_eq!(silent(2, 9).silence_ended(), Some(closed(2, 0)));
        for other in [closed(2, 2), open(2, 9), probing(2, 9), handed_back(2, 9)] {
            assert_eq!(other.silence_ended(), None);
        }
    }

    #[test]
    fn the_generation_wraps_within_its_field() {
        let ProbeEnd::Resolve(next) = probing(LAST_GENERATION, 0).probe_failure(0, LIMITS.open_ticks) else {
            panic!("in flight")
        };
        assert_eq!((next.generation, next.state), (0, Open));
        assert!(next.is_reopened_since(LAST_GENERATION));
    }

    #[test]
    fn generations_are_ordered_across_the_wrap() {
        for (older, newer) in [(0, 1), (LAST_GENERATION, 0), (LAST_GENERATION - 5, 9), (0, GENERATION_LIMIT / 2 - 1)] {
            assert!(generation_is_older(older, newer) && !generation_is_older(newer, older), "{older} {newer}");
        }
        assert!(!generation_is_older(7, 7));
    }

    #[test]
    fn only_the_next_opening_counts_as_reopened() {
        assert!(open(2, 9).is_reopened_since(1) && silent(2, 9).is_reopened_since(1));
        for other in [open(1, 9), open(3, 9), closed(2, 0), probing(2, 9), handed_back(2, 9)] {
            assert!(!other.is_reopened_since(1), "{other:?}");
        }
    }

    #[test]
    fn a_state_has_one_name_everywhere() {
        assert_eq!([Closed, Open, HalfOpen].map(|state| state.to_string()), ["closed", "open", "half_open"]);
        assert_eq!(format!("{Open:<7}|"), "open   |");
    }
}
