//! Orders by hand: each wins against whatever happens at the same time, and what is from before it says nothing after.

use std::sync::Arc;
use std::time::Duration;

use loom::thread;
use loom_tests::sync::time::advance;
use loom_tests::{Cause, CircuitBreaker, CircuitState, RejectionReason};

use crate::harness::{
    LEASE, OPEN_FOR, begin, beside, breaker, explore, fail, go_on, passed, permit, probing, reason, told, woken,
};
use crate::{by_name, silence};

fn assert_isolated(breaker: &CircuitBreaker) {
    let seen = breaker.snapshot();
    assert_eq!((seen.state, seen.cause, seen.next_probe_in), (CircuitState::Open, Some(Cause::Isolated), None));
    assert_eq!(told(breaker), "by hand");
    advance(Duration::from_secs(24 * 3600));
    assert_eq!(breaker.try_acquire().unwrap_err().retry_after(), None);
}

#[test]
fn an_isolation_wins_against_the_last_failure_and_is_no_trip() {
    explore(&["the failure counted", "the failure came too late"], || {
        let breakers = by_name::registry(1);
        let other = beside(&breakers, |breakers| breakers.record_failure("a", "test", "failure"));
        let breaker = breakers.get("a").unwrap();
        breaker.isolate("by hand");
        let counted = other.join().unwrap();
        assert_isolated(&breaker);
        assert_eq!(breaker.trip_count(), u64::from(counted));
        if counted { "the failure counted" } else { "the failure came too late" }
    });
}

#[test]
fn an_isolation_wins_against_a_probe_that_succeeds() {
    explore(&["the probe counted", "the probe came too late"], || {
        let breakers = by_name::probing();
        let other = beside(&breakers, |breakers| breakers.record_probe_success("a"));
        let breaker = breakers.get("a").unwrap();
        breaker.isolate("by hand");
        let counted = other.join().unwrap();
        assert_isolated(&breaker);
        assert_eq!((breaker.trip_count(), breaker.snapshot().failed_probe_count), (1, 0));
        if counted { "the probe counted" } else { "the probe came too late" }
    });
}

#[test]
fn an_isolation_wins_against_a_probe_that_fails() {
    explore(&["the probe counted", "the probe came too late"], || {
        let breakers = by_name::probing();
        let other = beside(&breakers, |breakers| breakers.record_probe_failure("a", "test", "again"));
        let breaker = breakers.get("a").unwrap();
        breaker.isolate("by hand");
        let counted = other.join().unwrap();
        assert_isolated(&breaker);
        assert_eq!((breaker.trip_count(), breaker.snapshot().failed_probe_count), (1, u64::from(counted)));
        if counted { "the probe counted" } else { "the probe came too late" }
    });
}

#[test]
fn an_isolation_wins_against_a_cooldown() {
    explore(&["the cooldown counted", "the cooldown came too late"], || {
        let breaker = breaker(1);
        let other = beside(&breaker, |breaker| breaker.trip_for(Duration::from_secs(3600), "429", "cooldown"));
        breaker.isolate("by hand");
        let counted = other.join().unwrap();
        assert_isolated(&breaker);
        assert_eq!(breaker.trip_count(), u64::from(counted));
        if counted { "the cooldown counted" } else { "the cooldown came too late" }
    });
}

#[test]
fn a_failure_from_before_a_reset_does_not_open_the_circuit_after_it() {
    explore(&["it opened the circuit before", "it came too late"], || {
        let breaker = breaker(1);
        let old = permit(&breaker);
        let other = thread::spawn(move || old.failure("test", "failure"));
        breaker.reset();
        other.join().unwrap();
        assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 0));
        if breaker.trip_count() == 1 {
            assert_eq!(told(&breaker), "failure");
            "it opened the circuit before"
        } else {
            assert_eq!(told(&breaker), "", "it opened nothing");
            "it came too late"
        }
    });
}

#[test]
fn openings_after_a_reset_are_counted_once_each() {
    explore(&["two trips", "three trips"], || {
        let breaker = breaker(1);
        fail(&breaker, "first");
        breaker.reset();
        let old = permit(&breaker);
        let other = thread::spawn(move || old.failure("test", "second"));
        breaker.reset();
        fail(&breaker, "third");
        other.join().unwrap();
        let seen = breaker.snapshot();
        assert_eq!((seen.state, seen.failed_probe_count, &*told(&breaker)), (CircuitState::Open, 0, "third"));
        match seen.trip_count {
            2 => "two trips",
            3 => "three trips",
            _ => "another number",
        }
    });
}

