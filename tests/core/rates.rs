//! Rates of calls that fail or are slow, failures with a memory, and calls that are abandoned.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use fusebox::{
    Abandoned, Cause, CircuitBreaker, CircuitBreakerRegistry, CircuitState, Config, ConfigBuilder, LastError, Outcome,
    PermitType, Window,
};
use tokio::time::{advance, timeout};

use crate::log::Log;
use crate::support::{SECOND, fail, next_probe};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Failures in a row are switched off.
fn with(change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Arc<CircuitBreaker> {
    let config = change(Config::builder().failure_threshold(None)).build().unwrap();
    Arc::new(CircuitBreaker::new("openai", config))
}

fn succeed(breaker: &CircuitBreaker) {
    breaker.try_acquire().unwrap().success();
}

/// Calls, failures and slow calls in the window.
fn counted(breaker: &CircuitBreaker) -> [u64; 3] {
    let calls = breaker.snapshot().last_calls.expect("a rate is set");
    [calls.calls, calls.failures, calls.slow]
}

fn cause(breaker: &CircuitBreaker) -> Option<Cause> {
    breaker.snapshot().cause
}

// ---- failure rate ----

#[tokio::test(start_paused = true)]
async fn a_rate_opens_the_circuit_exactly_when_it_and_the_minimum_are_reached() {
    for window in [Window::Time(10 * SECOND), Window::Calls(100)] {
        let breaker = with(|config| config.failure_rate(50).min_calls(20).window(window));
        // Below the minimum, whatever the rate.
        for _ in 0..9 {
            fail(&breaker, "5xx");
        }
        for _ in 0..10 {
            succeed(&breaker);
        }
        assert_eq!((breaker.state(), counted(&breaker)), (CircuitState::Closed, [19, 9, 0]));
        fail(&breaker, "the twentieth call, and the tenth failure");
        assert_eq!(cause(&breaker), Some(Cause::Rate), "{window:?}");
        let rejection = breaker.try_acquire().unwrap_err();
        let error = breaker.explain(rejection);
        assert_eq!((rejection.cause(), error.trip_count()), (Some(Cause::Rate), 1));
        let last = error.last_error().map(LastError::error_type);
        assert_eq!(last, Some("the twentieth call, and the tenth failure"));
    }
}

#[tokio::test(start_paused = true)]
async fn ten_successes_and_then_ten_failures_open_at_the_tenth_failure() {
    let breaker = with(|config| config.failure_rate(50).min_calls(20));
    (0..10).for_each(|_| succeed(&breaker));
    for failures in 1..10 {
        fail(&breaker, "5xx");
        assert_eq!(breaker.state(), CircuitState::Closed, "after {failures}");
    }
    fail(&breaker, "5xx");
    assert_eq!(cause(&breaker), Some(Cause::Rate));
}

#[tokio::test(start_paused = true)]
async fn a_success_never_opens_the_circuit_and_the_next_failure_does() {
    let breaker = with(|config| config.failure_rate(50).min_calls(20));
    (0..10).for_each(|_| fail(&breaker, "5xx"));
    (0..10).for_each(|_| succeed(&breaker));
    assert_eq!((breaker.state(), counted(&breaker)), (CircuitState::Closed, [20, 10, 0]));
    fail(&breaker, "5xx");
    assert_eq!(cause(&breaker), Some(Cause::Rate));
}

#[tokio::test(start_paused = true)]
#[cfg_attr(miri, ignore = "thousands of calls")]
async fn five_calls_in_a_window_with_a_minimum_of_twenty_never_open_it() {
    let breaker = with(|config| config.failure_rate(1).min_calls(20).window(10 * SECOND));
    for _ in 0..1000 {
        fail(&breaker, "5xx");
        advance(2 * SECOND).await;
        assert_eq!(breaker.state(), CircuitState::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_of_time_forgets_a_tenth_after_the_other() {
    let breaker = with(|config| config.failure_rate(100).min_calls(1000).window(10 * SECOND));
    for _ in 0..10 {
        fail(&breaker, "5xx");
        advance(SECOND).await;
    }
    assert_eq!(counted(&breaker), [9, 9, 0]);
    advance(5 * SECOND).await;
    assert_eq!(counted(&breaker), [4, 4, 0]);
    advance(Duration::from_millis(3999)).await;
    assert_eq!(counted(&breaker), [1, 1, 0]);
    advance(Duration::from_millis(1)).await;
    assert_eq!(counted(&breaker), [0, 0, 0]);
    // Ticks wrap after 49.7 days, and the window does not.
    for days in [1, 24, 25, 49, 50, 100] {
        advance(days * DAY).await;
        fail(&breaker, "5xx");
        assert_eq!(counted(&breaker), [1, 1, 0], "after {days} days");
    }
}

#[tokio::test(start_paused = true)]
#[cfg_attr(miri, ignore = "thousands of calls")]
async fn successes_that_are_forgotten_do_not_hide_an_outage() {
    let breaker = with(|config| config.failure_rate(60).min_calls(20).window(10 * SECOND));
    (0..1000).for_each(|_| succeed(&breaker));
    let mut failures = 0;
    while breaker.state() == CircuitState::Closed {
        advance(SECOND / 10).await;
        fail(&breaker, "5xx");
        failures += 1;
        assert!(failures <= 100, "{:?}", counted(&breaker));
    }
    assert_eq!(failures, 100, "the tenth second ends with the hundredth failure");
}

#[tokio::test(start_paused = true)]
async fn a_window_of_calls_holds_the_last_ones_however_old() {
    let breaker = with(|config| config.failure_rate(60).min_calls(5).window(5));
    (0..4).for_each(|_| succeed(&breaker));
    advance(30 * DAY).await;
    fail(&breaker, "5xx");
    fail(&breaker, "5xx");
    assert_eq!((breaker.state(), counted(&breaker)), (CircuitState::Closed, [5, 2, 0]));
    fail(&breaker, "5xx");
    assert_eq!(cause(&breaker), Some(Cause::Rate));
}

#[tokio::test(start_paused = true)]
async fn calls_from_before_the_circuit_was_open_do_not_count_after_it() {
    for window in [Window::Time(DAY), Window::Calls(100)] {
        let breaker = with(|config| config.failure_rate(100).min_calls(2).window(window));
        let old = breaker.try_acquire().unwrap();
        (0..2).for_each(|_| fail(&breaker, "5xx"));
        next_probe(&breaker).await.success();
        assert_eq!(counted(&breaker), [0, 0, 0]);
        old.failure("5xx", "from before");
        assert_eq!(counted(&breaker), [0, 0, 0]);
        fail(&breaker, "5xx");
        assert_eq!(breaker.state(), CircuitState::Closed);
        fail(&breaker, "5xx");
        assert_eq!((breaker.state(), breaker.trip_count()), (CircuitState::Open, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_and_a_rate_open_it_whichever_comes_first() {
    let breaker = with(|config| config.failure_threshold(3).failure_rate(50).min_calls(10));
    (0..3).for_each(|_| fail(&breaker, "5xx"));
    assert_eq!((cause(&breaker), breaker.failure_count()), (Some(Cause::Failures), 3));
    next_probe(&breaker).await.success();
    for _ in 0..5 {
        succeed(&breaker);
        fail(&breaker, "5xx");
    }
    assert_eq!((cause(&breaker), breaker.failure_count(), breaker.trip_count()), (Some(Cause::Rate), 1, 2));
}

#[tokio::test(start_paused = true)]
#[cfg_attr(miri, ignore = "thousands of calls")]
async fn without_a_threshold_no_number_of_failures_in_a_row_opens_it() {
    let breaker = with(|config| config);
    (0..5000).for_each(|_| fail(&breaker, "5xx"));
    assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 0));
    assert!(breaker.trip_for(SECOND, "429", "later"));
}

#[tokio::test(start_paused = true)]
async fn a_disabled_circuit_measures_and_does_not_open() {
    let breaker = with(|config| config.failure_rate(50).min_calls(2));
    breaker.disable();
    (0..5).for_each(|_| fail(&breaker, "5xx"));
    assert_eq!((breaker.state(), counted(&breaker)), (CircuitState::Disabled, [5, 5, 0]));
    breaker.reset();
    assert_eq!(counted(&breaker), [0, 0, 0]);
    fail(&breaker, "5xx");
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
#[cfg_attr(miri, ignore = "thousands of calls")]
async fn calls_of_all_threads_are_in_the_window() {
    for window in [Window::Time(DAY), Window::Calls(10_000)] {
        let breaker = with(|config| config.failure_rate(100).min_calls(4000).window(window));
        std::thread::scope(|scope| {
            for n in 0..4 {
                let breaker = &breaker;
                scope.spawn(move || {
                    for _ in 0..1000 {
                        if n == 0 { succeed(breaker) } else { fail(breaker, "5xx") }
                    }
                });
            }
        });
        assert_eq!(counted(&breaker), [4000, 3000, 0], "{window:?}");
    }
}

#[tokio::test(start_paused = true)]
#[cfg_attr(miri, ignore = "thousands of calls")]
async fn of_failures_on_many_threads_the_last_one_that_is_needed_opens_the_circuit() {
    for window in [Window::Time(DAY), Window::Calls(8000)] {
        let breaker = with(|config| config.failure_rate(100).min_calls(4000).window(window));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| fail(&breaker, "5xx")));
            }
        });
        assert_eq!((cause(&breaker), breaker.trip_count()), (Some(Cause::Rate), 1), "{window:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_by_name_are_in_the_window_too() {
    let config = Config::builder().failure_threshold(None).failure_rate(50).min_calls(4);
    let config = config.slow_rate(50).slow_after(Duration::from_millis(1)).build().unwrap();
    let breakers = CircuitBreakerRegistry::with_config(["openai"], config);
    for failed in [false, true, false, true] {
        assert_eq!(breakers.try_acquire_permit("openai").unwrap(), PermitType::Normal);
        advance(SECOND).await;
        if failed {
            assert!(breakers.record_failure("openai", "5xx", ""));
        } else {
            assert!(breakers.record_success("openai"));
        }
    }
    // Nobody knows how long they took.
    assert_eq!(cause(&breakers.get("openai").unwrap()), Some(Cause::Rate));
}

#[tokio::test(start_paused = true)]
async fn a_window_that_is_replaced_begins_empty_and_one_that_stays_keeps_its_calls() {
    let breaker = with(|config| config.failure_rate(100).min_calls(10).window(10 * SECOND));
    (0..5).for_each(|_| fail(&breaker, "5xx"));
    let set = |change: fn(ConfigBuilder) -> ConfigBuilder| {
        breaker.set_config(change(breaker.config().to_builder()).build().unwrap());
    };
    set(|config| config.min_calls(7));
    assert_eq!(counted(&breaker), [5, 5, 0]);
    set(|config| config.window(20 * SECOND));
    assert_eq!(counted(&breaker), [0, 0, 0]);
    set(|config| config.window(50));
    fail(&breaker, "5xx");
    assert_eq!(counted(&breaker), [1, 1, 0]);
    set(|config| config.failure_rate(None));
    fail(&breaker, "5xx");
    assert_eq!(breaker.snapshot().last_calls, None);
    set(|config| config.failure_rate(100).min_calls(2));
    assert_eq!(counted(&breaker), [1, 1, 0]);
    fail(&breaker, "5xx");
    assert_eq!(cause(&breaker), Some(Cause::Rate));
}

#[tokio::test(start_paused = true)]
async fn a_lower_minimum_applies_to_the_next_failure_however_many_were_missing_before() {
    let breaker = with(|config| config.failure_rate(100).min_calls(100));
    (0..10).for_each(|_| fail(&breaker, "5xx"));
    breaker.set_config(breaker.config().to_builder().min_calls(11).build().unwrap());
    fail(&breaker, "5xx");
    assert_eq!(cause(&breaker), Some(Cause::Rate));
}

// ---- slow calls ----

#[tokio::test(start_paused = true)]
async fn slow_calls_open_the_circuit_whether_they_succeed_or_fail() {
    let breaker = with(|config| config.slow_rate(50).slow_after(5 * SECOND).min_calls(4).window(60 * SECOND));
    let log = Log::capture();
    let permits: Vec<_> = (0..4).map(|_| breaker.try_acquire().unwrap()).collect();
    let [first, second, third, fourth] = permits.try_into().unwrap();
    advance(4 * SECOND + Duration::from_millis(999)).await;
    first.success();
    second.success();
    assert_eq!(counted(&breaker), [2, 0, 0]);
    advance(Duration::from_millis(1)).await;
    third.failure("5xx", "slow, too");
    fourth.success();
    let opened = r#"WARN circuit opened breaker="openai" from="closed" to="open" cause="slow" failure_count=0 last_error=slow: 2 of 4 calls took 5s or longer trip_count=1 generation=1"#;
    assert_eq!(log.take(), [opened]);
    assert_eq!(breaker.try_acquire().unwrap_err().cause(), Some(Cause::Slow));
}

#[tokio::test(start_paused = true)]
async fn a_slow_success_that_brings_the_calls_up_to_the_minimum_may_reach_the_failure_rate() {
    let breaker =
        with(|config| config.failure_rate(50).slow_rate(100).slow_after(SECOND).min_calls(2).window(60 * SECOND));
    let slow = breaker.try_acquire().unwrap();
    fail(&breaker, "5xx");
    advance(SECOND).await;
    slow.success();
    assert_eq!(cause(&breaker), Some(Cause::Rate));
    let error = breaker.snapshot().last_error.unwrap();
    assert_eq!(error.to_string(), "rate: 1 of 2 calls failed");
}

#[tokio::test(start_paused = true)]
async fn a_call_is_measured_from_its_permit_to_its_outcome() {
    let breaker = with(|config| config.slow_rate(100).slow_after(SECOND).min_calls(2));
    let slow = async {
        advance(SECOND).await;
        Ok::<_, std::io::Error>(())
    };
    breaker.call(slow).await.unwrap();
    breaker.call_with(async { Ok::<_, std::io::Error>(()) }, Outcome::of).await.unwrap();
    let permit = Arc::clone(&breaker).acquire_owned().await.unwrap().held_by(Arc::clone(&breaker));
    advance(SECOND).await;
    permit.cancel();
    assert_eq!(counted(&breaker), [2, 0, 1]);
}

// ---- a memory ----

#[tokio::test(start_paused = true)]
async fn three_failures_a_week_apart_are_no_row() {
    let breaker = with(|config| config.failure_threshold(3).failure_memory(60 * SECOND));
    for _ in 0..5 {
        fail(&breaker, "5xx");
        advance(7 * DAY).await;
    }
    assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 1));
    // Each of them within a minute of the one before.
    for _ in 0..2 {
        fail(&breaker, "5xx");
        advance(60 * SECOND).await;
    }
    assert_eq!(breaker.state(), CircuitState::Closed);
    fail(&breaker, "5xx");
    assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Open, 3));
}

