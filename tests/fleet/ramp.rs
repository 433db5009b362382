//! Replicas whose circuits recover on a ramp.

use fusebox::fleet::{FleetConfig, Hub};
use fusebox::{Cause, CircuitState};
use tokio::time::sleep;

use crate::support::{OPEN_FOR, Replica, SECOND, hub, next_probe, settings, soon};

/// From 100%, so that no call has to wait for its turn.
async fn on_a_ramp(number: usize, hub: &Hub) -> Vec<Replica> {
    let breaker = settings().ramp(SECOND * 2).ramp_from(100).build().unwrap();
    let replicas = (0..number).map(|_| Replica::with(breaker, FleetConfig::hub(hub))).collect();
    soon().await;
    replicas
}

async fn recover(replica: &Replica) {
    next_probe(std::slice::from_ref(replica), OPEN_FOR * 2).await.expect("due").1.success();
    assert_eq!(replica.state(), CircuitState::Recovering);
}

#[tokio::test(start_paused = true)]
async fn what_closes_because_another_replica_has_closed_recovers_on_a_ramp_too() {
    let replicas = on_a_ramp(3, &hub()).await;
    replicas[0].breaker.trip_for(SECOND * 3, "429", "");
    soon().await;
    assert!(replicas.iter().all(|it| it.breaker.snapshot().cause == Some(Cause::Cooldown)));
    let (prober, probe) = next_probe(&replicas, SECOND * 5).await.expect("one probes");
    probe.success();
    soon().await;
    for replica in &replicas {
        assert_eq!(replica.state(), CircuitState::Recovering);
    }
    sleep(SECOND * 2).await;
    for replica in &replicas {
        replica.succeed();
        assert_eq!(replica.state(), CircuitState::Closed);
    }
    soon().await;
    let said: Vec<_> = replicas.iter().map(|replica| replica.said("closed")).collect();
    assert_eq!((said.iter().sum::<u64>(), said[prober]), (1, 1), "the end of a ramp is no news");
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_is_heard_on_a_ramp_counts_once_the_ramp_has_ended() {
    let replicas = on_a_ramp(2, &hub()).await;
    replicas[1].open();
    recover(&replicas[1]).await;
    soon().await;
    replicas[0].open();
    soon().await;
    assert_eq!(replicas[1].breaker.failure_count(), 0);
    // The ramp is over long before the first call that notices.
    sleep(SECOND * 4).await;
    replicas[1].succeed();
    soon().await;
    assert_eq!((replicas[1].state(), replicas[1].breaker.failure_count()), (CircuitState::Closed, 2));
    replicas[1].fail();
    assert_eq!(replicas[1].state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn what_opens_again_on_its_ramp_is_told_again() {
    let replicas = on_a_ramp(2, &hub()).await;
    replicas[0].open();
    recover(&replicas[0]).await;
    soon().await;
    assert_eq!(replicas[1].breaker.failure_count(), 0);
    while replicas[0].state() == CircuitState::Recovering {
        replicas[0].fail();
    }
    soon().await;
    assert_eq!((replicas[0].said("open"), replicas[1].breaker.failure_count()), (2, 2));
}
