//! Waiting for a probe: everybody gets its result, nobody waits for ever.

use std::sync::Arc;
use std::time::Duration;

use fusebox::{CircuitBreaker, CircuitState, ConfigBuilder, PermitType, RejectionReason};
use tokio::time::{Instant, advance, timeout};

use crate::support::{SECOND, at_once, breaker, fail, is_ready, next_probe, probe, trip, waiter};

fn configured(set: impl FnOnce(ConfigBuilder<Arc<str>>) -> ConfigBuilder<Arc<str>>) -> Arc<CircuitBreaker> {
    Arc::new(set(CircuitBreaker::builder("openai")).build().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_successful_probe_lets_its_waiter_pass() {
    let breaker = breaker();
    let permit = probe(&breaker).await;
    let waiter = waiter(&breaker).await;
    permit.success();
    assert_eq!(at_once(waiter).await.unwrap().unwrap().kind(), PermitType::Normal);
    assert_eq!(breaker.snapshot().waiters, 0);
}

#[tokio::test(start_paused = true)]
async fn a_failed_probe_rejects_its_waiter() {
    let breaker = breaker();
    let permit = probe(&breaker).await;
    let waiter = waiter(&breaker).await;
    permit.failure("timeout", "");
    let rejected = at_once(waiter).await.unwrap().unwrap_err();
    assert_eq!((rejected.reason(), rejected.retry_after()), (RejectionReason::Reopened, Some(30 * SECOND)));
}

#[tokio::test(start_paused = true)]
async fn five_waiters_all_get_the_right_answer() {
    for succeeds in [true, false] {
        let breaker = breaker();
        let permit = probe(&breaker).await;
        let mut waiters = Vec::new();
        for _ in 0..5 {
            waiters.push(waiter(&breaker).await);
        }
        if succeeds {
            permit.success();
        } else {
            permit.failure("timeout", "");
        }
        for waiter in waiters {
            assert_eq!(at_once(waiter).await.unwrap().is_ok(), succeeds);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn waiters_of_a_failed_probe_are_rejected_even_if_they_run_after_the_open_time() {
    let breaker = configured(|builder| builder.open_for(Duration::from_millis(1)));
    let permit = probe(&breaker).await;
    let mut wait = Box::pin(breaker.acquire());
    assert!(!is_ready(wait.as_mut()).await);
    permit.failure("timeout", "");
    advance(SECOND).await;
    assert!(breaker.would_allow(), "the next call may probe");
    assert_eq!(at_once(wait).await.unwrap_err().reason(), RejectionReason::Reopened);
}

#[tokio::test(start_paused = true)]
async fn one_waiter_becomes_the_probe_when_it_is_cancelled() {
    let breaker = breaker();
    let permit = probe(&breaker).await;
    let waiters = [waiter(&breaker).await, waiter(&breaker).await];
    permit.cancel();
    let [first, second] = waiters;
    let next = at_once(first).await.unwrap().unwrap();
    assert_eq!(next.kind(), PermitType::Probe);
    assert_eq!(breaker.snapshot().waiters, 1);
    next.success();
    assert_eq!(at_once(second).await.unwrap().unwrap().kind(), PermitType::Normal);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_dropped_changes_nothing() {
    let breaker = configured(|builder| builder.max_waiters(1));
    let permit = probe(&breaker).await;
    {
        let mut wait = Box::pin(breaker.acquire());
        assert!(!is_ready(wait.as_mut()).await);
        let rejected = breaker.acquire().await.unwrap_err();
        assert_eq!((rejected.reason(), rejected.retry_after()), (RejectionReason::TooManyWaiters, Some(60 * SECOND)));
    }
    assert_eq!((breaker.snapshot().waiters, breaker.state()), (0, CircuitState::HalfOpen));
    let waiter = waiter(&breaker).await;
    permit.success();
    assert!(at_once(waiter).await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_at_the_wait_limit() {
    let breaker = configured(|builder| builder.wait_limit(7 * SECOND));
    let _permit = probe(&breaker).await.cancel_on_drop();
    let start = Instant::now();
    let rejected = breaker.acquire().await.unwrap_err();
    assert_eq!((rejected.reason(), rejected.retry_after()), (RejectionReason::WaitLimit, Some(53 * SECOND)));
    assert!((7 * SECOND..7 * SECOND + Duration::from_millis(2)).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn with_a_wait_limit_of_zero_nobody_waits() {
    let breaker = configured(|builder| builder.wait_limit(Duration::ZERO));
    let _permit = probe(&breaker).await.cancel_on_drop();
    let mut wait = Box::pin(breaker.acquire());
    assert!(is_ready(wait.as_mut()).await);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_probe_is_taken_over_by_the_next_call_after_its_lease() {
    let breaker = breaker();
    let _hung = probe(&breaker).await;
    advance(Duration::from_millis(59_999)).await;
    assert_eq!(breaker.try_acquire().unwrap_err().retry_after(), Some(Duration::from_millis(1)));
    advance(Duration::from_millis(1)).await;
    assert_eq!(breaker.try_acquire().unwrap().cancel_on_drop().kind(), PermitType::Probe);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_takes_over_a_forgotten_probe_when_the_lease_ends() {
    let breaker = configured(|builder| builder.wait_limit(90 * SECOND));
    let _hung = probe(&breaker).await;
    let waiting = timeout(61 * SECOND, breaker.acquire()).await;
    assert_eq!(waiting.unwrap().unwrap().cancel_on_drop().kind(), PermitType::Probe);
}

#[tokio::test(start_paused = true)]
async fn late_results_of_a_probe_that_was_taken_over_change_nothing() {
    for succeeds in [true, false] {
        let breaker = breaker();
        let late = probe(&breaker).await;
        advance(60 * SECOND).await;
        let current = breaker.try_acquire().unwrap();
        if succeeds {
            late.success();
        } else {
            late.failure("late", "");
        }
        let snapshot = breaker.snapshot();
        assert_eq!((snapshot.state, snapshot.probe_in_flight), (CircuitState::HalfOpen, true));
        assert_eq!(snapshot.failed_probe_count, 0);
        current.success();
        assert_eq!(breaker.state(), CircuitState::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_trip_never_shows_the_first_cycles_result() {
    let breaker = breaker();
    probe(&breaker).await.success();
    let second = probe(&breaker).await;
    let waiter = waiter(&breaker).await;
    second.failure("second", "");
    assert_eq!(at_once(waiter).await.unwrap().unwrap_err().reason(), RejectionReason::Reopened);
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.trip_count, snapshot.failed_probe_count), (2, 1));
    assert_eq!(snapshot.last_error.unwrap().error_type(), "second");
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_sleeps_through_a_whole_cycle_waits_for_the_next_probe() {
    let breaker = breaker();
    let first = probe(&breaker).await;
    let mut wait = Box::pin(breaker.acquire());
    assert!(!is_ready(wait.as_mut()).await);
    first.success();
    trip(&breaker);
    let second = next_probe(&breaker).await;
    assert!(!is_ready(wait.as_mut()).await, "the first cycle's success is not the second's");
    second.success();
    assert_eq!(at_once(wait).await.unwrap().kind(), PermitType::Normal);
    fail(&breaker, "5xx");
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_moves_on_to_a_later_probe_is_rejected_when_that_one_fails() {
    let breaker = configured(|builder| builder.open_for(Duration::from_millis(1)));
    let first = probe(&breaker).await;
    let mut wait = Box::pin(breaker.acquire());
    assert!(!is_ready(wait.as_mut()).await);
    first.success();
    let second = probe(&breaker).await;
    assert!(!is_ready(wait.as_mut()).await);
    second.failure("timeout", "");
    advance(SECOND).await;
    assert!(breaker.would_allow(), "the next call may probe, but not one that waited for this probe");
    assert_eq!(at_once(wait).await.unwrap_err().reason(), RejectionReason::Reopened);
}
