//! How many calls of each kind there were.

use std::sync::Arc;
use std::thread;

use fusebox::{CircuitBreaker, CircuitBreakerRegistry, ConfigBuilder, Totals};
use tokio::time::advance;

use crate::support::{SECOND, next_probe, trip, until};

fn counting(settings: impl FnOnce(ConfigBuilder<Arc<str>>) -> ConfigBuilder<Arc<str>>) -> Arc<CircuitBreaker> {
    Arc::new(settings(CircuitBreaker::builder("openai").totals(true)).build().unwrap())
}

fn seen(breaker: &CircuitBreaker) -> [u64; 4] {
    let Totals { successes, failures, rejections, waits, .. } = breaker.snapshot().totals.unwrap();
    [successes, failures, rejections, waits]
}

#[tokio::test(start_paused = true)]
async fn every_call_is_counted_for_what_became_of_it() {
    let breaker = counting(|settings| settings);
    breaker.try_acquire().unwrap().success();
    let late = [(); 2].map(|()| breaker.try_acquire().unwrap());
    breaker.try_acquire().unwrap().cancel();
    drop(breaker.try_acquire());
    assert_eq!(seen(&breaker), [1, 0, 0, 0], "what says nothing is not counted");
    trip(&breaker);
    let [success, failure] = late;
    success.success();
    failure.failure("late", "");
    assert_eq!(seen(&breaker), [2, 4, 0, 0], "a late outcome is one, too");

    assert!(breaker.try_acquire().is_err());
    assert!(breaker.acquire().await.is_err());
    assert!(Arc::clone(&breaker).acquire_owned().await.is_err());
    assert!(breaker.acquire_through_silence().await.is_err());
    assert!(breaker.acquire_blocking(SECOND).is_err());
    assert!(breaker.call(async { Ok::<_, ()>(()) }).await.is_err());
    assert_eq!(seen(&breaker), [2, 4, 6, 0]);

    let probe = next_probe(&breaker).await;
    let waiter = tokio::spawn(Arc::clone(&breaker).acquire_owned());
    until(|| breaker.snapshot().waiters == 1).await;
    assert!(breaker.try_acquire().is_err());
    probe.failure("5xx", "again");
    assert!(waiter.await.unwrap().is_err());
    assert_eq!(seen(&breaker), [2, 5, 8, 1]);
    next_probe(&breaker).await.success();
    breaker.try_acquire().unwrap().cool_down(SECOND, "429", "");
    assert_eq!(seen(&breaker), [3, 6, 8, 1]);
}

#[test]
fn outcomes_by_name_are_counted_whatever_the_state() {
    let breakers = CircuitBreakerRegistry::with_config(["openai"], counting(|settings| settings).config());
    let breaker = breakers.get("openai").unwrap();
    assert!(breakers.record_success("openai"));
    trip(&breaker);
    assert!(!breakers.record_success("openai") && !breakers.record_failure("openai", "late", ""));
    assert!(!breakers.record_probe_success("openai") && !breakers.record_probe_failure("openai", "late", ""));
    assert!(breakers.try_acquire_permit("openai").is_err());
    assert_eq!(seen(&breaker), [3, 5, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn calls_are_counted_from_the_setting_on_and_as_long_as_it_stands() {
    let breaker = counting(|settings| settings.totals(false));
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.snapshot().totals, None);
    let on = breaker.config().to_builder().totals(true).build().unwrap();
    breaker.set_config(on);
    breaker.try_acquire().unwrap().success();
    assert_eq!(seen(&breaker), [1, 0, 0, 0]);
    breaker.set_config(on.to_builder().totals(false).build().unwrap());
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.snapshot().totals, None);
    breaker.set_config(on);
    assert_eq!(seen(&breaker), [1, 0, 0, 0], "what there was is kept");
}

#[tokio::test(start_paused = true)]
async fn no_policy_counts_anything_else_because_of_them() {
    let breaker = counting(|settings| settings.failure_threshold(3));
    trip(&breaker);
    advance(30 * SECOND).await;
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.failure_count, snapshot.trip_count, snapshot.last_calls), (3, 1, None));
}

#[test]
fn no_call_of_many_threads_is_lost() {
    let breaker = counting(|settings| settings.failure_threshold(None));
    let rounds = if cfg!(miri) { 10 } else { 10_000 };
    thread::scope(|scope| {
        for n in 0..4 {
            let breaker = &breaker;
            scope.spawn(move || {
                for _ in 0..rounds {
                    let permit = breaker.try_acquire().unwrap();
                    if n == 0 {
                        permit.failure("5xx", "");
                    } else {
                        permit.success();
                    }
                }
            });
        }
    });
    assert_eq!(seen(&breaker), [3 * rounds, rounds, 0, 0]);
}
