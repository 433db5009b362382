//! What leaves the process and comes back.

use std::time::Duration;

use fusebox::{
    Abandoned, Cause, CircuitBreaker, CircuitBreakerRegistry, CircuitState, Config, Exported, PermitType, Window,
};
use serde_json::json;
use tokio::time::advance;

use crate::support::{SECOND, breaker, probe, trip};

fn read(value: &serde_json::Value) -> Result<Config, String> {
    serde_json::from_value(value.clone()).map_err(|error| error.to_string())
}

#[test]
fn settings_are_written_as_people_write_them() {
    let config = Config::builder()
        .failure_rate(50)
        .window(Duration::from_secs(90))
        .open_for(Duration::from_millis(1500))
        .abandoned(Abandoned::Failure)
        .build()
        .unwrap();
    let written = serde_json::to_value(config).unwrap();
    let part = ["failure_threshold", "failure_rate", "window", "open_for", "abandoned", "probe_lease"];
    let part: Vec<_> = part.iter().map(|field| &written[field]).collect();
    assert_eq!(json!(part), json!([3, 50, "1m 30s", "1s 500ms", "failure", "1m"]));
    assert_eq!(written.get("slow_rate"), None, "what is off is left out");
}

#[test]
fn settings_come_back_as_they_were_in_json_and_in_toml() {
    let all = [
        Config::default(),
        Config::builder().failure_threshold(None).failure_rate(10).window(100).min_calls(50).build().unwrap(),
        Config::builder()
            .failure_memory(Duration::from_secs(60))
            .slow_rate(20)
            .slow_after(Duration::from_millis(250))
            .open_growth(150)
            .open_cap(Duration::from_secs(600))
            .open_jitter(10)
            .good_probes(3)
            .ramp(Duration::from_secs(5))
            .ramp_from(25)
            .ramp_failures(2)
            .probe_lease(Duration::from_secs(7))
            .wait_limit(Duration::ZERO)
            .max_waiters(9)
            .build()
            .unwrap(),
    ];
    for config in all {
        assert_eq!(read(&serde_json::to_value(config).unwrap()), Ok(config));
        assert_eq!(toml::from_str::<Config>(&toml::to_string(&config).unwrap()), Ok(config));
    }
    assert_eq!(read(&json!({})), Ok(Config::default()));
    assert_eq!(read(&json!({ "window": 100 })).unwrap().window(), Window::Calls(100));
    assert_eq!(read(&json!({ "failure_threshold": null })).unwrap().failure_threshold(), None);
}

