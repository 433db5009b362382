//! What replicas make of what others say.

use std::time::Duration;

use fusebox::fleet::{Deliberate, FleetConfig, Hub, Mode};
use fusebox::{Cause, CircuitState};
use tokio::time::sleep;

use crate::support::{MILLI, OPEN_FOR, Replica, SECOND, all_open, fleet_of, hub, next_probe, probes, settings, soon};

#[tokio::test(start_paused = true)]
async fn an_opening_makes_the_next_failure_open_the_others() {
    let replicas = fleet_of(3, &hub(), |config| config).await;
    replicas[0].open();
    soon().await;
    for other in &replicas[1..] {
        assert_eq!((other.state(), other.breaker.failure_count()), (CircuitState::Closed, 2));
        other.fail();
        assert_eq!(other.state(), CircuitState::Open);
    }
}

#[tokio::test(start_paused = true)]
async fn a_good_call_forgets_what_was_heard_and_objects() {
    let replicas = fleet_of(3, &hub(), |config| config).await;
    replicas[0].open();
    soon().await;
    replicas[1].succeed();
    assert_eq!(replicas[1].breaker.failure_count(), 0);
    soon().await;
    assert_eq!((replicas[1].said("alive"), replicas[1].fleet().snapshot().refuted), (1, 1));
    let seen = replicas[2].fleet().snapshot().circuits["p"];
    assert_eq!((seen.openers, seen.objectors, seen.suspected), (1, 1, true));
}

#[tokio::test(start_paused = true)]
async fn a_call_from_before_an_opening_elsewhere_does_not_forget_it() {
    let replicas = fleet_of(2, &hub(), |config| config).await;
    let old = replicas[1].breaker.try_acquire().unwrap();
    replicas[0].open();
    soon().await;
    old.success();
    assert_eq!(replicas[1].breaker.failure_count(), 2);
}

#[tokio::test(start_paused = true)]
async fn enough_objections_need_no_more_of_them() {
    let replicas = fleet_of(30, &Hub::new(Duration::ZERO), |config| config).await;
    replicas[0].open();
    soon().await;
    for other in &replicas[1..] {
        other.succeed();
    }
    soon().await;
    let said: u64 = replicas.iter().map(|replica| replica.said("alive")).sum();
    assert!((1..20).contains(&said), "{said} of 29 objected to one");
}

#[tokio::test(start_paused = true)]
async fn an_opener_counts_once_while_it_stands() {
    let replicas = fleet_of(2, &hub(), |config| config).await;
    replicas[0].open();
    soon().await;
    replicas[1].succeed();
    for _ in 0..10 {
        sleep(SECOND / 2).await;
        assert_eq!(replicas[1].breaker.failure_count(), 0, "what stands is read again, and is no news");
    }
    assert_eq!(replicas[1].fleet().snapshot().suspicions, 1);
}

