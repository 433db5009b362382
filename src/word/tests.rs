//! The word's fields, and each step by itself, at its edges. The table of all steps is in `word::step`. What threads do
//! to each other is for the models in `loom-tests`.

use super::step::{self, Admit, COARSE_ERROR, Failed, Limits, MAX_DEADLINE_TICKS, Row, Success};
use super::*;

pub(super) const LIMITS: Limits = Limits { longest_open_ticks: 30_000, lease_ticks: 60_000, ramp_ticks: 10_000 };
const LAST_GENERATION: u32 = GENERATION_LIMIT - 1;
/// More than the clock may be behind.
const SLACK: u32 = 65_536;

pub(super) fn of(generation: u32, state: State) -> Word {
    Word { generation, measured: false, state }
}

pub(super) fn closed(generation: u32, failures: u32) -> Word {
    of(generation, State::Closed { failures, told: 0, suspected: false, by_order: false })
}

pub(super) fn open_because(cause: Cause, generation: u32, until: u32) -> Word {
    of(generation, State::Open { cause, until, streak: 0 })
}

pub(super) fn recovering(generation: u32, until: u32, failures: u32) -> Word {
    of(generation, State::Recovering { until, streak: 0, failures })
}

pub(super) fn open(generation: u32, until: u32) -> Word {
    open_because(Cause::Failures, generation, until)
}

pub(super) fn silent(generation: u32, until: u32) -> Word {
    open_because(Cause::Silence, generation, until)
}

pub(super) fn half_open(generation: u32, in_flight: bool, lease_end: u32) -> Word {
    of(generation, State::HalfOpen { in_flight, lease_end, streak: 0, good_probes: 0 })
}

pub(super) fn probing(generation: u32, lease_end: u32) -> Word {
    half_open(generation, true, lease_end)
}

pub(super) fn free(generation: u32, lease_end: u32) -> Word {
    half_open(generation, false, lease_end)
}

/// The same word after so many failed recoveries.
pub(super) fn with_streak(word: Word, streak: u32) -> Word {
    let state = match word.state {
        State::Open { cause, until, .. } => State::Open { cause, until, streak },
        State::HalfOpen { in_flight, lease_end, good_probes, .. } => {
            State::HalfOpen { in_flight, lease_end, streak, good_probes }
        }
        State::Recovering { until, failures, .. } => State::Recovering { until, streak, failures },
        State::Closed { .. } | State::Disabled => panic!("it has none"),
    };
    Word { state, ..word }
}

fn claim(word: Word, now: u32) -> Word {
    match word.admit(now, LIMITS) {
        Admit::Claim(transition) => transition.after,
        other => panic!("{other:?}"),
    }
}

pub(super) fn every_state() -> Vec<Word> {
    let mut words = Vec::new();
    for generation in [0, 1, LAST_GENERATION] {
        for failures in [0, 1, MAX_FAILURES] {
            for by_order in [false, true] {
                for told in [0, 1, LAST_TOLD] {
                    for suspected in [false, true] {
                        words.push(of(generation, State::Closed { failures, told, suspected, by_order }));
                    }
                }
            }
        }
        words.push(of(generation, State::Disabled));
        for deadline in [0, 1, u32::MAX] {
            for streak in [0, 1, MAX_STREAK] {
                for cause in Cause::ALL {
                    words.push(with_streak(open_because(*cause, generation, deadline), streak));
                }
                for in_flight in [false, true] {
                    for good_probes in [0, 1, MAX_SMALL_COUNT] {
                        let state = State::HalfOpen { in_flight, lease_end: deadline, streak, good_probes };
                        words.push(of(generation, state));
                    }
                }
                for failures in [0, 1, MAX_SMALL_COUNT] {
                    words.push(with_streak(recovering(generation, deadline, failures), streak));
                }
            }
        }
    }
    let measured: Vec<_> = words.iter().map(|word| Word { measured: true, ..*word }).collect();
    [words, measured].concat()
}

// ---- the fields ----

#[test]
fn every_state_comes_back_from_its_word_and_no_two_share_one() {
    let words = every_state();
    for word in &words {
        assert_eq!(Word::unpack(word.pack()), *word);
    }
    let packed: std::collections::BTreeSet<_> = words.iter().map(|word| word.pack()).collect();
    assert_eq!(packed.len(), words.len());
    assert_eq!(Word::INITIAL.pack(), 0);
}

