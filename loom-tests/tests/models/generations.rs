//! A late result of an older generation changes nothing.

use std::sync::Arc;

use loom::thread;
use loom_tests::sync::time::advance;
use loom_tests::{CircuitBreaker, CircuitState, OwnedPermit};

use crate::harness::{LEASE, OPEN_FOR, beside, breaker, claim, explore, fail, permit, probing, told};

/// A breaker with threshold 2 that is closed again in generation 1, and a permit of generation 0.
fn closed_again() -> (Arc<CircuitBreaker>, OwnedPermit) {
    let breaker = breaker(2);
    let late = permit(&breaker);
    fail(&breaker, "first");
    fail(&breaker, "second");
    advance(OPEN_FOR);
    claim(&breaker).success();
    (breaker, late)
}

#[test]
fn a_late_success_does_not_interrupt_a_row_of_failures() {
    explore(&["before the row", "in the row", "after the row"], || {
        let (breaker, late) = closed_again();
        let other = beside(&breaker, |breaker| {
            late.success();
            breaker.failure_count()
        });
        fail(&breaker, "third");
        fail(&breaker, "fourth");
        let seen = other.join().unwrap();
        assert_eq!((breaker.state(), breaker.trip_count()), (CircuitState::Open, 2));
        ["before the row", "in the row", "after the row"][seen as usize]
    });
}

#[test]
fn a_late_failure_is_not_counted() {
    explore(&["before the first of the new row", "after it"], || {
        let (breaker, late) = closed_again();
        let other = beside(&breaker, |breaker| {
            late.failure("test", "late");
            breaker.failure_count()
        });
        fail(&breaker, "third");
        let seen = other.join().unwrap();
        assert_eq!((breaker.state(), breaker.failure_count(), breaker.trip_count()), (CircuitState::Closed, 1, 1));
        ["before the first of the new row", "after it"][seen as usize]
    });
}

#[test]
fn a_late_failure_does_not_spoil_a_recovery() {
    explore(&["before it closed", "after it closed"], || {
        let breaker = breaker(1);
        let late = permit(&breaker);
        fail(&breaker, "first");
        advance(OPEN_FOR);
        let probe = claim(&breaker);
        let other = beside(&breaker, |breaker| {
            late.failure("test", "late");
            breaker.state()
        });
        probe.success();
        let seen = other.join().unwrap();
        assert_eq!((breaker.state(), breaker.failure_count(), breaker.trip_count()), (CircuitState::Closed, 0, 1));
        if seen == CircuitState::HalfOpen { "before it closed" } else { "after it closed" }
    });
}

#[test]
fn a_late_failure_does_not_extend_the_open_time() {
    explore(&["while open", "while half-open"], || {
        let breaker = breaker(1);
        let late = permit(&breaker);
        fail(&breaker, "first");
        advance(OPEN_FOR);
        let other = beside(&breaker, |breaker| {
            late.failure("test", "late");
            breaker.state()
        });
        let probe = claim(&breaker);
        let seen = other.join().unwrap();
        assert_eq!((breaker.state(), breaker.trip_count()), (CircuitState::HalfOpen, 1));
        probe.cancel();
        if seen == CircuitState::Open { "while open" } else { "while half-open" }
    });
}

#[test]
fn a_late_success_of_a_probe_that_was_taken_over_does_not_hide_its_successors_failure() {
    explore(&["the slow probe closed the circuit", "its successor opened it"], || {
        let (breaker, slow) = probing();
        advance(LEASE);
        let other = thread::spawn(move || slow.success());
        let next = Arc::clone(&breaker).try_acquire_owned().unwrap();
        next.failure("test", "again");
        other.join().unwrap();
        let seen = breaker.snapshot();
        assert_eq!((seen.state, &*told(&breaker)), (CircuitState::Open, "again"));
        match (seen.trip_count, seen.failed_probe_count) {
            (2, 0) => "the slow probe closed the circuit",
            (1, 1) => "its successor opened it",
            _ => "neither",
        }
    });
}

#[test]
fn a_late_cancel_of_a_probe_that_was_taken_over_does_not_hand_its_successors_back() {
    explore(&["handed back, then claimed", "taken over"], || {
        let (breaker, slow) = probing();
        advance(LEASE);
        let other = beside(&breaker, |breaker| {
            let before = format!("{breaker:?}");
            slow.cancel();
            before.contains("lease_end: 3000")
        });
        let next = claim(&breaker);
        let first = other.join().unwrap();
        assert!(breaker.snapshot().probe_in_flight);
        next.success();
        assert_eq!(breaker.state(), CircuitState::Closed);
        if first { "handed back, then claimed" } else { "taken over" }
    });
}
