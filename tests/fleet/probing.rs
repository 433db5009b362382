//! One probe for the fleet.

use std::time::Duration;

use fusebox::fleet::FleetConfig;
use fusebox::{Cause, CircuitState, RejectionReason};
use tokio::time::{sleep, timeout};

use crate::support::{MILLI, OPEN_FOR, Replica, SECOND, all_open, fleet_of, hub, next_probe, probes, settings, soon};

#[tokio::test(start_paused = true)]
async fn while_the_fleet_agrees_one_replica_probes_for_all_and_the_others_wait_for_it() {
    let replicas = fleet_of(5, &hub(), |config| config).await;
    all_open(&replicas).await;
    assert!(replicas.iter().all(Replica::is_agreed));
    let (prober, probe) = next_probe(&replicas, OPEN_FOR * 2).await.expect("it is due");
    sleep(SECOND).await;
    assert!(probes(&replicas).is_empty());
    let waiting = (prober + 1) % replicas.len();
    let mut wait = Box::pin(replicas[waiting].breaker.acquire());
    assert!(timeout(MILLI, &mut wait).await.is_err(), "it waits as for a probe of its own replica");
    probe.failure("5xx", 503);
    let rejection = timeout(SECOND, wait).await.unwrap().unwrap_err();
    assert_eq!(rejection.reason(), RejectionReason::Reopened);
}

