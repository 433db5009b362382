//! Subscribers are told of every transition once, in the order of the generations.

use loom_tests::CircuitState::{self, Closed, HalfOpen, Open};
use loom_tests::Transition;
use loom_tests::sync::time::advance;

use crate::by_name::registry;
use crate::harness::{OPEN_FOR, beside, breaker, claim, explore, explore_crowd, fail, permit, probing};

type Transitions = tokio::sync::broadcast::Receiver<Transition>;

/// From where to where, and in which generation, for all that was told until now.
fn told(transitions: &mut Transitions) -> Vec<(CircuitState, CircuitState, u32)> {
    let next = || transitions.try_recv().ok();
    std::iter::from_fn(next).map(|told| (told.from, told.to, told.generation)).collect()
}

#[test]
fn a_subscriber_that_comes_with_a_transition_is_told_of_it_or_finds_it_made() {
    explore(&["told", "found it made"], || {
        let breaker = breaker(1);
        let failure = beside(&breaker, |breaker| fail(&breaker, "first"));
        let mut transitions = breaker.subscribe();
        let state = breaker.state();
        failure.join().unwrap();
        breaker.reset();
        match *told(&mut transitions) {
            [(Closed, Open, 1), (Open, Closed, 2)] => "told",
            [(Open, Closed, 2)] if state == Open => "found it made",
            _ => "missed",
        }
    });
}

#[test]
fn a_subscriber_that_comes_with_two_transitions_is_told_of_all_that_follow_the_first_it_is_told_of() {
    explore(&["told of both", "told of the second", "told of the order alone", "found both made"], || {
        let (breaker, probe) = probing();
        let other = beside(&breaker, |_| {
            probe.failure("test", "again");
        });
        let order = beside(&breaker, |breaker| breaker.reset());
        let mut transitions = breaker.subscribe();
        other.join().unwrap();
        order.join().unwrap();
        match *told(&mut transitions) {
            [(HalfOpen, Open, 2), (Open, Closed, 3)] => "told of both",
            [(Open, Closed, 3)] => "told of the second",
            // The order was first, and the probe from before it says nothing.
            [(HalfOpen, Closed, 2)] => "told of the order alone",
            [] => "found both made",
            _ => "out of order, or not all",
        }
    });
}

#[test]
fn transitions_of_several_threads_are_told_in_the_order_in_which_they_were_made() {
    explore_crowd(&["opened, then reset", "reset, then opened"], || {
        let breaker = breaker(1);
        let mut transitions = breaker.subscribe();
        let failure = beside(&breaker, |breaker| {
            if let Ok(permit) = breaker.try_acquire() {
                permit.failure("test", "first");
            }
        });
        let order = beside(&breaker, |breaker| breaker.reset());
        failure.join().unwrap();
        order.join().unwrap();
        match *told(&mut transitions) {
            [(Closed, Open, 1), (Open, Closed, 2)] => "opened, then reset",
            [(Closed, Closed, 1), (Closed, Open, 2)] | [(Closed, Closed, 1)] => "reset, then opened",
            _ => "out of order, or not all",
        }
    });
}

#[test]
fn a_probe_that_is_claimed_and_resolved_beside_its_opening_is_told_of_after_it() {
    explore(&["opened, probed, closed", "opened alone"], || {
        let breaker = breaker(1);
        let mut transitions = breaker.subscribe();
        let prober = beside(&breaker, |breaker| {
            advance(OPEN_FOR);
            if breaker.state() == Open {
                advance(OPEN_FOR);
                claim(&breaker).success();
            }
        });
        fail(&breaker, "first");
        prober.join().unwrap();
        match *told(&mut transitions) {
            [(Closed, Open, 1), (Open, HalfOpen, 1), (HalfOpen, Closed, 1)] => "opened, probed, closed",
            [(Closed, Open, 1)] => "opened alone",
            _ => "out of order, or not all",
        }
    });
}

#[test]
fn a_removal_that_nobody_is_told_of_holds_up_no_other_transition() {
    explore(&["opened, then removed", "removed, then opened", "too late"], || {
        let breakers = registry(1);
        let breaker = breakers.get("a").unwrap();
        let mut transitions = breaker.subscribe();
        let failure = beside(&breaker, |breaker| permit(&breaker).failure("test", "first"));
        assert!(breakers.remove("a").is_some());
        failure.join().unwrap();
        match (&*told(&mut transitions), breaker.state()) {
            ([(Closed, Open, 1), (Open, Closed, 2)], Closed) => "opened, then removed",
            ([(Closed, Open, 2)], Open) => "removed, then opened",
            ([], Closed) => "too late",
            _ => "out of order, or not all",
        }
    });
}
