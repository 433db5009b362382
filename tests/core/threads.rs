//! Real threads on one breaker: what the models prove for a few steps, tried for many.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use fusebox::silence::{self, Detector, TICK};
use fusebox::{CircuitBreaker, CircuitBreakerRegistry, CircuitState, Config, PermitType, Window};

const THREADS: usize = 4;
const ROUNDS: usize = if cfg!(miri) { 80 } else { 20_000 };
const CALLERS: usize = if cfg!(miri) { 12 } else { 1000 };
const DEADLINE: Duration = Duration::from_secs(30);

/// Open, and its open time has passed.
fn reopening() -> Arc<CircuitBreaker> {
    let breaker = CircuitBreaker::builder("a").failure_threshold(1).open_for(Duration::from_millis(1)).build().unwrap();
    breaker.try_acquire().unwrap().failure("5xx", "test");
    let start = Instant::now();
    while !breaker.would_allow() {
        assert!(start.elapsed() < DEADLINE);
        thread::yield_now();
    }
    Arc::new(breaker)
}

#[test]
fn of_a_thousand_callers_after_the_open_time_exactly_one_is_the_probe() {
    for _ in 0..if cfg!(miri) { 5 } else { 20 } {
        let (breaker, start, probes) = (reopening(), Barrier::new(THREADS), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..CALLERS / THREADS {
                        if let Ok(permit) = breaker.try_acquire() {
                            assert_eq!(permit.kind(), PermitType::Probe);
                            probes.fetch_add(1, Ordering::Relaxed);
                            std::mem::forget(permit);
                        }
                    }
                });
            }
        });
        assert_eq!(probes.into_inner(), 1);
    }
}

#[test]
fn a_thousand_callers_that_wait_for_a_probe_all_get_its_result() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_time().build().unwrap();
    for succeeds in [true, false, true, false] {
        let breaker = reopening();
        let start = Instant::now();
        let outcomes = runtime.block_on(async {
            let call = |breaker: Arc<CircuitBreaker>| async move {
                let permit = Arc::clone(&breaker).acquire_owned().await.ok()?;
                let kind = permit.kind();
                if kind == PermitType::Probe {
                    // After a failed probe, the next one may have no waiters left.
                    while breaker.snapshot().waiters < CALLERS / 2 && breaker.snapshot().failed_probe_count == 0 {
                        assert!(start.elapsed() < DEADLINE);
                        tokio::task::yield_now().await;
                    }
                    if succeeds { permit.success() } else { permit.failure("5xx", "test") }
                }
                Some(kind)
            };
            let callers: Vec<_> = (0..CALLERS).map(|_| tokio::spawn(call(Arc::clone(&breaker)))).collect();
            let mut outcomes = Vec::new();
            for caller in callers {
                outcomes.push(caller.await.unwrap());
            }
            outcomes
        });
        // Half a lease: no waiter was woken by its timer.
        assert!(start.elapsed() < DEADLINE);
        let count = |kind| outcomes.iter().filter(|outcome| **outcome == kind).count();
        if succeeds {
            assert_eq!((count(Some(PermitType::Probe)), count(Some(PermitType::Normal))), (1, CALLERS - 1));
        } else {
            // A caller that came after the new open time may have been the next probe.
            assert!(count(Some(PermitType::Probe)) >= 1 && count(None) >= CALLERS / 2, "{outcomes:?}");
            assert_eq!(count(Some(PermitType::Normal)), 0);
        }
    }
}

#[test]
fn there_is_never_more_than_one_probe_and_every_opening_has_its_error() {
    let breaker = CircuitBreaker::builder("a").failure_threshold(2).open_for(Duration::from_millis(1)).build().unwrap();
    let (probing, probes, rejected) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (breaker, probing, probes, rejected) = (&breaker, &probing, &probes, &rejected);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let Ok(permit) = breaker.try_acquire() else {
                        rejected.fetch_add(1, Ordering::Relaxed);
                        assert!(breaker.snapshot().last_error.is_some());
                        thread::yield_now();
                        continue;
                    };
                    if permit.kind() == PermitType::Probe {
                        assert_eq!(probing.fetch_add(1, Ordering::Relaxed), 0, "a second probe");
                        probes.fetch_add(1, Ordering::Relaxed);
                        thread::yield_now();
                        probing.fetch_sub(1, Ordering::Relaxed);
                    }
                    match (round + thread) % 4 {
                        0 => permit.success(),
                        1 | 2 => permit.failure("5xx", "test"),
                        _ => permit.cancel(),
                    }
                }
            });
        }
    });
    let snapshot = breaker.snapshot();
    assert!(snapshot.trip_count > 0 && rejected.into_inner() > 0 && probes.into_inner() > 0, "{snapshot:?}");
    assert!(snapshot.failure_count <= 2 && !snapshot.probe_in_flight, "{snapshot:?}");
}

