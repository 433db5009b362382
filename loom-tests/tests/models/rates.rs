//! Rates, failures with a memory, and settings that are replaced while calls are under way.

use std::sync::Arc;
use std::time::Duration;

use loom_tests::sync::time::advance;
use loom_tests::{Abandoned, CircuitBreaker, CircuitState, ConfigBuilder, LastCalls, Window};

use crate::harness::{OPEN_FOR, beside, claim, due, explore, fail, permit, settings, told};

const WINDOW: Duration = Duration::from_millis(100);

fn with(change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Arc<CircuitBreaker> {
    Arc::new(CircuitBreaker::new("upstream", change(settings(2)).build().unwrap()))
}

/// Two failures of two calls open it, and failures in a row do not.
fn with_rate(window: impl Into<Window>) -> Arc<CircuitBreaker> {
    with(|config| config.failure_threshold(None).failure_rate(100).min_calls(2).window(window))
}

fn counted(breaker: &CircuitBreaker) -> LastCalls {
    breaker.snapshot().last_calls.expect("a rate is set")
}

fn two_failures_at_once(breaker: &Arc<CircuitBreaker>) -> &'static str {
    let other = beside(breaker, |breaker| fail(&breaker, "other"));
    let own = breaker.try_acquire().map(|permit| permit.failure("test", "own"));
    other.join().unwrap();
    assert!(own.is_ok());
    assert_eq!((breaker.state(), breaker.trip_count()), (CircuitState::Open, 1));
    if told(breaker) == "own" { "own" } else { "other" }
}

#[test]
fn of_two_failures_that_reach_a_rate_together_one_opens_the_circuit() {
    explore(&["own", "other"], || two_failures_at_once(&with_rate(2)));
}

#[test]
fn of_two_failures_in_a_window_of_time_one_opens_the_circuit() {
    explore(&["own", "other"], || two_failures_at_once(&with_rate(WINDOW)));
}

#[test]
fn a_row_of_failures_and_a_rate_that_are_reached_together_open_the_circuit_once() {
    explore(&["own", "other"], || {
        two_failures_at_once(&with(|config| config.failure_rate(100).min_calls(2).window(2)))
    });
}

#[test]
fn a_failure_that_counts_down_beside_a_sum_is_not_lost() {
    // Four of four: the first sum says that three are missing.
    explore(&["open"], || {
        let breaker = with(|config| config.failure_threshold(None).failure_rate(100).min_calls(3).window(3));
        fail(&breaker, "first");
        let own = permit(&breaker);
        let other = beside(&breaker, |breaker| fail(&breaker, "other"));
        own.failure("test", "own");
        other.join().unwrap();
        assert_eq!((breaker.state(), breaker.trip_count()), (CircuitState::Open, 1));
        "open"
    });
}

#[test]
fn a_failure_from_before_a_reset_is_in_no_window_after_it() {
    explore(&["in time", "late"], || {
        let breaker = with_rate(WINDOW);
        let old = permit(&breaker);
        let other = beside(&breaker, |_| old.failure("test", "old"));
        let before = counted(&breaker).failures;
        breaker.reset();
        other.join().unwrap();
        assert_eq!(counted(&breaker), LastCalls::default());
        fail(&breaker, "after");
        assert_eq!((breaker.state(), counted(&breaker).failures), (CircuitState::Closed, 1));
        if before == 1 { "in time" } else { "late" }
    });
}

#[test]
fn a_sum_beside_a_thread_that_counts_in_its_next_window_sees_each_tenth_whole() {
    explore(&["the old tenth", "the new one", "nothing"], || {
        let breaker = with_rate(WINDOW);
        let other = beside(&breaker, |breaker| {
            fail(&breaker, "old");
            // The same place of another window.
            advance(WINDOW);
            breaker.try_acquire().expect("closed").success();
        });
        let LastCalls { calls, failures, .. } = counted(&breaker);
        other.join().unwrap();
        match (calls, failures) {
            (0, 0) => "nothing",
            (1, 1) => "the old tenth",
            (1, 0) => "the new one",
            other => panic!("{other:?}"),
        }
    });
}

// ---- a memory ----