#[test]
fn the_raw_questions_agree_with_the_decoded_word() {
    for word in every_state() {
        let raw = word.pack();
        assert_eq!(passes(raw), matches!(word.state, State::Closed { .. } | State::Disabled), "{word:?}");
        let clean = matches!(word.state, State::Closed { failures: 0, .. });
        assert_eq!(is_clean(raw), clean && !word.measured, "{word:?}");
        assert_eq!(is_plain(raw), passes(raw) && !word.measured, "{word:?}");
        assert_eq!(is_normal(raw), word.can_trip() || word.state == State::Disabled, "{word:?}");
        assert_eq!((is_measured(raw), generation(raw)), (word.measured, word.generation), "{word:?}");
        assert_eq!(has_probe_in_flight(raw), word.has_probe_in_flight(), "{word:?}");
        assert_eq!(open_until(raw).map(|(cause, _)| cause), word.cause(), "{word:?}");
    }
}

#[test]
fn a_probe_bit_that_is_cleared_leaves_a_free_probe() {
    assert_eq!(Word::unpack(probing(3, 9).pack() & !PROBE_BIT), free(3, 9));
    assert_eq!(free(3, 9).pack() | PROBE_BIT, probing(3, 9).pack());
}

#[test]
fn the_permit_of_a_measured_call_remembers_its_generation_its_start_and_what_dropping_it_means() {
    for word in every_state().into_iter().filter(|word| is_normal(word.pack())) {
        let raw = word.pack();
        assert!(passes(normal_permit(raw)));
        assert_eq!((generation(normal_permit(raw)), is_measured(normal_permit(raw))), (word.generation, word.measured));
        for start in [None, Some(0), Some(u32::MAX)] {
            for fails in [false, true] {
                let permit = measured_permit(raw, start, fails);
                assert!(passes(permit) && !is_plain(permit) && generation(permit) == word.generation);
                assert_eq!((started(permit), drop_fails(permit)), (start, fails));
                assert_eq!((started(droppable(permit)), drop_fails(droppable(permit))), (start, false));
            }
        }
    }
    // What a word counts is not taken for what a permit remembers.
    let plain = closed(1, 3).pack();
    assert_eq!((started(plain), drop_fails(plain), droppable(plain)), (None, false, plain));
}

#[test]
fn settings_that_are_replaced_leave_the_state_as_it_is() {
    for word in every_state() {
        let (on, off) = (with_measured(word.pack(), true), with_measured(word.pack(), false));
        assert!(is_same_state(on, off) && is_same_state(on, word.pack()));
        assert_eq!(Word::unpack(on), Word { measured: true, ..word });
        for other in [closed(9, 1), probing(9, 1)] {
            assert!(!is_same_state(on, other.pack()));
        }
    }
}

// ---- calls ----

#[test]
fn a_closed_circuit_passes_every_call() {
    for failures in [0, 2, MAX_FAILURES] {
        assert_eq!(closed(7, failures).admit(u32::MAX, LIMITS), Admit::Pass);
    }
}

#[test]
fn an_open_circuit_rejects_until_its_deadline_and_then_gives_the_probe_away() {
    let reject = |open_left| Admit::Reject { open_left, cause: Cause::Failures };
    assert_eq!(open(1, 30_000).admit(0, LIMITS), reject(30_000));
    assert_eq!(open(1, 30_000).admit(29_999, LIMITS), reject(1));
    assert_eq!(claim(open(1, 30_000), 30_000), probing(1, 90_000));
}

#[test]
fn a_probe_is_waited_for_until_its_lease_ends_and_then_taken_over() {
    assert_eq!(probing(1, 90_000).admit(30_000, LIMITS), Admit::Wait { lease_left: 60_000 });
    assert_eq!(probing(1, 90_000).admit(89_999, LIMITS), Admit::Wait { lease_left: 1 });
    assert_eq!(claim(probing(1, 90_000), 90_000), probing(1, 150_000));
}

#[test]
fn a_probe_that_was_handed_back_is_free_at_once() {
    assert_eq!(claim(free(1, 90_000), 40_000), probing(1, 100_000));
}

#[test]
fn no_claim_repeats_the_word_of_an_earlier_one() {
    let mut word = probing(1, 90_000);
    for older_reading in [30_000, 30_000, 29_990] {
        let next = claim(word.probe_cancelled().expect("a probe is in flight").after, older_reading);
        let (State::HalfOpen { lease_end: new, .. }, State::HalfOpen { lease_end: old, .. }) = (next.state, word.state)
        else {
            panic!("{next:?}")
        };
        assert_eq!(new, old + 1);
        word = next;
    }
    assert_eq!(claim(free(1, u32::MAX), u32::MAX - 60_000), probing(1, 0));
}

