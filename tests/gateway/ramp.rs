//! Providers that are just back, which are not hit by everybody at once.

use std::time::Duration;

use fusebox::proxy::GatewayConfig;
use futures_util::future::join_all;

use crate::support::{Gateway, Provider, answer, soon};

/// A provider that fails three times, and then is well.
async fn is_back_after_three() -> Provider {
    Provider::start(|n| answer(if n < 3 { 500 } else { 200 })).await
}

/// Asks until its circuit has opened, and on until its probe has succeeded.
async fn recover(gateway: &Gateway, a: &Provider) {
    soon(async {
        while a.hits() < 4 {
            gateway.ask().await;
        }
    })
    .await;
    gateway.reaches("a", "recovering").await;
}

#[tokio::test]
async fn while_a_provider_recovers_most_requests_go_to_the_next_one() {
    let (a, b) = (is_back_after_three().await, Provider::with_status(200).await);
    let gateway = Gateway::start(&[&a, &b], "", "open_for = '10ms'\nramp = '1h'\nramp_from = 1", "").await;
    recover(&gateway, &a).await;
    let before = (a.hits(), b.hits());
    for _ in 0..40 {
        assert_eq!(gateway.ask().await.status, 200);
    }
    let (by_a, by_b) = (a.hits() - before.0, b.hits() - before.1);
    assert_eq!(by_a + by_b, 40);
    // With 1% for each, seven of 40 are one case in a million.
    assert!(by_a < 7, "{by_a}");
    assert_eq!(gateway.health().await.1["providers"]["a"]["state"], "recovering");
}

#[tokio::test]
async fn a_request_that_has_no_other_provider_waits_for_its_turn() {
    let a = is_back_after_three().await;
    let gateway = Gateway::start(&[&a], "", "open_for = '10ms'\nramp = '300ms'\nramp_from = 1", "").await;
    recover(&gateway, &a).await;
    let answers = soon(join_all((0..40).map(|_| gateway.ask()))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    gateway.reaches("a", "closed").await;
    assert_eq!((a.hits(), gateway.trips("a")), (44, 1));
}

#[test]
fn replicas_of_a_fleet_have_a_ramp_unless_they_are_told_otherwise() {
    let ramp_of = |text: &str| {
        let provider = "[[providers]]\nname = 'a'\nurl = 'http://a'\nmodels = ['m']";
        let config = GatewayConfig::from_toml(&format!("{text}\n{provider}")).unwrap();
        let shown = config.to_string();
        (config.providers[0].breaker.ramp(), shown.contains("a ramp of"))
    };
    let fleet = "[fleet]\nurl = 'redis://127.0.0.1'\n";
    let seconds = Duration::from_secs;
    assert_eq!(ramp_of(""), (Duration::ZERO, false));
    assert_eq!(ramp_of("[breaker]\nramp = '7s'"), (seconds(7), true));
    assert_eq!(ramp_of(fleet), (seconds(5), true));
    assert_eq!(ramp_of(&format!("{fleet}[breaker]\nramp = '0s'")), (Duration::ZERO, false));
    assert_eq!(ramp_of(&format!("[breaker]\nramp = '3s'\n{fleet}")), (seconds(3), true));
}

#[test]
fn each_setting_of_a_ramp_says_what_is_wrong_with_it() {
    let mistake = |text: &str| GatewayConfig::from_toml(text).unwrap_err().to_string();
    let found = mistake("[breaker]\nramp = '25h'\nramp_from = 0");
    assert!(found.contains("breaker.ramp is 90000s, expected 0 (no ramp) to 24 h"), "{found}");
    assert!(found.contains("breaker.ramp_from is 0, expected 1 to 100 percent"), "{found}");
    let found = mistake("[[providers]]\nname = 'a'\nurl = 'http://a'\nmodels = ['m']\nbreaker = { ramp_from = 101 }");
    assert!(found.contains("providers[0].breaker.ramp_from is 101, expected "), "{found}");
}
