//! A circuit that has closed lets a growing share of the calls pass.

use std::sync::Arc;
use std::time::Duration;

use fusebox::{
    CircuitBreaker, CircuitBreakerRegistry, CircuitState, Config, ConfigBuilder, PermitType, RejectionReason,
};
use tokio::time::{Instant, advance};

use crate::log::Log;
use crate::support::{SECOND, at_once, fail, next_probe, probe, trip, waiter};

const RAMP: Duration = Duration::from_secs(100);

fn with(change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Arc<CircuitBreaker> {
    let config = change(Config::builder().failure_threshold(2).ramp(RAMP).ramp_from(10)).build().unwrap();
    Arc::new(CircuitBreaker::new("openai", config))
}

/// A breaker at the beginning of its ramp.
async fn recovering(change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Arc<CircuitBreaker> {
    let breaker = with(change);
    probe(&breaker).await.success();
    assert_eq!(breaker.state(), CircuitState::Recovering);
    breaker
}

/// A call that passes on the ramp, sooner or later.
async fn passing(breaker: &CircuitBreaker) -> fusebox::Permit<&CircuitBreaker> {
    let permit = breaker.acquire().await.unwrap();
    assert_eq!(permit.kind(), PermitType::Normal);
    permit
}

#[tokio::test(start_paused = true)]
#[cfg_attr(miri, ignore = "thousands of calls")]
async fn the_share_of_calls_that_pass_grows_until_all_do() {
    let breaker = recovering(|config| config).await;
    let mut shares = Vec::new();
    for _ in 0..10 {
        let passed = (0..10_000).filter(|_| breaker.try_acquire().map(fusebox::Permit::success).is_ok()).count();
        shares.push(passed);
        advance(RAMP / 10).await;
    }
    // Of 10,000 calls, with a standard deviation of 50.
    for (n, passed) in shares.iter().enumerate() {
        assert!(passed.abs_diff(1000 + n * 900) < 300, "{shares:?}");
    }
    assert_eq!(breaker.state(), CircuitState::Closed);
    assert!((0..1000).all(|_| breaker.try_acquire().is_ok()));
}

#[tokio::test(start_paused = true)]
#[cfg_attr(miri, ignore = "thousands of calls")]
async fn a_call_that_does_not_pass_is_told_when_its_turn_is() {
    let breaker = recovering(|config| config).await;
    let rejections: Vec<_> = (0..1000).filter_map(|_| breaker.try_acquire().err()).collect();
    assert!(rejections.len() > 800, "{}", rejections.len());
    for rejection in &rejections {
        assert_eq!((rejection.reason(), rejection.cause()), (RejectionReason::Recovering, None));
        let turn = rejection.retry_after().unwrap();
        assert!(Duration::ZERO < turn && turn < RAMP, "{turn:?}");
    }
    let text = rejections[0].to_string();
    assert!(text.starts_with("the circuit recovers, and lets only a share of the calls pass, retry after "), "{text}");
}

#[tokio::test(start_paused = true)]
#[cfg_attr(miri, ignore = "thousands of calls")]
async fn each_waiter_waits_for_its_own_turn_and_they_do_not_come_as_a_herd() {
    let breaker = with(|config| config.wait_limit(2 * RAMP));
    let first = probe(&breaker).await;
    let mut waiters = Vec::new();
    for _ in 0..500 {
        waiters.push(waiter(&breaker).await);
    }
    first.success();
    let start = Instant::now();
    let mut passed = [0; 10];
    for waiter in waiters {
        let permit = waiter.await.unwrap().unwrap();
        assert_eq!(permit.kind(), PermitType::Normal);
        permit.success();
    }
    assert!(start.elapsed() < RAMP);
    // As many calls as pass at once, and when the others do.
    let breaker = recovering(|config| config.wait_limit(2 * RAMP)).await;
    for _ in 0..500 {
        let turn = breaker.try_acquire().map_or_else(|rejected| rejected.retry_after().unwrap(), |_| Duration::ZERO);
        passed[usize::try_from(turn.as_millis() * 10 / RAMP.as_millis()).unwrap()] += 1;
    }
    assert!(passed.iter().all(|passed| (15..150).contains(passed)), "{passed:?}");
}

#[tokio::test(start_paused = true)]
#[cfg_attr(miri, ignore = "thousands of calls")]
async fn a_waiter_whose_turn_is_beyond_its_limit_is_refused_at_once() {
    let breaker = recovering(|config| config.wait_limit(SECOND).ramp_from(1)).await;
    let answers: Vec<_> = (0..200).map(|_| Arc::clone(&breaker).acquire_owned()).collect();
    let start = Instant::now();
    let mut refused = 0;
    for answer in answers {
        if let Err(rejection) = answer.await {
            assert_eq!(rejection.reason(), RejectionReason::Recovering);
            assert!(rejection.retry_after() > Some(Duration::ZERO));
            refused += 1;
        }
    }
    assert!(refused > 100 && start.elapsed() < 10 * SECOND, "{refused} in {:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_on_the_ramp_open_it_again_and_let_the_open_time_grow() {
    let breaker = recovering(|config| config.open_growth(200).ramp_from(100).ramp_failures(3)).await;
    for _ in 0..2 {
        passing(&breaker).await.failure("5xx", "");
    }
    passing(&breaker).await.success();
    assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Recovering, 0));
    let log = Log::capture();
    for _ in 0..3 {
        passing(&breaker).await.failure("5xx", "still");
    }
    let opened = r#"WARN circuit opened breaker="openai" from="recovering" to="open" cause="failures" failure_count=3 last_error=5xx: still trip_count=2 generation=2"#;
    assert_eq!(log.take(), [opened]);
    assert_eq!(breaker.snapshot().next_probe_in, Some(60 * SECOND));
    advance(60 * SECOND).await;
    breaker.try_acquire().unwrap().success();
    advance(RAMP).await;
    // Really closed, so that the open time starts again.
    trip(&breaker);
    assert_eq!(breaker.snapshot().next_probe_in, Some(30 * SECOND));
}

#[tokio::test(start_paused = true)]
#[cfg_attr(miri, ignore = "thousands of calls")]
async fn a_ramp_counts_as_many_failures_as_the_threshold_unless_told_otherwise() {
    for (threshold, expected) in [(2, 2), (63, 63), (200, 63)] {
        let breaker = with(|config| config.failure_threshold(threshold).ramp_from(100));
        assert!(breaker.trip_for(SECOND, "429", ""));
        advance(SECOND).await;
        breaker.try_acquire().unwrap().success();
        for _ in 1..expected {
            passing(&breaker).await.failure("5xx", "");
            assert_eq!(breaker.state(), CircuitState::Recovering);
        }
        passing(&breaker).await.failure("5xx", "");
        assert_eq!(breaker.state(), CircuitState::Open);
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_ramp_is_logged_by_the_call_that_finds_it() {
    let log = Log::capture();
    let breaker = with(|config| config);
    let first = probe(&breaker).await;
    log.take();
    first.success();
    advance(RAMP).await;
    // An idle circuit is closed for all who ask.
    assert_eq!((breaker.state(), breaker.snapshot().state), (CircuitState::Closed, CircuitState::Closed));
    assert!(breaker.would_allow());
    fail(&breaker, "5xx");
    assert_eq!(breaker.failure_count(), 1);
    let lines = log.take();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].starts_with(
            r#"INFO circuit recovering, the probe succeeded breaker="openai" from="half_open" to="recovering""#
        ),
        "{lines:?}"
    );
    assert!(
        lines[1].starts_with(r#"INFO circuit closed, the ramp is over breaker="openai" from="recovering" to="closed""#),
        "{lines:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_finds_the_ramp_over_ends_it_and_then_counts() {
    let breaker = recovering(|config| config.ramp_from(100)).await;
    let permits: Vec<_> = (0..3).map(|_| breaker.try_acquire().unwrap()).collect();
    let [first, second, third] = permits.try_into().unwrap();
    first.failure("5xx", "on the ramp");
    advance(RAMP).await;
    second.failure("5xx", "after it");
    assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 1));
    third.failure("5xx", "after it");
    assert_eq!((breaker.state(), breaker.trip_count()), (CircuitState::Open, 2));
}

#[tokio::test(start_paused = true)]
async fn a_cooldown_that_finds_the_ramp_over_shows_the_row_that_no_call_has_ended() {
    let breaker = recovering(|config| config.failure_threshold(3).ramp_from(100)).await;
    fail(&breaker, "5xx");
    advance(RAMP).await;
    assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 1));
    assert!(breaker.trip_for(SECOND, "429", "busy"));
    assert_eq!(breaker.failure_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_trip_on_the_ramp_rejects_those_who_wait_for_their_turn() {
    let breaker = recovering(|config| config.ramp_from(1).wait_limit(2 * RAMP)).await;
    let waiting = waiter(&breaker).await;
    breaker.trip_for(SECOND, "429", "");
    let rejection = at_once(waiting).await.unwrap().unwrap_err();
    assert_eq!(rejection.reason(), RejectionReason::Reopened);
}

#[tokio::test(start_paused = true)]
async fn a_cooldown_on_the_ramp_is_no_failed_recovery() {
    let breaker = recovering(|config| config.open_growth(200).ramp_from(100)).await;
    passing(&breaker).await.cool_down(SECOND, "429", "");
    advance(SECOND).await;
    breaker.try_acquire().unwrap().failure("5xx", "");
    assert_eq!(breaker.snapshot().next_probe_in, Some(60 * SECOND), "one recovery has failed, that of the probe");
}

#[tokio::test(start_paused = true)]
async fn orders_end_a_ramp() {
    for order in [CircuitBreaker::reset, CircuitBreaker::disable, |breaker: &CircuitBreaker| breaker.isolate("test")] {
        let breaker = recovering(|config| config.ramp_from(100)).await;
        let old = passing(&breaker).await;
        order(&breaker);
        assert_ne!(breaker.state(), CircuitState::Recovering);
        old.failure("5xx", "from before");
        assert_eq!(breaker.failure_count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn by_name_a_call_waits_for_its_turn_and_its_outcome_counts() {
    let config = Config::builder().failure_threshold(1).ramp(RAMP).ramp_from(1).wait_limit(2 * RAMP).build().unwrap();
    let breakers = CircuitBreakerRegistry::with_config(["openai"], config);
    breakers.record_failure("openai", "5xx", "");
    advance(30 * SECOND).await;
    assert_eq!(breakers.try_acquire_permit("openai").unwrap(), PermitType::Probe);
    assert!(breakers.record_probe_success("openai"));
    assert_eq!(breakers.state("openai"), Some(CircuitState::Recovering));
    let start = Instant::now();
    assert_eq!(breakers.acquire_permit("openai").await.unwrap(), PermitType::Normal);
    assert!(start.elapsed() < RAMP);
    assert!(breakers.record_success("openai"));
    assert!(breakers.record_failure("openai", "5xx", ""));
    assert_eq!(breakers.state("openai"), Some(CircuitState::Open));
}

#[tokio::test(start_paused = true)]
async fn a_ramp_that_is_switched_off_lets_all_calls_pass() {
    let breaker = recovering(|config| config.ramp_from(1)).await;
    breaker.set_config(breaker.config().to_builder().ramp(Duration::ZERO).build().unwrap());
    assert!((0..100).all(|_| breaker.try_acquire().is_ok()));
}

#[tokio::test(start_paused = true)]
async fn several_good_probes_come_before_the_ramp() {
    let breaker = with(|config| config.good_probes(2).wait_limit(2 * RAMP));
    probe(&breaker).await.success();
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.state(), CircuitState::Recovering);
    trip_on_ramp(&breaker).await;
    assert_eq!(next_probe(&breaker).await.kind(), PermitType::Probe);
}

async fn trip_on_ramp(breaker: &CircuitBreaker) {
    for _ in 0..2 {
        passing(breaker).await.failure("5xx", "");
    }
    assert_eq!(breaker.state(), CircuitState::Open);
}