#[test]
fn a_mistake_in_settings_names_the_field_and_what_would_be_right() {
    for (wrong, told) in [
        (json!({ "failure_threshold": 0 }), "failure_threshold is 0, expected 1 to 1023"),
        (
            json!({ "failure_threshold": "many" }),
            r#"invalid value: string "many", expected a number of failures, or "none""#,
        ),
        (
            json!({ "failure_threshold": -1 }),
            r#"invalid value: integer `-1`, expected a number of failures, or "none""#,
        ),
        (
            json!({ "open_for": "soon" }),
            r#"invalid value: string "soon", expected a duration such as 30s, 250ms or 1m 30s"#,
        ),
        (json!({ "open_for": 30 }), "invalid type: integer `30`, expected a duration such as 30s, 250ms or 1m 30s"),
        (json!({ "open_for": "25h" }), "open_for is 90000s, expected 1 ms to 24 h"),
        (
            json!({ "window": 99_999_999_999_u64 }),
            "window is 4294967295 calls, expected 10 ms to 24 h, or 1 to 10000 calls",
        ),
        (json!({ "slow_rate": 50 }), "slow_after is not set, expected 1 ms to 24 h, since slow_rate is set"),
        (json!({ "abandoned": "maybe" }), "unknown variant `maybe`, expected `ignored` or `failure`"),
        (json!({ "open_fro": "30s" }), "unknown field `open_fro`, expected one of `failure_threshold`"),
    ] {
        let error = read(&wrong).unwrap_err();
        assert!(error.starts_with(told), "{wrong}: {error}");
    }
    let error = toml::from_str::<Config>("failure_rate = 50\nopen_for = \"soon\"").unwrap_err().to_string();
    assert!(error.contains("line 2") && error.contains("open_for"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_and_a_transition_are_written_with_all_their_fields() {
    let breaker = breaker();
    let mut transitions = breaker.subscribe();
    trip(&breaker);
    advance(SECOND).await;
    assert_eq!(
        serde_json::to_value(breaker.snapshot()).unwrap(),
        json!({
            "name": "openai", "state": "open", "cause": "failures", "silent": false, "failure_count": 3,
            "probe_in_flight": false, "waiters": 0, "trip_count": 1, "failed_probe_count": 0, "last_calls": null,
            "next_probe_in": "29s", "last_error": { "error_type": "5xx", "message": "test", "age": "1s" },
        })
    );
    let told = serde_json::to_value(transitions.try_recv().unwrap()).unwrap();
    assert_eq!(
        [&told["breaker"], &told["from"], &told["to"], &told["cause"]],
        ["openai", "closed", "open", "failures"]
    );
    assert!(told["at"].as_str().unwrap().ends_with('Z'), "{told}");
}

fn registry() -> CircuitBreakerRegistry {
    CircuitBreakerRegistry::new(["a", "b", "c", "d", "e", "f"])
}

fn by_text(exported: &Exported) -> Exported {
    serde_json::from_str(&serde_json::to_string(exported).unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn circuits_that_are_not_closed_are_restored() {
    let before = registry();
    trip(&before.get("a").unwrap());
    before.get("b").unwrap().trip_for(3600 * SECOND, "429", "come back later");
    before.get("c").unwrap().isolate("moved");
    before.get("d").unwrap().disable();
    let _in_flight = probe(&before.get("e").unwrap()).await;
    let exported = by_text(&before.export());
    assert_eq!(exported.breakers.iter().map(|row| &*row.name).collect::<Vec<_>>(), ["a", "b", "c", "d", "e"]);

    let after = registry();
    let mut transitions = after.subscribe();
    assert_eq!(after.restore(&exported), []);
    let seen = |name: &str| after.get(name).map(|breaker| breaker.snapshot()).unwrap();
    assert_eq!((seen("a").state, seen("a").cause), (CircuitState::Open, Some(Cause::Failures)));
    assert_eq!(seen("a").last_error.unwrap().to_string(), "5xx: test");
    assert_eq!((seen("b").cause, seen("b").trip_count), (Some(Cause::Cooldown), 1));
    let left = seen("b").next_probe_in.unwrap();
    assert!((3500 * SECOND..=3600 * SECOND).contains(&left), "{left:?}");
    assert_eq!((seen("c").cause, seen("c").next_probe_in), (Some(Cause::Isolated), None));
    assert_eq!(seen("c").last_error.unwrap().message(), "moved");
    assert_eq!((seen("d").state, seen("f").state), (CircuitState::Disabled, CircuitState::Closed));
    // The probe died with its process. The next call is one.
    assert_eq!(after.try_acquire_permit("e").unwrap(), PermitType::Probe);
    assert_eq!(std::iter::from_fn(|| transitions.try_recv().ok()).count(), 6);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_is_refused_and_the_rest_is_restored() {
    let before = registry();
    for name in ["a", "b", "c", "d"] {
        trip(&before.get(name).unwrap());
    }
    before.get("e").unwrap().trip_for(3600 * SECOND, "429", "");
    let mut exported = before.export();
    let at = exported.at;
    exported.breakers[0].probe_at = Some(at + 300 * SECOND);
    exported.breakers[1].probe_at = Some(at - 40 * SECOND);
    exported.breakers[2].probe_at = None;
    exported.breakers[4].probe_at = Some(at + 90_000 * SECOND);
    let mut unknown = exported.breakers[3].clone();
    unknown.name = "gone".into();
    exported.breakers.push(unknown.clone());
    exported.breakers.push(exported.breakers[3].clone());

    let after = registry();
    let refused: Vec<_> = after.restore(&exported).iter().map(ToString::to_string).collect();
    let begins = [
        "a: its probe is due in 4m 59s",
        "b: its probe was due 40s",
        "c: an open circuit has a cause, and a time at which its probe is due",
        "e: its probe is due in 1day",
        "gone: there is no breaker of this name",
        "d: the circuit is not closed any more, and stays as it is",
    ];
    assert_eq!(refused.len(), begins.len(), "{refused:?}");
    for (refused, begins) in refused.iter().zip(begins) {
        assert!(refused.starts_with(begins), "{refused}");
    }
    assert!(refused[0].ends_with("expected at most the longest open time, 30s"), "{}", refused[0]);
    assert_eq!(after.restore(&exported)[0].name(), "a");
    assert_eq!(after.state("d"), Some(CircuitState::Open));
    let closed = ["a", "b", "c", "e"].map(|name| after.state(name));
    assert_eq!(closed, [Some(CircuitState::Closed); 4]);
}

#[test]
fn an_export_that_cannot_be_read_says_why() {
    for (wrong, told) in [
        (json!({ "at": "yesterday", "breakers": [] }), r#"invalid value: string "yesterday", expected a time such as"#),
        (json!({ "at": "2026-02-14T00:28:07Z" }), "missing field `breakers`"),
        (
            json!({ "at": "2026-02-14T00:28:07Z", "breakers": [{ "name": "a", "state": "ajar" }] }),
            r#"invalid value: string "ajar", expected closed, open, half_open, recovering or disabled"#,
        ),
    ] {
        let error = serde_json::from_value::<Exported>(wrong).unwrap_err().to_string();
        assert!(error.starts_with(told), "{error}");
    }
    let settings = CircuitBreaker::builder("a").open_growth(200).open_cap(600 * SECOND);
    let after = CircuitBreakerRegistry::default();
    after.insert_breaker(settings.build().unwrap());
    let text = json!({ "at": "2026-02-14T00:28:07Z", "breakers": [
        { "name": "a", "state": "open", "cause": "failures", "probe_at": "2026-02-14T00:28:07Z" },
    ] });
    let refused = after.restore(&serde_json::from_value(text).unwrap());
    assert!(refused[0].to_string().ends_with("expected at most the longest open time, 10m"), "{}", refused[0]);
}
