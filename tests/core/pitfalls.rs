//! What other circuit breakers shipped, as tests that this one passes.

use fusebox::{CircuitState, PermitType, RejectionReason};
use tokio::time::advance;

use crate::support::{SECOND, at_once, breaker, fail, next_probe, probe, trip, waiter};

/// resilience4j#935; `OmniRoute`#13836: six days, 49,607 rejections.
#[tokio::test(start_paused = true)]
async fn a_probe_that_never_settles_does_not_wedge_the_circuit() {
    let breaker = breaker();
    let _hung = probe(&breaker).await;
    advance(60 * SECOND).await;
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.state(), CircuitState::Closed);
}

/// sglang#40603, Hystrix#1621.
#[tokio::test(start_paused = true)]
async fn a_cancelled_probe_does_not_wedge_the_circuit() {
    let breaker = breaker();
    probe(&breaker).await.cancel();
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.state(), CircuitState::Closed);
}

/// Hystrix#1853: the fix for the one before; the cancellation of an ordinary call reopened the circuit.
#[tokio::test(start_paused = true)]
async fn the_cancellation_of_an_unrelated_call_does_not_touch_the_probe() {
    let breaker = breaker();
    let ordinary = breaker.try_acquire().unwrap();
    let probe = probe(&breaker).await;
    ordinary.cancel();
    assert!(breaker.snapshot().probe_in_flight);
    probe.success();
    assert_eq!(breaker.state(), CircuitState::Closed);
}

/// Polly#217, denoland/std#7306.
#[tokio::test(start_paused = true)]
async fn a_stale_result_does_not_decide() {
    let breaker = breaker();
    let [success, failure, later] = [(); 3].map(|()| breaker.try_acquire().unwrap());
    let probe = probe(&breaker).await;
    success.success();
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
    failure.failure("late", "");
    assert!(breaker.snapshot().probe_in_flight);
    probe.success();
    later.failure("late", "");
    assert_eq!(
        (breaker.state(), breaker.failure_count()),
        (CircuitState::Closed, 0),
        "not even in the closed circuit after it"
    );
}

/// resilience4j#544 (wedges); smg#2565 (a 400 closed the circuit).
#[tokio::test(start_paused = true)]
async fn a_neutral_outcome_of_the_probe_neither_wedges_nor_closes() {
    let breaker = breaker();
    probe(&breaker).await.cancel();
    assert_eq!((breaker.state(), breaker.would_allow()), (CircuitState::HalfOpen, true));
}

/// opossum#119, Polly#216.
#[tokio::test(start_paused = true)]
async fn no_other_call_passes_beside_the_probe() {
    let breaker = breaker();
    trip(&breaker);
    advance(31 * SECOND).await;
    let permits: Vec<_> = (0..100).filter_map(|_| breaker.try_acquire().ok()).collect();
    assert_eq!(permits.len(), 1);
    assert_eq!(permits[0].kind(), PermitType::Probe);
    permits.into_iter().for_each(fusebox::Permit::success);
}

/// A success that races a failure must not undo it: the count is only reset by a success in the same generation.
#[tokio::test(start_paused = true)]
async fn a_success_from_before_the_trip_does_not_undo_it() {
    let breaker = breaker();
    let slow = breaker.try_acquire().unwrap();
    trip(&breaker);
    slow.success();
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.state, snapshot.failure_count), (CircuitState::Open, 3));
    assert_eq!(snapshot.next_probe_in, Some(30 * SECOND));
}

/// agbero#7.
#[tokio::test(start_paused = true)]
async fn late_failures_do_not_extend_the_open_time() {
    let breaker = breaker();
    let slow: Vec<_> = (0..5).map(|_| breaker.try_acquire().unwrap()).collect();
    trip(&breaker);
    for permit in slow {
        advance(5 * SECOND).await;
        permit.failure("late", "");
    }
    assert_eq!(breaker.snapshot().next_probe_in, Some(5 * SECOND));
    assert_eq!((breaker.trip_count(), breaker.snapshot().failed_probe_count), (1, 0));
}

/// Sentinel#1638: breaker A went half-open, B then rejected, and A's probe was never used.
#[tokio::test(start_paused = true)]
async fn a_candidate_can_be_looked_at_without_using_up_its_probe() {
    let (a, b) = (breaker(), breaker());
    trip(&a);
    advance(31 * SECOND).await;
    trip(&b);
    assert!(a.would_allow() && !b.would_allow());
    assert_eq!(a.state(), CircuitState::Open);
    assert_eq!(a.try_acquire().unwrap().cancel_on_drop().kind(), PermitType::Probe);
}

/// The waiters of a failed probe must not become a queue of probes, one after the other.
#[tokio::test(start_paused = true)]
async fn waiters_of_a_failed_probe_do_not_call_the_upstream() {
    let breaker = breaker();
    let permit = probe(&breaker).await;
    let waiters = [waiter(&breaker).await, waiter(&breaker).await];
    permit.failure("timeout", "");
    for waiter in waiters {
        assert_eq!(at_once(waiter).await.unwrap().unwrap_err().reason(), RejectionReason::Reopened);
    }
    next_probe(&breaker).await.success();
    fail(&breaker, "5xx");
}
