//! What other processes tell: it counts beside what happens here, and never against a probe of this process.

use std::sync::Arc;
use std::time::Duration;

use loom::thread;
use loom_tests::hearsay;
use loom_tests::sync::time::advance;
use loom_tests::{Cause, CircuitBreaker, CircuitState, RejectionReason};

use crate::harness::{
    LEASE, OPEN_FOR, begin, beside, breaker, claim, due, explore, fail, go_on, passed, permit, probes, reason, told,
    woken,
};

const LONG: Duration = Duration::from_secs(3);

/// Open on hearsay, and due; and its generation.
fn heard_and_due() -> (Arc<CircuitBreaker>, u32) {
    let breaker = breaker(1);
    let generation = hearsay::open(&breaker, OPEN_FOR).expect("closed");
    advance(OPEN_FOR);
    (breaker, generation)
}

#[test]
fn a_suspicion_beside_a_failure_loses_neither() {
    explore(&["the failure came first", "the failure opened it"], || {
        let breaker = breaker(3);
        let failing = permit(&breaker);
        let other = thread::spawn(move || failing.failure("test", "failure"));
        let suspected = hearsay::suspect(&breaker);
        other.join().unwrap();
        assert_eq!(suspected, Some(0));
        if breaker.state() == CircuitState::Open {
            assert_eq!((&*told(&breaker), breaker.trip_count()), ("failure", 1));
            assert_eq!(hearsay::suspicion(&breaker, 0), "over");
            return "the failure opened it";
        }
        assert_eq!((breaker.failure_count(), hearsay::suspicion(&breaker, 0)), (2, "stands"));
        fail(&breaker, "the next one opens it");
        assert_eq!(breaker.state(), CircuitState::Open);
        "the failure came first"
    });
}

#[test]
fn a_success_of_a_call_from_before_a_suspicion_does_not_refute_it() {
    explore(&["it stands"], || {
        let breaker = breaker(3);
        let old = permit(&breaker);
        fail(&breaker, "first");
        let other = thread::spawn(move || old.success());
        assert_eq!(hearsay::suspect(&breaker), Some(0));
        other.join().unwrap();
        assert_eq!((breaker.failure_count(), hearsay::suspicion(&breaker, 0)), (2, "stands"));
        "it stands"
    });
}

#[test]
fn a_success_of_a_call_from_after_a_suspicion_refutes_it() {
    explore(&["it came before the second one", "it came after the second one"], || {
        let breaker = breaker(3);
        hearsay::suspect(&breaker);
        let good = permit(&breaker);
        let other = beside(&breaker, |breaker| hearsay::suspect(&breaker));
        good.success();
        let again = other.join().unwrap();
        let seen = hearsay::suspicion(&breaker, 0);
        if again.is_some() {
            // In this very tick, by which the two cannot be told apart.
            return "it came before the second one";
        }
        assert_eq!((seen, breaker.failure_count()), ("refuted", 0));
        "it came after the second one"
    });
}

#[test]
fn of_a_success_and_a_failure_after_a_suspicion_the_first_one_decides() {
    explore(&["refuted", "opened"], || {
        let breaker = breaker(3);
        hearsay::suspect(&breaker);
        let (good, bad) = (permit(&breaker), permit(&breaker));
        let other = thread::spawn(move || bad.failure("test", "failure"));
        good.success();
        other.join().unwrap();
        match hearsay::suspicion(&breaker, 0) {
            "refuted" => {
                assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 1));
                "refuted"
            }
            "over" => {
                assert_eq!((breaker.state(), breaker.trip_count()), (CircuitState::Open, 1));
                "opened"
            }
            _ => "it stands",
        }
    });
}

