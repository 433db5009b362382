//! Whose fault a failure is, and what follows: for one model, one kind of answer, a key, a provider, or nobody.

use std::fmt::Write;

use axum::body::Body;
use fusebox::proxy::GatewayConfig;
use http::Response;
use serde_json::{Value, json};

use crate::support::{Answer, CHAT, Gateway, Provider, another, answer, one_by_one};

const OTHER: &str = r#"{"model": "n"}"#;
const STREAM: &str = r#"{"model": "m", "stream": true}"#;
const GOOD_STREAM: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\ndata: [DONE]\n\n";

/// Both providers serve the models `m` and `n`.
async fn two_models(providers: &[&Provider], settings: &str) -> Gateway {
    let mut text = settings.to_owned() + "\n";
    for (name, provider) in ["a", "b"].iter().zip(providers) {
        let (address, models) = (provider.address, "models = ['m', 'n']\napi_key = 'the-gateways-key'");
        writeln!(text, "[[providers]]\nname = '{name}'\nurl = 'http://{address}/v1'\n{models}").unwrap();
    }
    Gateway::from_config(&GatewayConfig::from_toml(&text).unwrap()).await
}

async fn ask(gateway: &Gateway, body: &str) -> Answer {
    gateway.post("/v1/chat/completions", &another(body)).await
}

/// Fails for requests whose body has this text, and answers all others.
async fn failing_for(text: &'static str, status: u16) -> Provider {
    Provider::judging(move |body| answer(if body.contains(text) { status } else { 200 })).await
}

fn with(status: u16, headers: &[(&str, &str)], body: &'static str) -> Response<Body> {
    let mut response = Response::builder().status(status).header("content-type", "application/json");
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Body::from(body)).unwrap()
}

// ---- models and kinds of answers ----

#[tokio::test]
async fn failures_of_one_model_refuse_no_other_model() {
    let (a, b) = (failing_for("\"m\"", 500).await, Provider::with_status(200).await);
    let gateway = two_models(&[&a, &b], "").await;
    for _ in 0..5 {
        assert!(ask(&gateway, CHAT).await.is_by(&b));
    }
    assert_eq!(a.hits(), 3, "its circuit is open");
    assert!(ask(&gateway, OTHER).await.is_by(&a));
    let (status, health) = gateway.health().await;
    let of_a = &health["providers"]["a"];
    assert_eq!((status, &health["status"], &of_a["state"]), (200, &json!("degraded"), &json!("closed")), "{health}");
    let shown = &of_a["models"]["m"]["whole"];
    assert_eq!(
        (&shown["state"], &shown["cause"], &shown["error"]),
        (&json!("open"), &json!("failures"), &json!("5xx"))
    );
    assert!(of_a["models"].get("n").is_none(), "{health}");
}

#[tokio::test]
async fn a_model_that_hangs_is_noticed_while_another_one_answers() {
    let (a, gate) = Provider::gated_for("\"m\"").await;
    let b = Provider::with_status(200).await;
    let gateway = two_models(&[&a, &b], "[timeouts]\ntotal = '100ms'\n[silence]\nenabled = false").await;
    gate.send_replace(false);
    for _ in 0..5 {
        assert!(ask(&gateway, CHAT).await.is_by(&b));
        assert!(ask(&gateway, OTHER).await.is_by(&a));
    }
    assert_eq!(a.hits(), 3 + 5, "three of the model that hangs");
}

#[tokio::test]
async fn streams_that_are_cut_refuse_no_whole_answers_and_the_next_provider_gets_the_streams() {
    let a = Provider::judging(|body| {
        if !body.contains("stream") {
            return answer(200);
        }
        let broken = GOOD_STREAM.replace("[DONE]", "{\"error\":{\"message\":\"it broke\"}}");
        Response::builder().header("content-type", "text/event-stream").body(broken.into()).unwrap()
    })
    .await;
    let b = Provider::start(|_| {
        Response::builder().header("content-type", "text/event-stream").body(GOOD_STREAM.into()).unwrap()
    })
    .await;
    let gateway = two_models(&[&a, &b], "").await;
    for n in 0..6 {
        let by_b = ask(&gateway, STREAM).await.is_by(&b);
        assert_eq!(by_b, n >= 3, "{n}");
        assert!(ask(&gateway, CHAT).await.is_by(&a));
    }
}

