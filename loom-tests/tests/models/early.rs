//! Probes before the open time has passed.

use std::sync::Arc;
use std::time::Duration;

use loom_tests::sync::time::advance;
use loom_tests::{Cause, CircuitBreaker, CircuitState, RejectionReason};

use crate::harness::{Answer, OPEN_FOR, beside, breaker, explore, fail, probes, reason};

/// How long the circuit has to have been open.
const AFTER: Duration = Duration::from_millis(400);

/// For a call that has nobody else to ask.
fn early(breaker: &Arc<CircuitBreaker>) -> Answer {
    breaker.try_acquire_early(AFTER).map(|permit| permit.held_by(Arc::clone(breaker)))
}

/// A breaker that has been open for so long.
fn open_since(time: Duration) -> Arc<CircuitBreaker> {
    let breaker = breaker(1);
    fail(&breaker, "opens");
    advance(time);
    breaker
}

#[test]
fn of_calls_that_may_be_early_exactly_one_is_the_probe() {
    explore(&["the first", "the second", "the third"], || {
        let breaker = open_since(AFTER);
        let others = [(); 2].map(|()| beside(&breaker, |breaker| early(&breaker)));
        let ours = early(&breaker);
        let [second, third] = others.map(|other| other.join().unwrap());
        let answers = [("the first", ours), ("the second", second), ("the third", third)];
        let losers = answers.iter().filter(|(_, answer)| reason(answer) == Some(RejectionReason::ProbeInFlight));
        assert_eq!(losers.count(), 2);
        let found: Vec<_> = answers.iter().filter(|(_, answer)| probes(answer)).map(|(name, _)| *name).collect();
        let [probe] = found[..] else { panic!("{found:?}") };
        probe
    });
}

#[test]
fn an_early_call_and_one_that_comes_in_time_are_never_both_the_probe() {
    explore(&["the early one", "the other one"], || {
        let breaker = open_since(OPEN_FOR);
        let other = beside(&breaker, CircuitBreaker::try_acquire_owned);
        let ours = early(&breaker);
        let other = other.join().unwrap();
        assert_ne!(probes(&ours), probes(&other));
        if probes(&ours) { "the early one" } else { "the other one" }
    });
}

#[test]
fn a_failed_early_probe_is_followed_by_no_other_before_its_time() {
    explore(&["met the probe", "met the new opening", "was the probe"], || {
        let breaker = open_since(AFTER);
        let other = beside(&breaker, |breaker| early(&breaker));
        let ours = early(&breaker);
        let failed = ours.is_ok();
        if let Ok(probe) = ours {
            probe.failure("test", "again");
        }
        let other = other.join().unwrap();
        if probes(&other) {
            assert!(!failed, "a second probe in a row");
            return "was the probe";
        }
        match reason(&other) {
            Some(RejectionReason::ProbeInFlight) => "met the probe",
            Some(RejectionReason::Open) => "met the new opening",
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn an_early_call_never_shortens_a_cooldown() {
    explore(&["the cooldown came first", "the probe came first"], || {
        let breaker = open_since(AFTER);
        let other = beside(&breaker, |breaker| breaker.trip_for(Duration::from_millis(700), "429", "later"));
        let answer = early(&breaker);
        let cools = other.join().unwrap();
        assert_ne!(cools, probes(&answer), "a probe decides");
        if cools {
            assert_eq!(breaker.snapshot().cause, Some(Cause::Cooldown));
            // Less is left now than an early probe would need of an open time.
            advance(Duration::from_millis(200));
            assert!(early(&breaker).is_err());
            "the cooldown came first"
        } else {
            assert_eq!(breaker.state(), CircuitState::HalfOpen);
            "the probe came first"
        }
    });
}
