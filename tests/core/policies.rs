//! Cooldowns, an open time that grows, and recoveries of several probes.

use std::sync::Arc;
use std::time::Duration;

use fusebox::{
    CallError, Cause, CircuitBreaker, CircuitState, Config, ConfigBuilder, Outcome, PermitType, ProbeGuard,
    RejectionReason,
};
use tokio::time::advance;

use crate::log::Log;
use crate::support::{SECOND, at_once, breaker, fail, probe, registry, trip, trip_by_name, waiter};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn with(change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Arc<CircuitBreaker> {
    let config = change(Config::builder().failure_threshold(1)).build().unwrap();
    Arc::new(CircuitBreaker::new("openai", config))
}

/// How long the circuit is open now, in milliseconds.
fn open_left(breaker: &CircuitBreaker) -> u128 {
    breaker.snapshot().next_probe_in.expect("open").as_millis()
}

/// Waits for the end of the open time, and fails the probe.
async fn fail_next_probe(breaker: &CircuitBreaker) {
    advance(breaker.snapshot().next_probe_in.expect("open")).await;
    let probe = breaker.try_acquire().unwrap();
    assert_eq!(probe.kind(), PermitType::Probe);
    probe.failure("5xx", "test");
}

// ---- cooldowns ----

#[tokio::test(start_paused = true)]
async fn a_cooldown_opens_the_circuit_at_once_and_says_why_and_for_how_long() {
    let log = Log::capture();
    let breaker = breaker();
    fail(&breaker, "5xx");
    breaker.try_acquire().unwrap().cool_down(7 * SECOND, "429", "slow down");
    let opened = r#"WARN circuit opened breaker="openai" from="closed" to="open" cause="cooldown" failure_count=1 last_error=429: slow down trip_count=1 generation=1"#;
    assert_eq!(log.take(), [opened]);
    let rejection = breaker.try_acquire().unwrap_err();
    assert_eq!((rejection.reason(), rejection.cause()), (RejectionReason::Open, Some(Cause::Cooldown)));
    assert_eq!(
        (rejection.retry_after(), breaker.explain(rejection).cause()),
        (Some(7 * SECOND), Some(Cause::Cooldown))
    );
    let seen = breaker.snapshot();
    assert_eq!((seen.state, seen.cause, seen.silent), (CircuitState::Open, Some(Cause::Cooldown), false));
    advance(7 * SECOND).await;
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_later_end_extends_an_open_circuit_and_an_earlier_one_changes_nothing() {
    let breaker = breaker();
    trip(&breaker);
    let log = Log::capture();
    assert!(!breaker.trip_for(30 * SECOND, "429", "not later"));
    assert!(breaker.trip_for(31 * SECOND, "429", "later"));
    assert!(!breaker.trip_for(SECOND, "429", "shorter"));
    let extended = r#"WARN circuit stays open for longer breaker="openai" from="open" to="open" cause="cooldown" failure_count=3 last_error=429: later trip_count=1 generation=2"#;
    assert_eq!(log.take(), [extended]);
    assert_eq!((open_left(&breaker), breaker.trip_count()), (31_000, 1));
}

#[tokio::test(start_paused = true)]
async fn while_a_call_is_the_probe_nobody_elses_cooldown_counts() {
    let breaker = breaker();
    let old = breaker.try_acquire().unwrap();
    let probe = probe(&breaker).await;
    old.cool_down(60 * SECOND, "429", "");
    assert!(!breaker.trip_for(60 * SECOND, "429", ""));
    probe.cool_down(5 * SECOND, "429", "");
    assert_eq!((open_left(&breaker), breaker.snapshot().failed_probe_count), (5000, 1));
}

#[tokio::test(start_paused = true)]
async fn a_cooldown_is_at_most_a_day_and_may_be_nothing() {
    let breaker = breaker();
    assert!(breaker.trip_for(Duration::MAX, "429", ""));
    assert_eq!(breaker.snapshot().next_probe_in, Some(DAY));
    advance(Duration::from_millis(86_399_999)).await;
    assert_eq!(breaker.try_acquire().unwrap_err().retry_after(), Some(Duration::from_millis(1)));
    advance(Duration::from_millis(1)).await;
    breaker.try_acquire().unwrap().success();

    assert!(breaker.trip_for(Duration::ZERO, "429", ""));
    assert_eq!(breaker.try_acquire().unwrap().kind(), PermitType::Probe);
}

#[tokio::test(start_paused = true)]
async fn a_cooldown_that_ended_weeks_ago_does_not_block() {
    for days in [1, 10, 24, 25, 40, 48] {
        let breaker = breaker();
        assert!(breaker.trip_for(SECOND, "429", ""));
        advance(days * DAY).await;
        assert_eq!(breaker.try_acquire().unwrap().kind(), PermitType::Probe, "after {days} days");
    }
}

#[tokio::test(start_paused = true)]
async fn a_judge_can_ask_for_a_cooldown() {
    let breaker = breaker();
    let judge = |answer: &Result<u16, std::io::Error>| match answer {
        Ok(429) => Outcome::cool_down(9 * SECOND, "429", "retry-after: 9"),
        other => Outcome::of(other),
    };
    assert_eq!(breaker.call_with(async { Ok(429) }, judge).await.unwrap(), 429);
    let rejected = breaker.call_with(async { Ok(200) }, judge).await;
    assert!(matches!(rejected, Err(CallError::Rejected(rejection)) if rejection.retry_after() == Some(9 * SECOND)));
}

#[tokio::test(start_paused = true)]
async fn a_probe_by_name_can_ask_for_a_cooldown() {
    let breakers = registry();
    trip_by_name(&breakers, "openai");
    advance(30 * SECOND).await;
    breakers.acquire_permit("openai").await.unwrap();
    assert!(ProbeGuard::new(&breakers, "openai").cool_down(SECOND, "429", ""));
    let seen = breakers.get("openai").unwrap().snapshot();
    assert_eq!((seen.cause, seen.failed_probe_count), (Some(Cause::Cooldown), 1));
    assert!(!ProbeGuard::new(&breakers, "openai").cool_down(SECOND, "429", ""), "there is no probe");
}

// ---- the open time ----

#[tokio::test(start_paused = true)]
async fn the_open_time_grows_with_failed_recoveries_and_starts_again_when_the_circuit_has_closed() {
    let breaker = with(|config| config.open_for(5 * SECOND).open_growth(200).open_cap(30 * SECOND));
    fail(&breaker, "5xx");
    for expected in [5000, 10_000, 20_000, 30_000, 30_000] {
        assert_eq!(open_left(&breaker), expected);
        assert_eq!(breaker.try_acquire().unwrap_err().retry_after().unwrap().as_millis(), expected);
        fail_next_probe(&breaker).await;
    }
    advance(30 * SECOND).await;
    breaker.try_acquire().unwrap().success();
    fail(&breaker, "5xx");
    assert_eq!(open_left(&breaker), 5000);
}

#[tokio::test(start_paused = true)]
async fn neither_a_cooldown_nor_a_cancelled_probe_is_a_failed_recovery() {
    let breaker = with(|config| config.open_for(5 * SECOND).open_growth(300));
    fail(&breaker, "5xx");
    fail_next_probe(&breaker).await;
    assert_eq!(open_left(&breaker), 15_000);
    advance(15 * SECOND).await;
    breaker.try_acquire().unwrap().cancel();
    breaker.try_acquire().unwrap().cool_down(SECOND, "429", "");
    advance(SECOND).await;
    breaker.try_acquire().unwrap().failure("5xx", "");
    assert_eq!(open_left(&breaker), 45_000);
}

#[tokio::test(start_paused = true)]
async fn jitter_lengthens_each_open_time_at_random_but_not_beyond_the_cap() {
    let breaker = with(|config| config.open_for(10 * SECOND).open_jitter(50).open_cap(12 * SECOND));
    fail(&breaker, "5xx");
    let mut times = Vec::new();
    for _ in 0..64 {
        times.push(open_left(&breaker));
        fail_next_probe(&breaker).await;
    }
    assert!(times.iter().all(|time| (10_000..=12_000).contains(time)), "{times:?}");
    // Of 64 numbers, three in five are cut off by the cap. That none is, or all are, happens once in 10^14.
    assert!(times.contains(&12_000) && times.iter().any(|time| *time < 12_000), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn an_open_time_that_grew_is_kept_when_the_settings_are_replaced() {
    let breaker = with(|config| config.open_for(5 * SECOND).open_growth(200));
    fail(&breaker, "5xx");
    fail_next_probe(&breaker).await;
    fail_next_probe(&breaker).await;
    breaker.set_config(breaker.config().to_builder().open_growth(100).build().unwrap());
    assert_eq!(open_left(&breaker), 20_000);
    fail_next_probe(&breaker).await;
    assert_eq!(open_left(&breaker), 5000);
    breaker.set_config(breaker.config().to_builder().open_growth(200).build().unwrap());
    fail_next_probe(&breaker).await;
    assert_eq!(open_left(&breaker), 80_000, "four recoveries have failed in a row");
}

// ---- several good probes ----

#[tokio::test(start_paused = true)]
async fn a_circuit_closes_after_as_many_good_probes_in_a_row_as_it_needs() {
    let breaker = with(|config| config.good_probes(3));
    fail(&breaker, "5xx");
    advance(30 * SECOND).await;
    let log = Log::capture();
    for _ in 0..2 {
        let probe = breaker.try_acquire().unwrap();
        assert_eq!(probe.kind(), PermitType::Probe);
        assert_eq!(breaker.try_acquire().unwrap_err().reason(), RejectionReason::ProbeInFlight, "one at a time");
        probe.success();
        breaker.try_acquire().unwrap().cancel();
        assert_eq!(breaker.state(), CircuitState::HalfOpen);
    }
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.state(), CircuitState::Closed);
    let lines = log.take();
    assert_eq!(lines.len(), 2, "half-open, and closed: {lines:?}");

    fail(&breaker, "5xx");
    advance(30 * SECOND).await;
    breaker.try_acquire().unwrap().success();
    breaker.try_acquire().unwrap().success();
    breaker.try_acquire().unwrap().failure("5xx", "");
    assert_eq!(breaker.state(), CircuitState::Open, "the third one failed");
}

#[tokio::test(start_paused = true)]
async fn a_waiter_becomes_the_next_probe_and_the_others_wait_for_the_whole_series() {
    let breaker = with(|config| config.good_probes(2));
    fail(&breaker, "5xx");
    advance(30 * SECOND).await;
    let first = Arc::clone(&breaker).try_acquire_owned().unwrap();
    let waiters = [waiter(&breaker).await, waiter(&breaker).await, waiter(&breaker).await];
    first.success();
    let kinds = at_once(async {
        let mut kinds = Vec::new();
        for waiter in waiters {
            // As in a server: each task resolves its own permit.
            kinds.push(tokio::spawn(async move {
                let permit = waiter.await.unwrap().unwrap();
                let kind = permit.kind();
                permit.success();
                kind
            }));
        }
        let mut probes = 0;
        for kind in kinds {
            probes += usize::from(kind.await.unwrap() == PermitType::Probe);
        }
        probes
    })
    .await;
    assert_eq!((kinds, breaker.state()), (1, CircuitState::Closed));
}

#[tokio::test(start_paused = true)]
async fn the_wait_limit_covers_the_whole_series() {
    let breaker = with(|config| config.good_probes(3).wait_limit(10 * SECOND).max_waiters(1));
    fail(&breaker, "5xx");
    advance(30 * SECOND).await;
    let mut probe = Arc::clone(&breaker).try_acquire_owned().unwrap();
    let waiter = waiter(&breaker).await;
    for _ in 0..2 {
        advance(4 * SECOND).await;
        // No task runs in between, so the waiter finds the next probe in flight.
        probe.success();
        probe = Arc::clone(&breaker).try_acquire_owned().unwrap();
        tokio::task::yield_now().await;
    }
    advance(2 * SECOND).await;
    let rejection = waiter.await.unwrap().unwrap_err();
    assert_eq!(rejection.reason(), RejectionReason::WaitLimit);
    probe.success();
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn fewer_good_probes_are_enough_as_soon_as_the_settings_say_so() {
    let breaker = with(|config| config.good_probes(63));
    fail(&breaker, "5xx");
    advance(30 * SECOND).await;
    for _ in 0..62 {
        breaker.try_acquire().unwrap().success();
    }
    let probe = breaker.try_acquire().unwrap();
    breaker.set_config(breaker.config().to_builder().good_probes(5).build().unwrap());
    probe.success();
    assert_eq!(breaker.state(), CircuitState::Closed);
}
