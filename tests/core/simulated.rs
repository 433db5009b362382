//! The detector of silence in a simulated world: what a hang costs, and what healthy traffic does to it.
//! `benches/silence` runs the same world for longer.

use std::time::Duration;

use crate::simulation::{Fault, Latency, Settings, World, notice};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_hang_is_noticed_within_about_one_latency() {
    for (latency, rate, cores, fault, median, worst) in [
        (Latency::Fast, 500.0, 1, Fault::Frozen, 25 * MS, 40 * MS),
        (Latency::Fast, 500.0, 1, Fault::Running, 50 * MS, 70 * MS),
        (Latency::Fast, 500.0, 16, Fault::Frozen, 30 * MS, 45 * MS),
        (Latency::Heavy, 500.0, 1, Fault::Frozen, 300 * MS, 400 * MS),
        (Latency::Heavy, 50.0, 1, Fault::Running, 1100 * MS, 1400 * MS),
        (Latency::Reasoning, 50.0, 1, Fault::Frozen, 500 * MS, 700 * MS),
    ] {
        let mut took = Vec::new();
        for seed in 0..9 {
            let settings = Settings { latency, rate, cores, seed, ..Settings::USUAL };
            took.push(notice(settings, 1500 + seed * 37, fault).await.0);
        }
        took.sort();
        let context = format!("{latency:?} at {rate}/s on {cores}, {fault:?}: {took:?}");
        assert!(took[4] <= median && took[8] <= worst, "{context}");
    }
}

#[tokio::test(start_paused = true)]
async fn healthy_traffic_raises_no_alarm() {
    for (latency, rate, cores) in [
        (Latency::Heavy, 10.0, 1),
        (Latency::Heavy, 1000.0, 1),
        (Latency::Heavy, 2000.0, 16),
        (Latency::Reasoning, 200.0, 2),
        (Latency::Fast, 2000.0, 1),
    ] {
        let mut world = World::new(Settings { latency, rate, cores, ..Settings::USUAL });
        world.send(20_000).await;
        assert_eq!(world.breaker.trip_count(), 0, "{latency:?} at {rate}/s on {cores}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cold_start_raises_no_alarm() {
    for seed in 0..10 {
        let mut world = World::new(Settings { rate: 5000.0, seed, ..Settings::USUAL });
        world.run_for(2 * SECOND).await;
        assert_eq!(world.breaker.trip_count(), 0, "the {seed}th");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_the_caller_itself_raises_no_alarm() {
    for latency in [Latency::Fast, Latency::Heavy] {
        let mut world = World::new(Settings { latency, ..Settings::USUAL });
        world.send(2000).await;
        for pause in [40, 100, 250, 1000] {
            world.hold_up(pause * MS);
            world.run_for(2 * SECOND).await;
        }
        assert_eq!(world.breaker.trip_count(), 0, "{latency:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lasting_slowdown_is_learnt() {
    let mut world = World::new(Settings { latency: Latency::Fast, rate: 100.0, ..Settings::USUAL });
    world.send(2000).await;
    world.slowness = 20.0;
    world.run_for(5 * MINUTE).await;
    let flaps = world.breaker.trip_count();
    assert!((1..=36).contains(&flaps), "{flaps}");
    world.run_for(5 * MINUTE).await;
    assert!(world.breaker.trip_count() <= flaps + 2, "and then: {}", world.breaker.trip_count());
}

#[tokio::test(start_paused = true)]
async fn a_hang_that_ends_is_noticed_by_the_next_probe_or_at_once_by_a_late_answer() {
    for (late, limit) in [(false, 12 * SECOND), (true, 60 * MS)] {
        let mut world = World::new(Settings { rate: 50.0, ..Settings::USUAL });
        world.send(2000).await;
        world.begin(Fault::Frozen);
        world.run_for(20 * SECOND).await;
        assert!(!world.is_closed());
        let at = world.now();
        world.heal(late);
        world.run_while(|world| !world.is_closed()).await;
        assert!(world.now().duration_since(at) <= limit, "{:?}", world.now().duration_since(at));
    }
}
