//! Another configuration while requests are under way.

use fusebox::proxy::GatewayConfig;
use serde_json::json;

use crate::support::{Gateway, Provider, TempFile, hang, one_by_one, streamed};

fn config(providers: &[(&str, &Provider)], breaker: &str) -> GatewayConfig {
    let provider = |(name, provider): &(&str, &Provider)| {
        let address = provider.address;
        format!("[[providers]]\nname = '{name}'\nurl = 'http://{address}/base/v1'\nmodels = ['m']\napi_key = 'k'\n")
    };
    let text = format!("[breaker]\n{breaker}\n") + &providers.iter().map(provider).collect::<String>();
    GatewayConfig::from_toml(&text).unwrap()
}

#[tokio::test]
async fn a_reload_adds_and_removes_providers_and_the_others_keep_their_breakers_state() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let mut gateway = Gateway::from_config(&config(&[("a", &a), ("b", &b)], "open_for = '1h'")).await;
    for _ in 0..3 {
        gateway.ask().await;
    }
    assert_eq!(gateway.state_of("a"), "open");

    let c = Provider::with_status(200).await;
    gateway.state.reload(&config(&[("a", &a), ("c", &c)], "open_for = '1h'")).unwrap();
    assert!(gateway.ask().await.is_by(&c));
    assert_eq!((gateway.state_of("a").as_str(), a.hits()), ("open", 3));
    assert_eq!(gateway.state.circuit_breakers.state("b"), None, "it is gone");
    let metrics = gateway.metrics().await;
    assert!(
        metrics.contains("outcome=\"5xx\"} 3")
            && metrics.contains("provider=\"c\"")
            && !metrics.contains("provider=\"b\"")
    );
}

#[tokio::test]
async fn a_reload_with_other_breaker_settings_keeps_the_breakers_state() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let gateway = Gateway::from_config(&config(&[("a", &a), ("b", &b)], "failure_threshold = 10")).await;
    gateway.ask().await;
    gateway.ask().await;
    gateway.state.reload(&config(&[("a", &a), ("b", &b)], "failure_threshold = 3")).unwrap();
    assert_eq!(gateway.failures_of("a"), 2);
    gateway.ask().await;
    assert_eq!(gateway.state_of("a"), "open");
}

#[tokio::test]
async fn a_request_under_way_ends_with_the_configuration_it_began_with_and_its_connection_stays() {
    let (mut sender, stream) = streamed();
    let a = Provider::start(one_by_one(vec![stream])).await;
    let b = Provider::with_status(200).await;
    let gateway = Gateway::from_config(&config(&[("a", &a)], "")).await;
    let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
    gateway.state.reload(&config(&[("b", &b)], "")).unwrap();
    sender.send_data("data: 2\n\n".into()).await.unwrap();
    drop(sender);
    assert_eq!(crate::support::read(response).await.body, "data: 1\n\ndata: 2\n\n");
    assert_eq!(gateway.log(1).await[0]["provider"], "a");
    assert!(gateway.ask().await.is_by(&b));
}

#[tokio::test]
async fn a_request_that_waits_for_the_probe_of_a_removed_provider_passes() {
    let a = Provider::start(|_| hang()).await;
    let gateway = Gateway::from_config(&config(&[("a", &a)], "failure_threshold = 1\nopen_for = '1ms'")).await;
    gateway.breaker("a").try_acquire().unwrap().failure("test", "");
    gateway.reopens("a").await;
    let breaker = gateway.breaker("a");
    let probe = breaker.try_acquire().unwrap();
    let waiting = gateway.begin();
    tokio::select! {
        _ = waiting => panic!("the provider hangs"),
        () = async {
            gateway.until(|_| breaker.snapshot().waiters == 1).await;
            gateway.state.reload(&config(&[], "")).unwrap();
            gateway.until(|_| a.hits() == 1).await;
        } => {}
    }
    probe.cancel();
    assert_eq!(gateway.health().await.1, json!({"status": "ok", "providers": {}}));
}

#[tokio::test]
async fn an_invalid_file_is_refused_as_a_whole_and_the_old_configuration_stays_in_force() {
    let a = Provider::with_status(200).await;
    let mut gateway = Gateway::from_config(&config(&[("a", &a)], "")).await;
    let wrong = "[[providers]]\nname = 'b'\nurl = 'http://b/v1'\nmodels = ['m']\n[server]\nlisten = 'x'";
    let file = TempFile::new("reload.toml", wrong);
    assert!(!gateway.state.reload_file(&file));
    assert!(gateway.ask().await.is_by(&a));
    for no_providers in ["", "[server]\nlisten = '127.0.0.1:1'"] {
        std::fs::write(&*file, no_providers).unwrap();
        assert!(!gateway.state.reload_file(&file), "{no_providers:?}");
        assert!(gateway.ask().await.is_by(&a));
    }
    std::fs::write(&*file, "[[providers]]\nname = 'b'\nurl = 'http://b/v1'\nmodels = ['n']").unwrap();
    assert!(gateway.state.reload_file(&file));
    assert_eq!(gateway.ask().await.status, 404);
    std::fs::remove_file(&*file).unwrap();
    assert!(!gateway.state.reload_file(&file));
    let metrics = gateway.metrics().await;
    for line in ["result=\"applied\"} 1\n", "result=\"refused\"} 4\n"] {
        assert!(metrics.contains(line), "{metrics}");
    }
}
