//! Who asked, who was passed over, and what it took: the access log, and errors for clients with a token.

use http::{HeaderName, HeaderValue, Response};
use serde_json::{Value, json};

use crate::support::{CHAT, Gateway, Provider, another, answer, events, read};

const STREAM: &str = r#"{"model": "m", "stream": true, "messages": []}"#;
const TOKENS: &str = "auth_tokens = [{ name = 'team-a', token = 's3cret-a' }, 's3cret-b']";

async fn ask(gateway: &Gateway, headers: &[(&str, &str)]) -> crate::support::Answer {
    let mut request = gateway.request("/v1/chat/completions", &another(CHAT));
    for (name, value) in headers {
        request.headers_mut().append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    read(gateway.send(request).await).await
}

#[tokio::test]
async fn the_log_names_the_token_the_client_and_its_program_and_never_the_token_itself() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], TOKENS, "", "").await;
    ask(&gateway, &[("authorization", "Bearer s3cret-a"), ("user-agent", "SDK/1.0")]).await;
    ask(&gateway, &[("x-api-key", "s3cret-b"), ("user-agent", &"u".repeat(900))]).await;
    ask(&gateway, &[("api-key", "wrong"), ("x-forwarded-for", "192.0.2.1")]).await;
    let log = gateway.log(3).await;
    let of = |name: &str| log.iter().map(|line| line[name].clone()).collect::<Vec<_>>();
    assert_eq!(of("token"), [json!("team-a"), json!("auth_tokens[1]"), json!(null)]);
    assert_eq!(of("client"), [json!("127.0.0.1"), json!("127.0.0.1"), json!("127.0.0.1")], "nobody is trusted");
    assert_eq!((&log[0]["user_agent"], log[1]["user_agent"].as_str().unwrap().len()), (&json!("SDK/1.0"), 200));
    assert!(!format!("{log:?}").contains("s3cret"));
}

#[tokio::test]
async fn a_trusted_proxy_says_who_the_client_is() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "trusted_proxies = ['127.0.0.0/8', '10.0.0.1']", "", "").await;
    ask(&gateway, &[("x-forwarded-for", "6.6.6.6, 192.0.2.1, 10.0.0.1")]).await;
    ask(&gateway, &[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "192.0.2.2")]).await;
    ask(&gateway, &[("forwarded", "for=\"[2001:db8::1]:80\"")]).await;
    ask(&gateway, &[]).await;
    let clients: Vec<_> = gateway.log(4).await.iter().map(|line| line["client"].clone()).collect();
    assert_eq!(clients, ["192.0.2.1", "192.0.2.2", "2001:db8::1", "127.0.0.1"]);
}

#[tokio::test]
async fn the_log_says_why_a_provider_was_passed_over() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let gateway = Gateway::start(&[&a, &b], "", "failure_threshold = 1\nopen_for = '1h'", "").await;
    gateway.ask().await;
    gateway.ask().await;
    gateway.breaker("a").reset();
    gateway.own_breaker("a").isolate("by hand");
    gateway.ask().await;
    gateway.own_breaker("a").reset();
    gateway.own_breaker("a").trip_for(std::time::Duration::from_secs(60), "key_refused", "");
    gateway.ask().await;
    let skipped: Vec<_> = gateway.log(4).await.iter().map(|line| line["skipped"].clone()).collect();
    let of_a = |scope: &str, cause: &str| json!([{"provider": "a", "scope": scope, "cause": cause}]);
    assert_eq!(skipped, [json!([]), of_a("model", "failures"), of_a("provider", "isolated"), of_a("key", "cooldown")]);
}

#[tokio::test]
async fn the_log_and_the_metrics_have_the_tokens_that_answers_tell_of() {
    let whole = "{\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":7,\"prompt_tokens_details\":{\"cached_tokens\":4}}}";
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"},\"finish_reason\":\"stop\"}]}\n\n\
                  data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
    let json = Response::builder().header("content-type", "application/json").body(whole.into()).unwrap();
    let mut gateway = Gateway::answering(vec![json, events(stream), answer(200)], "", "", "").await;
    gateway.ask().await;
    gateway.post("/v1/chat/completions", STREAM).await;
    gateway.ask().await;
    let log = gateway.log(3).await;
    let of = |line: &Value| ["tokens_in", "tokens_out", "tokens_cached"].map(|name| line[name].as_u64());
    assert_eq!(of(&log[0]), [Some(11), Some(7), Some(4)]);
    assert_eq!(of(&log[1]), [Some(3), Some(2), None], "they come after the end of the answer");
    assert_eq!(of(&log[2]), [None; 3]);
    let metrics = gateway.metrics().await;
    for (direction, count) in [("in", 14), ("out", 9)] {
        let line = format!("fusebox_tokens_total{{provider=\"a\",model=\"m\",direction=\"{direction}\"}} {count}\n");
        assert!(metrics.contains(&line), "{metrics}");
    }
}

#[tokio::test]
async fn an_error_says_what_was_tried_to_a_client_with_a_token_and_to_no_other() {
    let error = || {
        let head = Response::builder().status(500).header("content-type", "application/json");
        head.body("{\"error\":{\"message\":\"broken\"}}".into()).unwrap()
    };
    let (a, b) = (Provider::start(move |_| error()).await, Provider::with_status(200).await);
    let server = format!("{TOKENS}\nheartbeat_after = '1h'");
    let gateway = Gateway::start(&[&a, &b], &server, "open_for = '1h'", "").await;
    gateway.own_breaker("b").isolate("by hand");
    let token = [("authorization", "Bearer s3cret-a")];
    let said = ask(&gateway, &token).await;
    let told = &said.json()["error"]["fusebox"];
    assert_eq!(told["skipped"], json!([{"provider": "b", "scope": "provider", "cause": "isolated"}]));
    let attempt = &told["attempts"][0];
    assert_eq!((&attempt["provider"], &attempt["outcome"], attempt["ms"].is_u64()), (&json!("a"), &json!("5xx"), true));
    gateway.own_breaker("a").trip_for(std::time::Duration::from_secs(100), "429", "");
    let said = ask(&gateway, &token).await;
    assert_eq!(said.status, 503);
    let told = &said.json()["error"]["fusebox"];
    let seconds = told["retry_after"].as_u64().unwrap();
    assert!((1..=100).contains(&seconds) && said.header("retry-after") == seconds.to_string(), "{told}");
    assert_eq!((told["attempts"].clone(), told["skipped"].as_array().unwrap().len()), (json!([]), 2));

    let open = Gateway::start(&[&a], "", "", "").await;
    assert_eq!(open.ask().await.json()["error"]["fusebox"], Value::Null);
    assert!(!String::from_utf8_lossy(&ask(&gateway, &[]).await.body).contains("fusebox\""));
}
