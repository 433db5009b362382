//! Recoveries of several good probes, and an open time that grows with those that fail.

use std::sync::Arc;
use std::time::Duration;

use loom::thread;
use loom_tests::sync::time::advance;
use loom_tests::{CircuitBreaker, CircuitState, OwnedPermit};

use crate::harness::{
    LEASE, OPEN_FOR, begin, beside, claim, counting_polls, due_with, explore, go_on, passed, probes, settings, told,
    woken,
};

/// A breaker that needs two good probes, and the first of them.
fn first_of_two() -> (Arc<CircuitBreaker>, OwnedPermit) {
    let breaker = due_with(settings(1).good_probes(2));
    let probe = claim(&breaker);
    (breaker, probe)
}

#[test]
fn a_waiter_becomes_the_second_of_two_probes() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, first) = first_of_two();
        let waiter = go_on(begin(&breaker));
        first.success();
        let (answer, slept) = waiter.join().unwrap();
        assert!(probes(&answer));
        assert_eq!(breaker.state(), CircuitState::HalfOpen);
        answer.unwrap().success();
        assert_eq!(breaker.state(), CircuitState::Closed);
        woken(slept)
    });
}

#[test]
fn a_call_beside_two_good_probes_is_one_of_them_or_passes_after_them() {
    explore(&["the second probe", "passed"], || {
        let (breaker, first) = first_of_two();
        let call = beside(&breaker, |breaker| {
            let (answer, _) = counting_polls(Box::pin(breaker.acquire_owned()));
            let is_probe = probes(&answer);
            assert!(is_probe || passed(&answer));
            answer.unwrap().success();
            is_probe
        });
        first.success();
        if let Ok(second) = Arc::clone(&breaker).try_acquire_owned() {
            second.success();
        }
        let is_probe = call.join().unwrap();
        assert_eq!((breaker.state(), breaker.trip_count()), (CircuitState::Closed, 1));
        if is_probe { "the second probe" } else { "passed" }
    });
}

#[test]
fn a_probe_that_was_taken_over_is_none_of_the_good_ones() {
    explore(&["just in time", "too late"], || {
        let (breaker, slow) = first_of_two();
        advance(LEASE);
        let other = thread::spawn(move || slow.success());
        // The first good one, or the second.
        let next = claim(&breaker);
        other.join().unwrap();
        assert!(breaker.snapshot().probe_in_flight);
        next.success();
        if breaker.state() == CircuitState::Closed {
            return "just in time";
        }
        claim(&breaker).success();
        assert_eq!(breaker.state(), CircuitState::Closed);
        "too late"
    });
}

#[test]
fn a_cancelled_probe_is_none_of_the_good_ones() {
    explore(&["the call was rejected", "the call was the next probe"], || {
        let breaker = due_with(settings(1).good_probes(3));
        claim(&breaker).success();
        let neutral = claim(&breaker);
        let call = beside(&breaker, |breaker| match breaker.try_acquire_owned() {
            Ok(probe) => {
                probe.cancel();
                true
            }
            Err(_) => false,
        });
        neutral.cancel();
        let was_next = call.join().unwrap();
        claim(&breaker).success();
        assert_eq!(breaker.state(), CircuitState::HalfOpen, "the second good one");
        if was_next { "the call was the next probe" } else { "the call was rejected" }
    });
}

#[test]
fn after_a_failed_probe_the_good_ones_are_counted_anew() {
    explore(&["admitted", "rejected"], || {
        let (breaker, first) = first_of_two();
        first.success();
        let second = claim(&breaker);
        let call = beside(&breaker, |breaker| breaker.try_acquire().is_ok());
        second.failure("test", "again");
        advance(OPEN_FOR);
        let admitted = call.join().unwrap();
        if admitted {
            // It was the first probe of the next recovery, and was dropped.
            assert_eq!(breaker.snapshot().failed_probe_count, 2);
            return "admitted";
        }
        claim(&breaker).success();
        assert_eq!(breaker.state(), CircuitState::HalfOpen);
        "rejected"
    });
}

#[test]
fn each_failed_recovery_makes_the_open_time_grow_once() {
    explore(&["just in time", "too late"], || {
        let breaker = due_with(settings(1).open_growth(300));
        let slow = claim(&breaker);
        advance(LEASE);
        let other = thread::spawn(move || slow.failure("test", "slow"));
        let next = Arc::clone(&breaker).try_acquire_owned();
        let taken_over = next.is_ok();
        if let Ok(next) = next {
            next.failure("test", "next");
        }
        other.join().unwrap();
        let seen = breaker.snapshot();
        assert_eq!((seen.next_probe_in, seen.failed_probe_count), (Some(OPEN_FOR * 3), 1));
        if taken_over {
            assert_eq!(told(&breaker), "next");
            "too late"
        } else {
            "just in time"
        }
    });
}

#[test]
fn a_cooldown_does_not_make_the_open_time_grow() {
    explore(&["the probe's own", "another call's"], || {
        let breaker = due_with(settings(1).open_growth(300));
        let probe = claim(&breaker);
        let other = beside(&breaker, |breaker| breaker.trip_for(OPEN_FOR * 2, "429", "another call"));
        probe.cool_down(OPEN_FOR, "429", "the probe");
        let extended = other.join().unwrap();
        advance(OPEN_FOR * 2);
        claim(&breaker).failure("test", "again");
        assert_eq!(breaker.snapshot().next_probe_in, Some(OPEN_FOR * 3), "one failed recovery");
        if extended { "another call's" } else { "the probe's own" }
    });
}

#[test]
fn a_circuit_that_closed_forgets_the_failed_recoveries() {
    explore(&["closed by then", "half-open by then"], || {
        let breaker = due_with(settings(1).open_growth(300));
        claim(&breaker).failure("test", "again");
        advance(OPEN_FOR * 3);
        let probe = claim(&breaker);
        let other = beside(&breaker, |breaker| match breaker.try_acquire() {
            Ok(permit) => {
                permit.failure("test", "a new trip");
                true
            }
            Err(_) => false,
        });
        probe.success();
        let closed = other.join().unwrap();
        if !closed {
            breaker.try_acquire().unwrap().failure("test", "a new trip");
        }
        assert_eq!(breaker.snapshot().next_probe_in, Some(Duration::from_secs(1)));
        if closed { "closed by then" } else { "half-open by then" }
    });
}
