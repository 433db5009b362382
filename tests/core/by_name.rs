//! The registry, and the protocol for callers that have nothing but a name.

use std::sync::Arc;

use fusebox::{CircuitBreaker, CircuitBreakerRegistry, CircuitState, PermitType, ProbeGuard};
use tokio::time::advance;

use crate::support::{SECOND, at_once, registry, trip_by_name, until};

const NAME: &str = "openai";

async fn half_open() -> Arc<CircuitBreakerRegistry> {
    let breakers = registry();
    trip_by_name(&breakers, NAME);
    advance(31 * SECOND).await;
    assert_eq!(breakers.acquire_permit(NAME).await.unwrap(), PermitType::Probe);
    breakers
}

#[tokio::test(start_paused = true)]
async fn three_breakers_start_closed() {
    let breakers = registry();
    let snapshots = breakers.snapshots();
    let names: Vec<_> = snapshots.iter().map(|snapshot| &*snapshot.name).collect();
    assert_eq!(names, ["anthropic", "mistral", "openai"]);
    assert!(snapshots.iter().all(|s| (s.state, s.failure_count, s.trip_count) == (CircuitState::Closed, 0, 0)));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_name_is_allowed_and_does_not_grow_the_registry() {
    let breakers = registry();
    assert_eq!(breakers.acquire_permit("bogus").await.unwrap(), PermitType::Normal);
    breakers.record_success("bogus");
    breakers.record_failure("bogus", "5xx", "");
    breakers.record_probe_success("bogus");
    breakers.record_probe_failure("bogus", "5xx", "");
    ProbeGuard::new(&breakers, String::from("bogus")).success();
    assert_eq!(
        (breakers.state("bogus"), breakers.failure_count("bogus"), breakers.trip_count("bogus")),
        (None, None, None)
    );
    assert_eq!(breakers.snapshots().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn breakers_are_independent() {
    let breakers = registry();
    trip_by_name(&breakers, NAME);
    let error = breakers.acquire_permit(NAME).await.unwrap_err();
    assert_eq!((error.provider(), error.trip_count(), error.retry_after()), (NAME, 1, Some(30 * SECOND)));
    assert_eq!(error.last_error().unwrap().to_string(), "5xx: test");
    assert_eq!(breakers.acquire_permit("anthropic").await.unwrap(), PermitType::Normal);
    assert_eq!(breakers.failure_count("anthropic"), Some(0));
}

#[tokio::test(start_paused = true)]
async fn the_probe_is_resolved_by_name() {
    let breakers = half_open().await;
    breakers.record_probe_failure(NAME, "timeout", "still down");
    assert_eq!((breakers.state(NAME), breakers.trip_count(NAME)), (Some(CircuitState::Open), Some(1)));
    advance(31 * SECOND).await;
    assert_eq!(breakers.acquire_permit(NAME).await.unwrap(), PermitType::Probe);
    breakers.record_probe_success(NAME);
    assert_eq!((breakers.state(NAME), breakers.failure_count(NAME)), (Some(CircuitState::Closed), Some(0)));
}

#[tokio::test(start_paused = true)]
async fn plain_records_while_not_closed_change_nothing() {
    let breakers = half_open().await;
    breakers.record_failure(NAME, "late", "");
    breakers.record_success(NAME);
    assert_eq!((breakers.state(NAME), breakers.failure_count(NAME)), (Some(CircuitState::HalfOpen), Some(3)));
    breakers.record_probe_failure(NAME, "timeout", "");
    advance(10 * SECOND).await;
    breakers.record_failure(NAME, "late", "");
    breakers.record_success(NAME);
    let snapshot = breakers.get(NAME).unwrap().snapshot();
    assert_eq!(
        (snapshot.state, snapshot.next_probe_in),
        (CircuitState::Open, Some(20 * SECOND)),
        "no longer, no shorter"
    );
    assert_eq!(snapshot.last_error.unwrap().error_type(), "timeout");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_resolved_twice_is_resolved_once() {
    let breakers = half_open().await;
    breakers.record_probe_success(NAME);
    breakers.record_probe_failure(NAME, "late", "");
    assert_eq!((breakers.state(NAME), breakers.failure_count(NAME)), (Some(CircuitState::Closed), Some(0)));
    let breakers = half_open().await;
    breakers.record_probe_failure(NAME, "timeout", "");
    breakers.record_probe_success(NAME);
    assert_eq!(breakers.state(NAME), Some(CircuitState::Open));
}

#[tokio::test(start_paused = true)]
async fn a_guard_resolves_the_probe_by_success_failure_or_drop() {
    let breakers = half_open().await;
    assert!(ProbeGuard::new(&breakers, NAME).success());
    assert_eq!(breakers.state(NAME), Some(CircuitState::Closed));
    for (failed, expected) in [(true, "timeout"), (false, "dropped")] {
        let breakers = half_open().await;
        let guard = ProbeGuard::new(&breakers, NAME);
        if failed {
            assert!(guard.failure("timeout", ""));
        } else {
            drop(guard);
        }
        let snapshot = breakers.get(NAME).unwrap().snapshot();
        assert_eq!((snapshot.state, snapshot.last_error.unwrap().error_type()), (CircuitState::Open, expected));
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_without_a_probe_in_flight_does_nothing() {
    let breakers = registry();
    assert!(!ProbeGuard::new(&breakers, NAME).failure("5xx", ""));
    assert_eq!(breakers.failure_count(NAME), Some(0));
    trip_by_name(&breakers, NAME);
    drop(ProbeGuard::new(&breakers, NAME));
    assert_eq!(breakers.get(NAME).unwrap().snapshot().failed_probe_count, 0);
}

#[tokio::test(start_paused = true)]
async fn a_guard_whose_probe_was_taken_over_does_nothing() {
    let breakers = half_open().await;
    let late = ProbeGuard::new(&breakers, NAME);
    advance(60 * SECOND).await;
    assert_eq!(breakers.acquire_permit(NAME).await.unwrap(), PermitType::Probe);
    assert!(!late.success());
    assert_eq!(breakers.state(NAME), Some(CircuitState::HalfOpen));
}

#[tokio::test(start_paused = true)]
async fn waiters_by_name_get_the_probes_result() {
    for succeeds in [true, false] {
        let breakers = half_open().await;
        let waiting = Arc::clone(&breakers);
        let waiter = tokio::spawn(async move { waiting.acquire_permit(NAME).await });
        let breaker = breakers.get(NAME).unwrap();
        until(|| breaker.snapshot().waiters == 1).await;
        if succeeds {
            breakers.record_probe_success(NAME);
        } else {
            breakers.record_probe_failure(NAME, "5xx", "");
        }
        assert_eq!(at_once(waiter).await.unwrap().is_ok(), succeeds);
    }
}

#[tokio::test(start_paused = true)]
async fn inserting_a_known_name_keeps_its_breaker_and_state() {
    let breakers = registry();
    trip_by_name(&breakers, NAME);
    let own = |name| CircuitBreaker::builder(name).failure_threshold(9).build().unwrap();
    assert_eq!(breakers.insert_breaker(own(NAME)).config().failure_threshold(), Some(3));
    breakers.insert_all([NAME, "new", "newer"]);
    assert_eq!(breakers.state(NAME), Some(CircuitState::Open));
    assert_eq!(breakers.insert_breaker(own("newest")).config().failure_threshold(), Some(9));
    assert_eq!(breakers.insert("newest").config().failure_threshold(), Some(9));
    assert_eq!(breakers.snapshots().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_removed_breaker_lets_its_waiters_pass() {
    let breakers = half_open().await;
    let waiting = Arc::clone(&breakers);
    let waiter = tokio::spawn(async move { waiting.acquire_permit(NAME).await });
    let breaker = breakers.get(NAME).unwrap();
    until(|| breaker.snapshot().waiters == 1).await;
    assert!(breakers.remove(NAME).is_some() && breakers.remove(NAME).is_none());
    assert_eq!(at_once(waiter).await.unwrap().unwrap(), PermitType::Normal);
    assert_eq!(breakers.state(NAME), None);
}

#[test]
fn names_come_from_any_iterator_of_strings() {
    let owned: Vec<String> = vec!["a".into(), "b".into()];
    let slice: &[String] = &owned;
    let (arcs, set) = ([Arc::<str>::from("a"), "b".into()], std::collections::BTreeSet::from(["a", "b"]));
    for breakers in [
        CircuitBreakerRegistry::new(slice),
        CircuitBreakerRegistry::new(&owned),
        CircuitBreakerRegistry::new(owned.clone()),
        CircuitBreakerRegistry::new(["a", "b"]),
        CircuitBreakerRegistry::new(arcs),
        CircuitBreakerRegistry::new(set),
    ] {
        assert!(breakers.get("a").is_some() && breakers.get("b").is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_by_name_returns_whether_it_counted() {
    let breakers = registry();
    assert!(!breakers.record_success("unknown") && !breakers.record_failure("unknown", "5xx", ""));
    assert!(breakers.record_success(NAME));
    assert!(!breakers.record_probe_success(NAME) && !breakers.record_probe_failure(NAME, "5xx", ""));
    assert!((0..3).all(|_| breakers.record_failure(NAME, "5xx", "")));
    assert!(!breakers.record_success(NAME) && !breakers.record_failure(NAME, "5xx", ""));
    let breakers = half_open().await;
    assert!(!breakers.record_success(NAME) && !breakers.record_failure(NAME, "5xx", ""));
    assert!(breakers.record_probe_success(NAME));
    assert!(!breakers.record_probe_success(NAME));
}