#[test]
fn a_success_that_finds_a_failure_knows_that_its_own_call_is_older() {
    explore(&["the failure stays"], || {
        let breaker = with(|config| config.failure_memory(Duration::from_secs(60)));
        let old = permit(&breaker);
        advance(Duration::from_millis(1));
        let newer = permit(&breaker);
        let other = beside(&breaker, |_| old.success());
        newer.failure("test", "newer");
        other.join().unwrap();
        assert_eq!(breaker.failure_count(), 1);
        "the failure stays"
    });
}

// ---- settings ----

fn replace(breaker: &CircuitBreaker, change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) {
    breaker.set_config(change(breaker.config().to_builder()).build().unwrap());
}

#[test]
fn settings_that_are_replaced_lose_no_failure() {
    explore(&["open"], || {
        let breaker = with(|config| config);
        let other = beside(&breaker, |breaker| replace(&breaker, |config| config.abandoned(Abandoned::Failure)));
        fail(&breaker, "first");
        fail(&breaker, "second");
        other.join().unwrap();
        assert_eq!((breaker.state(), breaker.trip_count(), breaker.failure_count()), (CircuitState::Open, 1, 2));
        "open"
    });
}

#[test]
fn settings_that_are_replaced_lose_no_probe() {
    explore(&["closed"], || {
        let breaker = due();
        let probe = claim(&breaker);
        let other = beside(&breaker, |breaker| replace(&breaker, |config| config.failure_rate(50)));
        probe.success();
        other.join().unwrap();
        assert_eq!(breaker.state(), CircuitState::Closed);
        "closed"
    });
}

#[test]
fn settings_that_are_replaced_lose_no_failed_probe_and_no_cancelled_one() {
    explore(&["open", "free"], || {
        let breaker = due();
        let first = claim(&breaker);
        let other = beside(&breaker, |breaker| replace(&breaker, |config| config.failure_rate(50)));
        first.cancel();
        let second = breaker.try_acquire().expect("the probe is free");
        let ends_open = counted_later(&breaker);
        second.failure("test", "again");
        other.join().unwrap();
        assert_eq!((breaker.state(), breaker.snapshot().failed_probe_count), (CircuitState::Open, 1));
        if ends_open { "open" } else { "free" }
    });
}

/// Whether the other thread has replaced the settings by now.
fn counted_later(breaker: &CircuitBreaker) -> bool {
    breaker.snapshot().last_calls.is_some()
}

#[test]
fn of_two_writers_of_settings_the_last_one_decides_what_is_measured() {
    explore(&["measured", "not measured"], || {
        let breaker = with(|config| config.failure_threshold(9));
        let on = breaker.config().to_builder().failure_rate(100).min_calls(1).build().unwrap();
        let off = breaker.config();
        let other = beside(&breaker, move |breaker| breaker.set_config(on));
        breaker.set_config(off);
        other.join().unwrap();
        let is_on = breaker.config().failure_rate().is_some();
        fail(&breaker, "test");
        let expected = if is_on { CircuitState::Open } else { CircuitState::Closed };
        assert_eq!(breaker.state(), expected);
        if is_on { "measured" } else { "not measured" }
    });
}

#[test]
fn settings_that_are_replaced_leave_a_late_answer_its_silence_and_an_opening_its_error() {
    explore(&["opened first", "replaced first"], || {
        let breaker = with(|config| config.failure_threshold(1));
        let other = beside(&breaker, |breaker| {
            replace(&breaker, |config| config.failure_rate(50));
            breaker.state() == CircuitState::Open
        });
        fail(&breaker, "first");
        let opened_first = other.join().unwrap();
        assert_eq!((breaker.state(), told(&breaker).as_str()), (CircuitState::Open, "first"));
        advance(OPEN_FOR);
        claim(&breaker).success();
        assert_eq!(breaker.state(), CircuitState::Closed);
        if opened_first { "opened first" } else { "replaced first" }
    });
}

#[test]
fn settings_that_are_replaced_apply_whatever_calls_do_meanwhile() {
    explore(&["the first failure was measured", "the second one was"], || {
        let breaker = with(|config| config.failure_threshold(9));
        let other = beside(&breaker, |breaker| {
            replace(&breaker, |config| config.failure_rate(100).min_calls(1).window(1));
        });
        fail(&breaker, "first");
        other.join().unwrap();
        if breaker.state() == CircuitState::Open {
            return "the first failure was measured";
        }
        fail(&breaker, "second");
        assert_eq!((breaker.state(), told(&breaker).as_str()), (CircuitState::Open, "second"));
        "the second one was"
    });
}
