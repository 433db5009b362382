//! What can be set, and what is said about what cannot.

use std::time::Duration;

use fusebox::{CircuitBreaker, CircuitState, Config, ConfigBuilder, PermitType, RejectionReason, silence};

const DAY: Duration = Duration::from_secs(24 * 3600);
const TICK: Duration = Duration::from_millis(1);

#[test]
fn the_defaults_are_those_that_the_documentation_states() {
    let config = Config::default();
    assert_eq!((config.failure_threshold(), config.open_for()), (Some(3), Duration::from_secs(30)));
    assert_eq!((config.probe_lease(), config.wait_limit()), (Duration::from_secs(60), Duration::from_secs(60)));
    assert_eq!((config.open_growth(), config.open_jitter(), config.good_probes()), (100, 0, 1));
    assert_eq!((config.open_cap(), config.max_waiters()), (Duration::from_secs(300), None));
    assert_eq!(Config::builder().build(), Ok(config));
    assert_eq!(config.to_builder().build(), Ok(config));
    let readme = include_str!("../../README.md");
    assert!(
        readme.contains("Defaults: 3 failures, open for 30 s, a lease of 60 s, a wait of at most 60 s."),
        "it states them"
    );
}

#[test]
fn both_ends_of_each_range_are_valid_and_values_beyond_are_errors_that_name_the_field() {
    let threshold = |n: Option<u32>| Config::builder().failure_threshold(n);
    let open_for = |duration| Config::builder().open_for(duration);
    let lease = |duration| Config::builder().probe_lease(duration);
    let wait = |duration| Config::builder().wait_limit(duration);
    let right = [
        threshold(Some(1)),
        threshold(Some(1023)),
        open_for(TICK),
        open_for(DAY),
        lease(TICK),
        lease(DAY),
        wait(Duration::ZERO),
        wait(DAY),
        Config::builder().max_waiters(0),
        Config::builder().max_waiters(usize::MAX),
        Config::builder().open_growth(100),
        Config::builder().open_growth(1000),
        Config::builder().open_jitter(100),
        Config::builder().open_growth(200).open_for(DAY).open_cap(DAY),
        Config::builder().open_for(DAY).open_cap(TICK),
        Config::builder().good_probes(63),
        threshold(None),
        Config::builder().failure_rate(1).slow_rate(100).slow_after(TICK),
        Config::builder().failure_memory(TICK),
        Config::builder().failure_memory(DAY).slow_after(DAY),
        Config::builder().window(Duration::from_millis(10)).min_calls(10_000),
        Config::builder().window(DAY).min_calls(1),
        Config::builder().window(1).min_calls(1),
        Config::builder().window(10_000).min_calls(10_000),
        Config::builder().ramp(DAY).ramp_from(100).ramp_failures(63),
        Config::builder().ramp(TICK).ramp_from(1).ramp_failures(1),
    ];
    for builder in right {
        assert!(builder.clone().build().is_ok(), "{builder:?}");
    }
    let too_short = Duration::from_micros(999);
    let too_long = DAY + Duration::from_nanos(1);
    let growing = Config::builder().open_growth(200);
    let wrong: [(ConfigBuilder, &str); 35] = [
        (threshold(Some(0)), "failure_threshold is 0, expected 1 to 1023"),
        (threshold(Some(1024)), "failure_threshold is 1024, expected 1 to 1023"),
        (open_for(too_short), "open_for is 999µs, expected 1 ms to 24 h"),
        (open_for(too_long), "open_for is 86400.000000001s, expected 1 ms to 24 h"),
        (lease(too_short), "probe_lease is 999µs, expected 1 ms to 24 h"),
        (lease(too_long), "probe_lease is 86400.000000001s, expected 1 ms to 24 h"),
        (wait(too_long), "wait_limit is 86400.000000001s, expected 0 to 24 h"),
        (wait(Duration::MAX), "wait_limit is 18446744073709551615.999999999s, expected 0 to 24 h"),
        (Config::builder().open_growth(99), "open_growth is 99, expected 100 (no growth) to 1000 percent"),
        (Config::builder().open_growth(1001), "open_growth is 1001, expected 100 (no growth) to 1000 percent"),
        (Config::builder().open_jitter(101), "open_jitter is 101, expected 0 to 100 percent"),
        (Config::builder().open_cap(too_long), "open_cap is 86400.000000001s, expected 1 ms to 24 h"),
        (growing.clone().open_cap(DAY / 2).open_for(DAY), "open_cap is 43200s, expected open_for to 24 h"),
        (growing.open_for(Duration::from_secs(301)), "open_cap is 300s, expected open_for to 24 h"),
        (Config::builder().open_jitter(1).open_cap(TICK), "open_cap is 1ms, expected open_for to 24 h"),
        (Config::builder().good_probes(0), "good_probes is 0, expected 1 to 63"),
        (Config::builder().good_probes(64), "good_probes is 64, expected 1 to 63"),
        (Config::builder().failure_rate(0), "failure_rate is 0, expected 1 to 100 percent"),
        (Config::builder().failure_rate(101), "failure_rate is 101, expected 1 to 100 percent"),
        (Config::builder().slow_rate(0).slow_after(DAY), "slow_rate is 0, expected 1 to 100 percent"),
        (Config::builder().slow_rate(50), "slow_after is not set, expected 1 ms to 24 h, since slow_rate is set"),
        (Config::builder().slow_after(Duration::ZERO), "slow_after is 0ns, expected 1 ms to 24 h"),
        (Config::builder().window(Duration::ZERO), "window is 0ns, expected 10 ms to 24 h, or 1 to 10000 calls"),
        (Config::builder().window(9 * TICK), "window is 9ms, expected 10 ms to 24 h, or 1 to 10000 calls"),
        (Config::builder().window(too_long), "window is 86400.000000001s, expected 10 ms to 24 h, or 1 to 10000 calls"),
        (Config::builder().window(0), "window is 0 calls, expected 10 ms to 24 h, or 1 to 10000 calls"),
        (Config::builder().window(10_001), "window is 10001 calls, expected 10 ms to 24 h, or 1 to 10000 calls"),
        (Config::builder().min_calls(0), "min_calls is 0, expected 1 to 10000"),
        (Config::builder().window(10).min_calls(11), "min_calls is 11, expected 1 to the calls that the window holds"),
        (Config::builder().failure_memory(Duration::ZERO), "failure_memory is 0ns, expected 1 ms to 24 h"),
        (Config::builder().failure_memory(too_long), "failure_memory is 86400.000000001s, expected 1 ms to 24 h"),
        (Config::builder().ramp(too_long), "ramp is 86400.000000001s, expected 0 (no ramp) to 24 h"),
        (Config::builder().ramp_from(0), "ramp_from is 0, expected 1 to 100 percent"),
        (Config::builder().ramp_from(101), "ramp_from is 101, expected 1 to 100 percent"),
        (Config::builder().ramp_failures(64), "ramp_failures is 64, expected 1 to 63"),
    ];
    for (builder, message) in wrong {
        let error = builder.build().unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(message, format!("{} is {}, expected {}", error.field(), error.value(), error.expected()));
    }
}

