//! Cooldowns: each counts when it is told, the latest end wins, and a probe in flight decides.

use std::sync::Arc;
use std::time::Duration;

use loom::thread;
use loom_tests::sync::time::advance;
use loom_tests::{Cause, CircuitBreaker, CircuitState, PermitType, RejectionReason};

use crate::harness::{
    LEASE, OPEN_FOR, begin, beside, breaker, claim, due, explore, explore_crowd, fail, go_on, permit, probes, probing,
    reason, told, woken,
};
use crate::silence;

const SECOND: Duration = Duration::from_secs(1);

/// The circuit is open because of the cooldown with this message, and for so long.
fn assert_cooling(breaker: &CircuitBreaker, message: &str, left: Duration) {
    let seen = breaker.snapshot();
    assert_eq!((seen.state, seen.cause), (CircuitState::Open, Some(Cause::Cooldown)));
    assert_eq!((&*told(breaker), seen.next_probe_in), (message, Some(left)));
}

fn trip_for(breaker: &CircuitBreaker, seconds: u32, message: &str) -> bool {
    breaker.trip_for(SECOND * seconds, "429", message)
}

#[test]
fn of_three_cooldowns_the_one_that_ends_last_counts_and_is_told() {
    explore_crowd(&["the longest came first", "the longest came later"], || {
        let breaker = breaker(3);
        let permits = [(); 2].map(|()| permit(&breaker));
        let others = permits.map({
            let mut seconds = 1;
            move |permit| {
                seconds += 1;
                thread::spawn(move || permit.cool_down(SECOND * seconds, "429", seconds))
            }
        });
        let ours = trip_for(&breaker, 1, "1");
        for other in others {
            other.join().unwrap();
        }
        assert_cooling(&breaker, "3", SECOND * 3);
        assert_eq!(breaker.trip_count(), 1);
        let extended = format!("{breaker:?}").contains("generation: 1");
        assert!(!extended || !ours);
        if extended { "the longest came first" } else { "the longest came later" }
    });
}

#[test]
fn two_cooldowns_of_one_length_are_one_opening() {
    explore(&["ours", "theirs"], || {
        let breaker = breaker(3);
        let other = beside(&breaker, |breaker| trip_for(&breaker, 2, "theirs"));
        let ours = trip_for(&breaker, 2, "ours");
        assert_ne!(ours, other.join().unwrap());
        assert!(format!("{breaker:?}").contains("generation: 1"));
        let end = if ours { "ours" } else { "theirs" };
        assert_cooling(&breaker, end, SECOND * 2);
        end
    });
}

#[test]
fn a_cooldown_and_the_last_failure_are_one_trip_and_the_later_end_counts() {
    explore(&["the failure opened it", "the cooldown opened it"], || {
        let breaker = breaker(1);
        let failing = permit(&breaker);
        let other = thread::spawn(move || failing.failure("test", "failure"));
        assert!(trip_for(&breaker, 2, "cooldown"), "it ends later than the failure's opening");
        other.join().unwrap();
        assert_cooling(&breaker, "cooldown", SECOND * 2);
        let seen = breaker.snapshot();
        assert_eq!((seen.trip_count, seen.failed_probe_count), (1, 0));
        if seen.failure_count == 1 { "the failure opened it" } else { "the cooldown opened it" }
    });
}

#[test]
fn a_cooldown_of_a_call_from_before_a_probe_opens_the_circuit_that_the_probe_closed() {
    explore(&["while the probe was in flight", "after it closed"], || {
        let breaker = breaker(1);
        let old = permit(&breaker);
        fail(&breaker, "first");
        advance(OPEN_FOR);
        let probe = claim(&breaker);
        let other = thread::spawn(move || old.cool_down(SECOND, "429", "cooldown"));
        probe.success();
        other.join().unwrap();
        if breaker.state() == CircuitState::Closed {
            assert_eq!(breaker.trip_count(), 1);
            return "while the probe was in flight";
        }
        assert_cooling(&breaker, "cooldown", SECOND);
        assert_eq!(breaker.trip_count(), 2);
        "after it closed"
    });
}

#[test]
fn of_a_cooldown_and_a_claim_one_happens() {
    explore(&["the circuit cools down", "the probe decides"], || {
        let breaker = due();
        let call = beside(&breaker, CircuitBreaker::try_acquire_owned);
        let counted = trip_for(&breaker, 2, "cooldown");
        let answer = call.join().unwrap();
        if counted {
            assert_cooling(&breaker, "cooldown", SECOND * 2);
            assert_eq!(reason(&answer), Some(RejectionReason::Open));
            assert_eq!((breaker.trip_count(), breaker.snapshot().failed_probe_count), (1, 0));
            return "the circuit cools down";
        }
        assert!(probes(&answer) && breaker.snapshot().probe_in_flight);
        answer.unwrap().success();
        assert_eq!(breaker.state(), CircuitState::Closed);
        "the probe decides"
    });
}