#[test]
fn a_reset_and_the_trips_around_it_are_counted_for_what_they_are() {
    explore(&["no trip before it", "a trip before it", "a trip on either side"], || {
        let breakers = by_name::registry(1);
        let other = beside(&breakers, |breakers| breakers.get("a").unwrap().reset());
        let first = breakers.record_failure("a", "test", "first");
        let second = breakers.record_failure("a", "test", "second");
        other.join().unwrap();
        let breaker = breakers.get("a").unwrap();
        assert_eq!(breaker.trip_count(), u64::from(first) + u64::from(second));
        let last = if second { "second" } else { "first" };
        assert_eq!(told(&breaker), if first || second { last } else { "" });
        match (first, second) {
            (true, true) => "a trip on either side",
            (true, false) => "a trip before it",
            (false, _) => "no trip before it",
        }
    });
}

#[test]
fn a_probe_from_before_a_disabling_does_not_end_it() {
    explore(&["the probe came first", "the order came first"], || {
        let (breaker, probe) = probing();
        let other = beside(&breaker, |breaker| {
            probe.failure("test", "again");
            breaker.state() == CircuitState::Open
        });
        breaker.disable();
        let failed = other.join().unwrap();
        assert_eq!(breaker.state(), CircuitState::Disabled);
        fail(&breaker, "not counted");
        fail(&breaker, "not counted");
        assert_eq!(breaker.state(), CircuitState::Disabled);
        if failed { "the probe came first" } else { "the order came first" }
    });
}

#[test]
fn a_failure_from_before_a_disabling_does_not_count_after_the_reset_that_ends_it() {
    explore(&["while disabled", "after the reset"], || {
        let breaker = breaker(2);
        let old = permit(&breaker);
        breaker.disable();
        let disabled = permit(&breaker);
        let other = beside(&breaker, |breaker| {
            old.failure("test", "old");
            disabled.failure("test", "disabled");
            breaker.state()
        });
        breaker.reset();
        let seen = other.join().unwrap();
        assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 0));
        if seen == CircuitState::Disabled { "while disabled" } else { "after the reset" }
    });
}

#[test]
fn of_two_orders_the_last_one_stands() {
    explore(&["isolated", "closed"], || {
        let breaker = breaker(1);
        let other = beside(&breaker, |breaker| breaker.reset());
        breaker.isolate("by hand");
        other.join().unwrap();
        assert_eq!(breaker.trip_count(), 0);
        if breaker.state() == CircuitState::Open {
            assert_isolated(&breaker);
            "isolated"
        } else {
            assert_eq!(breaker.state(), CircuitState::Closed);
            "closed"
        }
    });
}

#[test]
fn a_reset_carries_on_the_error_of_the_probe_that_failed_and_not_of_a_late_one() {
    explore(&["the probe failed before the reset", "the reset came first"], || {
        let (breaker, slow) = probing();
        advance(LEASE);
        let next = Arc::clone(&breaker).try_acquire_owned().unwrap();
        let other = thread::spawn(move || next.failure("test", "again"));
        slow.failure("test", "late");
        breaker.reset();
        other.join().unwrap();
        assert_eq!(breaker.state(), CircuitState::Closed);
        if breaker.snapshot().failed_probe_count == 1 {
            assert_eq!(told(&breaker), "again");
            "the probe failed before the reset"
        } else {
            assert_eq!(told(&breaker), "first");
            "the reset came first"
        }
    });
}

#[test]
fn the_reason_of_an_isolation_outlasts_the_reset_that_ends_it() {
    explore(&["isolated", "closed"], || {
        let breaker = breaker(1);
        fail(&breaker, "first");
        let other = beside(&breaker, |breaker| breaker.isolate("by hand"));
        breaker.reset();
        let by_then = told(&breaker);
        other.join().unwrap();
        if breaker.state() == CircuitState::Open {
            assert_isolated(&breaker);
            return "isolated";
        }
        // The isolation came first, even if its caller has not come round to confirming it.
        assert_eq!((&*by_then, &*told(&breaker)), ("by hand", "by hand"));
        "closed"
    });
}