#[test]
fn a_ceiling_can_be_removed_again() {
    let config = Config::builder().max_waiters(1).build().unwrap();
    assert_eq!(config.to_builder().max_waiters(None).build(), Ok(Config::default()));
    let config = silence::Config::builder().ceiling(Duration::from_secs(1)).build().unwrap();
    assert_eq!(config.to_builder().ceiling(None).build(), Ok(silence::Config::default()));
}

#[test]
fn the_builder_of_a_breaker_checks_the_same_ranges() {
    let error = CircuitBreaker::builder("openai").failure_threshold(5000).build().unwrap_err();
    assert_eq!((error.field(), error.value()), ("failure_threshold", "5000"));
}

#[tokio::test(start_paused = true)]
async fn a_breaker_keeps_its_state_when_its_settings_are_replaced() {
    let breaker = crate::support::breaker();
    let set = |change: fn(ConfigBuilder) -> ConfigBuilder| {
        let config = change(breaker.config().to_builder()).build().unwrap();
        breaker.set_config(config);
        assert_eq!(breaker.config(), config);
    };
    crate::support::fail(&breaker, "5xx");
    crate::support::fail(&breaker, "5xx");
    set(|config| config.failure_threshold(10).max_waiters(7).wait_limit(TICK).probe_lease(TICK * 9));
    assert_eq!(breaker.failure_count(), 2);
    crate::support::fail(&breaker, "5xx");
    assert_eq!(breaker.state(), CircuitState::Closed, "three were enough before");
    set(|config| config.failure_threshold(2).open_for(TICK * 500));
    crate::support::fail(&breaker, "5xx");
    assert_eq!(breaker.state(), CircuitState::Open, "more than enough now");
    assert_eq!(breaker.snapshot().next_probe_in, Some(TICK * 500));

    set(|config| config.open_for(Duration::from_secs(3600)));
    assert_eq!(breaker.snapshot().next_probe_in, Some(TICK * 500), "it opened for as long as was right then");
    tokio::time::advance(TICK * 500).await;
    breaker.try_acquire().unwrap().failure("5xx", "");
    assert_eq!(breaker.snapshot().next_probe_in, Some(Duration::from_secs(3600)));
    set(|config| config.open_for(TICK * 500));
    assert_eq!(breaker.try_acquire().unwrap().kind(), PermitType::Probe, "nobody waits for longer than is right now");
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_lease_is_shortened_to_less_than_has_passed_is_taken_over_once() {
    let breaker = crate::support::breaker();
    let with_lease = |lease| breaker.config().to_builder().probe_lease(lease).build().unwrap();
    breaker.set_config(with_lease(Duration::from_secs(600)));
    crate::support::trip(&breaker);
    tokio::time::advance(breaker.config().open_for()).await;
    let old = breaker.try_acquire().unwrap();
    breaker.set_config(with_lease(Duration::from_secs(10)));
    let new = breaker.try_acquire().unwrap();
    assert_eq!(new.kind(), PermitType::Probe);
    let rejected = breaker.try_acquire().unwrap_err();
    assert_eq!(
        (rejected.reason(), rejected.retry_after()),
        (RejectionReason::ProbeInFlight, Some(Duration::from_secs(10)))
    );
    old.success();
    assert_eq!(breaker.state(), CircuitState::HalfOpen, "it is over");
    new.success();
    assert_eq!(breaker.state(), CircuitState::Closed);
}
