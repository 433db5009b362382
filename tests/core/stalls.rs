//! Streams that stop in the middle, and streams that only seem to.

use std::time::Duration;

use crate::streaming::{Fault, Habits, World};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn streams_that_stop_while_others_begin_are_noticed_within_a_few_gaps() {
    for (rate, at_most) in [(1000.0, 250), (100.0, 40), (10.0, 10)] {
        let mut world = World::new(Habits::PLAIN, rate, 1, 1);
        world.run_for(20 * SECOND).await;
        assert_eq!(world.breaker.trip_count(), 0, "a false alarm");
        let (at, sent) = (world.now(), world.sent);
        world.begin(Fault::New);
        world.run_while(World::is_closed).await;
        println!("{rate}: {:?} {}", world.now() - at, world.sent - sent);
        assert!(world.sent - sent <= at_most, "{rate}: {} streams were lost", world.sent - sent);
    }
}

#[tokio::test(start_paused = true)]
async fn zz_probe() {
    let kinds = [
        ("long", Habits { long_pauses: 0.01, ..Habits::PLAIN }),
        ("batch", Habits { schedules: Some(3.0), ..Habits::PLAIN }),
        ("quick", Habits { gap: 0.002, pieces: 8.0, ..Habits::PLAIN }),
        ("all", Habits::ALL),
    ];
    for (name, habits) in kinds {
        for (rate, cores) in [(300.0, 2), (100.0, 4), (10.0, 1), (1.0, 1)] {
            let (mut alarms, mut lost, mut took, mut n) = (vec![], vec![], vec![], 0);
            let mut err = String::new();
            for seed in 0..12 {
                let mut world = World::new(habits, rate, cores, seed);
                world.run_for(60 * SECOND).await;
                alarms.push(world.breaker.trip_count());
                if let Some(e) = world.breaker.snapshot().last_error {
                    err = e.to_string();
                }
                n = world.under_way();
                world.run_while(|w| !w.is_closed()).await;
                let (at, sent) = (world.now(), world.sent);
                world.begin(Fault::New);
                let end = at + 100 * SECOND;
                world.run_while(|w| w.is_closed() && w.now() < end).await;
                lost.push(world.sent - sent);
                took.push((world.now() - at).as_millis());
            }
            println!("{name} {rate}/s {cores}: alarms {alarms:?} {err}; {n} under way; lost {lost:?} after {took:?}");
        }
    }
}
