//! Each transition is logged once, by the caller that made it.

use std::sync::{Arc, Barrier};
use std::thread;

use fusebox::{CircuitBreaker, CircuitState, ProbeGuard};
use tokio::time::advance;

use crate::log::Log;
use crate::support::{SECOND, breaker, fail, probe, registry, trip, trip_by_name, waiter};

#[tokio::test(start_paused = true)]
async fn a_whole_cycle_is_logged_in_four_lines() {
    let log = Log::capture();
    let breaker = breaker();
    trip(&breaker);
    let opened = r#"WARN circuit opened breaker="openai" from="closed" to="open" cause="failures" failure_count=3 last_error=5xx: test trip_count=1 generation=1"#;
    assert_eq!(log.take(), [opened]);

    advance(30 * SECOND).await;
    assert!(log.take().is_empty(), "nothing happens by itself");
    let permit = breaker.try_acquire().unwrap();
    let half_open = r#"INFO circuit half-open, probing breaker="openai" from="open" to="half_open" failure_count=3 last_error=5xx: test trip_count=1 generation=1"#;
    assert_eq!(log.take(), [half_open]);

    permit.failure("timeout", "no answer in 2 s");
    let reopened = r#"WARN circuit opened again, the probe failed breaker="openai" from="half_open" to="open" cause="failures" failure_count=3 last_error=timeout: no answer in 2 s trip_count=1 generation=2"#;
    assert_eq!(log.take(), [reopened]);

    advance(30 * SECOND).await;
    breaker.try_acquire().unwrap().success();
    let closed = r#"INFO circuit closed, the probe succeeded breaker="openai" from="half_open" to="closed" failure_count=3 last_error=timeout: no answer in 2 s trip_count=1 generation=2"#;
    assert_eq!(
        log.take(),
        [&*half_open.replace("5xx: test", "timeout: no answer in 2 s").replace("generation=1", "generation=2"), closed]
    );
}

#[tokio::test(start_paused = true)]
async fn calls_that_change_no_state_are_not_logged() {
    let log = Log::capture();
    let breaker = breaker();
    fail(&breaker, "5xx");
    fail(&breaker, "5xx");
    breaker.try_acquire().unwrap().success();
    drop(breaker.try_acquire());
    let late = breaker.try_acquire().unwrap();
    assert!(log.take().is_empty());
    trip(&breaker);
    log.take();
    assert!(breaker.try_acquire().is_err());
    late.failure("late", "");
    assert!(log.take().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_probe_is_logged_as_a_warning_for_permits_and_guards() {
    let reopened = r#"WARN circuit opened again, the probe failed breaker="openai" from="half_open" to="open" cause="failures" failure_count=3 last_error=dropped: the probe was dropped unresolved trip_count=1 generation=2"#;
    let breaker = breaker();
    let permit = probe(&breaker).await;
    let log = Log::capture();
    drop(permit);
    assert_eq!(log.take(), [reopened]);

    let breakers = registry();
    trip_by_name(&breakers, "openai");
    advance(30 * SECOND).await;
    breakers.acquire_permit("openai").await.unwrap();
    log.take();
    drop(ProbeGuard::new(&breakers, "openai"));
    assert_eq!(log.take(), [reopened]);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_probe_is_not_logged_and_a_taken_over_one_is_a_warning() {
    let breaker = breaker();
    let permit = probe(&breaker).await;
    let waiter = waiter(&breaker).await;
    let log = Log::capture();
    permit.cancel();
    let _hung = waiter.await.unwrap().unwrap();
    assert!(log.take().is_empty());
    advance(61 * SECOND).await;
    let successor = breaker.try_acquire().unwrap();
    let warning = r#"WARN the probe's lease ended, the next call takes it over breaker="openai" from="half_open" to="half_open" failure_count=3 last_error=5xx: test trip_count=1 generation=1"#;
    assert_eq!(log.take(), [warning]);
    successor.success();
}

#[test]
fn of_many_threads_that_fail_at_once_one_trips_the_circuit_and_logs_it() {
    let rounds = if cfg!(miri) { 1 } else { 200 };
    for _ in 0..rounds {
        let breaker = Arc::new(CircuitBreaker::builder("openai").failure_threshold(2).build().unwrap());
        let start = Barrier::new(4);
        let opened: usize = thread::scope(|scope| {
            let threads = [(); 4].map(|()| {
                scope.spawn(|| {
                    let log = Log::capture();
                    let permit = breaker.try_acquire();
                    start.wait();
                    if let Ok(permit) = permit {
                        permit.failure("5xx", "");
                    }
                    log.take().len()
                })
            });
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((opened, breaker.trip_count()), (1, 1));
        assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Open, 2));
    }
}
