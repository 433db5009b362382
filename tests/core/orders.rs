//! Orders by hand.

use std::time::Duration;

use fusebox::{CallError, Cause, CircuitState, PermitType, RejectionReason};
use tokio::time::advance;

use crate::log::Log;
use crate::support::{SECOND, at_once, breaker, fail, probe, registry, trip, waiter};

#[tokio::test(start_paused = true)]
async fn an_isolated_circuit_rejects_every_call_until_another_order() {
    let log = Log::capture();
    let breaker = breaker();
    fail(&breaker, "5xx");
    breaker.isolate("the key is\nrevoked");
    let isolated = r#"WARN circuit isolated by hand breaker="openai" from="closed" to="open" cause="isolated" failure_count=0 last_error=isolated: the key is\nrevoked trip_count=0 generation=1"#;
    assert_eq!(log.take(), [isolated]);
    for _ in 0..3 {
        let rejection = breaker.acquire().await.unwrap_err();
        assert_eq!((rejection.reason(), rejection.cause()), (RejectionReason::Open, Some(Cause::Isolated)));
        assert_eq!(rejection.retry_after(), None);
        assert_eq!(rejection.to_string(), "the circuit is open, until it is reset by hand");
        assert!(!breaker.would_allow());
        advance(20 * 24 * 3600 * SECOND).await;
    }
    let seen = breaker.snapshot();
    assert_eq!((seen.state, seen.next_probe_in, seen.failure_count), (CircuitState::Open, None, 0));
    assert!(!breaker.trip_for(SECOND, "429", ""), "it is open for longer than that");

    breaker.isolate("another reason");
    let explained = breaker.explain(breaker.try_acquire().unwrap_err()).to_string();
    let expected = "openai: the circuit is open (last error: isolated: another reason), until it is reset by hand";
    assert_eq!(explained, expected);
    log.take();
    breaker.reset();
    let reset = r#"INFO circuit reset by hand breaker="openai" from="open" to="closed" failure_count=0 last_error=isolated: another reason trip_count=0 generation=3"#;
    assert_eq!(log.take(), [reset]);
    assert_eq!(breaker.try_acquire().unwrap().kind(), PermitType::Normal);
}

#[tokio::test(start_paused = true)]
async fn a_disabled_circuit_lets_every_call_pass_and_never_opens() {
    let log = Log::capture();
    let breaker = breaker();
    let old = probe(&breaker).await;
    log.take();
    breaker.disable();
    let disabled = r#"WARN circuit disabled by hand breaker="openai" from="half_open" to="disabled" failure_count=3 last_error=5xx: test trip_count=1 generation=2"#;
    assert_eq!(log.take(), [disabled]);
    old.failure("5xx", "from before");
    for _ in 0..100 {
        let permit = breaker.acquire().await.unwrap();
        assert_eq!(permit.kind(), PermitType::Normal);
        permit.failure("5xx", "");
        breaker.try_acquire().unwrap().success();
        breaker.try_acquire().unwrap().cool_down(SECOND, "429", "");
    }
    let called = breaker.call(async { Err::<(), _>("boom") }).await;
    assert_eq!(called, Err(CallError::Inner("boom")));
    assert!(!breaker.trip_for(SECOND, "429", "") && breaker.would_allow());
    let seen = breaker.snapshot();
    assert_eq!((seen.state, seen.failure_count, seen.trip_count), (CircuitState::Disabled, 0, 1));
    assert!(log.take().is_empty());
    breaker.reset();
    trip(&breaker);
    assert_eq!((breaker.state(), breaker.trip_count()), (CircuitState::Open, 2));
}

#[tokio::test(start_paused = true)]
async fn waiters_learn_of_an_order_at_once() {
    for isolate in [false, true] {
        let breaker = breaker();
        let _probe = probe(&breaker).await;
        let waiters = [waiter(&breaker).await, waiter(&breaker).await];
        if isolate {
            breaker.isolate("by hand");
        } else {
            breaker.reset();
        }
        for waiter in waiters {
            match at_once(waiter).await.unwrap() {
                Ok(permit) => assert!(!isolate && permit.kind() == PermitType::Normal),
                Err(rejection) => {
                    assert!(isolate);
                    assert_eq!((rejection.reason(), rejection.retry_after()), (RejectionReason::Reopened, None));
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_forgets_failures_and_failed_recoveries() {
    let breaker = breaker();
    breaker.set_config(breaker.config().to_builder().open_growth(200).build().unwrap());
    probe(&breaker).await.failure("5xx", "");
    assert_eq!(breaker.snapshot().next_probe_in, Some(60 * SECOND));
    breaker.reset();
    fail(&breaker, "5xx");
    breaker.reset();
    assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 0));
    trip(&breaker);
    assert_eq!(breaker.snapshot().next_probe_in, Some(30 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_permit_from_before_an_order_says_nothing_after_it() {
    let breaker = breaker();
    let permits = [(); 3].map(|()| breaker.try_acquire().unwrap());
    breaker.reset();
    fail(&breaker, "5xx");
    let [good, bad, dropped] = permits;
    good.success();
    bad.failure("5xx", "");
    drop(dropped);
    assert_eq!(breaker.failure_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_is_removed_is_reset() {
    let breakers = registry();
    let breaker = breakers.get("openai").unwrap();
    trip(&breaker);
    let log = Log::capture();
    breakers.remove("openai").unwrap();
    assert_eq!(breaker.state(), CircuitState::Closed);
    assert!(log.take()[0].starts_with("INFO circuit closed, its name was removed"));
    breakers.remove("anthropic").unwrap();
    assert!(log.take().is_empty(), "it was closed");
}

#[tokio::test(start_paused = true)]
async fn settings_that_are_replaced_leave_an_order_alone() {
    let breaker = breaker();
    for disabled in [false, true] {
        if disabled {
            breaker.disable();
        } else {
            breaker.isolate("by hand");
        }
        let before = breaker.state();
        breaker.set_config(breaker.config().to_builder().open_for(Duration::from_millis(1)).build().unwrap());
        advance(SECOND).await;
        assert_eq!((breaker.state(), breaker.would_allow()), (before, disabled));
    }
}
