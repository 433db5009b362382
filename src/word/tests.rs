//! Each transition of the word by itself, at its edges. What threads do to each other is for the models in
//! `loom-tests`.

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
                        let snapshot = Snapshot { generation, state, silent, probe_in_flight, failure_count, deadline };
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
    assert_eq!(probing(1, 90_000).probe_fallen_silent(500, LIMITS.open_ticks), ProbeEnd::Resolve(silent(2, 30_500)));
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
