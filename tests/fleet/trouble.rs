//! The store is slow, gone, full or comes back: then each breaker does what it does alone.

use std::time::Duration;

use fusebox::CircuitState;
use fusebox::fleet::{FleetConfig, Hub};
use tokio::time::sleep;

use crate::support::{MILLI, OPEN_FOR, Replica, SECOND, all_open, fleet_of, hub, next_probe, probes, soon};

#[tokio::test(start_paused = true)]
async fn without_a_store_each_breaker_does_what_it_does_alone() {
    let hub = hub();
    hub.stop();
    let replicas = fleet_of(3, &hub, |config| config).await;
    assert!(!replicas[0].fleet().snapshot().up);
    replicas[0].open();
    sleep(SECOND).await;
    assert_eq!(replicas[1].breaker.failure_count(), 0);
    all_open(&replicas[1..]).await;
    sleep(OPEN_FOR).await;
    assert_eq!(probes(&replicas).len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_comes_back_empty_learns_again_what_stands() {
    let hub = hub();
    let replicas = fleet_of(3, &hub, |config| config).await;
    all_open(&replicas[..2]).await;
    hub.stop();
    sleep(SECOND * 3).await;
    assert!(replicas.iter().all(|replica| !replica.fleet().snapshot().up));
    assert_eq!(replicas[2].breaker.failure_count(), 0, "what was heard is forgotten");
    hub.start();
    sleep(SECOND * 12).await;
    assert!(replicas.iter().all(|replica| replica.fleet().snapshot().up));
    assert_eq!(replicas[2].breaker.failure_count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_lost_hands_the_probes_back() {
    let hub = hub();
    let replicas = fleet_of(3, &hub, |config| config).await;
    all_open(&replicas).await;
    let (_, _probe) = next_probe(&replicas, OPEN_FOR * 2).await.expect("it is due");
    assert!(probes(&replicas).is_empty());
    hub.stop();
    sleep(SECOND * 3).await;
    assert_eq!(probes(&replicas).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_nothing_new_passes_news_on_and_each_replica_probes_by_itself() {
    let hub = hub();
    let replicas = fleet_of(3, &hub, |config| config).await;
    hub.set_full(true);
    sleep(SECOND * 3).await;
    let seen = replicas[0].fleet().snapshot();
    assert!(seen.up && seen.refused);
    replicas[0].open();
    soon().await;
    assert_eq!(replicas[1].breaker.failure_count(), 2);
    all_open(&replicas[1..]).await;
    sleep(OPEN_FOR).await;
    assert_eq!(probes(&replicas).len(), 3);
    hub.set_full(false);
    sleep(SECOND * 3).await;
    assert!(!replicas[0].fleet().snapshot().refused);
}

#[tokio::test(start_paused = true)]
async fn a_probe_waits_for_a_slow_store_no_longer_than_the_timeout() {
    let slow = Hub::new(Duration::from_millis(400));
    let replicas = fleet_of(3, &slow, |config| config).await;
    sleep(SECOND * 2).await;
    for replica in &replicas {
        replica.open();
    }
    sleep(SECOND).await;
    assert!(replicas.iter().all(Replica::is_agreed));
    sleep(MILLI * 4500).await;
    assert_eq!(probes(&replicas).len(), 3, "the open time is over, and nobody waits for longer");
}

#[tokio::test(start_paused = true)]
async fn leaving_the_fleet_leaves_the_breakers_as_they_are() {
    let hub = hub();
    let mut replicas = fleet_of(2, &hub, |config| config).await;
    all_open(&replicas).await;
    let (prober, _probe) = next_probe(&replicas, OPEN_FOR * 2).await.expect("it is due");
    let other = 1 - prober;
    sleep(SECOND / 5).await;
    assert!(replicas[other].probe().is_none());
    replicas[other].fleet = None;
    soon().await;
    assert!(replicas[other].probe().is_some(), "what the fleet held is handed back");
}

#[tokio::test(start_paused = true)]
async fn breakers_that_are_open_already_are_told_when_the_fleet_is_joined() {
    let hub = hub();
    let first = fleet_of(1, &hub, |config| config).await;
    let late = Replica::new(FleetConfig::hub(&hub));
    late.open();
    soon().await;
    assert_eq!(late.state(), CircuitState::Open);
    assert_eq!((late.said("open"), first[0].breaker.failure_count()), (1, 2));
}