#[test]
fn a_waiter_is_rejected_when_the_circuit_is_isolated() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, probe) = probing();
        let waiter = go_on(begin(&breaker));
        breaker.isolate("by hand");
        probe.success();
        let (answer, slept) = waiter.join().unwrap();
        assert_eq!(reason(&answer), Some(RejectionReason::Reopened));
        let rejection = answer.unwrap_err();
        assert_eq!((rejection.cause(), rejection.retry_after()), (Some(Cause::Isolated), None));
        assert_isolated(&breaker);
        woken(slept)
    });
}

#[test]
fn a_waiter_passes_when_the_circuit_is_reset() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, probe) = probing();
        let waiter = go_on(begin(&breaker));
        breaker.reset();
        probe.failure("test", "too late");
        let (answer, slept) = waiter.join().unwrap();
        assert!(passed(&answer));
        assert_eq!(breaker.state(), CircuitState::Closed);
        woken(slept)
    });
}

#[test]
fn a_call_that_is_rejected_finds_the_reason_of_the_isolation() {
    explore(&["admitted", "rejected"], || {
        let breaker = breaker(1);
        let call = beside(&breaker, |breaker| breaker.try_acquire().err().map(|rejection| breaker.explain(rejection)));
        breaker.isolate("by hand");
        match call.join().unwrap() {
            None => "admitted",
            Some(error) => {
                assert_eq!(error.last_error().expect("published before").message(), "by hand");
                "rejected"
            }
        }
    });
}

#[test]
fn a_claim_and_an_isolation_leave_no_probe() {
    explore(&["the call was the probe", "the call was rejected"], || {
        let breaker = breaker(1);
        fail(&breaker, "first");
        advance(OPEN_FOR);
        let call = beside(&breaker, CircuitBreaker::try_acquire_owned);
        breaker.isolate("by hand");
        let answer = call.join().unwrap();
        assert!(!breaker.snapshot().probe_in_flight);
        let end = if answer.is_ok() { "the call was the probe" } else { "the call was rejected" };
        drop(answer);
        assert_isolated(&breaker);
        assert_eq!(breaker.snapshot().failed_probe_count, 0);
        end
    });
}

#[test]
fn an_unanswered_request_from_before_a_reset_does_not_open_the_circuit_after_it() {
    explore(&["the alarm came first", "the order came first"], || {
        let breaker = breaker(1);
        let ([mut watcher, mut other_core], now) = silence::watch(&breaker);
        let calls = [silence::send(&breaker, &mut watcher, now), silence::send(&breaker, &mut other_core, now)];
        let now = now + silence::CEILING;
        let look = thread::spawn(move || {
            watcher.look(now);
            watcher
        });
        breaker.reset();
        let mut watcher = look.join().unwrap();
        let alarmed = breaker.trip_count() == 1;
        // The request of the other core is from before the reset, too.
        other_core.look(now);
        watcher.look(now);
        assert_eq!((breaker.state(), breaker.trip_count()), (CircuitState::Closed, u64::from(alarmed)));
        drop(calls);
        if alarmed { "the alarm came first" } else { "the order came first" }
    });
}

#[test]
fn an_answer_after_all_does_not_end_an_isolation() {
    explore(&["the answer came first", "the order came first"], || {
        let (breaker, mut watcher, (late, ticket), now) = silence::silent();
        let other = beside(&breaker, |breaker| {
            let closed = breaker.state() == CircuitState::Closed;
            breaker.isolate("by hand");
            closed
        });
        watcher.answered(ticket, now);
        late.success();
        let closed = other.join().unwrap();
        assert_isolated(&breaker);
        if closed { "the answer came first" } else { "the order came first" }
    });
}

#[test]
fn a_removal_leaves_no_probe_behind_and_no_result() {
    explore(&["the probe counted", "the probe came too late"], || {
        let breakers = by_name::probing();
        let breaker = breakers.get("a").unwrap();
        let other = beside(&breakers, |breakers| breakers.record_probe_failure("a", "test", "again"));
        breakers.remove("a").unwrap();
        let counted = other.join().unwrap();
        assert_eq!(breaker.state(), CircuitState::Closed);
        assert_eq!(breaker.snapshot().failed_probe_count, u64::from(counted));
        permit(&breaker).cancel();
        if counted { "the probe counted" } else { "the probe came too late" }
    });
}
