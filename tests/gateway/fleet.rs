//! Gateways that are replicas of one fleet.

use std::time::Duration;

use fusebox::fleet::{FleetConfig, Hub};
use fusebox::proxy::GatewayConfig;
use fusebox::{Cause, CircuitState};
use http::header::RETRY_AFTER;
use serde_json::{Value, json};

use crate::support::{Gateway, Provider, answer, soon, until};

fn config(a: &Provider, b: &Provider, key: &str) -> GatewayConfig {
    let text = format!(
        "[breaker]\nfailure_threshold = 3\nopen_for = '1h'\n\
         [[providers]]\nname = 'a'\nurl = 'http://{}/base/v1'\nmodels = ['m']\napi_key = '{key}'\n\
         [[providers]]\nname = 'b'\nurl = 'http://{}/base/v1'\nmodels = ['m']\n",
        a.address, b.address
    );
    GatewayConfig::from_toml(&text).unwrap()
}

/// Gateways that share what they find out.
async fn fleet(number: usize, hub: &Hub, config: &GatewayConfig) -> Vec<Gateway> {
    let mut config = config.clone();
    config.fleet = Some(FleetConfig::hub(hub));
    let mut gateways = Vec::new();
    for _ in 0..number {
        gateways.push(Gateway::from_config(&config).await);
    }
    for gateway in &gateways {
        says(gateway, |fleet| fleet["up"] == json!(true)).await;
    }
    gateways
}