#[tokio::test(start_paused = true)]
async fn a_call_from_before_an_outage_that_succeeds_during_it_ends_no_row() {
    let breaker = with(|config| config.failure_threshold(3).failure_memory(60 * SECOND));
    let old = breaker.try_acquire().unwrap();
    advance(SECOND).await;
    let newer = breaker.try_acquire().unwrap();
    fail(&breaker, "5xx");
    fail(&breaker, "5xx");
    advance(SECOND).await;
    old.success();
    assert_eq!(breaker.failure_count(), 2);
    // It began with the calls that failed.
    newer.success();
    assert_eq!(breaker.failure_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_memory_every_success_ends_a_row() {
    let breaker = with(|config| config.failure_threshold(3));
    let old = breaker.try_acquire().unwrap();
    advance(SECOND).await;
    fail(&breaker, "5xx");
    old.success();
    assert_eq!(breaker.failure_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_memory_that_is_set_while_failures_are_counted_loses_none() {
    let breaker = with(|config| config.failure_threshold(3));
    (0..2).for_each(|_| fail(&breaker, "5xx"));
    let config = breaker.config().to_builder();
    breaker.set_config(config.clone().failure_memory(SECOND).build().unwrap());
    assert_eq!(breaker.failure_count(), 2);
    breaker.set_config(config.build().unwrap());
    fail(&breaker, "5xx");
    assert_eq!((breaker.state(), breaker.trip_count()), (CircuitState::Open, 1));
}

// ---- abandoned calls ----

#[tokio::test(start_paused = true)]
async fn a_timeout_around_a_call_is_seen_if_abandoned_calls_are_failures() {
    let hang = |breaker: Arc<CircuitBreaker>| async move {
        let hangs = pending::<Result<(), std::io::Error>>();
        assert!(timeout(SECOND, breaker.call(hangs)).await.is_err());
    };
    let ignoring = with(|config| config.failure_threshold(1));
    hang(Arc::clone(&ignoring)).await;
    assert_eq!(ignoring.state(), CircuitState::Closed);

    let breaker = with(|config| config.failure_threshold(2).abandoned(Abandoned::Failure));
    hang(Arc::clone(&breaker)).await;
    drop(breaker.try_acquire().unwrap());
    assert_eq!(breaker.state(), CircuitState::Open);
    let error = breaker.snapshot().last_error.unwrap();
    assert_eq!(error.to_string(), "dropped: the call was dropped unresolved");
}

#[tokio::test(start_paused = true)]
async fn every_outcome_and_every_way_to_let_go_of_a_permit_is_no_abandoning() {
    let breaker = with(|config| config.failure_threshold(1).abandoned(Abandoned::Failure));
    let permit = || breaker.try_acquire().unwrap();
    permit().success();
    permit().cancel();
    drop(permit().cancel_on_drop());
    drop(Arc::clone(&breaker).try_acquire_owned().unwrap().held_by(Arc::clone(&breaker)).cancel_on_drop());
    let hangs = pending::<Result<(), std::io::Error>>();
    assert!(timeout(SECOND, breaker.cancel_on_drop().call(hangs)).await.is_err());
    let judged = pending::<Result<(), std::io::Error>>();
    assert!(timeout(SECOND, breaker.cancel_on_drop().call_with(judged, Outcome::of)).await.is_err());
    assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 0));
    permit().cool_down(Duration::ZERO, "429", "");
    assert_eq!((cause(&breaker), breaker.trip_count()), (Some(Cause::Cooldown), 1));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_panics_is_abandoned_once() {
    let breaker = with(|config| config.failure_threshold(2).abandoned(Abandoned::Failure));
    let answer = || -> Result<(), std::io::Error> { panic!("on purpose") };
    let panics = async move { answer() };
    let task = tokio::spawn({
        let breaker = Arc::clone(&breaker);
        async move { breaker.call(panics).await.is_ok() }
    });
    assert!(task.await.is_err());
    assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 1));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_panics_while_it_is_formatted_counts_at_most_once() {
    struct Panics;
    impl std::fmt::Display for Panics {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("on purpose")
        }
    }
    let breaker = with(|config| config.failure_threshold(2).abandoned(Abandoned::Failure));
    breaker.try_acquire().unwrap().failure("5xx", Panics);
    let permit = Arc::clone(&breaker).try_acquire_owned().unwrap();
    let failing = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| permit.failure("5xx", Panics)));
    assert!(failing.is_err());
    assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 1));
}