#[test]
fn a_cooldown_that_finds_the_probe_free_counts_as_a_failed_probe() {
    explore(&["the circuit cools down", "the probe decides"], || {
        let (breaker, probe) = probing();
        probe.cancel();
        let call = beside(&breaker, CircuitBreaker::try_acquire_owned);
        let counted = trip_for(&breaker, 2, "cooldown");
        let answer = call.join().unwrap();
        let failed_probes = breaker.snapshot().failed_probe_count;
        assert_eq!((breaker.trip_count(), failed_probes), (1, u64::from(counted)));
        if counted {
            assert_cooling(&breaker, "cooldown", SECOND * 2);
            return "the circuit cools down";
        }
        assert!(probes(&answer));
        answer.unwrap().success();
        "the probe decides"
    });
}

#[test]
fn a_probe_that_asks_for_a_cooldown_after_it_was_taken_over_leaves_the_decision_to_its_successor() {
    explore(&["just in time", "too late"], || {
        let (breaker, slow) = probing();
        advance(LEASE);
        let other = thread::spawn(move || slow.cool_down(SECOND * 5, "429", "slow"));
        let next = Arc::clone(&breaker).try_acquire_owned();
        other.join().unwrap();
        let Ok(next) = next else {
            assert_cooling(&breaker, "slow", SECOND * 5);
            assert_eq!((breaker.trip_count(), breaker.snapshot().failed_probe_count), (1, 1));
            return "just in time";
        };
        assert!(breaker.snapshot().probe_in_flight);
        next.success();
        assert_eq!((breaker.state(), breaker.snapshot().failed_probe_count), (CircuitState::Closed, 0));
        "too late"
    });
}

#[test]
fn a_probe_that_was_taken_over_may_still_tell_of_a_cooldown() {
    explore(&["closed", "open"], || {
        let (breaker, slow) = probing();
        advance(LEASE);
        claim(&breaker).success();
        let reader = beside(&breaker, |breaker| breaker.snapshot());
        slow.cool_down(SECOND, "429", "slow");
        assert_cooling(&breaker, "slow", SECOND);
        assert_eq!((breaker.trip_count(), breaker.snapshot().failed_probe_count), (2, 0));
        reader.join().unwrap().state.as_str()
    });
}

#[test]
fn a_waiter_is_rejected_when_the_probe_asks_for_a_cooldown() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, probe) = probing();
        let waiter = go_on(begin(&breaker));
        probe.cool_down(SECOND, "429", "cooldown");
        let (answer, slept) = waiter.join().unwrap();
        assert_eq!(reason(&answer), Some(RejectionReason::Reopened));
        assert_eq!(answer.unwrap_err().cause(), Some(Cause::Cooldown));
        woken(slept)
    });
}

#[test]
fn a_waiter_is_rejected_even_if_the_new_opening_was_extended_and_its_time_has_passed() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, probe) = probing();
        let waiter = go_on(begin(&breaker));
        probe.failure("test", "again");
        assert!(trip_for(&breaker, 2, "cooldown"));
        advance(SECOND * 2);
        let (answer, slept) = waiter.join().unwrap();
        assert_eq!(reason(&answer), Some(RejectionReason::Reopened));
        woken(slept)
    });
}

#[test]
fn a_late_answer_does_not_close_a_silent_circuit_that_cools_down() {
    explore(&["the answer came first", "the cooldown came first"], || {
        let (breaker, mut watcher, (late, ticket), now) = silence::silent();
        let other = beside(&breaker, |breaker| assert!(trip_for(&breaker, 2, "cooldown")));
        watcher.answered(ticket, now);
        late.success();
        other.join().unwrap();
        assert_cooling(&breaker, "cooldown", SECOND * 2);
        if breaker.trip_count() == 2 { "the answer came first" } else { "the cooldown came first" }
    });
}

#[test]
fn a_cooldown_may_be_longer_than_the_open_time_of_failures() {
    explore(&["before", "during"], || {
        let breaker = breaker(1);
        let call = beside(&breaker, CircuitBreaker::try_acquire_owned);
        // Longer than the open time by more than the clock may be behind.
        assert!(trip_for(&breaker, 3600, "cooldown"));
        advance(SECOND * 60);
        match call.join().unwrap() {
            Ok(permit) => {
                assert_eq!(permit.kind(), PermitType::Normal);
                "before"
            }
            Err(rejection) => {
                assert_eq!(rejection.cause(), Some(Cause::Cooldown));
                "during"
            }
        }
    });
}
