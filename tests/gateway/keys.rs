//! Several keys of one provider: used in turn, and each judged for itself.

use fusebox::proxy::{CircuitState, GatewayConfig};
use http::Response;

use crate::support::{CHAT, Gateway, Provider, another, answer, until};

/// `a` has three keys, and `b` one. Both serve `m` and `n`.
async fn gateway(a: &Provider, b: &Provider, rest: &str) -> Gateway {
    let text = format!(
        "{rest}\n[[providers]]\nname = 'a'\nurl = 'http://{}/v1'\napi_keys = ['key-number-one', 'key-number-two', \
         'key-number-three']\nmodels = ['m', 'n']\n\
         [[providers]]\nname = 'b'\nurl = 'http://{}/v1'\napi_key = 'key-of-b'\nmodels = ['m', 'n']\n",
        a.address, b.address
    );
    Gateway::from_config(&GatewayConfig::from_toml(&text).unwrap()).await
}

/// A provider whose answer depends on the key and the body.
async fn by_key(script: impl Fn(&str, &str) -> Response<axum::body::Body> + Send + Sync + 'static) -> Provider {
    Provider::seeing(move |seen| {
        let key = seen.headers["authorization"].to_str().unwrap().to_owned();
        script(key.strip_prefix("Bearer key-number-").unwrap(), std::str::from_utf8(&seen.body).unwrap())
    })
    .await
}

fn asked_with(provider: &Provider) -> Vec<String> {
    let keys = provider.all().into_iter().map(|seen| seen.headers["authorization"].to_str().unwrap().to_owned());
    keys.map(|key| key.strip_prefix("Bearer key-number-").unwrap().to_owned()).collect()
}

#[tokio::test]
async fn keys_are_used_in_turn() {
    let (a, b) = (by_key(|_, _| answer(200)).await, Provider::with_status(200).await);
    let gateway = gateway(&a, &b, "").await;
    for _ in 0..6 {
        assert_eq!(gateway.ask().await.status, 200);
    }
    assert_eq!(asked_with(&a), ["one", "two", "three", "one", "two", "three"]);
}

#[tokio::test]
async fn a_refused_key_is_out_and_the_request_is_sent_with_another_one() {
    let a = by_key(|key, _| answer(if key == "two" { 401 } else { 200 })).await;
    let b = Provider::with_status(200).await;
    let mut gateway = gateway(&a, &b, "").await;
    for _ in 0..6 {
        assert!(gateway.ask().await.is_by(&a));
    }
    let keys = asked_with(&a);
    assert_eq!(keys.iter().filter(|key| *key == "two").count(), 1, "{keys:?}");
    assert_eq!((keys.len(), b.hits()), (7, 0));
    assert_eq!(gateway.own_breaker("a").state(), CircuitState::Closed);
    let (_, health) = gateway.health().await;
    let a = &health["providers"]["a"];
    assert_eq!((&a["keys"]["2"]["error"], &a["key"]), (&"key_refused".into(), &serde_json::Value::Null), "{a}");
    assert!(gateway.metrics().await.contains("fusebox_key_out{provider=\"a\"} 1\n"));
    let text = gateway.log(6).await.iter().map(ToString::to_string).collect::<String>() + &health.to_string();
    assert!(!text.contains("key-number"), "{text}");
}

#[tokio::test]
async fn a_provider_is_out_when_all_its_keys_are() {
    let (a, b) = (by_key(|_, _| answer(403)).await, Provider::with_status(200).await);
    let mut gateway = gateway(&a, &b, "").await;
    for _ in 0..3 {
        assert!(gateway.post("/v1/chat/completions", &another(CHAT)).await.is_by(&b));
    }
    assert_eq!(asked_with(&a), ["one", "two", "three"], "the first request tries each, and then nobody is asked");
    assert_eq!(gateway.own_breaker("a").state(), CircuitState::Open);
    assert!(gateway.metrics().await.contains("fusebox_key_out{provider=\"a\"} 3\n"));
}

#[tokio::test]
async fn a_key_is_back_after_its_time_by_one_probe() {
    let a = by_key(|key, _| answer(if key == "one" { 402 } else { 200 })).await;
    let b = Provider::with_status(200).await;
    let gateway = gateway(&a, &b, "[cooldown]\nkey_cooldown = '50ms'").await;
    let used = || asked_with(&a).iter().filter(|key| *key == "one").count();
    gateway.ask().await;
    assert_eq!(used(), 1);
    crate::support::soon(async {
        while used() < 2 {
            assert!(gateway.ask().await.is_by(&a));
        }
    })
    .await;
    assert_eq!(b.hits(), 0);
}

