//! Names that come with requests: a registry with a cap, and what it evicts.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use fusebox::{CircuitBreaker, CircuitBreakerRegistry, CircuitState, Config, PermitType};
use tokio::time::advance;

use crate::support::{SECOND, at_once, until};

fn capped(max: usize) -> CircuitBreakerRegistry {
    CircuitBreakerRegistry::default().with_cap(max)
}

fn names(registry: &CircuitBreakerRegistry) -> HashSet<String> {
    registry.snapshots().into_iter().map(|snapshot| snapshot.name.to_string()).collect()
}

fn set(names: &[&str]) -> HashSet<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn a_new_name_gets_the_registrys_settings_or_those_that_the_caller_gives() {
    let five = Config::builder().failure_threshold(5).build().unwrap();
    let registry = CircuitBreakerRegistry::default();
    let usual = registry.get_or_insert("a").unwrap();
    let own = registry.get_or_insert_with("b", || five).unwrap();
    assert_eq!((usual.config(), own.config()), (Config::default(), five));
    let known = registry.get_or_insert_with("b", || panic!("it is there")).unwrap();
    assert!(Arc::ptr_eq(&own, &known));
    assert_eq!((registry.len(), registry.is_empty(), registry.cap()), (2, false, None));
}

#[test]
fn the_function_that_gives_the_settings_may_use_the_registry() {
    let registry = CircuitBreakerRegistry::default();
    let inner = registry.get_or_insert_with("a", || registry.insert("a").config()).unwrap();
    assert!(Arc::ptr_eq(&inner, &registry.get("a").unwrap()));
    assert_eq!(registry.len(), 1);
}

#[test]
fn at_the_cap_idle_names_make_room_and_the_ones_that_were_asked_for_stay() {
    let registry = capped(4);
    for name in ["a", "b", "c", "d"] {
        registry.get_or_insert(name).unwrap();
    }
    for name in ["a", "c"] {
        assert!(registry.get(name).is_some());
    }
    registry.get_or_insert("e").unwrap();
    assert_eq!(names(&registry), set(&["a", "c", "e"]));
}

