//! Subscribers are told of every transition.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use fusebox::CircuitState::{Closed, HalfOpen, Open};
use fusebox::{Cause, CircuitBreaker, CircuitBreakerRegistry, CircuitState, Transition};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::{advance, timeout};

use crate::support::{SECOND, breaker, fail, next_probe, probe, trip};

/// What was told until now.
fn told(transitions: &mut Receiver<Transition>) -> Vec<Transition> {
    std::iter::from_fn(|| transitions.try_recv().ok()).collect()
}

fn steps(transitions: &mut Receiver<Transition>) -> Vec<String> {
    let step = |told: Transition| format!("{} {} > {} {}", told.breaker, told.from, told.to, told.generation);
    told(transitions).into_iter().map(step).collect()
}

#[tokio::test(start_paused = true)]
async fn a_whole_cycle_is_told_with_its_causes_and_errors() {
    let breaker = breaker();
    let mut transitions = breaker.subscribe();
    fail(&breaker, "5xx");
    breaker.try_acquire().unwrap().success();
    assert_eq!(transitions.try_recv().unwrap_err(), TryRecvError::Empty, "no call is a transition");
    probe(&breaker).await.failure("timeout", "no answer in 2 s");
    next_probe(&breaker).await.success();
    let told = told(&mut transitions);
    let seen: Vec<_> = told.iter().map(|t| (t.from, t.to, t.cause, t.generation, t.trip_count)).collect();
    assert_eq!(
        seen,
        [
            (Closed, Open, Some(Cause::Failures), 1, 1),
            (Open, HalfOpen, None, 1, 1),
            (HalfOpen, Open, Some(Cause::Failures), 2, 1),
            (Open, HalfOpen, None, 2, 1),
            (HalfOpen, Closed, None, 2, 1),
        ]
    );
    let errors: Vec<_> = told.iter().map(|told| told.last_error.as_ref().unwrap().error_type().to_owned()).collect();
    assert_eq!(errors, ["5xx", "5xx", "timeout", "timeout", "timeout"]);
    assert!(told.iter().all(|told| told.failure_count == 3 && &*told.breaker == "openai"));
    assert!(told.iter().all(|told| told.at.elapsed().is_ok_and(|ago| ago < Duration::from_secs(60))));
    assert!(told.windows(2).all(|two| two[0].at <= two[1].at));
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_hears_of_what_follows_its_subscription() {
    let breaker = breaker();
    trip(&breaker);
    let mut first = breaker.subscribe();
    breaker.reset();
    let mut second = breaker.subscribe();
    breaker.isolate("test");
    assert_eq!(steps(&mut first), ["openai open > closed 2", "openai closed > open 3"]);
    assert_eq!(steps(&mut second), ["openai closed > open 3"]);
    drop((first, second));
    breaker.reset();
    let mut third = breaker.subscribe();
    breaker.disable();
    assert_eq!(steps(&mut third), ["openai closed > disabled 5"]);
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_transition_leads_on_to_the_next_one() {
    let settings = CircuitBreaker::builder("openai").failure_threshold(1).ramp(10 * SECOND);
    let breaker = Arc::new(settings.build().unwrap());
    let mut transitions = breaker.subscribe();
    breaker.trip_for(5 * SECOND, "429", "");
    breaker.trip_for(9 * SECOND, "429", "");
    advance(9 * SECOND).await;
    std::mem::forget(breaker.try_acquire().unwrap());
    advance(60 * SECOND).await;
    breaker.try_acquire().unwrap().success();
    advance(10 * SECOND).await;
    breaker.try_acquire().unwrap().failure("5xx", "");
    next_probe(&breaker).await.success();
    breaker.trip_for(SECOND, "429", "");
    assert_eq!(
        steps(&mut transitions),
        [
            "openai closed > open 1",
            "openai open > open 2",
            "openai open > half_open 2",
            "openai half_open > half_open 2",
            "openai half_open > recovering 2",
            "openai recovering > closed 2",
            "openai closed > open 3",
            "openai open > half_open 3",
            "openai half_open > recovering 3",
            "openai recovering > open 4",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_subscriber_is_told_how_many_it_missed_and_delays_nobody() {
    let breaker = breaker();
    let mut transitions = breaker.subscribe();
    for _ in 0..50 {
        breaker.isolate("test");
        breaker.reset();
    }
    assert_eq!(transitions.recv().await.unwrap_err(), RecvError::Lagged(36));
    let first = transitions.recv().await.unwrap();
    assert_eq!((first.from, first.generation), (CircuitState::Closed, 37));
    assert_eq!(told(&mut transitions).len(), 63);
    drop(breaker);
    assert_eq!(transitions.recv().await.unwrap_err(), RecvError::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_waits_is_woken() {
    let breaker = breaker();
    let mut transitions = breaker.subscribe();
    let waiting = tokio::spawn(async move { transitions.recv().await });
    tokio::task::yield_now().await;
    trip(&breaker);
    let opened = timeout(SECOND, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(opened.to, CircuitState::Open);
}

#[test]
fn a_registry_tells_of_all_its_breakers_and_of_those_that_come_later() {
    let registry = CircuitBreakerRegistry::new(["a"]);
    let mut transitions = registry.subscribe();
    let mut second = registry.subscribe();
    registry.insert_all(["b", "c"]);
    let own = registry.get_or_insert("d").unwrap();
    let mut of_d = own.subscribe();
    for name in ["a", "b", "c", "d"] {
        registry.get(name).unwrap().isolate("test");
    }
    let all = ["a", "b", "c", "d"].map(|name| format!("{name} closed > open 1"));
    assert_eq!(steps(&mut transitions), all);
    assert_eq!(steps(&mut second), all);
    assert_eq!(steps(&mut of_d), ["d closed > open 1"]);

    // The last that is told of a breaker is that its name was removed.
    let gone = registry.remove("b").unwrap();
    gone.isolate("test");
    registry.retain(|breaker| breaker.name() != "d");
    assert_eq!(steps(&mut transitions), ["b open > closed 2", "d open > closed 2"]);
    registry.insert_breaker(gone).reset();
    assert_eq!(steps(&mut transitions), ["b open > closed 4"]);
}

#[test]
fn a_breaker_in_two_registries_tells_the_subscribers_of_both() {
    let registries = [(); 2].map(|()| CircuitBreakerRegistry::default());
    let mut transitions = registries.each_ref().map(CircuitBreakerRegistry::subscribe);
    let shared = Arc::new(CircuitBreaker::builder("a").build().unwrap());
    for registry in &registries {
        registry.insert_breaker(Arc::clone(&shared));
    }
    shared.isolate("test");
    assert_eq!(transitions.each_mut().map(steps), [["a closed > open 1"], ["a closed > open 1"]]);
}

#[test]
fn transitions_of_many_threads_form_one_chain() {
    let rounds = if cfg!(miri) { 1 } else { 200 };
    for _ in 0..rounds {
        let settings = CircuitBreaker::builder("openai").failure_threshold(1).open_for(Duration::from_millis(1));
        let breaker = settings.build().unwrap();
        let mut transitions = breaker.subscribe();
        let start = Barrier::new(4);
        thread::scope(|scope| {
            for n in 0..4 {
                let (breaker, start) = (&breaker, &start);
                scope.spawn(move || {
                    start.wait();
                    for _ in 0..5 {
                        match breaker.try_acquire() {
                            Ok(permit) if n % 2 == 0 => permit.failure("5xx", ""),
                            Ok(permit) => permit.success(),
                            Err(_) => breaker.reset(),
                        }
                    }
                });
            }
        });
        let told = told(&mut transitions);
        assert!(!told.is_empty());
        for two in told.windows(2) {
            assert_eq!(two[0].to, two[1].from, "{told:?}");
            assert!(two[1].generation - two[0].generation <= 1, "{told:?}");
        }
        assert_eq!(told.last().unwrap().to, breaker.state());
    }
}
