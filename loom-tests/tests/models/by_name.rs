//! The map of breakers, and the protocol by name.

use std::sync::Arc;

use loom::future::block_on;
use loom::thread;
use loom_tests::sync::time::advance;
use loom_tests::{CircuitBreakerRegistry, CircuitState, PermitType, ProbeGuard, RejectionReason};

use crate::harness::{OPEN_FOR, beside, claim, explore, explore_crowd, settings};

const NONE: [&str; 0] = [];

/// A registry with one breaker, "a".
pub(crate) fn registry(failure_threshold: u32) -> Arc<CircuitBreakerRegistry> {
    Arc::new(CircuitBreakerRegistry::with_config(["a"], settings(failure_threshold).build().unwrap()))
}

/// The same, with a probe in flight for it.
pub(crate) fn probing() -> Arc<CircuitBreakerRegistry> {
    let breakers = registry(1);
    assert!(breakers.record_failure("a", "test", "first"));
    advance(OPEN_FOR);
    assert_eq!(block_on(breakers.acquire_permit("a")).unwrap(), PermitType::Probe);
    breakers
}

// ---- the map ----

#[test]
fn two_inserts_and_a_lookup_lose_nothing() {
    explore(&["looked up before", "looked up after"], || {
        let breakers = registry(1);
        let reader = beside(&breakers, |breakers| {
            assert!(breakers.get("a").is_some());
            let early = breakers.get("b");
            let late = breakers.get("b");
            assert!(early.as_ref().is_none_or(|early| Arc::ptr_eq(early, &late.unwrap())));
            early
        });
        let inserter = beside(&breakers, |breakers| breakers.insert("b"));
        let c = breakers.insert("c");
        let b = inserter.join().unwrap();
        assert!(Arc::ptr_eq(&b, &breakers.get("b").unwrap()));
        assert!(Arc::ptr_eq(&c, &breakers.get("c").unwrap()));
        match reader.join().unwrap() {
            None => "looked up before",
            Some(found) if Arc::ptr_eq(&found, &b) => "looked up after",
            Some(_) => "another one",
        }
    });
}

#[test]
fn two_inserts_of_one_name_get_the_same_breaker() {
    explore(&["closed", "open"], || {
        let breakers = registry(1);
        let inserter = beside(&breakers, |breakers| {
            let breaker = breakers.insert("b");
            (breaker.state(), breaker)
        });
        let ours = breakers.insert("b");
        assert!(breakers.record_failure("b", "test", "first"), "it is there");
        let (seen, theirs) = inserter.join().unwrap();
        assert!(Arc::ptr_eq(&ours, &theirs));
        seen.as_str()
    });
}

#[test]
fn an_insert_and_a_removal_lose_nothing() {
    explore(&["there", "gone"], || {
        let breakers = registry(1);
        let inserter = beside(&breakers, |breakers| {
            breakers.insert("b");
            breakers.get("a").is_some()
        });
        assert!(breakers.remove("a").is_some());
        let there = inserter.join().unwrap();
        assert!(breakers.get("a").is_none());
        assert!(breakers.get("b").is_some());
        if there { "there" } else { "gone" }
    });
}

#[test]
fn inserts_that_make_the_table_grow_lose_nothing() {
    explore_crowd(&["looked up before", "looked up after"], || {
        let breakers = registry(1);
        breakers.insert("b");
        let reader = beside(&breakers, |breakers| {
            let early = breakers.get("d").is_some();
            assert!(breakers.get("a").is_some() && (!early || breakers.get("d").is_some()));
            early
        });
        // There is room for two in the first table.
        let inserter = beside(&breakers, |breakers| breakers.insert("d"));
        let e = breakers.insert("e");
        let d = inserter.join().unwrap();
        assert!(Arc::ptr_eq(&d, &breakers.get("d").unwrap()));
        assert!(Arc::ptr_eq(&e, &breakers.get("e").unwrap()));
        if reader.join().unwrap() { "looked up after" } else { "looked up before" }
    });
}

#[test]
fn a_failure_beside_an_eviction_opens_a_circuit_that_stays_or_none() {
    explore(&["it opened and stays", "it was evicted"], || {
        let breakers = CircuitBreakerRegistry::with_config(NONE, settings(1).build().unwrap()).with_cap(1);
        let breakers = Arc::new(breakers);
        drop(breakers.get_or_insert("a").unwrap());
        let other = beside(&breakers, |breakers| breakers.get_or_insert("b").is_ok());
        let opened = breakers.record_failure("a", "test", "first");
        let evicted = other.join().unwrap();
        assert_eq!(breakers.get("b").is_some(), evicted);
        assert_eq!(breakers.get("a").is_none(), evicted);
        match (opened, evicted) {
            (true, true) => "it opened and is gone",
            (true, false) => "it opened and stays",
            (false, true) => "it was evicted",
            (false, false) => "there was no idle one",
        }
    });
}

