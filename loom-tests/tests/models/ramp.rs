//! A circuit that recovers: its ramp, and what ends it.

use std::sync::Arc;
use std::time::Duration;

use loom_tests::sync::draw;
use loom_tests::sync::time::advance;
use loom_tests::{CircuitBreaker, CircuitState, OwnedPermit, PermitType, RejectionReason};

use crate::harness::{
    OPEN_FOR, begin, beside, caller, claim, due_with, explore, go_on, passed, permit, reason, settings, told, woken,
};

/// Shorter than the open time.
const RAMP: Duration = Duration::from_millis(500);

/// A breaker at the beginning of its ramp. Every call that draws 0 passes.
fn recovering() -> Arc<CircuitBreaker> {
    draw(0);
    let breaker = due_with(settings(1).ramp(RAMP).ramp_from(10));
    claim(&breaker).success();
    assert_eq!(breaker.state(), CircuitState::Recovering);
    breaker
}

/// A call on the ramp.
fn on_the_ramp(breaker: &Arc<CircuitBreaker>) -> OwnedPermit {
    let permit = permit(breaker);
    assert_eq!(breaker.state(), CircuitState::Recovering);
    permit
}

#[test]
fn a_failure_beside_the_end_of_the_ramp_opens_the_circuit_once() {
    explore(&["after it", "before the call"], || {
        let breaker = recovering();
        let failing = on_the_ramp(&breaker);
        let other = beside(&breaker, |breaker| {
            advance(RAMP);
            breaker.try_acquire().is_ok_and(|permit| permit.kind() == PermitType::Normal)
        });
        failing.failure("test", "on the ramp");
        let seen = breaker.snapshot();
        assert_eq!((seen.state, seen.trip_count, told(&breaker).as_str()), (CircuitState::Open, 2, "on the ramp"));
        if other.join().unwrap() { "after it" } else { "before the call" }
    });
}

#[test]
fn two_calls_that_find_the_ramp_over_both_pass() {
    explore(&["both"], || {
        let breaker = recovering();
        advance(RAMP);
        draw(u32::MAX);
        let other = beside(&breaker, |breaker| breaker.try_acquire_owned().map(OwnedPermit::success).is_ok());
        assert!(breaker.try_acquire().is_ok_and(|permit| permit.kind() == PermitType::Normal));
        assert!(other.join().unwrap());
        assert_eq!(breaker.state(), CircuitState::Closed);
        "both"
    });
}

#[test]
fn a_waiter_for_its_turn_is_rejected_when_the_circuit_opens_again() {
    explore(&["woken", "found it resolved"], || {
        let breaker = recovering();
        let failing = on_the_ramp(&breaker);
        draw(u32::MAX);
        let waiter = go_on(begin(&breaker));
        failing.failure("test", "on the ramp");
        let (answer, slept) = waiter.join().unwrap();
        assert_eq!(reason(&answer), Some(RejectionReason::Reopened));
        woken(slept)
    });
}

#[test]
fn a_waiter_for_its_turn_passes_when_it_comes() {
    explore(&["woken", "found it resolved"], || {
        let breaker = recovering();
        draw(u32::MAX);
        let waiter = go_on(begin(&breaker));
        advance(RAMP);
        let (answer, slept) = waiter.join().unwrap();
        assert!(passed(&answer));
        woken(slept)
    });
}

#[test]
fn a_waiter_of_the_probe_has_its_turn_on_the_ramp() {
    explore(&["waited", "did not wait"], || {
        draw(0);
        let breaker = due_with(settings(1).ramp(RAMP));
        let probe = claim(&breaker);
        let waiter = caller(&breaker);
        probe.success();
        let (answer, slept) = waiter.join().unwrap();
        assert!(passed(&answer));
        assert_eq!(breaker.state(), CircuitState::Recovering);
        answer.unwrap().success();
        if slept { "waited" } else { "did not wait" }
    });
}

#[test]
fn a_cooldown_beside_a_failure_on_the_ramp_opens_the_circuit_and_the_later_end_counts() {
    explore(&["extended", "told alone"], || {
        let breaker = recovering();
        let failing = on_the_ramp(&breaker);
        let other = beside(&breaker, |breaker| breaker.trip_for(10 * OPEN_FOR, "429", "later"));
        failing.failure("test", "on the ramp");
        assert!(other.join().unwrap());
        let seen = breaker.snapshot();
        assert_eq!((seen.state, seen.next_probe_in, seen.trip_count), (CircuitState::Open, Some(10 * OPEN_FOR), 2));
        assert_eq!(told(&breaker), "later");
        if seen.failure_count == 1 { "extended" } else { "told alone" }
    });
}
