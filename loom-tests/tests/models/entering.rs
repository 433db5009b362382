//! Which calls are admitted, which one opens the circuit, and which one is the probe.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use loom::future::block_on;
use loom::thread;
use loom_tests::sync::time::advance;
use loom_tests::sync::writes;
use loom_tests::{CircuitBreaker, CircuitState, PermitType, RejectionReason};

use crate::harness::{
    Answer, LEASE, beside, breaker, claim, due, explore, explore_still, fail, permit, probes, probing, reason, told,
};

/// This thread and two others ask at once.
fn three_ask(breaker: &Arc<CircuitBreaker>) -> [Answer; 3] {
    let others = [(); 2].map(|()| beside(breaker, CircuitBreaker::try_acquire_owned));
    let ours = Arc::clone(breaker).try_acquire_owned();
    let [second, third] = others.map(|other| other.join().unwrap());
    [ours, second, third]
}

/// Which of three became the probe, the other two having been told that one is in flight.
fn the_one_probe(answers: [Answer; 3]) -> &'static str {
    let mut probe = None;
    for (answer, name) in answers.into_iter().zip(["the first", "the second", "the third"]) {
        match answer {
            Ok(permit) => {
                assert_eq!(permit.kind(), PermitType::Probe);
                assert_eq!(probe.replace(name), None, "a second probe");
            }
            Err(rejection) => assert_eq!(rejection.reason(), RejectionReason::ProbeInFlight),
        }
    }
    probe.expect("one of them is the probe")
}

#[test]
fn calls_on_a_closed_circuit_write_nothing() {
    explore_still(|| {
        let breaker = breaker(2);
        let before = writes();
        let other = beside(&breaker, |breaker| breaker.try_acquire().unwrap().success());
        block_on(breaker.acquire()).unwrap().success();
        breaker.try_acquire().unwrap().cancel();
        drop(breaker.try_acquire().unwrap());
        other.join().unwrap();
        assert_eq!(writes(), before);
        fail(&breaker, "counted");
        assert_eq!(writes(), before + 1, "what is written is seen");
    });
}

#[test]
fn calls_on_an_open_circuit_write_nothing() {
    explore_still(|| {
        let breaker = breaker(1);
        let late = permit(&breaker);
        fail(&breaker, "opens");
        let before = writes();
        let other = beside(&breaker, |breaker| breaker.try_acquire().unwrap_err());
        block_on(breaker.acquire()).unwrap_err();
        late.failure("test", "too late");
        other.join().unwrap();
        assert_eq!(writes(), before);
    });
}

#[test]
fn no_call_is_the_probe_before_the_open_time_has_passed() {
    const ALMOST: Duration = Duration::from_millis(999);
    explore(&["rejected", "the probe"], || {
        let breaker = breaker(1);
        fail(&breaker, "opens");
        advance(ALMOST);
        assert!(!breaker.would_allow());
        assert_eq!(reason(&Arc::clone(&breaker).try_acquire_owned()), Some(RejectionReason::Open));
        let call = beside(&breaker, CircuitBreaker::try_acquire_owned);
        advance(Duration::from_millis(1));
        let answer = call.join().unwrap();
        if probes(&answer) {
            answer.unwrap().success();
            "the probe"
        } else {
            assert_eq!(reason(&answer), Some(RejectionReason::Open));
            "rejected"
        }
    });
}

#[test]
fn a_call_that_read_the_clock_before_an_opening_is_rejected_by_it() {
    explore(&["became the probe", "met the other probe", "met the new opening"], || {
        let breaker = due();
        let call = beside(&breaker, CircuitBreaker::try_acquire_owned);
        let other = Arc::clone(&breaker).try_acquire_owned();
        advance(Duration::from_millis(1));
        let reopened = other.is_ok();
        if let Ok(probe) = other {
            probe.failure("test", "again");
        }
        let answer = call.join().unwrap();
        if probes(&answer) {
            assert!(!reopened, "the open time has just begun");
            return "became the probe";
        }
        match reason(&answer) {
            Some(RejectionReason::Open) => "met the new opening",
            Some(RejectionReason::ProbeInFlight) => "met the other probe",
            _ => "admitted",
        }
    });
}

#[test]
fn an_open_circuit_lets_exactly_one_probe_in() {
    explore(&["the first", "the second", "the third"], || the_one_probe(three_ask(&due())));
}

#[test]
fn a_probe_whose_lease_is_over_is_taken_over_by_exactly_one_caller() {
    explore(&["the first", "the second", "the third"], || {
        let (breaker, hung) = probing();
        advance(LEASE);
        let answers = three_ask(&breaker);
        hung.success();
        assert_eq!(breaker.state(), CircuitState::HalfOpen, "who was taken over decides nothing");
        the_one_probe(answers)
    });
}

