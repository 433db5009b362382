//! A circuit that opens because streams stop in the middle, and closes when they go on.
//!
//! All alarms here are by the ceiling: nothing has to be learnt for them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use loom::sync::atomic::AtomicUsize;
use loom::thread;
use loom_tests::silence::{Config, StallDetector, StallWatcher, WatchedStream};
use loom_tests::sync::time::advance;
use loom_tests::{CircuitBreaker, CircuitState};

use crate::harness::{OPEN_FOR, beside, breaker, claim, explore, permit};

const CEILING: Duration = Duration::from_millis(10);

/// So many cores, each with a stream that has begun to pause, and the time at which they have paused for too long.
fn paused<const CORES: usize>(breaker: &Arc<CircuitBreaker>) -> ([(StallWatcher, WatchedStream); CORES], Instant) {
    let now = Instant::now() + Duration::from_secs(1);
    let config = Config::builder().ceiling(CEILING).build().unwrap();
    let detector = Arc::new(StallDetector::new(Arc::clone(breaker), config, CORES));
    let cores = std::array::from_fn(|_| {
        let mut watcher = detector.watcher().unwrap();
        let stream = watcher.open(Some(&permit(breaker)), now);
        stream.wait(now);
        (watcher, stream)
    });
    (cores, now + CEILING)
}

#[test]
fn a_stall_that_two_cores_see_opens_the_circuit_once_and_both_streams_going_on_closes_it() {
    explore(&["this core", "the other core"], || {
        let breaker = breaker(1);
        let ([(mut watcher, stream), (mut other, others)], now) = paused(&breaker);
        let beside = thread::spawn(move || {
            let opened = other.look(now).is_some();
            (opened, other, others)
        });
        let opened = watcher.look(now).is_some();
        let (others_opened, mut other, others) = beside.join().unwrap();
        assert_ne!(opened, others_opened);
        let snapshot = breaker.snapshot();
        assert_eq!((snapshot.silent, snapshot.trip_count), (true, 1));
        stream.piece(now);
        others.piece(now);
        other.look(now);
        assert_eq!(breaker.state(), CircuitState::Closed);
        if opened { "this core" } else { "the other core" }
    });
}

#[test]
fn a_stream_that_goes_on_while_the_alarm_is_raised_closes_the_circuit_at_the_next_look() {
    explore(&["no alarm", "closed again"], || {
        let breaker = breaker(1);
        let ([(mut watcher, stream)], now) = paused(&breaker);
        // A piece writes to nothing that a model sees.
        let order = Arc::new(AtomicUsize::new(0));
        let other = beside(&order, move |order| {
            order.fetch_add(1, Ordering::Relaxed);
            stream.piece(now);
            order.fetch_add(1, Ordering::Relaxed);
            stream
        });
        order.fetch_add(1, Ordering::Relaxed);
        let raised = watcher.look(now).is_some();
        let _stream = other.join().unwrap();
        watcher.look(now);
        assert_eq!(breaker.state(), CircuitState::Closed);
        if raised { "closed again" } else { "no alarm" }
    });
}

#[test]
fn a_stall_from_before_a_probe_does_not_open_the_circuit_that_the_probe_closed() {
    explore(&["the alarm came first", "the failure came first"], || {
        let breaker = breaker(1);
        let ([(mut watcher, stream)], now) = paused(&breaker);
        let failing = permit(&breaker);
        let other = beside(&breaker, move |breaker| {
            failing.failure("test", "failure");
            advance(OPEN_FOR);
            claim(&breaker).success();
        });
        let raised = watcher.look(now).is_some();
        other.join().unwrap();
        let snapshot = breaker.snapshot();
        assert_eq!((snapshot.state, snapshot.trip_count), (CircuitState::Closed, 1));
        drop(stream);
        if raised { "the alarm came first" } else { "the failure came first" }
    });
}