#[tokio::test(start_paused = true)]
async fn a_good_probe_lets_the_others_probe_at_once() {
    let replicas = fleet_of(5, &hub(), |config| config).await;
    all_open(&replicas).await;
    next_probe(&replicas, OPEN_FOR * 2).await.expect("it is due").1.success();
    soon().await;
    let own = probes(&replicas);
    assert_eq!(own.len(), 4, "what has failed here takes a probe of its own");
    for (_, probe) in own {
        probe.success();
    }
    assert!(replicas.iter().all(|replica| replica.state() == CircuitState::Closed));
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_probe_nobody_probes_for_the_open_time_and_then_another_one_does() {
    let replicas = fleet_of(5, &hub(), |config| config).await;
    all_open(&replicas).await;
    let mut probers = Vec::new();
    for _ in 0..4 {
        let (prober, probe) = next_probe(&replicas, OPEN_FOR * 2).await.expect("it is due");
        probe.failure("5xx", 503);
        soon().await;
        assert!(next_probe(&replicas, MILLI * 4800).await.is_none());
        probers.push(prober);
    }
    assert!(probers.windows(2).all(|two| two[0] != two[1]), "{probers:?}");
    let failed: u64 = replicas.iter().map(|replica| replica.breaker.snapshot().failed_probe_count).sum();
    assert_eq!(failed, 4, "each is counted where it was made");
    assert!(replicas.iter().any(|replica| replica.breaker.snapshot().cause == Some(Cause::Fleet)));
}

#[tokio::test(start_paused = true)]
async fn one_opener_probes_for_itself() {
    let replicas = fleet_of(5, &hub(), |config| config).await;
    replicas[0].open();
    soon().await;
    replicas[1].succeed();
    assert!(!replicas[0].is_agreed());
    sleep(OPEN_FOR).await;
    replicas[0].probe().expect("it is due").failure("5xx", 503);
    soon().await;
    assert_eq!(replicas[0].said("failed"), 0);
    assert_eq!(replicas[1].state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_dies_while_it_probes_holds_the_others_up_for_a_second() {
    let mut replicas = fleet_of(3, &hub(), |config| config).await;
    all_open(&replicas).await;
    let (prober, probe) = next_probe(&replicas, OPEN_FOR * 2).await.expect("it is due");
    std::mem::forget(probe);
    drop(replicas.remove(prober));
    assert!(next_probe(&replicas, SECOND / 2).await.is_none());
    assert!(next_probe(&replicas, SECOND).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_nobody_calls_leaves_the_probe_to_one_that_has_callers() {
    let replicas = fleet_of(3, &hub(), |config| config).await;
    all_open(&replicas).await;
    // Only the last one is called.
    sleep(OPEN_FOR).await;
    let limit = Duration::from_secs(10);
    assert!(next_probe(&replicas[2..], limit).await.is_some());
    let leases: u64 = replicas.iter().map(|replica| replica.fleet().snapshot().leases["granted"]).sum();
    assert!((1..=10).contains(&leases), "{leases}");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_takes_long_keeps_its_lease() {
    let replicas = fleet_of(3, &hub(), |config| config).await;
    all_open(&replicas).await;
    let (_, probe) = next_probe(&replicas, OPEN_FOR * 2).await.expect("it is due");
    assert!(next_probe(&replicas, SECOND * 20).await.is_none());
    probe.success();
    soon().await;
    assert_eq!(probes(&replicas).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_probe_keeps_its_lease_for_as_long_as_was_asked_for() {
    let config = |config: FleetConfig| config.lease(SECOND * 3).unwrap();
    let replicas = fleet_of(3, &hub(), config).await;
    all_open(&replicas).await;
    let (_, hung) = next_probe(&replicas, OPEN_FOR * 2).await.expect("it is due");
    assert!(next_probe(&replicas, SECOND * 2).await.is_none());
    assert!(next_probe(&replicas, SECOND * 4).await.is_some());
    drop(hung);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_handed_back_goes_to_the_next_call_of_that_replica() {
    let replicas = fleet_of(3, &hub(), |config| config).await;
    all_open(&replicas).await;
    let (prober, probe) = next_probe(&replicas, OPEN_FOR * 2).await.expect("it is due");
    probe.cancel();
    soon().await;
    let again = probes(&replicas);
    assert_eq!(again.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [prober]);
}

#[tokio::test(start_paused = true)]
async fn an_order_by_hand_gives_the_lease_back() {
    let replicas = fleet_of(3, &hub(), |config| config).await;
    all_open(&replicas).await;
    let (prober, probe) = next_probe(&replicas, OPEN_FOR * 2).await.expect("it is due");
    replicas[prober].breaker.isolate("by hand");
    drop(probe);
    let (next, _probe) = next_probe(&replicas, SECOND * 3).await.expect("another one");
    assert_ne!(next, prober);
}

#[tokio::test(start_paused = true)]
async fn nobody_probes_before_the_open_time_is_over_whatever_the_store_answers() {
    for is_full in [false, true] {
        let hub = hub();
        hub.set_full(is_full);
        let replicas = fleet_of(3, &hub, |config| config).await;
        all_open(&replicas).await;
        let left = replicas.iter().map(|replica| replica.breaker.snapshot().next_probe_in.unwrap()).min().unwrap();
        assert!(next_probe(&replicas, left.saturating_sub(MILLI * 3)).await.is_none(), "full: {is_full}");
        assert!(next_probe(&replicas, MILLI * 200).await.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_asked_for_a_few_times_in_each_open_time() {
    let replicas = fleet_of(5, &hub(), |config| config).await;
    all_open(&replicas).await;
    for _ in 0..3 {
        next_probe(&replicas, OPEN_FOR * 2).await.expect("it is due").1.failure("5xx", 503);
    }
    let asked: u64 = replicas.iter().flat_map(|it| it.fleet().snapshot().leases.into_values()).sum();
    assert!((3..=45).contains(&asked), "{asked} times by 5 replicas for 3 probes");
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_nobody_called_answers_its_first_call_at_once_and_stops_asking() {
    let replicas = fleet_of(3, &hub(), |config| config).await;
    all_open(&replicas).await;
    sleep(SECOND * 120).await;
    let asked = || replicas.iter().flat_map(|it| it.fleet().snapshot().leases.into_values()).sum::<u64>();
    let before = asked();
    sleep(SECOND * 120).await;
    assert_eq!(asked(), before, "nobody calls");
    assert!(replicas.iter().all(|replica| replica.probe().is_some()));
}

#[tokio::test(start_paused = true)]
async fn what_closes_elsewhere_again_and_again_lets_a_sick_replica_probe_once_in_its_open_time() {
    let hub = hub();
    let with = |open_for| Replica::with(settings().open_for(open_for).build().unwrap(), FleetConfig::hub(&hub));
    let (well, sick) = ([with(SECOND), with(SECOND)], with(SECOND * 30));
    soon().await;
    let mut probed = 0;
    for _ in 0..3 {
        all_open(&well).await;
        if sick.state() == CircuitState::Closed {
            sick.open();
        }
        while well.iter().any(|replica| replica.state() != CircuitState::Closed) {
            next_probe(&well, SECOND * 5).await.expect("due").1.success();
        }
        soon().await;
        if let Some(probe) = sick.probe() {
            probe.failure("5xx", 503);
            probed += 1;
        }
    }
    assert_eq!(probed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_probe_elsewhere_postpones_for_no_longer_than_twice_the_own_open_time() {
    let replicas = fleet_of(2, &hub(), |config| config).await;
    all_open(&replicas).await;
    let (_, probe) = next_probe(&replicas[..1], OPEN_FOR * 3).await.expect("it has callers");
    replicas[0].breaker.set_config(settings().open_for(SECOND * 3600).build().unwrap());
    probe.failure("5xx", 503);
    soon().await;
    let left = replicas[1].breaker.snapshot().next_probe_in.unwrap();
    assert!(left > OPEN_FOR && left < OPEN_FOR * 2 + SECOND, "{left:?}");
}