#[tokio::test]
async fn a_provider_opens_when_several_of_its_models_fail_and_none_succeeds() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let gateway = two_models(&[&a, &b], "").await;
    for body in [CHAT, STREAM, CHAT, STREAM, CHAT] {
        ask(&gateway, body).await;
    }
    assert_eq!(gateway.own_breaker("a").trip_count(), 0, "one model alone never opens it, however it is to answer");
    ask(&gateway, OTHER).await;
    assert_eq!(gateway.own_breaker("a").trip_count(), 1);
    assert!(ask(&gateway, STREAM).await.is_by(&b), "nothing of it is asked");
    assert_eq!(a.hits(), 6);
}

#[tokio::test]
async fn a_success_of_any_model_ends_the_row_of_its_provider() {
    let (a, b) = (failing_for("\"m\"", 500).await, Provider::with_status(200).await);
    let gateway = two_models(&[&a, &b], "[breaker]\nfailure_threshold = 2").await;
    ask(&gateway, CHAT).await;
    assert_eq!(gateway.own_breaker("a").failure_count(), 1);
    ask(&gateway, OTHER).await;
    assert_eq!((gateway.own_breaker("a").failure_count(), gateway.breaker("a").failure_count()), (0, 1));
}

#[tokio::test]
async fn a_provider_that_cannot_be_reached_opens_for_all_models() {
    // Bound, so that nobody else gets the port, and not listening.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let a = closed.local_addr().unwrap();
    let b = Provider::with_status(200).await;
    let text = |name: &str, address| {
        format!("[[providers]]\nname = '{name}'\nurl = 'http://{address}/v1'\nmodels = ['m', 'n']\n")
    };
    let text = text("a", a) + &text("b", b.address);
    let gateway = Gateway::from_config(&GatewayConfig::from_toml(&text).unwrap()).await;
    for _ in 0..3 {
        assert!(gateway.post("/v1/chat/completions", CHAT).await.is_by(&b), "whatever was asked, and even if twice");
    }
    assert_eq!((gateway.own_breaker("a").trip_count(), gateway.breaker("a").failure_count()), (1, 0));
    let answer = ask(&gateway, OTHER).await;
    assert_eq!(answer.header("x-fusebox-attempts"), "1");
    assert_eq!(gateway.log(4).await[0]["attempts"][0]["scope"], "provider");
}

// ---- later ----

#[tokio::test]
async fn a_provider_that_says_later_is_asked_later_and_then_by_one_probe() {
    for (status, name, value) in [
        (429, "retry-after", "1"),
        (503, "retry-after", "0.5"),
        (529, "retry-after-ms", "200"),
        (429, "x-ratelimit-reset-requests", "300ms"),
    ] {
        let a = Provider::start(move |n| if n == 0 { with(status, &[(name, value)], "{}") } else { answer(200) }).await;
        let b = Provider::with_status(200).await;
        let gateway = Gateway::start(&[&a, &b], "", "", "").await;
        assert!(gateway.ask().await.is_by(&b));
        assert!(gateway.ask().await.is_by(&b) && a.hits() == 1, "{status} {name}");
        assert!(ask(&gateway, STREAM).await.is_by(&b), "it is the model's, not that kind of answer's");
        assert_eq!((gateway.failures_of("a"), gateway.own_breaker("a").trip_count()), (0, 0));
        let health = gateway.health().await.1;
        assert_eq!(health["providers"]["a"]["models"]["m"]["whole"]["cause"], "cooldown", "{health}");
        gateway.reopens("a").await;
        assert!(gateway.ask().await.is_by(&a));
        let log = gateway.log(4).await;
        assert_eq!((&log[0]["attempts"][0]["scope"], &log[0]["blamed"]), (&json!("model"), &json!([])));
    }
}