#[test]
fn a_suspicion_that_nobody_stands_by_is_forgotten_unless_a_failure_came_first() {
    explore(&["opened", "forgotten"], || {
        let breaker = breaker(3);
        hearsay::suspect(&breaker);
        let failing = permit(&breaker);
        let other = thread::spawn(move || failing.failure("test", "failure"));
        hearsay::trust(&breaker);
        other.join().unwrap();
        if breaker.state() == CircuitState::Open {
            return "opened";
        }
        assert_eq!(breaker.failure_count(), 1);
        "forgotten"
    });
}

#[test]
fn a_cooldown_that_was_heard_and_one_of_this_process_are_one_trip_and_the_later_end_counts() {
    explore(&["the one that was heard came first", "it came later"], || {
        let breaker = breaker(3);
        let other = beside(&breaker, |breaker| breaker.trip_for(OPEN_FOR, "429", "here"));
        let heard = hearsay::cool_down(&breaker, LONG);
        let here = other.join().unwrap();
        let seen = breaker.snapshot();
        assert_eq!((seen.cause, seen.next_probe_in, seen.trip_count), (Some(Cause::Cooldown), Some(LONG), 1));
        match (here, heard) {
            (false, Some(1)) => "the one that was heard came first",
            (true, Some(2)) => "it came later",
            _ => "something else",
        }
    });
}

#[test]
fn of_hearsay_and_the_last_failure_one_opens_the_circuit() {
    explore(&["hearsay", "the failure"], || {
        let breaker = breaker(1);
        let failing = permit(&breaker);
        let other = thread::spawn(move || failing.failure("test", "failure"));
        let heard = hearsay::open(&breaker, LONG);
        other.join().unwrap();
        let seen = breaker.snapshot();
        assert_eq!((seen.state, seen.trip_count), (CircuitState::Open, 1));
        let (cause, message, left, end) = match heard {
            Some(1) => (Cause::Fleet, "hearsay", LONG, "hearsay"),
            _ => (Cause::Failures, "failure", OPEN_FOR, "the failure"),
        };
        assert_eq!((seen.cause, &*told(&breaker), seen.next_probe_in), (Some(cause), message, Some(left)));
        end
    });
}

#[test]
fn of_a_call_and_the_fleet_one_has_the_probe() {
    explore(&["the call", "the fleet"], || {
        let breaker = due();
        let call = beside(&breaker, CircuitBreaker::try_acquire_owned);
        let held = hearsay::hold(&breaker);
        let answer = call.join().unwrap();
        if let Some(held) = held {
            assert_eq!(reason(&answer), Some(RejectionReason::ProbeInFlight));
            drop(held);
            assert!(probes(&Arc::clone(&breaker).try_acquire_owned()), "it is handed back");
            return "the fleet";
        }
        assert!(probes(&answer));
        "the call"
    });
}

#[test]
fn a_waiter_passes_when_a_held_probe_has_succeeded_elsewhere() {
    explore(&["woken", "found it resolved"], || {
        let breaker = due();
        let held = hearsay::hold(&breaker).expect("due");
        let waiter = go_on(begin(&breaker));
        assert!(hearsay::held_succeeded(&breaker, held));
        let (answer, woke) = waiter.join().unwrap();
        assert!(passed(&answer));
        woken(woke)
    });
}

#[test]
fn a_waiter_is_rejected_when_a_held_probe_has_failed_elsewhere() {
    explore(&["woken", "found it resolved"], || {
        let breaker = due();
        let held = hearsay::hold(&breaker).expect("due");
        let waiter = go_on(begin(&breaker));
        assert_eq!(hearsay::held_failed(&breaker, held, LONG), Some(2));
        let (answer, woke) = waiter.join().unwrap();
        assert_eq!(reason(&answer), Some(RejectionReason::Reopened));
        let seen = breaker.snapshot();
        assert_eq!((seen.cause, seen.next_probe_in), (Some(Cause::Fleet), Some(LONG)));
        assert_eq!(seen.failed_probe_count, 0, "it was not made here");
        woken(woke)
    });
}