#[test]
fn a_probe_claimed_after_weeks_of_idling_gets_a_whole_lease() {
    for days in [1, 10, 24, 25, 40, 49] {
        let now: u32 = 30_000 + days * 86_400_000;
        let claimed = probing(1, now.wrapping_add(60_000));
        assert_eq!(claim(free(1, 90_000), now), claimed, "after {days} days");
        assert_eq!(claim(probing(1, 90_000), now), claimed, "after {days} days");
        assert_eq!(claimed.admit(now, LIMITS), Admit::Wait { lease_left: 60_000 });
    }
}

// ---- deadlines ----

fn tripped(word: Word, cause: Cause, now: u32) -> step::Transition {
    word.tripped(cause, now, LIMITS, |_| LIMITS.longest_open_ticks)
}

fn tripped_at(now: u32) -> Word {
    tripped(closed(0, 2), Cause::Failures, now).after
}

#[test]
fn a_reading_from_just_before_the_trip_sees_the_circuit_open() {
    let open = tripped_at(100_000);
    assert_eq!(open.open_left(99_999, LIMITS.longest_open_ticks), 30_001);
    assert_eq!(open.open_left(100_000 - SLACK, LIMITS.longest_open_ticks), 30_000 + SLACK);
    assert_eq!(open.open_left(100_000 - SLACK - 1, LIMITS.longest_open_ticks), 0);
}

#[test]
fn a_coarse_clock_rejects_only_what_a_better_one_would() {
    let left = |about_now| step::open_left_for_sure(Cause::Failures, 30_000, about_now, LIMITS.longest_open_ticks);
    assert_eq!(left(0), Some(30_000));
    assert_eq!(left(30_000 - COARSE_ERROR - 1), Some(COARSE_ERROR + 1));
    for about_now in [30_000 - COARSE_ERROR, 29_999, 30_000, 30_001, 90_000_000] {
        assert_eq!(left(about_now), None);
    }
}

#[test]
fn a_deadline_beyond_the_wrap_counts_down_across_it() {
    let open = tripped_at(u32::MAX - 10);
    assert_eq!(open, self::open(1, 29_989));
    for (now, left) in [(u32::MAX - 10, 30_000), (u32::MAX, 29_990), (0, 29_989), (29_988, 1), (29_989, 0)] {
        assert_eq!(open.open_left(now, LIMITS.longest_open_ticks), left, "at {now}");
    }
}

#[test]
fn the_longest_deadline_is_told_from_one_that_has_passed() {
    let open = open(1, MAX_DEADLINE_TICKS);
    assert_eq!(open.open_left(0, MAX_DEADLINE_TICKS), MAX_DEADLINE_TICKS);
    assert_eq!(open.open_left(MAX_DEADLINE_TICKS, MAX_DEADLINE_TICKS), 0);
    assert_eq!(open.open_left(49 * 86_400_000, MAX_DEADLINE_TICKS), 0);
}

#[test]
fn an_open_time_that_passed_weeks_ago_does_not_block() {
    for days in [1, 10, 24, 25, 40, 49] {
        let now = days * 86_400_000;
        assert_eq!(open(1, 30_000).open_left(now, LIMITS.longest_open_ticks), 0, "after {days} days");
    }
}

// ---- outcomes ----

#[test]
fn a_success_counts_in_its_own_generation_alone() {
    assert_eq!(closed(1, 0).succeeded(1, false), Success::Clean);
    assert_eq!(closed(1, 2).succeeded(0, false), Success::Late);
    for other in [open(1, 9), silent(1, 9), probing(1, 9), free(1, 9)] {
        assert_eq!(other.succeeded(1, false), Success::Late);
    }
}

#[test]
fn a_failure_counts_in_its_own_generation_and_trips_at_the_threshold() {
    let failure = |word: Word, granted: Word| failure(word.pack(), granted.pack(), 3);
    assert_eq!(failure(closed(1, 0), closed(1, 0)), Failure::Count(closed(1, 1).pack()));
    assert_eq!(failure(closed(1, 1), closed(1, 0)), Failure::Count(closed(1, 2).pack()));
    assert_eq!(failure(closed(1, 1), closed(1, 2)), Failure::Count(closed(1, 2).pack()));
    assert_eq!(failure(closed(1, 2), closed(1, 0)), Failure::Trip);
    for granted in [closed(0, 0), closed(2, 0), closed(0, 2)] {
        assert_eq!(failure(closed(1, 2), granted), Failure::Other);
    }
    for other in [open(1, 9), silent(1, 9), probing(1, 9), free(1, 9)] {
        assert_eq!(failure(other, closed(1, 0)), Failure::Other);
    }
}

