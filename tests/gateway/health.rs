//! `/health`.

use serde_json::{Value, json};

use crate::support::{Gateway, Provider, answer, soon};

const ONCE: &str = "failure_threshold = 1\nopen_for = '1h'";

#[tokio::test]
async fn health_is_ok_degraded_or_unhealthy_by_the_circuits() {
    let (a, b) = (Provider::with_status(200).await, Provider::with_status(200).await);
    let gateway = Gateway::start(&[&a, &b], "", ONCE, "").await;
    let closed = json!({"state": "closed", "failure_count": 0});
    let open = |health: &(u16, Value), name: &str| {
        let shown = &health.1["providers"][name];
        assert!((3_590_000..=3_600_000).contains(&shown["retry_in_ms"].as_u64().unwrap()), "{shown}");
        json!({
            "state": "open", "failure_count": 1, "cause": "failures", "error": "test",
            "retry_in_ms": shown["retry_in_ms"],
        })
    };
    let breakers = &gateway.state.circuit_breakers;

    let expected = json!({"status": "ok", "providers": {"a": closed, "b": closed}});
    assert_eq!(gateway.health().await, (200, expected));
    breakers.record_failure("a", "test", "");
    let health = gateway.health().await;
    let expected = json!({"status": "degraded", "providers": {"a": open(&health, "a"), "b": closed}});
    assert_eq!(health, (200, expected));
    breakers.record_failure("b", "test", "");
    let health = gateway.health().await;
    let both = json!({"a": open(&health, "a"), "b": open(&health, "b")});
    let expected = json!({"status": "unhealthy", "providers": both});
    assert_eq!(health, (503, expected));
}

#[tokio::test]
async fn without_providers_health_is_ok() {
    let gateway = Gateway::start(&[], "", "", "").await;
    assert_eq!(gateway.health().await, (200, json!({"status": "ok", "providers": {}})));
}

#[tokio::test]
async fn a_circuit_whose_open_time_has_passed_is_degraded_so_that_load_balancers_send_the_probe() {
    let a = Provider::with_status(500).await;
    let gateway = Gateway::start(&[&a], "", "failure_threshold = 1\nopen_for = '1ms'", "").await;
    gateway.ask().await;
    gateway.reopens("a").await;
    let (status, health) = gateway.health().await;
    assert_eq!((status, &health["status"]), (200, &json!("degraded")));
    assert_eq!(health["providers"]["a"]["state"], "half_open");
}

#[tokio::test]
async fn the_operators_port_has_health_and_metrics_and_nothing_else() {
    let a = Provider::with_status(200).await;
    let mut gateway = Gateway::start(&[&a], "", "", "").await;
    gateway.address = gateway.admin;
    assert_eq!(gateway.health().await.0, 200);
    assert_eq!((gateway.ask().await.status, a.hits()), (404, 0));
}

#[tokio::test]
async fn ready_answers_503_for_a_while_before_connections_are_refused() {
    let a = Provider::with_status(500).await;
    let mut gateway = Gateway::start(&[&a], "drain_delay = '200ms'", ONCE, "").await;
    gateway.ask().await;
    assert_eq!(gateway.get("/ready").await.status, 200, "circuits do not matter here");
    gateway.stop();
    soon(async { while gateway.get("/ready").await.status != 503 {} }).await;
    assert_eq!(gateway.ask().await.status, 503, "it still answers");
    gateway.server.await.unwrap();
}

#[tokio::test]
async fn a_provider_whose_every_answer_is_a_404_is_shown_with_a_hint_until_it_answers_otherwise() {
    let a = Provider::start(|n| answer(if n == 5 { 500 } else { 404 })).await;
    let b = Provider::start(|n| answer(if n == 0 { 200 } else { 404 })).await;
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    let hints = async || {
        let health = gateway.health().await.1;
        ["a", "b"].map(|name| health["providers"][name]["hint"].clone())
    };
    for asked in 1..=7 {
        gateway.ask().await;
        let hint = if (3..=5).contains(&asked) { json!("every answer is a 404: look at its url") } else { json!(null) };
        assert_eq!(hints().await, [hint, json!(null)], "{asked}");
    }
}
