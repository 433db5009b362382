//! Pauses of an upstream that end by themselves.

use std::time::Duration;

use crate::simulation::{Fault, Latency, Settings, World};
use crate::watched::{MS, Watched};

#[tokio::test(start_paused = true)]
async fn neither_an_alarm_nor_a_probes_end_comes_before_twice_the_usual_pause() {
    let mut watched = Watched::warm();
    for _ in 0..2 {
        let calls = watched.calls(20);
        for _ in 0..20 {
            watched.tick();
        }
        assert!(watched.breaker.snapshot().silent, "such a pause is not known yet");
        for call in calls {
            watched.answer(call);
        }
        watched.learn(150);
    }
    let _calls = watched.calls(20);
    let (after, _) = watched.look_for(Duration::from_secs(1)).unwrap();
    assert_eq!(after, 210 * MS);
    let _probe = watched.probe().await;
    assert_eq!(watched.look_for(Duration::from_secs(1)).unwrap().0, 210 * MS);
}

#[tokio::test(start_paused = true)]
async fn pauses_that_end_by_themselves_are_known_after_a_few() {
    for seed in 0..5 {
        let mut world = World::new(Settings { latency: Latency::Fast, rate: 250.0, seed, cores: 2, ..Settings::USUAL });
        world.send(1000).await;
        let mut lengths = fastrand::Rng::with_seed(seed);
        let mut pause = async |world: &mut World| {
            world.begin(Fault::Frozen);
            world.run_for(Duration::from_millis(lengths.u64(50..300))).await;
            world.heal(true);
            world.run_for(Duration::from_secs(3)).await;
        };
        for _ in 0..10 {
            pause(&mut world).await;
        }
        let at_first = world.breaker.trip_count();
        assert!((1..=3).contains(&at_first), "{at_first}");
        for _ in 0..50 {
            pause(&mut world).await;
        }
        assert_eq!(world.breaker.trip_count(), at_first);
        let at = world.now();
        world.begin(Fault::Frozen);
        world.run_while(World::is_closed).await;
        let took = world.now().duration_since(at);
        assert!(took < Duration::from_millis(750), "{took:?}");
    }
}