#[test]
fn if_all_were_asked_for_the_cap_holds_all_the_same() {
    let registry = capped(32);
    for round in 0..50 {
        for n in 0..100 {
            let name = format!("{n}");
            registry.get_or_insert(&name).unwrap();
            assert!(registry.get(&name).is_some() && registry.len() <= 32, "{round}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn open_half_open_recovering_disabled_and_held_breakers_are_never_evicted() {
    let ramp = Config::builder().failure_threshold(1).ramp(10 * SECOND).build().unwrap();
    let registry = CircuitBreakerRegistry::with_config([""; 0], ramp).with_cap(6);
    for name in ["open", "half-open", "recovering", "disabled", "held", "idle"] {
        registry.get_or_insert(name).unwrap();
    }
    for name in ["half-open", "recovering"] {
        assert!(registry.record_failure(name, "5xx", ""));
    }
    registry.get("disabled").unwrap().disable();
    advance(30 * SECOND).await;
    for name in ["half-open", "recovering"] {
        assert_eq!(registry.try_acquire_permit(name).unwrap(), PermitType::Probe);
    }
    assert!(registry.record_probe_success("recovering"));
    assert!(registry.record_failure("open", "5xx", ""));
    let permit = registry.get("held").unwrap().try_acquire_owned().unwrap();

    registry.get_or_insert("new").unwrap();
    let stay = ["open", "half-open", "recovering", "disabled", "held", "new"];
    assert_eq!(names(&registry), set(&stay));
    let states = stay.map(|name| registry.state(name).unwrap().as_str());
    assert_eq!(states, ["open", "half_open", "recovering", "disabled", "closed", "closed"]);

    let new = registry.get("new");
    let error = registry.get_or_insert("another").unwrap_err();
    assert_eq!(error.to_string(), "the registry is full: its cap is 6 names, and none of them is idle");
    assert_eq!((error.cap(), names(&registry)), (6, set(&stay)));

    // A ramp that is over keeps nothing, nor does a permit that is gone.
    permit.success();
    drop(new);
    advance(10 * SECOND).await;
    registry.get_or_insert("another").unwrap();
    assert_eq!(names(&registry), set(&["open", "half-open", "disabled", "another"]));
}

#[test]
fn names_that_failed_once_and_are_never_asked_for_again_do_not_stay() {
    let registry = capped(8);
    for n in 0..1000 {
        let name = format!("bogus-{n}");
        registry.get_or_insert(&name).unwrap().try_acquire().unwrap().failure("dns", "no such host");
        assert!(registry.len() <= 8);
    }
}

#[test]
fn names_that_the_application_chose_are_neither_limited_nor_evicted() {
    let registry = CircuitBreakerRegistry::new(["a", "b"]).with_cap(3);
    registry.get_or_insert("c").unwrap();
    registry.get_or_insert("d").unwrap();
    assert_eq!(names(&registry), set(&["a", "b", "d"]));
    // From now on it is one of those.
    registry.insert("d");
    assert!(registry.get_or_insert("e").is_err());
    registry.insert_many(["e", "f"].map(|name| CircuitBreaker::builder(name).build().unwrap()));
    assert_eq!((registry.len(), registry.get_or_insert("g").is_err()), (5, true));
    assert!(registry.get_or_insert("f").is_ok(), "a name that is there needs no room");
}

#[test]
fn a_registry_with_a_cap_of_none_refuses_every_new_name() {
    let registry = capped(0);
    assert_eq!(registry.get_or_insert("a").unwrap_err().cap(), 0);
    assert!(registry.is_empty());
}

#[test]
fn a_reader_sees_all_of_many_new_names_or_none() {
    let registry = CircuitBreakerRegistry::new(["first"]);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert_eq!(registry.snapshots().len() % 100, 1);
            }
        });
        for round in 0..20 {
            registry.insert_all((0..100).map(|n| format!("{round}-{n}")));
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(registry.len(), 2001);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_retained_is_reset_and_its_waiters_pass() {
    let registry = Arc::new(CircuitBreakerRegistry::new(["a", "b", "c"]));
    for name in ["a", "b"] {
        for _ in 0..3 {
            registry.record_failure(name, "5xx", "");
        }
    }
    advance(30 * SECOND).await;
    assert_eq!(registry.acquire_permit("a").await.unwrap(), PermitType::Probe);
    let waiter = tokio::spawn({
        let registry = Arc::clone(&registry);
        async move { registry.acquire_permit("a").await }
    });
    until(|| registry.get("a").unwrap().snapshot().waiters == 1).await;
    let mut removed = registry.retain(|breaker| breaker.state() == CircuitState::Closed);
    removed.sort_by(|a, b| a.name().cmp(b.name()));
    let states: Vec<_> = removed.iter().map(|breaker| (breaker.name(), breaker.state())).collect();
    assert_eq!(states, [("a", CircuitState::Closed), ("b", CircuitState::Closed)]);
    assert_eq!(at_once(waiter).await.unwrap().unwrap(), PermitType::Normal);
    assert_eq!(names(&registry), set(&["c"]));
    assert!(registry.retain(|_| true).is_empty());
}

#[test]
fn a_hundred_thousand_names_are_added_one_by_one_and_found() {
    let count = if cfg!(miri) { 100 } else { 100_000 };
    let registry = CircuitBreakerRegistry::default();
    let name = |n: u32| format!("name-{n}");
    for n in 0..count {
        registry.get_or_insert(name(n)).unwrap();
    }
    assert!((0..count).all(|n| registry.get(&name(n)).is_some_and(|breaker| breaker.name() == name(n))));
    assert_eq!((registry.len(), registry.get("name").is_some()), (count as usize, false));
}