#[test]
fn a_probe_that_was_handed_back_is_claimed_by_exactly_one_caller() {
    explore(&["one of the others", "none of the others"], || {
        let (breaker, probe) = probing();
        let others = [(); 2].map(|()| beside(&breaker, CircuitBreaker::try_acquire_owned));
        probe.cancel();
        let others = others.map(|other| other.join().unwrap());
        let last = Arc::clone(&breaker).try_acquire_owned();
        match others.iter().filter(|answer| answer.is_ok()).count() {
            0 => {
                assert!(last.is_ok(), "it is there for the next one");
                "none of the others"
            }
            1 => {
                assert!(last.is_err(), "a second probe");
                "one of the others"
            }
            _ => "two of the others",
        }
    });
}

#[test]
fn would_allow_claims_nothing() {
    explore(&["free", "taken"], || {
        let breaker = due();
        let look = beside(&breaker, |breaker| breaker.would_allow());
        claim(&breaker).cancel_on_drop().success();
        let free = look.join().unwrap();
        assert_eq!((breaker.state(), breaker.snapshot().failed_probe_count), (CircuitState::Closed, 0));
        if free { "free" } else { "taken" }
    });
}

#[test]
fn no_failure_is_lost_and_the_one_that_reaches_the_threshold_opens_the_circuit() {
    explore(&["ours", "theirs", "others"], || {
        let breaker = breaker(3);
        let others = ["theirs", "others"].map(|message| beside(&breaker, move |breaker| fail(&breaker, message)));
        fail(&breaker, "ours");
        for other in others {
            other.join().unwrap();
        }
        let seen = breaker.snapshot();
        assert_eq!((seen.state, seen.failure_count, seen.trip_count), (CircuitState::Open, 3, 1));
        ["ours", "theirs", "others"].into_iter().find(|message| *message == told(&breaker)).unwrap_or("nobody")
    });
}

#[test]
fn of_more_failures_than_the_threshold_one_opens_the_circuit_and_is_counted() {
    explore(&["ours", "theirs", "others"], || {
        let breaker = breaker(2);
        let permits = [(); 3].map(|()| permit(&breaker));
        let [ours, theirs, others] = permits;
        let others = [(theirs, "theirs"), (others, "others")]
            .map(|(permit, message)| thread::spawn(move || permit.failure("test", message)));
        ours.failure("test", "ours");
        for other in others {
            other.join().unwrap();
        }
        let seen = breaker.snapshot();
        assert_eq!((seen.state, seen.failure_count, seen.trip_count), (CircuitState::Open, 2, 1));
        ["ours", "theirs", "others"].into_iter().find(|message| *message == told(&breaker)).unwrap_or("nobody")
    });
}

#[test]
fn a_success_and_the_last_failure_happen_one_after_the_other() {
    explore(&["the success came first", "the failure came first"], || {
        let breaker = breaker(2);
        fail(&breaker, "first");
        let (good, bad) = (permit(&breaker), permit(&breaker));
        let other = thread::spawn(move || good.success());
        bad.failure("test", "second");
        other.join().unwrap();
        let seen = breaker.snapshot();
        match (seen.state, seen.failure_count, seen.trip_count) {
            (CircuitState::Closed, 1, 0) => "the success came first",
            (CircuitState::Open, 2, 1) => "the failure came first",
            _ => "neither",
        }
    });
}

#[test]
fn a_success_and_a_failure_below_the_threshold_happen_one_after_the_other() {
    explore(&["the success came first", "the failure came first"], || {
        let breaker = breaker(4);
        fail(&breaker, "first");
        let (good, bad) = (permit(&breaker), permit(&breaker));
        let other = thread::spawn(move || bad.failure("test", "second"));
        good.success();
        other.join().unwrap();
        match (breaker.state(), breaker.failure_count()) {
            (CircuitState::Closed, 1) => "the success came first",
            (CircuitState::Closed, 0) => "the failure came first",
            _ => "neither",
        }
    });
}

/// Claims the probe if it is free, and hands it back: the word that it held meanwhile.
fn word_of_a_probe(breaker: &Arc<CircuitBreaker>) -> Option<String> {
    let probe = Arc::clone(breaker).try_acquire_owned().ok()?;
    let word = format!("{probe:?}");
    probe.cancel();
    Some(word)
}

#[test]
fn no_two_probes_have_the_same_word() {
    explore(&["two probes", "three probes"], || {
        let breaker = due();
        let clock = thread::spawn(|| advance(Duration::from_millis(1)));
        let other = beside(&breaker, |breaker| word_of_a_probe(&breaker));
        let ours = word_of_a_probe(&breaker);
        let words: Vec<_> = [ours, other.join().unwrap(), word_of_a_probe(&breaker)].into_iter().flatten().collect();
        clock.join().unwrap();
        assert_eq!(BTreeSet::from_iter(&words).len(), words.len(), "{words:?}");
        match words.len() {
            2 => "two probes",
            3 => "three probes",
            _ => "one probe",
        }
    });
}