#[tokio::test]
async fn a_rate_limit_of_one_key_lets_that_key_rest_for_the_model() {
    let a = by_key(|key, body| {
        let mut limited = answer(429);
        limited.headers_mut().insert("retry-after", "60".parse().unwrap());
        if key != "three" && body.contains("\"m\"") { limited } else { answer(200) }
    })
    .await;
    let b = Provider::with_status(200).await;
    let gateway = gateway(&a, &b, "").await;
    for _ in 0..4 {
        assert!(gateway.ask().await.is_by(&a));
    }
    assert_eq!(asked_with(&a), ["one", "two", "three", "three", "three", "three"]);
    for _ in 0..3 {
        assert!(gateway.post("/v1/chat/completions", &CHAT.replace("\"m\"", "\"n\"")).await.is_by(&a));
    }
    let others = &asked_with(&a)[6..];
    assert!(others.contains(&"one".to_owned()) && others.contains(&"two".to_owned()), "{others:?}");
}

#[tokio::test]
async fn a_model_is_out_when_all_keys_rest_for_it_until_the_first_is_back() {
    let a = by_key(|key, _| {
        let mut limited = answer(429);
        let after = if key == "two" { "7" } else { "60" };
        limited.headers_mut().insert("retry-after", after.parse().unwrap());
        limited
    })
    .await;
    let b = Provider::with_status(200).await;
    let gateway = gateway(&a, &b, "").await;
    assert!(gateway.ask().await.is_by(&b));
    assert_eq!(asked_with(&a), ["one", "two", "three"]);
    let left = gateway.breaker("a").snapshot().next_probe_in.unwrap().as_secs_f64();
    assert!((5.0..=7.0).contains(&left), "{left}");
    assert!(gateway.ask().await.is_by(&b));
    assert_eq!(a.hits(), 3);
}

#[tokio::test]
async fn a_body_that_can_be_sent_once_is_not_sent_with_another_key() {
    let (a, b) = (by_key(|_, _| answer(401)).await, Provider::with_status(200).await);
    let gateway = gateway(&a, &b, "[server]\nreplay_body_bytes = 1024").await;
    let long = format!("{{\"model\": \"m\", \"x\": \"{}\"}}", "x".repeat(100_000));
    assert_eq!(gateway.post("/v1/chat/completions", &long).await.status, 401);
    assert_eq!((a.hits(), b.hits()), (1, 0));
}

#[tokio::test]
async fn a_reload_brings_all_keys_back() {
    let (a, b) = (by_key(|_, _| answer(401)).await, Provider::with_status(200).await);
    let gateway = gateway(&a, &b, "").await;
    gateway.ask().await;
    assert_eq!(a.hits(), 3);
    let text = format!(
        "[[providers]]\nname = 'a'\nurl = 'http://{}/v1'\napi_keys = ['key-number-four', 'key-number-five']\nmodels = ['m']",
        a.address
    );
    gateway.state.reload(&GatewayConfig::from_toml(&text).unwrap()).unwrap();
    gateway.ask().await;
    until(|| a.hits() == 5).await;
    assert_eq!(asked_with(&a)[3..], ["four", "five"]);
}

#[test]
fn keys_that_are_wrong_are_told_before_a_port_is_bound() {
    let mistake = |keys: &str| {
        let text = format!("[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:1/v1'\nmodels = ['m']\n{keys}");
        GatewayConfig::from_toml(&text).unwrap_err().to_string()
    };
    assert_eq!(
        mistake("api_key = 'k1'\napi_keys = ['k2']"),
        "line 6: providers[0].api_keys is set, expected one of api_key and api_keys"
    );
    assert_eq!(
        mistake("api_keys = ['secret', 'other', 'secret']"),
        "line 5: providers[0].api_keys[2] is there twice, expected each key once"
    );
    assert!(mistake("api_keys = ['']").contains("providers[0].api_keys[0] is empty"));
    assert!(mistake("api_keys = 'k'").contains("providers[0].api_keys is"));
    let shown = "[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:1/v1'\nmodels = ['m']\napi_keys = ['k1', 'k2']";
    let shown = GatewayConfig::from_toml(shown).unwrap().to_string();
    assert!(shown.contains("  api_key    2 of them, used in turn\n"), "{shown}");
}