#[test]
fn a_waiter_becomes_the_probe_when_the_fleet_hands_it_back() {
    explore(&["woken", "found it resolved"], || {
        let breaker = due();
        let held = hearsay::hold(&breaker).expect("due");
        let waiter = go_on(begin(&breaker));
        drop(held);
        let (answer, woke) = waiter.join().unwrap();
        assert!(probes(&answer));
        woken(woke)
    });
}

#[test]
fn a_held_probe_that_a_call_has_taken_over_is_the_calls() {
    explore(&["the call has it", "the news came first"], || {
        let breaker = due();
        let held = hearsay::hold(&breaker).expect("due");
        advance(LEASE);
        let call = beside(&breaker, CircuitBreaker::try_acquire_owned);
        let counted = hearsay::held_failed(&breaker, held, LONG);
        let answer = call.join().unwrap();
        if counted.is_some() {
            assert_eq!((reason(&answer), breaker.state()), (Some(RejectionReason::Open), CircuitState::Open));
            return "the news came first";
        }
        assert!(probes(&answer));
        answer.unwrap().success();
        assert_eq!(breaker.state(), CircuitState::Closed);
        "the call has it"
    });
}

#[test]
fn news_of_a_good_probe_leaves_a_probe_in_flight_alone() {
    explore(&["closed by the news", "the probe decides"], || {
        let (breaker, generation) = heard_and_due();
        let call = beside(&breaker, CircuitBreaker::try_acquire_owned);
        let closed = hearsay::close(&breaker, generation);
        let answer = call.join().unwrap();
        if closed {
            assert!(passed(&answer));
            return "closed by the news";
        }
        assert!(probes(&answer) && breaker.snapshot().probe_in_flight);
        "the probe decides"
    });
}

#[test]
fn news_of_a_failed_probe_leaves_a_probe_in_flight_alone() {
    explore(&["postponed", "the probe decides"], || {
        let breaker = due();
        let call = beside(&breaker, CircuitBreaker::try_acquire_owned);
        let postponed = hearsay::postpone(&breaker, LONG);
        let answer = call.join().unwrap();
        if postponed.is_some() {
            assert_eq!(reason(&answer), Some(RejectionReason::Open));
            assert_eq!((&*told(&breaker), breaker.snapshot().next_probe_in), ("postponed", Some(LONG)));
            assert_eq!((breaker.trip_count(), breaker.snapshot().failed_probe_count), (1, 0));
            return "postponed";
        }
        assert!(probes(&answer) && breaker.snapshot().probe_in_flight);
        "the probe decides"
    });
}

#[test]
fn news_of_a_good_probe_does_not_close_what_failures_have_opened_since() {
    explore(&["closed by the news", "the probe had closed it"], || {
        let (breaker, generation) = heard_and_due();
        let other = beside(&breaker, move |breaker| hearsay::close(&breaker, generation));
        if let Ok(permit) = breaker.try_acquire() {
            permit.success();
        }
        let failed = breaker.try_acquire().map(|permit| permit.failure("test", "since"));
        let closed = other.join().unwrap();
        assert_eq!((failed, breaker.state()), (Ok(()), CircuitState::Open), "no news closes that");
        assert_eq!((&*told(&breaker), breaker.trip_count()), ("since", 2));
        if closed { "closed by the news" } else { "the probe had closed it" }
    });
}

#[test]
fn a_waiter_passes_when_news_of_a_good_probe_ends_its_wait() {
    explore(&["woken", "found it resolved"], || {
        let breaker = due();
        let probe = claim(&breaker);
        let waiter = go_on(begin(&breaker));
        probe.cancel();
        // The waiter may have been woken for the probe.
        let closed = hearsay::close(&breaker, 1);
        let (answer, woke) = waiter.join().unwrap();
        assert!(if closed { passed(&answer) || probes(&answer) } else { probes(&answer) });
        woken(woke)
    });
}
