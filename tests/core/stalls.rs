//! Streams that stop in the middle, and streams that only seem to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fusebox::silence::{Config, StallDetector, StallWatcher, TICK, WatchedStream};
use fusebox::{CircuitBreaker, CircuitState};

use crate::streaming::{Fault, Habits, World};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn streams_that_stop_while_others_begin_are_noticed_within_a_few_of_their_gaps() {
    let quick = Habits { gap: 0.002, pieces: 8.0, ..Habits::PLAIN };
    for (habits, rate, at_most) in [
        (Habits::PLAIN, 1000.0, 250),
        (Habits::PLAIN, 100.0, 40),
        (Habits::PLAIN, 10.0, 10),
        (quick, 1000.0, 80),
        (quick, 100.0, 20),
    ] {
        let mut world = World::new(habits, rate, 1, 1);
        world.run_for(20 * SECOND).await;
        assert_eq!(world.breaker.trip_count(), 0, "a false alarm");
        let sent = world.sent;
        world.begin(Fault::New);
        world.run_while(World::is_closed).await;
        let lost = world.sent - sent;
        assert!(lost <= at_most, "{habits:?}, {rate}/s: {lost} streams were lost");
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_all_stop_at_once_are_noticed_within_a_second_and_soon_once_such_pauses_are_known() {
    for (learnt, at_most) in [(10, 1300), (70, 150)] {
        let mut world = World::new(Habits::PLAIN, 100.0, 2, 1);
        world.run_for(learnt * SECOND).await;
        let at = world.now();
        world.begin(Fault::Frozen);
        world.run_while(World::is_closed).await;
        let took = world.now().duration_since(at);
        assert!(took <= Duration::from_millis(at_most), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_go_on_close_the_circuit_at_once() {
    let mut world = World::new(Habits::PLAIN, 100.0, 1, 1);
    world.run_for(20 * SECOND).await;
    world.begin(Fault::Frozen);
    world.run_while(World::is_closed).await;
    assert!(world.stopped() > 30, "{}", world.stopped());
    let at = world.now();
    world.heal();
    world.run_while(|world| !world.is_closed()).await;
    assert!(world.now().duration_since(at) <= Duration::from_millis(30));
    world.run_for(20 * SECOND).await;
    assert_eq!(world.breaker.trip_count(), 1, "the same pause is known now");
}

#[tokio::test(start_paused = true)]
async fn whatever_healthy_streams_do_raises_no_alarm() {
    let kinds = [
        Habits::PLAIN,
        Habits { long_pauses: 0.01, ..Habits::PLAIN },
        Habits { schedules: Some(3.0), ..Habits::PLAIN },
        Habits { slow_clients: 20, ..Habits::PLAIN },
        Habits::ALL,
    ];
    for (seed, habits) in kinds.into_iter().enumerate() {
        for (rate, cores) in [(100.0, 2), (10.0, 1), (1.0, 1)] {
            let mut world = World::new(habits, rate, cores, seed as u64);
            world.run_for(100 * SECOND).await;
            let why = world.breaker.snapshot().last_error;
            assert_eq!(world.breaker.trip_count(), 0, "{habits:?}, {rate}/s: {why:?}");
            assert!(world.sent > 50 && world.under_way() < 1000);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn when_no_more_streams_begin_those_that_are_left_are_the_ones_that_pause() {
    for seed in 0..2 {
        let mut world = World::new(Habits::ALL, 250.0, 2, seed);
        world.run_for(120 * SECOND).await;
        world.rate = if seed % 2 == 0 { 1.0 } else { 0.001 };
        world.run_for(120 * SECOND).await;
        assert_eq!(world.breaker.trip_count(), 0, "seed {seed}: {:?}", world.breaker.snapshot().last_error);
    }
}

#[tokio::test(start_paused = true)]
async fn pauses_of_the_watching_core_raise_no_alarm() {
    let mut world = World::new(Habits::PLAIN, 100.0, 1, 1);
    world.run_for(20 * SECOND).await;
    for pause in [40, 100, 250, 1000].repeat(5) {
        world.hold_up(Duration::from_millis(pause));
        world.run_for(3 * SECOND).await;
    }
    assert_eq!(world.breaker.trip_count(), 0, "{:?}", world.breaker.snapshot().last_error);
    // And they are not taken for pauses of the streams.
    let sent = world.sent;
    world.begin(Fault::New);
    world.run_while(World::is_closed).await;
    assert!(world.sent - sent <= 60, "{}", world.sent - sent);
}

/// One core, and streams of which a piece has come every 20 ms for so long.
struct Known {
    breaker: Arc<CircuitBreaker>,
    watcher: StallWatcher,
    streams: Vec<WatchedStream>,
    now: Instant,
}

impl Known {
    fn new(streams: usize, length: Duration) -> Self {
        let breaker = Arc::new(CircuitBreaker::builder("a").build().expect("the defaults"));
        let detector = Arc::new(StallDetector::new(Arc::clone(&breaker), Config::default(), 1));
        let mut watcher = detector.watcher().expect("one");
        let now = tokio::time::Instant::now().into_std();
        let permit = breaker.try_acquire().expect("closed");
        let streams = (0..streams).map(|_| watcher.open(Some(&permit), now)).collect();
        drop(permit);
        let mut known = Self { breaker, watcher, streams, now };
        let end = now + length;
        while known.now < end {
            known.streams.iter().for_each(|stream| stream.wait(known.now));
            known.pass(4);
            known.streams.iter().for_each(|stream| stream.piece(known.now));
        }
        assert_eq!(known.breaker.trip_count(), 0);
        known
    }

    /// So many ticks pass.
    fn pass(&mut self, ticks: u32) {
        for _ in 0..ticks {
            self.now += TICK;
            self.watcher.look(self.now);
        }
    }

    fn is_silent(&self) -> bool {
        self.breaker.snapshot().silent
    }
}

#[tokio::test(start_paused = true)]
async fn two_streams_that_end_a_pause_together_teach_that_all_may_pause_at_once() {
    let mut known = Known::new(2, 70 * SECOND);
    for _ in 0..3 {
        known.streams.iter().for_each(|stream| stream.wait(known.now));
        known.pass(60);
        known.streams.iter().for_each(|stream| stream.piece(known.now));
        known.pass(600);
    }
    assert!(!known.is_silent());
    let permit = Arc::clone(&known.breaker).try_acquire_owned().expect("closed");
    let six: Vec<_> = (0..6).map(|_| known.watcher.open(Some(&permit), known.now)).collect();
    for stream in &six {
        stream.wait(known.now);
    }
    known.pass(60);
    assert!(!known.is_silent(), "{:?}", known.breaker.snapshot().last_error);
    known.pass(400);
    assert!(known.is_silent());
}

#[tokio::test(start_paused = true)]
async fn one_stream_alone_is_judged_by_its_own_gaps() {
    let mut known = Known::new(1, 70 * SECOND);
    known.streams[0].wait(known.now);
    known.pass(195);
    assert!(!known.is_silent(), "after less than a second");
    known.pass(10);
    assert!(known.is_silent());
    known.streams[0].piece(known.now);
    known.pass(1);
    assert!(!known.is_silent());
    // It has paused for a second before: that is no news.
    known.streams[0].wait(known.now);
    known.pass(400);
    assert!(!known.is_silent());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_interrupted_by_pings_goes_on_pausing_but_not_while_its_client_does_not_read() {
    let mut known = Known::new(5, 70 * SECOND);
    known.streams.iter().for_each(|stream| stream.wait(known.now));
    known.pass(2);
    // Then the clients read nothing for long.
    known.streams.iter().for_each(|stream| stream.interrupt(known.now));
    assert!(known.streams.iter().all(|stream| stream.has_pause() && !stream.is_paused()));
    known.pass(1000);
    assert!(!known.is_silent());
    for _ in 0..30 {
        known.streams.iter().for_each(|stream| stream.wait(known.now));
        known.pass(2);
        known.streams.iter().for_each(|stream| stream.interrupt(known.now));
    }
    assert!(known.is_silent(), "pings end no pause");
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_stream_stops_has_failed() {
    let mut known = Known::new(5, 70 * SECOND);
    known.breaker.trip_for(Duration::from_millis(1), "test", "test");
    tokio::time::advance(Duration::from_secs(1)).await;
    known.now += SECOND;
    known.pass(3);
    let probe = Arc::clone(&known.breaker).try_acquire_owned().expect("half open");
    let stream = known.watcher.open(Some(&probe), known.now);
    stream.wait(known.now);
    known.pass(10);
    assert_eq!(known.breaker.state(), CircuitState::HalfOpen);
    known.pass(100);
    assert_eq!(known.breaker.state(), CircuitState::Open);
    assert_eq!(known.breaker.snapshot().failed_probe_count, 1);
    probe.success();
    assert_eq!(known.breaker.state(), CircuitState::Open, "its success comes too late");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_over_does_not_pause() {
    let mut known = Known::new(8, 70 * SECOND);
    known.streams.iter().for_each(|stream| stream.wait(known.now));
    known.pass(2);
    // Their clients have left.
    known.streams.truncate(2);
    known.pass(100);
    assert!(!known.is_silent());
    assert_eq!(known.watcher.streams(), 2);
}