#[test]
fn a_silence_of_all_cores_ends_with_the_newest_answer() {
    // Enough answers to learn from, from all threads together.
    const LEARNT: usize = 100 / THREADS;
    let breaker = CircuitBreaker::builder("a").open_for(Duration::from_secs(3600)).build().unwrap();
    let breaker = Arc::new(breaker);
    let detector = Arc::new(Detector::new(Arc::clone(&breaker), silence::Config::builder().build().unwrap(), THREADS));
    let barrier = Barrier::new(THREADS);
    let together = |act: &mut dyn FnMut()| {
        barrier.wait();
        act();
        barrier.wait();
    };
    let base = Instant::now();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (breaker, detector, together) = (&breaker, &detector, &together);
            scope.spawn(move || {
                let mut watcher = detector.watcher().unwrap();
                let mut now = base;
                for round in 0..if cfg!(miri) { 1 } else { 400 } {
                    together(&mut || {
                        for _ in 0..LEARNT {
                            let permit = breaker.try_acquire().unwrap();
                            let ticket = watcher.start(&permit, now);
                            now += TICK;
                            assert!(watcher.look(now).is_none());
                            watcher.answered(ticket, now);
                            permit.success();
                        }
                    });
                    let mut calls = Vec::new();
                    together(&mut || {
                        for _ in 0..3 {
                            now += Duration::from_micros(1 + u64::from(thread == 0));
                            let permit = breaker.try_acquire().unwrap();
                            calls.push((watcher.start(&permit, now), permit));
                        }
                    });
                    together(&mut || {
                        for tick in 0..12 {
                            now += TICK;
                            watcher.look(now);
                            // The newest of all.
                            if thread == 0 && tick == 4 + round % 8 {
                                let (ticket, permit) = calls.pop().unwrap();
                                watcher.answered(ticket, now);
                                permit.success();
                            }
                        }
                    });
                    together(&mut || assert!(watcher.look(now).is_none()));
                    assert_eq!(breaker.snapshot().state, CircuitState::Closed, "of round {round}");
                    together(&mut || calls.drain(..).for_each(|(ticket, _)| watcher.withdrawn(ticket, now)));
                }
            });
        }
    });
    assert!(breaker.trip_count() > 0 || cfg!(miri));
}

#[test]
fn no_insert_is_lost_between_threads() {
    let breakers = CircuitBreakerRegistry::default();
    let each = if cfg!(miri) { 3 } else { 100 };
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let breakers = &breakers;
            scope.spawn(move || {
                for n in 0..each {
                    let name = format!("{thread}-{n}");
                    breakers.insert(&name);
                    assert!(breakers.get(&name).is_some());
                }
            });
        }
    });
    assert_eq!(breakers.snapshots().len(), THREADS * each);
}

#[test]
fn of_two_threads_that_replace_the_settings_one_has_its_way_whole() {
    let rounds = if cfg!(miri) { 5 } else { 20_000 };
    let breaker = CircuitBreaker::builder("openai").build().unwrap();
    let configs = [1_u8, 2].map(|number| {
        let (time, number) = (Duration::from_secs(number.into()), u32::from(number));
        let config = breaker.config().to_builder().failure_threshold(number).open_for(time).probe_lease(time);
        config.wait_limit(time).good_probes(number).max_waiters(usize::from(number == 1)).build().unwrap()
    });
    breaker.set_config(configs[0]);
    thread::scope(|scope| {
        for config in configs {
            let (breaker, configs) = (&breaker, &configs);
            scope.spawn(move || {
                for _ in 0..rounds {
                    breaker.set_config(config);
                    let seen = breaker.config();
                    assert!(configs.contains(&seen), "{seen:?}");
                }
            });
        }
    });
}

#[test]
fn the_failure_that_completes_a_rate_opens_the_circuit_whatever_thread_it_is_on() {
    for window in [Window::Time(Duration::from_secs(3600)), Window::Calls(400)] {
        for _ in 0..if cfg!(miri) { 2 } else { 200 } {
            let calls = if cfg!(miri) { 12 } else { 100 };
            let config = Config::builder().failure_threshold(None).failure_rate(100).window(window);
            let config = config.min_calls(u32::try_from(THREADS * calls).unwrap()).build().unwrap();
            let breaker = CircuitBreaker::new("a", config);
            thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        for _ in 0..calls {
                            breaker.try_acquire().unwrap().failure("5xx", "test");
                        }
                    });
                }
            });
            assert_eq!((breaker.state(), breaker.trip_count()), (CircuitState::Open, 1));
        }
    }
}

/// Counts a thread that has ended, by a panic too.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn settings_that_are_replaced_all_the_time_lose_no_failure() {
    let breaker = CircuitBreaker::builder("a").failure_threshold(1023).build().unwrap();
    let (plain, measured) = (breaker.config(), breaker.config().to_builder().failure_rate(100).min_calls(10_000));
    let measured = measured.failure_memory(Duration::from_secs(3600)).build().unwrap();
    let failures = if cfg!(miri) { 20 } else { 300 };
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while done.load(Ordering::Relaxed) < 2 {
                breaker.set_config(measured);
                breaker.set_config(plain);
                thread::yield_now();
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let _done = Done(&done);
                for _ in 0..failures {
                    breaker.try_acquire().unwrap().failure("5xx", "test");
                }
            });
        }
    });
    assert_eq!(breaker.failure_count(), 2 * failures);
}
