//! How many requests a provider has at once, and what becomes of the others.

use serde_json::json;

use crate::support::{CHAT, Gateway, Provider, another, read, streamed};

const ONE: &str = "limits = { max_in_flight = 1 }";

#[tokio::test]
async fn what_is_over_the_limit_goes_to_the_next_provider_and_is_counted() {
    let ((a, gate), b) = (Provider::gated().await, Provider::with_status(200).await);
    let mut gateway = Gateway::start(&[&a, &b], "", "", ONE).await;
    gate.send_replace(false);
    let first = tokio::spawn(gateway.sending(gateway.request("/v1/chat/completions", &another(CHAT))));
    gateway.until(|_| a.hits() == 1).await;
    for _ in 0..3 {
        assert!(gateway.ask().await.is_by(&b));
    }
    let metrics = gateway.metrics().await;
    assert!(metrics.contains("fusebox_over_limit_total{provider=\"a\"} 3\n"), "{metrics}");
    gate.send_replace(true);
    assert!(read(first.await.unwrap()).await.is_by(&a));
    assert!(gateway.ask().await.is_by(&a), "the place is free again");
    assert_eq!((gateway.trips("a"), gateway.failures_of("a")), (0, 0));
}

#[tokio::test]
async fn a_request_waits_for_a_place_if_no_other_provider_has_one() {
    let (a, gate) = Provider::gated().await;
    let gateway = Gateway::start(&[&a], "", "", ONE).await;
    gate.send_replace(false);
    let send = || tokio::spawn(gateway.sending(gateway.request("/v1/chat/completions", &another(CHAT))));
    let (first, second) = (send(), send());
    gateway.until(|gateway| gateway.state.provider_stats("a").unwrap().in_flight == 1).await;
    gate.send_replace(true);
    for answer in [first, second] {
        assert_eq!(read(answer.await.unwrap()).await.status, 200);
    }
    assert_eq!(a.hits(), 2);
}

#[tokio::test]
async fn what_finds_no_place_in_time_or_too_many_waiting_gets_a_clear_503() {
    for limits in ["max_waiting = 0", "wait_limit = '10ms'"] {
        let (a, gate) = Provider::gated().await;
        let gateway = Gateway::start(&[&a], "", "", &format!("limits = {{ max_in_flight = 1, {limits} }}")).await;
        gate.send_replace(false);
        let first = tokio::spawn(gateway.sending(gateway.request("/v1/chat/completions", &another(CHAT))));
        gateway.until(|_| a.hits() == 1).await;
        let answer = gateway.ask().await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!("provider_busy")), "{limits}");
        assert_eq!((answer.header("retry-after"), a.hits()), ("1", 1));
        gate.send_replace(true);
        assert_eq!(read(first.await.unwrap()).await.status, 200);
    }
}

#[tokio::test]
async fn a_stream_keeps_its_place_until_it_ends_and_a_client_that_leaves_gives_it_back() {
    let (mut sender, response) = streamed();
    let (mut second, other) = streamed();
    let gateway =
        Gateway::answering(vec![response, other], "", "", "limits = { max_in_flight = 1, max_waiting = 0 }").await;
    let stream = gateway.begin_with(&mut sender, "data: 1\n\n").await;
    assert_eq!(gateway.ask().await.status, 503);
    drop(stream);
    gateway.log(2).await;
    let stream = gateway.begin_with(&mut second, "data: 1\n\n").await;
    assert_eq!(stream.status(), 200);
}
