//! Closed -> Open -> `HalfOpen`, and what each outcome does in each.

use std::sync::Arc;
use std::time::Duration;

use fusebox::{CallError, CircuitBreaker, CircuitState, PermitType, RejectionReason};
use tokio::time::advance;

use crate::support::{SECOND, breaker, fail, next_probe, probe, trip};

#[tokio::test(start_paused = true)]
async fn a_closed_circuit_lets_calls_pass_and_opens_at_the_threshold() {
    let breaker = breaker();
    for failures in 0..3 {
        assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, failures));
        fail(&breaker, "5xx");
    }
    assert_eq!((breaker.state(), breaker.failure_count(), breaker.trip_count()), (CircuitState::Open, 3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_success_between_failures_resets_the_count() {
    let breaker = breaker();
    for _ in 0..3 {
        fail(&breaker, "5xx");
        fail(&breaker, "5xx");
        breaker.try_acquire().unwrap().success();
        assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_rejects_calls_and_says_when_to_come_back() {
    let breaker = breaker();
    trip(&breaker);
    advance(Duration::from_millis(12_345)).await;
    let rejected = breaker.try_acquire().unwrap_err();
    assert_eq!(
        (rejected.reason(), rejected.retry_after()),
        (RejectionReason::Open, Some(Duration::from_millis(17_655)))
    );
    assert_eq!(breaker.acquire().await.unwrap_err(), rejected);
    assert_eq!(rejected.to_string(), "the circuit is open, retry after 17.655s");
}

#[tokio::test(start_paused = true)]
async fn the_probe_comes_after_31_s_and_not_at_29_s() {
    let breaker = breaker();
    trip(&breaker);
    advance(29 * SECOND).await;
    assert!(breaker.try_acquire().is_err());
    advance(2 * SECOND).await;
    assert_eq!(breaker.state(), CircuitState::Open, "nothing happens by itself");
    let permit = breaker.try_acquire().unwrap();
    assert_eq!((permit.kind(), breaker.state()), (PermitType::Probe, CircuitState::HalfOpen));
    assert_eq!(breaker.try_acquire().unwrap_err().reason(), RejectionReason::ProbeInFlight);
    permit.success();
    assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failed_probe_reopens_with_a_fresh_timer_and_is_no_trip() {
    let breaker = breaker();
    for failed in 1..=3 {
        let permit = if failed == 1 { probe(&breaker).await } else { next_probe(&breaker).await };
        advance(5 * SECOND).await;
        permit.failure("timeout", "still down");
        let snapshot = breaker.snapshot();
        assert_eq!((snapshot.state, snapshot.trip_count, snapshot.failed_probe_count), (CircuitState::Open, 1, failed));
        assert_eq!(snapshot.next_probe_in, Some(30 * SECOND));
        assert_eq!(snapshot.last_error.unwrap().to_string(), "timeout: still down");
    }
    next_probe(&breaker).await.success();
    trip(&breaker);
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.trip_count, snapshot.failed_probe_count), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_probe_goes_to_a_waiter_at_once() {
    let breaker = breaker();
    probe(&breaker).await.cancel();
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
    assert_eq!(breaker.try_acquire().unwrap().cancel_on_drop().kind(), PermitType::Probe);
    let next = breaker.try_acquire().unwrap();
    assert_eq!(next.kind(), PermitType::Probe, "the one before was dropped, which was a cancel");
    next.success();
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_normal_permit_is_neutral_and_a_dropped_probe_is_a_failure() {
    let breaker = breaker();
    fail(&breaker, "5xx");
    drop(breaker.try_acquire());
    breaker.try_acquire().unwrap().cancel();
    assert_eq!(breaker.failure_count(), 1);
    breaker.try_acquire().unwrap().success();
    drop(probe(&breaker).await);
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.state, snapshot.failed_probe_count), (CircuitState::Open, 1));
    assert_eq!(snapshot.last_error.unwrap().error_type(), "dropped");
}

#[tokio::test(start_paused = true)]
async fn a_panic_counts_as_a_drop() {
    let breaker = breaker();
    let permit = probe(&breaker).await;
    let task = tokio::spawn(async move {
        let _permit = permit;
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(breaker.snapshot().last_error.unwrap().error_type(), "dropped");
}

#[tokio::test(start_paused = true)]
async fn a_call_records_its_result_and_is_not_polled_when_it_is_rejected() {
    let breaker = breaker();
    fail(&breaker, "5xx");
    assert_eq!(breaker.call(async { Ok::<_, &str>(7) }).await, Ok(7));
    assert_eq!(breaker.failure_count(), 0);
    for _ in 0..3 {
        assert_eq!(breaker.call(async { Err::<(), _>("boom") }).await, Err(CallError::Inner("boom")));
    }
    assert_eq!(breaker.snapshot().last_error.unwrap().to_string(), "error: boom");
    let rejected = breaker.call(async { panic!("polled") as Result<(), &str> }).await;
    assert!(matches!(rejected, Err(CallError::Rejected(_))));
}

#[tokio::test(start_paused = true)]
async fn dropping_a_call_that_is_the_probe_fails_the_probe() {
    let breaker = breaker();
    trip(&breaker);
    advance(30 * SECOND).await;
    {
        let mut call = Box::pin(breaker.call(std::future::pending::<Result<(), &str>>()));
        assert!(!crate::support::is_ready(call.as_mut()).await);
        assert_eq!(breaker.state(), CircuitState::HalfOpen);
    }
    assert_eq!((breaker.state(), breaker.snapshot().failed_probe_count), (CircuitState::Open, 1));
}

#[tokio::test(start_paused = true)]
async fn a_look_claims_nothing() {
    let breaker = breaker();
    assert!(breaker.would_allow());
    trip(&breaker);
    assert!(!breaker.would_allow());
    advance(30 * SECOND).await;
    assert!(breaker.would_allow() && breaker.would_allow());
    assert_eq!(breaker.state(), CircuitState::Open);
    let permit = breaker.try_acquire().unwrap();
    assert!(!breaker.would_allow());
    permit.cancel();
    assert!(breaker.would_allow());
}

#[tokio::test(start_paused = true)]
async fn a_message_that_panics_fails_the_probe_as_dropped_and_leaves_an_ordinary_call_uncounted() {
    struct Panics;
    impl std::fmt::Display for Panics {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            // As `panic!`, without the message on the terminal.
            std::panic::resume_unwind(Box::new("on purpose"))
        }
    }
    let breaker = breaker();
    let permit = probe(&breaker).await;
    assert!(tokio::spawn(async move { permit.failure("5xx", Panics) }).await.unwrap_err().is_panic());
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.state, snapshot.last_error.unwrap().error_type()), (CircuitState::Open, "dropped"));

    next_probe(&breaker).await.success();
    fail(&breaker, "5xx");
    fail(&breaker, "5xx");
    let permit = Arc::clone(&breaker).try_acquire_owned().unwrap();
    assert!(tokio::spawn(async move { permit.failure("5xx", Panics) }).await.unwrap_err().is_panic());
    assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 2));
}

#[tokio::test(start_paused = true)]
async fn a_message_is_formatted_only_if_the_failure_opens_the_circuit() {
    #[derive(Default)]
    struct Message(std::cell::Cell<u32>);
    impl std::fmt::Display for Message {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.set(self.0.get() + 1);
            f.write_str("test")
        }
    }
    let breaker = breaker();
    let message = Message::default();
    for expected in [0, 0, 1] {
        breaker.try_acquire().unwrap().failure("5xx", &message);
        assert_eq!(message.0.get(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn an_explanation_names_provider_last_error_and_trip_count() {
    let breaker = breaker();
    trip(&breaker);
    let error = breaker.explain(breaker.try_acquire().unwrap_err());
    assert_eq!((error.provider(), error.trip_count(), error.reason()), ("openai", 1, RejectionReason::Open));
    assert_eq!(error.retry_after(), Some(30 * SECOND));
    let text = "openai: the circuit is open (last error: 5xx: test), retry after 30s";
    assert_eq!(error.to_string(), text);
}

#[tokio::test(start_paused = true)]
async fn a_circuit_that_was_idle_for_weeks_takes_its_probe() {
    // Ticks wrap after 49.7 days; 50 and 100 are on the other side.
    for days in [1, 24, 25, 26, 48, 50, 100] {
        let breaker = breaker();
        trip(&breaker);
        advance(days * 24 * 3600 * SECOND).await;
        assert_eq!(breaker.try_acquire().unwrap().kind(), PermitType::Probe, "after {days} days");
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_open_time_is_kept_to_the_millisecond() {
    let longest = 24 * 3600 * SECOND;
    let breaker = CircuitBreaker::builder("a").failure_threshold(1).open_for(longest).build().unwrap();
    // The tick counter wraps in between.
    advance(49 * 24 * 3600 * SECOND).await;
    fail(&breaker, "5xx");
    advance(longest.checked_sub(Duration::from_millis(1)).unwrap()).await;
    assert_eq!(breaker.try_acquire().unwrap_err().retry_after(), Some(Duration::from_millis(1)));
    advance(Duration::from_millis(1)).await;
    assert!(breaker.would_allow());
}

#[tokio::test(start_paused = true)]
async fn a_circuit_with_the_highest_threshold_opens() {
    let breaker = Arc::new(CircuitBreaker::builder("a").failure_threshold(1023).build().unwrap());
    for _ in 0..1022 {
        fail(&breaker, "5xx");
    }
    assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 1022));
    fail(&breaker, "5xx");
    assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Open, 1023));
}

#[tokio::test(start_paused = true)]
async fn a_permit_held_by_another_handle_is_the_same_permit() {
    let mine = std::rc::Rc::new(CircuitBreaker::builder("openai").build().unwrap());
    for _ in 0..3 {
        mine.try_acquire().unwrap().held_by(std::rc::Rc::clone(&mine)).failure("timeout", "late");
    }
    assert_eq!(mine.state(), CircuitState::Open);
}

#[test]
#[should_panic(expected = "a permit is for the breaker that granted it")]
fn a_permit_cannot_be_held_by_another_breaker() {
    let (one, other) = (breaker(), breaker());
    let _permit = one.try_acquire().unwrap().held_by(other);
}