#[test]
fn a_waiter_by_name_passes_when_the_breaker_is_removed() {
    explore(&["waited", "found none"], || {
        let breakers = probing();
        let caller = beside(&breakers, |breakers| {
            let there = breakers.get("a").is_some();
            (block_on(breakers.acquire_permit("a")), there)
        });
        assert!(breakers.remove("a").is_some());
        let (answer, there) = caller.join().unwrap();
        assert_eq!(answer.unwrap(), PermitType::Normal);
        if there { "waited" } else { "found none" }
    });
}

// ---- the protocol ----

#[test]
fn a_waiter_by_name_passes_when_the_probe_succeeds() {
    explore(&["came before", "came after"], || {
        let breakers = probing();
        let caller = beside(&breakers, |breakers| {
            let before = breakers.state("a") == Some(CircuitState::HalfOpen);
            (block_on(breakers.acquire_permit("a")), before)
        });
        assert!(breakers.record_probe_success("a"));
        let (answer, before) = caller.join().unwrap();
        assert_eq!(answer.unwrap(), PermitType::Normal);
        if before { "came before" } else { "came after" }
    });
}

#[test]
fn a_waiter_by_name_is_told_the_error_when_the_probe_fails() {
    explore(&["waited", "came after"], || {
        let breakers = probing();
        let caller = beside(&breakers, |breakers| block_on(breakers.acquire_permit("a")));
        assert!(breakers.record_probe_failure("a", "test", "again"));
        let error = caller.join().unwrap().unwrap_err();
        assert_eq!(error.last_error().unwrap().message(), "again");
        match error.reason() {
            RejectionReason::Reopened => "waited",
            RejectionReason::Open => "came after",
            _ => "neither",
        }
    });
}

#[test]
fn a_waiter_by_name_is_rejected_when_the_probes_guard_is_dropped() {
    explore(&["waited", "came after"], || {
        let breakers = probing();
        let caller = beside(&breakers, |breakers| block_on(breakers.acquire_permit("a")));
        drop(ProbeGuard::new(&breakers, "a"));
        let error = caller.join().unwrap().unwrap_err();
        assert_eq!(error.last_error().unwrap().error_type(), "dropped");
        match error.reason() {
            RejectionReason::Reopened => "waited",
            RejectionReason::Open => "came after",
            _ => "neither",
        }
    });
}

#[test]
fn a_probe_by_name_that_is_resolved_twice_is_resolved_once() {
    explore(&["closed", "open"], || {
        let breakers = probing();
        let other = beside(&breakers, |breakers| breakers.record_probe_success("a"));
        let failed = breakers.record_probe_failure("a", "test", "again");
        let succeeded = other.join().unwrap();
        let seen = breakers.get("a").unwrap().snapshot();
        assert_eq!(seen.trip_count, 1);
        match (seen.state, seen.failed_probe_count, succeeded, failed) {
            (CircuitState::Closed, 0, true, false) => "closed",
            (CircuitState::Open, 1, false, true) => "open",
            _ => "both or neither counted",
        }
    });
}

#[test]
fn a_guard_of_the_first_probe_cannot_resolve_the_second() {
    explore(&["resolved the first", "too late"], || {
        let breakers = registry(1);
        breakers.record_failure("a", "test", "first");
        advance(OPEN_FOR);
        let breaker = breakers.get("a").unwrap();
        // The first probe has two holders, and no time passes until there is a second probe.
        let first = claim(&breaker);
        let guard = ProbeGuard::new(&breakers, "a");
        let other = thread::spawn(move || guard.success());
        first.cancel();
        let next = breaker.try_acquire().expect("closed, or handed back");
        let counted = other.join().unwrap();
        match next.kind() {
            PermitType::Probe => {
                assert!(!counted);
                assert_eq!(breaker.state(), CircuitState::HalfOpen);
                next.cancel();
                "too late"
            }
            PermitType::Normal => {
                assert!(counted);
                "resolved the first"
            }
        }
    });
}

#[test]
fn a_record_by_name_that_lost_its_race_says_so() {
    explore(&["in time", "too late"], || {
        let breakers = registry(1);
        let other = beside(&breakers, |breakers| breakers.record_success("a"));
        assert!(breakers.record_failure("a", "test", "first"), "nothing else opens it");
        if other.join().unwrap() { "in time" } else { "too late" }
    });
}