#[tokio::test]
async fn a_rate_limit_inside_a_200_is_one() {
    let a =
        Provider::start(|_| with(200, &[("retry-after", "30")], r#"{"error":{"code":"rate_limit_exceeded"}}"#)).await;
    let b = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    for _ in 0..3 {
        assert!(gateway.ask().await.is_by(&b));
    }
    assert_eq!(a.hits(), 1);
}

#[tokio::test]
async fn a_good_answer_that_uses_up_a_limit_takes_the_model_out_before_the_first_429() {
    let used_up = [("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "1m0s")];
    let a = Provider::start(move |_| with(200, &used_up, "{\"x\":1}")).await;
    let b = Provider::with_status(200).await;
    let gateway = two_models(&[&a, &b], "").await;
    assert!(ask(&gateway, CHAT).await.is_by(&a));
    assert!(ask(&gateway, CHAT).await.is_by(&b) && a.hits() == 1);
    assert!(ask(&gateway, OTHER).await.is_by(&a), "another model has its own limits");
}

#[tokio::test]
async fn a_cooldown_is_no_longer_than_its_maximum_and_one_without_an_end_has_the_default() {
    for (value, seconds) in [("100000", 299..=300), ("soon", 4..=5)] {
        let a = Provider::start(move |_| with(429, &[("retry-after", value)], "{}")).await;
        let gateway = Gateway::start(&[&a], "", "", "").await;
        gateway.ask().await;
        let left = gateway.breaker("a").snapshot().next_probe_in.unwrap().as_millis().div_ceil(1000);
        assert!(seconds.contains(&left), "{value} {left}");
    }
}

#[tokio::test]
async fn a_client_is_told_the_soonest_time_of_all_providers() {
    for (a, b, expected) in [(60, 5, 5), (5, 60, 5)] {
        let later =
            |seconds: u32| Provider::start(move |_| with(429, &[("retry-after", seconds.to_string().as_str())], "{}"));
        let (a, b) = (later(a).await, later(b).await);
        let gateway = Gateway::start(&[&a, &b], "", "", "").await;
        let first = gateway.ask().await;
        assert_eq!((first.status, first.header("retry-after")), (429, &*expected.to_string()));
        let second = gateway.ask().await;
        assert_eq!((second.status, second.header("retry-after")), (503, &*expected.to_string()));
        assert_eq!((a.hits(), b.hits()), (1, 1));
    }
}

#[tokio::test]
async fn milliseconds_that_one_provider_told_do_not_reach_the_client() {
    let a = Provider::start(|_| with(429, &[("retry-after-ms", "60000"), ("retry-after", "60")], "{}")).await;
    let b = Provider::start(|_| with(429, &[("retry-after-ms", "2000"), ("retry-after", "2")], "{}")).await;
    let gateway = Gateway::start(&[&b, &a], "", "", "").await;
    let answer = gateway.ask().await;
    assert_eq!((answer.header("retry-after"), answer.headers.get("retry-after-ms")), ("2", None));
}

// ---- keys ----

#[tokio::test]
async fn a_refused_key_or_an_empty_account_takes_all_models_out_at_once() {
    let quota = r#"{"error":{"code":"insufficient_quota","type":"insufficient_quota"}}"#;
    let credit =
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low"}}"#;
    for (status, body, outcome) in [
        (401, "{}", "key_refused"),
        (403, "{}", "key_refused"),
        (402, "{}", "no_credit"),
        (429, quota, "no_credit"),
        (400, credit, "no_credit"),
        (200, quota, "no_credit"),
    ] {
        let (a, b) = (Provider::start(move |_| with(status, &[], body)).await, Provider::with_status(200).await);
        let mut gateway = two_models(&[&a, &b], "").await;
        assert!(ask(&gateway, CHAT).await.is_by(&b), "{status}: its first client fails over all the same");
        assert!(ask(&gateway, OTHER).await.is_by(&b) && ask(&gateway, CHAT).await.is_by(&b));
        assert_eq!(a.hits(), 1, "{status}");
        let health = gateway.health().await.1;
        let key = &health["providers"]["a"]["key"];
        assert_eq!(key["error"], outcome, "{health}");
        assert!((290_000..=300_000).contains(&key["retry_in_ms"].as_u64().unwrap()), "{health}");
        let log = gateway.log(3).await;
        let attempt = &log[0]["attempts"][0];
        assert_eq!((&attempt["outcome"], &attempt["scope"]), (&json!(outcome), &json!("key")));
        let metrics = gateway.metrics().await;
        assert!(metrics.contains("fusebox_key_out{provider=\"a\"} 1\n"), "{metrics}");
        assert!(metrics.contains("fusebox_key_out{provider=\"b\"} 0\n"), "{metrics}");
    }
}

#[tokio::test]
async fn a_key_is_back_by_its_probe_or_by_a_reload() {
    let script = |n| answer(if n < 2 { 401 } else { 200 });
    let (a, b) = (Provider::start(script).await, Provider::with_status(200).await);
    let settings = "[cooldown]\nkey_cooldown = '100ms'";
    let gateway = two_models(&[&a, &b], settings).await;
    ask(&gateway, CHAT).await;
    gateway.reopens("a").await;
    assert!(ask(&gateway, CHAT).await.is_by(&b), "the probe is refused");
    gateway.reopens("a").await;
    assert!(ask(&gateway, CHAT).await.is_by(&a));

    let (a, b) =
        (Provider::start(move |n| answer(if n < 1 { 401 } else { 200 })).await, Provider::with_status(200).await);
    let gateway = two_models(&[&a, &b], "").await;
    ask(&gateway, CHAT).await;
    assert!(ask(&gateway, CHAT).await.is_by(&b));
    let text = |name: &str, provider: &Provider| {
        format!(
            "[[providers]]\nname = '{name}'\nurl = 'http://{}/v1'\nmodels = ['m', 'n']\napi_key = 'another'\n",
            provider.address
        )
    };
    gateway.state.reload(&GatewayConfig::from_toml(&(text("a", &a) + &text("b", &b))).unwrap()).unwrap();
    assert!(ask(&gateway, CHAT).await.is_by(&a));
}

// ---- nobody ----

#[tokio::test]
async fn what_a_provider_does_not_have_blames_nobody_and_the_next_one_is_asked() {
    for status in [404, 405, 501, 408] {
        let (a, b) = (Provider::with_status(status).await, Provider::with_status(200).await);
        let gateway = Gateway::start(&[&a, &b], "", "", "").await;
        for _ in 0..6 {
            assert!(gateway.ask().await.is_by(&b), "{status}");
        }
        assert_eq!((a.hits(), gateway.trips("a")), (6, 0), "{status}");
    }
}

#[tokio::test]
async fn a_redirect_is_never_passed_on_and_the_next_provider_is_asked() {
    for status in [300, 301, 302, 303, 304, 307, 308] {
        let redirect = move |_| with(status, &[("location", "http://elsewhere.example/v1")], "");
        let (a, b) = (Provider::start(redirect).await, Provider::with_status(200).await);
        let gateway = Gateway::start(&[&a, &b], "", "", "").await;
        assert!(gateway.ask().await.is_by(&b), "{status}");
        let gateway = Gateway::start(&[&a], "", "", "").await;
        let answer = gateway.ask().await;
        assert_eq!((answer.status, answer.headers.get("location")), (502, None), "{status}");
        assert_eq!(gateway.trips("a"), 0);
        assert_eq!(gateway.log(1).await[0]["attempts"][0]["outcome"], "redirected");
    }
}

#[tokio::test]
async fn a_model_that_a_provider_does_not_know_is_out_there_and_no_other_one() {
    let unknown = r#"{"error":{"message":"The model `m` does not exist","code":"model_not_found"}}"#;
    let a =
        Provider::judging(move |body| if body.contains("\"m\"") { with(404, &[], unknown) } else { answer(200) }).await;
    let b = Provider::with_status(200).await;
    let gateway = two_models(&[&a, &b], "").await;
    for _ in 0..3 {
        assert!(ask(&gateway, CHAT).await.is_by(&b) && ask(&gateway, OTHER).await.is_by(&a));
    }
    assert_eq!(a.hits(), 1 + 3);
}

#[tokio::test]
async fn a_context_that_is_too_long_goes_to_a_provider_with_more_room_if_there_is_one() {
    let too_long = r#"{"error":{"code":"context_length_exceeded","message":"too long"}}"#;
    let a = Provider::start(move |_| with(400, &[], too_long)).await;
    let (b, c) = (Provider::with_status(200).await, Provider::with_status(200).await);
    let gateway = Gateway::start(&[&a, &b, &c], "", "", "").await;
    let answer = gateway.ask().await;
    assert_eq!((answer.status, answer.header("x-fusebox-provider")), (400, "a"), "none is named");
    let gateway = Gateway::start(&[&a, &b, &c], "", "[failover]\nfallback_on_context_length = ['c']", "").await;
    assert!(gateway.ask().await.is_by(&c));
    let d = Provider::with_status(500).await;
    let gateway = Gateway::start(&[&a, &d], "", "[failover]\nfallback_on_context_length = ['b']", "").await;
    assert_eq!(gateway.ask().await.status, 400, "it says more than the failure of the other one");
    assert_eq!(gateway.trips("a"), 0);
}

#[tokio::test]
async fn a_request_that_fails_everywhere_opens_no_circuit_however_often_it_is_sent() {
    let poison = |body: &str| answer(if body.contains("poison") { 500 } else { 200 });
    let (a, b) = (Provider::judging(poison).await, Provider::judging(poison).await);
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    let body = r#"{"model": "m", "messages": "poison"}"#;
    for _ in 0..9 {
        assert_eq!(gateway.post("/v1/chat/completions", body).await.status, 500);
    }
    assert_eq!([gateway.failures_of("a"), gateway.failures_of("b")], [1, 1]);
    assert!(gateway.ask().await.is_by(&a), "the next request is not refused");
}

// ---- nobody else to ask ----

#[tokio::test]
async fn a_request_that_has_nobody_else_to_ask_is_the_probe_early() {
    let a = Provider::start(|n| answer(if n < 3 { 500 } else { 200 })).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    for _ in 0..3 {
        assert_eq!(gateway.ask().await.status, 500);
    }
    let refused = gateway.ask().await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"), "the circuit has just opened");
    assert!(gateway.breaker("a").snapshot().next_probe_in.unwrap().as_secs() > 25);
    gateway
        .until(|gateway| gateway.breaker("a").early_probe_in(std::time::Duration::from_secs(1)).unwrap().is_zero())
        .await;
    assert_eq!(gateway.ask().await.status, 200);
    gateway.reaches("a", "closed").await;
}

#[tokio::test]
async fn neither_a_cooldown_nor_a_key_is_probed_early() {
    for status in [429, 401] {
        let a = Provider::start(move |_| with(status, &[("retry-after", "20")], "{}")).await;
        let gateway = Gateway::start(&[&a], "", "", "").await;
        gateway.ask().await;
        for circuit in [gateway.breaker("a"), gateway.own_breaker("a")] {
            if circuit.snapshot().cause.is_some() {
                assert!(circuit.early_probe_in(std::time::Duration::from_secs(1)).unwrap().as_secs() >= 19, "{status}");
            }
        }
        let refused = gateway.ask().await;
        assert_eq!(refused.status, 503);
        let after: u64 = refused.header("retry-after").parse().unwrap();
        assert!(after == if status == 429 { 20 } else { 300 }, "{status} {after}");
        assert_eq!(a.hits(), 1);
    }
}

#[tokio::test]
async fn a_request_is_sent_no_more_often_than_allowed() {
    let providers =
        [Provider::with_status(500).await, Provider::with_status(503).await, Provider::with_status(200).await];
    let gateway = Gateway::start(&providers.each_ref(), "", "[failover]\nmax_attempts = 2", "").await;
    let answer = gateway.ask().await;
    assert_eq!((answer.status, answer.header("x-fusebox-attempts")), (503, "2"));
    assert_eq!(providers[2].hits(), 0);
}

// ---- what is told ----

#[tokio::test]
async fn metrics_show_the_circuit_of_a_model_once_it_has_something_to_tell() {
    let a = failing_for("\"m\"", 500).await;
    let mut gateway = two_models(&[&a], "").await;
    for _ in 0..3 {
        ask(&gateway, CHAT).await;
        ask(&gateway, OTHER).await;
    }
    let metrics = gateway.metrics().await;
    for line in [
        "fusebox_circuit_state{provider=\"a\",state=\"closed\"} 1",
        "fusebox_circuit_state{provider=\"a\",model=\"m\",answer=\"whole\",state=\"open\"} 1",
        "fusebox_circuit_open_cause{provider=\"a\",model=\"m\",answer=\"whole\",cause=\"failures\"} 1",
        "fusebox_circuit_trips_total{provider=\"a\",model=\"m\",answer=\"whole\"} 1",
    ] {
        assert!(metrics.contains(&format!("{line}\n")), "{line}\n{metrics}");
    }
    assert!(!metrics.contains("model=\"n\",answer"), "{metrics}");
}

#[tokio::test]
async fn what_an_error_says_of_the_gateways_account_does_not_reach_the_client() {
    let said = r#"{"error":{"message":"Incorrect API key provided: the-gateways-key","code":"invalid_api_key"}}"#;
    let gateway = {
        let a = Provider::start(one_by_one(vec![with(401, &[], said)])).await;
        two_models(&[&a], "").await
    };
    let answer = ask(&gateway, CHAT).await;
    assert_eq!(answer.status, 401);
    let body: Value = answer.json();
    assert_eq!(body["error"]["code"], "provider_refused", "{body}");
}