/// Waits until the health page says so of the fleet.
async fn says(gateway: &Gateway, what: impl Fn(&Value) -> bool) {
    soon(async {
        while !what(&gateway.health().await.1["fleet"]) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn hub() -> Hub {
    Hub::new(Duration::ZERO)
}

#[tokio::test]
async fn a_provider_that_asks_one_replica_to_wait_is_asked_by_none() {
    let limited = |_| {
        let mut limited = answer(429);
        limited.headers_mut().insert(RETRY_AFTER, "60".parse().unwrap());
        limited
    };
    let (a, b) = (Provider::start(limited).await, Provider::with_status(200).await);
    let gateways = fleet(3, &hub(), &config(&a, &b, "k")).await;
    assert!(gateways[0].ask().await.is_by(&b));
    let cools = |gateway: &Gateway| gateway.breaker("a").snapshot().cause == Some(Cause::Cooldown);
    until(|| gateways.iter().all(cools)).await;
    for gateway in &gateways {
        assert!(gateway.ask().await.is_by(&b));
    }
    assert_eq!(a.hits(), 1);
    let left = gateways[2].breaker("a").snapshot().next_probe_in.unwrap();
    assert!(left > Duration::from_secs(50) && left <= Duration::from_secs(61), "{left:?}");
}

#[tokio::test]
async fn a_cooldown_that_is_over_is_over_for_all_kinds_of_answers_at_all_replicas() {
    let limited_once = |n| {
        let mut answer = answer(if n == 0 { 429 } else { 200 });
        answer.headers_mut().insert(RETRY_AFTER, "1".parse().unwrap());
        answer
    };
    let (a, b) = (Provider::start(limited_once).await, Provider::with_status(200).await);
    let gateways = fleet(3, &hub(), &config(&a, &b, "k")).await;
    assert!(gateways[0].ask().await.is_by(&b));
    soon(async {
        // One kind of answer at one replica is asked for.
        while a.hits() < 2 {
            gateways[0].ask().await;
        }
    })
    .await;
    for gateway in &gateways {
        soon(async {
            while gateway.health().await.1["status"] != "ok" {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_replica_whose_key_is_another_one_is_not_told() {
    let (a, b) = (Provider::with_status(401).await, Provider::with_status(200).await);
    let hub = hub();
    let mut old = fleet(1, &hub, &config(&a, &b, "old")).await;
    old.extend(fleet(2, &hub, &config(&a, &b, "new")).await);
    assert!(old[1].ask().await.is_by(&b));
    until(|| old[2].own_breaker("a").snapshot().cause == Some(Cause::Cooldown)).await;
    assert_eq!(old[0].own_breaker("a").state(), CircuitState::Closed);
}

#[tokio::test]
async fn what_one_replica_finds_out_makes_one_failure_enough_for_the_others() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let gateways = fleet(3, &hub(), &config(&a, &b, "k")).await;
    for number in 0..3 {
        let body = format!(r#"{{"model":"m","n":{number}}}"#);
        assert!(gateways[0].post("/v1/chat/completions", &body).await.is_by(&b));
    }
    until(|| gateways[1..].iter().all(|it| it.breaker("a").failure_count() == 2)).await;
    for gateway in &gateways[1..] {
        assert!(gateway.ask().await.is_by(&b));
        assert_eq!(gateway.breaker("a").state(), CircuitState::Open);
    }
    assert_eq!(a.hits(), 5);
}

#[tokio::test]
async fn health_and_metrics_tell_of_the_fleet() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let hub = hub();
    let mut gateways = fleet(2, &hub, &config(&a, &b, "k")).await;
    for number in 0..3 {
        gateways[0].post("/v1/chat/completions", &format!(r#"{{"model":"m","n":{number}}}"#)).await;
    }
    until(|| gateways[1].breaker("a").failure_count() == 2).await;
    let page = gateways[1].metrics().await;
    for line in [
        "fusebox_fleet_up 1",
        "fusebox_fleet_heard_total{kind=\"open\"} 1",
        "fusebox_fleet_openers{provider=\"a\",model=\"m\",answer=\"whole\"} 1",
        "fusebox_fleet_suspicions_total 1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in:\n{page}");
    }
    assert!(!page.contains('#') || page.lines().filter(|line| !line.starts_with('#')).all(|line| !line.contains('#')));
    hub.stop();
    says(&gateways[1], |fleet| *fleet == json!({"up": false, "replicas": 0})).await;
    let alone = Gateway::from_config(&config(&a, &b, "k")).await;
    assert!(alone.health().await.1.get("fleet").is_none());
}

#[tokio::test]
async fn a_reload_goes_on_with_the_circuits_that_are_left() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let mut config = config(&a, &b, "k");
    let gateways = fleet(2, &hub(), &config).await;
    config.providers.reverse();
    config.fleet = None;
    gateways[1].state.reload(&config).unwrap();
    for number in 0..3 {
        gateways[0].post("/v1/chat/completions", &format!(r#"{{"model":"m","n":{number}}}"#)).await;
    }
    until(|| gateways[1].breaker("a").failure_count() == 2).await;
}

#[test]
fn each_setting_says_what_is_wrong_with_it() {
    let mistakes = |fleet: &str| {
        let text = format!("[fleet]\n{fleet}\n[[providers]]\nname = 'a'\nurl = 'http://a'\nmodels = ['m']");
        match GatewayConfig::from_toml(&text) {
            Ok(_) => String::new(),
            Err(errors) => errors.to_string(),
        }
    };
    let url = "url = 'redis://127.0.0.1:6379'\n";
    assert_eq!(mistakes(url), "");
    assert_eq!(mistakes("url = 'rediss://redis.example/1'\nmode = 'quorum'\nquorum = 5\ndeliberate = '100ms'"), "");
    for (fleet, mistake) in [
        ("", r#"fleet.url is missing, expected the URL of a Redis, such as "redis://redis.example:6379/0""#),
        ("url = 'http://r'", r#"fleet.url is "http://r", expected the URL of a Redis"#),
        ("url = 'redis://u:secret@r'", "fleet.url is a URL with credentials, expected one without; they belong into"),
        (&format!("{url}group = 'a b'"), r#"fleet.group is "a b", expected 1 to 64 letters, digits, "-", "_" or ".""#),
        (&format!("{url}mode = 'vote'"), r#"fleet.mode is "vote", expected "hint" or "quorum""#),
        (&format!("{url}quorum = 1"), "fleet.quorum is 1, expected a whole number, 2 to 1000"),
        (&format!("{url}deliberate = '2s'"), r#"fleet.deliberate is "2s", expected "auto", or a duration from 1ms"#),
        (&format!("{url}timeout = '0s'"), "fleet.timeout is 0s, expected 1ms to 10s"),
        (&format!("{url}lease = '5ms'"), "fleet.lease is 5ms, expected 1s to 1h"),
        (&format!("{url}sync = '1ms'"), "fleet.sync is 1ms, expected 100ms to 1m"),
        (&format!("{url}share_account = 1"), "fleet.share_account is 1"),
        (&format!("{url}ca_file = '/nowhere.pem'"), r#"fleet.ca_file is "/nowhere.pem", which cannot be read"#),
        (&format!("{url}retry = 1"), "fleet.retry is unknown, expected one of url, username, password, ca_file, group"),
    ] {
        let found = mistakes(fleet);
        assert!(found.contains(mistake) && !found.contains("secret"), "{fleet}\n{found}");
    }
}