#[test]
fn the_highest_threshold_is_reached_without_leaving_its_field() {
    let mut word = closed(3, 0);
    for count in 1..MAX_FAILURES {
        assert_eq!(failure(word.pack(), closed(3, 0).pack(), MAX_FAILURES), Failure::Count(closed(3, count).pack()));
        word = closed(3, count);
    }
    assert_eq!(failure(word.pack(), closed(3, 0).pack(), MAX_FAILURES), Failure::Trip);
    assert_eq!(tripped(word, Cause::Failures, 0).failures(), Some(MAX_FAILURES));
}

#[test]
fn a_trip_tells_the_failures_in_a_row_that_it_follows() {
    assert_eq!(tripped(closed(0, 2), Cause::Failures, 0).failures(), Some(3));
    assert_eq!(tripped(closed(0, 2), Cause::Silence, 0).failures(), Some(2));
    assert_eq!(probing(1, 9).probe_failed(Cause::Failures, 0, |_| 9).unwrap().failures(), None);
}

#[test]
fn failed_recoveries_in_a_row_are_counted_up_to_the_end_of_their_field() {
    let mut word = probing(1, 9);
    for expected in (1..=MAX_STREAK).chain([MAX_STREAK]) {
        let open_ticks = |streak| {
            assert_eq!(streak, expected);
            LIMITS.longest_open_ticks
        };
        let open = word.probe_failed(Cause::Failures, 0, open_ticks).unwrap().after;
        assert_eq!(open, with_streak(self::open(open.generation, 30_000), expected));
        word = claim(open, 30_000);
    }
    let next = tripped(word.probe_succeeded(1, 0, 0).unwrap().after, Cause::Failures, 0).after;
    assert_eq!(next, open(next.generation, 30_000), "a circuit that has closed forgets them");
}

// ---- a memory ----

const ROW: Row = Row { threshold: Some(3), memory: Some(1000), ramp_threshold: Some(2) };

fn told(generation: u32, failures: u32, told: u32) -> Word {
    of(generation, State::Closed { failures, told, suspected: false, by_order: false })
}

#[test]
fn failures_further_apart_than_the_memory_are_no_row() {
    let failed = |word: Word, now| word.failed(1, now, ROW, LIMITS);
    assert_eq!(failed(closed(1, 0), 5000), Failed::Count(told(1, 1, 5000)));
    assert_eq!(failed(told(1, 1, 5000), 6000), Failed::Count(told(1, 2, 6000)));
    assert_eq!(failed(told(1, 2, 6000), 7000), Failed::Trip);
    assert_eq!(failed(told(1, 2, 6000), 7001), Failed::Count(told(1, 1, 7001)));
    let later = 6000 + 20 * 86_400_000;
    assert_eq!(failed(told(1, 2, 6000), later), Failed::Count(told(1, 1, told_at(later))));
    // An older reading of the clock.
    assert_eq!(failed(told(1, 1, 6000), 5990), Failed::Count(told(1, 2, 6000)));
    // A row from before there was a memory.
    assert_eq!(failed(closed(1, 2), 90_000), Failed::Trip);
    // Ticks wrap.
    assert_eq!(failed(told(1, 2, LAST_TOLD), 400), Failed::Trip);
    assert_eq!(failed(closed(1, 0), 0), Failed::Count(told(1, 1, 1)));
}

#[test]
fn failures_are_not_counted_without_a_threshold_or_outside_of_their_generation() {
    let none = Row { threshold: None, ..ROW };
    assert_eq!(closed(1, 2).failed(1, 0, none, LIMITS), Failed::NotCounted);
    for other in [closed(2, 0), open(1, 9), probing(1, 9), free(1, 9), of(1, State::Disabled)] {
        assert_eq!(other.failed(1, 0, ROW, LIMITS), Failed::Late, "{other:?}");
    }
}

#[test]
fn a_success_of_a_call_from_before_the_newest_failed_one_ends_no_row() {
    for word in [closed(1, 2), recovering(1, 9, 2)] {
        assert_eq!(word.succeeded(1, true), Success::Clean);
        assert!(matches!(word.succeeded(1, false), Success::EndRow(end) if end.after.failures() == Some(0)));
    }
}

