//! Calls of plain threads, without a runtime.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use fusebox::{CallError, CircuitBreaker, CircuitState, Outcome, OwnedPermit, PermitType, RejectionReason};

const LONG: Duration = Duration::from_secs(60);

/// A breaker and the probe that is in flight for it.
fn probing(wait_limit: Duration) -> (Arc<CircuitBreaker>, OwnedPermit) {
    let settings = CircuitBreaker::builder("ldap").failure_threshold(1).open_for(Duration::from_millis(1));
    let breaker = Arc::new(settings.wait_limit(wait_limit).build().unwrap());
    breaker.try_acquire().unwrap().failure("5xx", "test");
    let start = Instant::now();
    loop {
        if let Ok(probe) = Arc::clone(&breaker).try_acquire_owned() {
            return (breaker, probe);
        }
        assert!(start.elapsed() < LONG, "the open time does not pass");
        thread::yield_now();
    }
}

fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "the condition is not met");
        thread::yield_now();
    }
}

#[test]
fn a_call_that_need_not_wait_does_not() {
    let breaker = CircuitBreaker::builder("ldap").failure_threshold(1).build().unwrap();
    assert_eq!(breaker.acquire_blocking(Duration::ZERO).unwrap().kind(), PermitType::Normal);
    assert_eq!(breaker.call_blocking(|| Ok::<_, ()>(7)), Ok(7));
    assert_eq!(breaker.call_blocking(|| Err::<(), _>("down")), Err(CallError::Inner("down")));
    assert_eq!(breaker.snapshot().last_error.unwrap().to_string(), "error: down");
    let rejected = breaker.call_blocking(|| -> Result<(), ()> { unreachable!("the circuit is open") });
    assert!(matches!(rejected, Err(CallError::Rejected(rejection)) if rejection.reason() == RejectionReason::Open));
}

#[test]
fn a_judge_says_how_a_call_went() {
    let breaker = CircuitBreaker::builder("ldap").failure_threshold(1).build().unwrap();
    let judge = |result: &Result<u16, ()>| match result {
        Ok(500..) => Outcome::failure("5xx", "the server failed"),
        _ => Outcome::Neutral,
    };
    assert_eq!(breaker.call_blocking_with(|| Ok(404), judge), Ok(404));
    assert_eq!(breaker.state(), CircuitState::Closed);
    assert_eq!(breaker.call_blocking_with(|| Ok(503), judge), Ok(503));
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[test]
fn threads_that_wait_get_the_probes_result() {
    for succeeds in [true, false] {
        let (breaker, probe) = probing(LONG);
        thread::scope(|scope| {
            let waiters = [(); 8].map(|()| scope.spawn(|| breaker.acquire_blocking(LONG).map(|permit| permit.kind())));
            until(|| breaker.snapshot().waiters == 8);
            if succeeds {
                probe.success();
            } else {
                probe.failure("5xx", "again");
            }
            for waiter in waiters {
                match waiter.join().unwrap() {
                    Ok(kind) => assert_eq!((kind, succeeds), (PermitType::Normal, true)),
                    Err(rejection) => assert_eq!((rejection.reason(), succeeds), (RejectionReason::Reopened, false)),
                }
            }
        });
    }
}

#[test]
fn a_probe_that_is_handed_back_goes_from_thread_to_thread() {
    let (breaker, probe) = probing(LONG);
    thread::scope(|scope| {
        let waiters = [(); 8].map(|()| {
            scope.spawn(|| {
                let permit = breaker.acquire_blocking(LONG).unwrap();
                assert_eq!(permit.kind(), PermitType::Probe);
                permit.cancel();
            })
        });
        until(|| breaker.snapshot().waiters == 8);
        probe.cancel();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

#[test]
fn a_thread_waits_no_longer_than_its_own_limit_and_that_of_the_breaker() {
    for (wait_limit, timeout) in [(LONG, Duration::from_millis(20)), (Duration::from_millis(20), Duration::MAX)] {
        let (breaker, _probe) = probing(wait_limit);
        let start = Instant::now();
        assert_eq!(breaker.acquire_blocking(timeout).unwrap_err().reason(), RejectionReason::WaitLimit);
        assert!((Duration::from_millis(20)..LONG).contains(&start.elapsed()));
        assert_eq!(breaker.snapshot().waiters, 0);
    }
}

#[test]
fn a_call_that_panics_as_the_probe_does_not_wedge_the_circuit() {
    let (breaker, probe) = probing(LONG);
    probe.cancel();
    let call = || breaker.call_blocking(|| -> Result<(), ()> { std::panic::resume_unwind(Box::new("test")) });
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err());
    assert_eq!(breaker.snapshot().last_error.unwrap().error_type(), "dropped");
    assert!(!breaker.snapshot().probe_in_flight);
}

#[test]
fn outside_of_a_runtime_a_task_that_would_have_to_wait_is_told_so() {
    let (breaker, probe) = probing(LONG);
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Err(rejection)) = pin!(breaker.acquire()).poll(&mut cx) else { panic!("it waits") };
    assert_eq!(rejection.reason(), RejectionReason::NoRuntime);
    assert!(rejection.to_string().starts_with("the call would have to wait, for which there is no tokio runtime"));
    let Poll::Ready(Err(rejection)) = pin!(Arc::clone(&breaker).acquire_owned()).poll(&mut cx) else {
        panic!("it waits")
    };
    assert_eq!(rejection.reason(), RejectionReason::NoRuntime);
    // A call that need not wait needs no runtime.
    probe.success();
    assert!(matches!(pin!(breaker.acquire()).poll(&mut cx), Poll::Ready(Ok(_))));
}