#[tokio::test(start_paused = true)]
async fn for_a_second_after_a_good_call_no_other_opener_counts() {
    let replicas = fleet_of(4, &hub(), |config| config).await;
    replicas[0].open();
    soon().await;
    replicas[1].succeed();
    soon().await;
    replicas[2].open();
    soon().await;
    assert_eq!(replicas[1].breaker.failure_count(), 0);
    sleep(SECOND * 3).await;
    assert_eq!(replicas[1].breaker.failure_count(), 0, "nor does it later");
    replicas[3].open();
    soon().await;
    assert_eq!(replicas[1].breaker.failure_count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_suspicion_ends_when_nobody_stands_by_it() {
    let replicas = fleet_of(2, &hub(), |config| config).await;
    replicas[0].open();
    soon().await;
    assert_eq!(replicas[1].breaker.failure_count(), 2);
    next_probe(&replicas[..1], OPEN_FOR + SECOND).await.expect("due").1.success();
    soon().await;
    assert_eq!(replicas[1].breaker.failure_count(), 0, "it has closed");
}

#[tokio::test(start_paused = true)]
async fn an_opener_that_died_stands_no_longer_than_twice_its_open_time() {
    let mut replicas = fleet_of(2, &hub(), |config| config).await;
    replicas[0].open();
    soon().await;
    replicas[0].fleet = None;
    sleep(OPEN_FOR * 2 + SECOND * 13).await;
    assert_eq!(replicas[1].breaker.failure_count(), 0);
    assert!(replicas[1].fleet().snapshot().circuits.is_empty());
}

#[tokio::test(start_paused = true)]
async fn no_more_replicas_say_that_they_opened_than_matter() {
    let replicas = fleet_of(20, &hub(), |config| config).await;
    all_open(&replicas).await;
    let said: u64 = replicas.iter().map(|replica| replica.said("open")).sum();
    assert_eq!(said, 4, "the quorum and two more");
}

#[tokio::test(start_paused = true)]
async fn an_opener_that_is_outvoted_says_nothing() {
    let replicas = fleet_of(2, &hub(), |config| config).await;
    replicas[0].open();
    soon().await;
    replicas[1].succeed();
    soon().await;
    replicas[0].breaker.reset();
    soon().await;
    replicas[0].open();
    soon().await;
    assert_eq!(replicas[0].said("open"), 1);
}

#[tokio::test(start_paused = true)]
async fn an_opener_stands_for_as_long_as_its_circuit_is_open() {
    let replicas = fleet_of(2, &hub(), |config| config).await;
    replicas[0].open();
    for _ in 0..4 {
        next_probe(&replicas[..1], OPEN_FOR * 2).await.expect("it probes for itself").1.failure("5xx", 503);
    }
    soon().await;
    assert_eq!(replicas[0].said("open"), 1);
    assert_eq!(replicas[1].fleet().snapshot().circuits["p"].openers, 1);
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_is_undone_by_hand_counts_no_more_here() {
    let replicas = fleet_of(2, &hub(), |config| config).await;
    replicas[0].open();
    soon().await;
    replicas[0].breaker.reset();
    soon().await;
    replicas[1].open();
    soon().await;
    assert_eq!(replicas[0].fleet().snapshot().circuits["p"].openers, 1);
    assert!(!replicas[0].is_agreed());
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_was_removed_is_forgotten() {
    let replicas = fleet_of(2, &hub(), |config| config).await;
    replicas[0].open();
    soon().await;
    assert!(replicas[1].fleet().snapshot().circuits.contains_key("p"));
    replicas[1].breakers.remove("p");
    sleep(SECOND * 3).await;
    assert!(replicas[1].fleet().snapshot().circuits.is_empty());
}

#[tokio::test(start_paused = true)]
async fn only_the_replica_that_closes_first_says_so() {
    let hub = hub();
    let replicas = fleet_of(20, &hub, |config| config).await;
    all_open(&replicas).await;
    next_probe(&replicas, OPEN_FOR * 2).await.expect("one probes").1.success();
    for _ in 0..200 {
        soon().await;
        for (_, probe) in probes(&replicas) {
            probe.success();
        }
    }
    assert!(replicas.iter().all(|replica| replica.state() == CircuitState::Closed));
    let said: u64 = replicas.iter().map(|replica| replica.said("closed")).sum();
    assert_eq!(said, 1);
}

#[tokio::test(start_paused = true)]
async fn who_joins_during_an_outage_suspects_the_upstream_and_changes_nothing_for_the_others() {
    let hub = hub();
    let replicas = fleet_of(2, &hub, |config| config).await;
    all_open(&replicas).await;
    let said = hub.messages();
    let joiner = Replica::new(FleetConfig::hub(&hub));
    soon().await;
    assert_eq!((joiner.state(), joiner.breaker.failure_count()), (CircuitState::Closed, 2));
    assert!(replicas.iter().all(|replica| replica.state() == CircuitState::Open));
    assert_eq!(hub.messages(), said, "joining says nothing");
    joiner.fail();
    assert_eq!(joiner.state(), CircuitState::Open);
    assert!(joiner.fleet().snapshot().replicas >= 2);
}

#[tokio::test(start_paused = true)]
async fn names_that_nobody_knows_here_are_not_added() {
    let hub = hub();
    let (here, there) = (Replica::new(FleetConfig::hub(&hub)), Replica::new(FleetConfig::hub(&hub)));
    soon().await;
    there.breakers.insert("another");
    for _ in 0..3 {
        there.breakers.record_failure("another", "5xx", 503);
    }
    soon().await;
    assert_eq!((here.breakers.len(), here.fleet().snapshot().heard["open"]), (1, 0));
    here.breakers.insert("another");
    sleep(SECOND * 3).await;
    assert_eq!(here.breakers.failure_count("another"), Some(2), "what stands is read again and again");
}

#[tokio::test(start_paused = true)]
async fn groups_do_not_hear_each_other() {
    let hub = hub();
    let join = |group: &str| Replica::new(FleetConfig::hub(&hub).group(group).unwrap());
    let (east, west) = (join("east"), join("west"));
    soon().await;
    east.open();
    sleep(SECOND * 5).await;
    assert_eq!(west.breaker.failure_count(), 0);
    assert_eq!(west.fleet().snapshot().replicas, 1);
}

#[tokio::test(start_paused = true)]
async fn an_isolated_circuit_is_the_matter_of_its_own_replica() {
    let hub = hub();
    let replicas = fleet_of(2, &hub, |config| config).await;
    replicas[0].breaker.isolate("their maintenance");
    soon().await;
    assert_eq!((hub.messages(), replicas[1].breaker.failure_count()), (0, 0));
    replicas[1].open();
    soon().await;
    assert_eq!(replicas[0].breaker.snapshot().cause, Some(Cause::Isolated));
}

// ---- cooldowns ----

#[tokio::test(start_paused = true)]
async fn a_cooldown_is_one_for_all_of_the_same_account() {
    let replicas = fleet_of(3, &hub(), |config| config).await;
    replicas[0].breaker.try_acquire().unwrap().cool_down(SECOND * 20, "429", "later");
    soon().await;
    for other in &replicas[1..] {
        let seen = other.breaker.snapshot();
        assert_eq!((seen.state, seen.cause), (CircuitState::Open, Some(Cause::Cooldown)));
        let left = seen.next_probe_in.unwrap();
        assert!(left > SECOND * 19 && left <= SECOND * 20, "{left:?}");
        assert_eq!(seen.last_error.unwrap().error_type(), "429");
    }
    sleep(SECOND * 10).await;
    assert!(replicas.iter().all(|replica| replica.breaker.trip_count() == 1), "it is told once");
    let (prober, probe) = next_probe(&replicas, SECOND * 11).await.expect("one probes");
    assert!(probes(&replicas).is_empty(), "and nobody else");
    probe.success();
    soon().await;
    for (at, replica) in replicas.iter().enumerate() {
        let is_free = replica.state() == CircuitState::Closed || replica.probe().is_some();
        assert!(is_free, "{at}, where {prober} probed: {:?}", replica.breaker);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cooldown_of_another_account_is_none_here() {
    let replicas = fleet_of(2, &hub(), |config| config.share_account(false)).await;
    replicas[0].breaker.try_acquire().unwrap().cool_down(SECOND * 20, "429", "later");
    sleep(SECOND * 3).await;
    assert_eq!(replicas[1].state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn who_has_an_account_of_his_own_hears_no_cooldowns() {
    let hub = hub();
    let shares = Replica::new(FleetConfig::hub(&hub));
    let alone = Replica::new(FleetConfig::hub(&hub).share_account(false));
    soon().await;
    shares.breaker.trip_for(SECOND * 20, "429", "later");
    sleep(SECOND * 3).await;
    assert_eq!((shares.said("open"), alone.state()), (1, CircuitState::Closed));
}

#[tokio::test(start_paused = true)]
async fn who_joins_during_a_cooldown_learns_of_it_and_a_reset_by_hand_is_not_undone() {
    let hub = hub();
    let replicas = fleet_of(1, &hub, |config| config).await;
    replicas[0].breaker.trip_for(SECOND * 60, "429", "later");
    soon().await;
    let joiner = Replica::new(FleetConfig::hub(&hub));
    soon().await;
    assert_eq!(joiner.breaker.snapshot().cause, Some(Cause::Cooldown));
    joiner.breaker.reset();
    sleep(SECOND * 10).await;
    assert_eq!(joiner.state(), CircuitState::Closed);
}

// ---- opening on hearsay ----

fn by_quorum(config: FleetConfig) -> FleetConfig {
    config.mode(Mode::Quorum)
}

#[tokio::test(start_paused = true)]
async fn a_hint_alone_never_opens_a_circuit() {
    let replicas = fleet_of(3, &hub(), |config| config).await;
    all_open(&replicas[..2]).await;
    sleep(SECOND * 3).await;
    assert_eq!(replicas[2].state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn enough_openers_open_the_others_after_a_deliberation() {
    let replicas = fleet_of(3, &hub(), by_quorum).await;
    replicas[0].open();
    sleep(SECOND).await;
    assert_eq!(replicas[2].state(), CircuitState::Closed, "one may be wrong");
    replicas[1].open();
    sleep(MILLI * 100).await;
    assert_eq!(replicas[2].state(), CircuitState::Closed, "it listens");
    sleep(MILLI * 100).await;
    let seen = replicas[2].breaker.snapshot();
    assert_ne!(seen.state, CircuitState::Closed);
    assert_eq!(seen.last_error.unwrap().message(), "2 replicas say that it fails");
    assert_eq!(replicas[2].fleet().snapshot().hearsay_openings, 1);
}

#[tokio::test(start_paused = true)]
async fn objections_keep_the_others_closed() {
    let replicas = fleet_of(6, &hub(), by_quorum).await;
    for replica in &replicas[..2] {
        replica.open();
    }
    soon().await;
    for replica in &replicas[3..] {
        replica.succeed();
    }
    sleep(SECOND).await;
    assert_eq!(replicas[2].state(), CircuitState::Closed, "it has no call of its own, and others object");
}

#[tokio::test(start_paused = true)]
async fn two_replicas_look_whether_what_all_have_heard_is_so() {
    let replicas = fleet_of(8, &hub(), by_quorum).await;
    all_open(&replicas[..2]).await;
    sleep(MILLI * 300).await;
    let looking = probes(&replicas[2..]);
    assert_eq!(looking.len(), 2, "of six that opened on hearsay");
    for (_, probe) in looking {
        probe.success();
    }
    soon().await;
    assert!(replicas[2..].iter().all(|replica| replica.state() == CircuitState::Closed), "they were right");
}

#[tokio::test(start_paused = true)]
async fn nothing_opens_on_hearsay_where_a_deliberation_would_take_too_long_to_be_of_use() {
    let config = |config: FleetConfig| by_quorum(config).deliberate(Deliberate::For(SECOND)).unwrap();
    let replicas = fleet_of(3, &hub(), config).await;
    all_open(&replicas[..2]).await;
    sleep(SECOND / 2).await;
    assert_eq!(replicas[2].state(), CircuitState::Closed);
    sleep(SECOND).await;
    assert_ne!(replicas[2].state(), CircuitState::Closed, "after the deliberation that was asked for");
    assert!(FleetConfig::hub(&hub()).deliberate(Deliberate::For(SECOND * 2)).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_counts_no_failures_in_a_row_has_no_hints() {
    let hub = hub();
    let config = settings().failure_threshold(None).failure_rate(50).build().unwrap();
    let here = Replica::with(config, FleetConfig::hub(&hub));
    let there = Replica::new(FleetConfig::hub(&hub));
    soon().await;
    there.open();
    soon().await;
    here.fail();
    assert_eq!((here.state(), here.fleet().snapshot().suspicions), (CircuitState::Closed, 0));
}