// ---- a ramp ----

#[test]
fn a_recovering_circuit_counts_failures_of_its_own_and_keeps_its_failed_recoveries() {
    let failed = |word: Word, now| word.failed(1, now, ROW, LIMITS);
    let word = with_streak(recovering(1, 10_000, 0), 3);
    let counted = with_streak(recovering(1, 10_000, 1), 3);
    assert_eq!(failed(word, 100), Failed::Count(counted));
    assert_eq!(failed(counted, 200), Failed::Trip);
    let trip = tripped(counted, Cause::Failures, 200);
    assert_eq!((trip.after, trip.failures()), (with_streak(open(2, 30_200), 4), Some(2)));
    assert!(trip.ends_a_wait());
    // The upstream lives.
    let cooled = counted.cooled_down(200, 40_000, LIMITS).unwrap();
    assert_eq!(cooled.after, with_streak(open_because(Cause::Cooldown, 2, 40_200), 3));
}

#[test]
fn a_failure_after_the_ramp_ends_it_first_and_a_trip_after_it_is_no_failed_recovery() {
    let word = with_streak(recovering(1, 10_000, 1), 3);
    let Failed::EndRamp(end) = word.failed(1, 10_000, ROW, LIMITS) else { panic!("it is over") };
    assert_eq!(end.after, closed(1, 0));
    assert_eq!(word.admit(9_999, LIMITS), Admit::OnRamp { ramp_left: 1 });
    assert_eq!(word.admit(10_000, LIMITS), Admit::EndRamp(end));
    assert_eq!(tripped(word, Cause::Silence, 10_000).after, silent(2, 40_000));
    assert_eq!(word.cooled_down(10_000, 5, LIMITS).unwrap().after, open_because(Cause::Cooldown, 2, 10_005));
    assert!(word.is_ramp_over(10_000, 10_000) && !word.is_ramp_over(9_999, 10_000));
}

#[test]
fn a_probe_begins_the_ramp_if_there_is_one() {
    let word = with_streak(probing(1, 9), 3);
    assert_eq!(word.probe_succeeded(1, 500, 10_000).unwrap().after, with_streak(recovering(1, 10_500, 0), 3));
    assert_eq!(word.probe_succeeded(1, 500, 0).unwrap().after, closed(1, 0));
}

// ---- generations ----

#[test]
fn a_closed_breaker_may_leave_its_registry_and_then_counts_nothing() {
    let leaves = |word: Word, now| word.evicted(now, LIMITS.ramp_ticks);
    for word in [closed(7, 0), closed(7, 2), recovering(7, 100, 1)] {
        let gone = leaves(word, 100).unwrap().after;
        assert_eq!((gone.state, gone.generation), (State::Disabled, 8));
        assert!(matches!(gone.failed(8, 100, ROW, LIMITS), Failed::Late));
    }
    for word in [open(7, 50), silent(7, 50), probing(7, 50), free(7, 50), recovering(7, 101, 0), of(7, State::Disabled)]
    {
        assert_eq!(leaves(word, 100), None, "{word:?}");
    }
}

#[test]
fn the_generation_wraps_within_its_field() {
    let next =
        probing(LAST_GENERATION, 0).probe_failed(Cause::Failures, 0, |_| LIMITS.longest_open_ticks).unwrap().after;
    assert_eq!((next.generation, next.circuit_state()), (0, CircuitState::Open));
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
fn only_a_later_opening_counts_as_reopened() {
    assert!(open(2, 9).is_reopened_since(1) && silent(2, 9).is_reopened_since(1) && open(5, 9).is_reopened_since(1));
    for other in [open(1, 9), open(0, 9), closed(2, 0), probing(2, 9), free(2, 9)] {
        assert!(!other.is_reopened_since(1), "{other:?}");
    }
}

// ---- what others see ----

#[test]
fn a_state_and_a_cause_have_one_name_everywhere() {
    use CircuitState::{Closed, Disabled, HalfOpen, Open, Recovering};
    let states = [Closed, Open, HalfOpen, Recovering, Disabled].map(|state| state.to_string());
    assert_eq!(states, ["closed", "open", "half_open", "recovering", "disabled"]);
    assert_eq!(format!("{Open:<7}|"), "open   |");
    let causes: Vec<_> = Cause::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(causes, ["failures", "rate", "slow", "silence", "cooldown", "fleet", "isolated"]);
}
