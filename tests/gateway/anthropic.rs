//! Clients and providers that speak Anthropic's protocol, beside those that speak `OpenAI`'s.

use fusebox::proxy::{AnswerKind, CircuitState, GatewayConfig};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use crate::support::{Answer, CHAT, Gateway, Provider, answer, events, hang, one_by_one, read, streamed};

const MESSAGES: &str = r#"{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}"#;
const STREAM: &str = r#"{"model":"m","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
const BEGIN: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\"}}\n\n";
const DELTA: &str = "event: content_block_delta\n\
    data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hi\"}}\n\n";

/// `providers` are named by their first letters: each with its protocol, the model `m`, and one that it alone serves.
async fn gateway(server: &str, providers: &[(&Provider, &str)]) -> Gateway {
    let mut text = format!("[server]\n{server}\n[breaker]\nfailure_threshold = 2\nopen_for = '1h'\n");
    for ((provider, protocol), name) in providers.iter().zip(["a", "b", "c"]) {
        let address = provider.address;
        let provider = format!(
            "[[providers]]\nname = '{name}'\nurl = 'http://{address}/v1'\nprotocol = '{protocol}'\n\
             api_key = 'key-of-the-gateway'\nmodels = ['m', 'only-{name}']\n"
        );
        text += &provider;
    }
    Gateway::from_config(&GatewayConfig::from_toml(&text).unwrap()).await
}

/// The status and the error of an answer, which is as Anthropic's.
fn error(answer: &Answer) -> (u16, String) {
    let body = answer.json();
    assert_eq!(body["type"], "error", "{body}");
    assert!(!body["error"]["message"].as_str().unwrap().is_empty(), "{body}");
    assert_eq!(body["request_id"], answer.header("x-request-id"), "{body}");
    (answer.status, body["error"]["type"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn the_path_tells_which_of_a_models_providers_are_asked() {
    let (a, b, c) =
        (Provider::with_status(200).await, Provider::with_status(200).await, Provider::with_status(200).await);
    let gateway = gateway("", &[(&a, "openai"), (&b, "anthropic"), (&c, "both")]).await;
    for (path, provider) in [
        ("/v1/chat/completions", &a),
        ("/v1/responses", &a),
        ("/v1/messages", &b),
        ("/v1/messages?beta=true", &b),
        ("/v1/messages/count_tokens", &b),
    ] {
        assert!(gateway.post(path, MESSAGES).await.is_by(provider), "{path}");
    }
    let only_c = MESSAGES.replace("\"m\"", "\"only-c\"");
    assert!(gateway.post("/v1/messages", &only_c).await.is_by(&c));
    assert!(gateway.post("/v1/chat/completions", &only_c).await.is_by(&c));
}

#[tokio::test]
async fn a_model_of_the_other_protocol_is_not_found_and_the_error_says_where_it_is() {
    let (a, b) = (Provider::with_status(200).await, Provider::with_status(200).await);
    let gateway = gateway("", &[(&a, "openai"), (&b, "anthropic")]).await;
    let refused = gateway.post("/v1/messages", &MESSAGES.replace("\"m\"", "\"only-a\"")).await;
    assert_eq!(error(&refused), (404, "not_found_error".to_owned()));
    assert_eq!(
        refused.json()["error"]["message"],
        "No provider of this gateway serves the model 'only-a' in Anthropic's protocol. It is served in OpenAI's \
         protocol, at that one's paths: nothing is translated. Available models: m, only-b."
    );
    let refused = gateway.post("/v1/chat/completions", &CHAT.replace("\"m\"", "\"only-b\"")).await;
    let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("in OpenAI's protocol. It is served in Anthropic's"), "{message}");
    assert_eq!((a.hits(), b.hits()), (0, 0));
}

#[tokio::test]
async fn a_provider_gets_its_key_and_a_version_as_anthropic_wants_them() {
    let a = Provider::with_status(200).await;
    let gateway = gateway("auth_tokens = ['token']", &[(&a, "anthropic")]).await;
    let ask = async |version: Option<&str>| {
        let mut request = gateway.request("/v1/messages", MESSAGES);
        request.headers_mut().insert("x-api-key", "token".parse().unwrap());
        request.headers_mut().insert("anthropic-beta", "files-api-2025-04-14".parse().unwrap());
        if let Some(version) = version {
            request.headers_mut().insert("anthropic-version", version.parse().unwrap());
        }
        assert_eq!(read(gateway.send(request).await).await.status, 200);
        a.last().headers
    };
    let seen = ask(None).await;
    assert_eq!(seen["x-api-key"], "key-of-the-gateway");
    assert_eq!(
        (&seen["anthropic-version"], &seen["anthropic-beta"]),
        (&"2023-06-01".parse().unwrap(), &"files-api-2025-04-14".parse().unwrap())
    );
    assert!(!seen.contains_key("authorization"), "{seen:?}");
    assert_eq!(ask(Some("2025-01-01")).await["anthropic-version"], "2025-01-01");
}

#[tokio::test]
async fn another_provider_answers_a_message_for_one_that_fails() {
    let a = Provider::routing(|_, _| {
        let body = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
        Response::builder().status(529).header("content-type", "application/json").body(body.into()).unwrap()
    })
    .await;
    let b = Provider::with_status(200).await;
    let gateway = gateway("", &[(&a, "anthropic"), (&b, "anthropic")]).await;
    for _ in 0..3 {
        assert!(gateway.post("/v1/messages", &crate::support::another(MESSAGES)).await.is_by(&b));
    }
    assert_eq!(a.hits(), 2);
}

#[tokio::test]
async fn every_error_of_the_gateway_has_anthropics_form() {
    let a = Provider::start(one_by_one(vec![answer(401), answer(404)])).await;
    let gateway = gateway("auth_tokens = ['token']\nmax_body_bytes = 2000", &[(&a, "anthropic")]).await;
    let ask = async |method: &str, path: &str, body: &str, token: &str| {
        let uri = format!("http://{}{path}", gateway.address);
        let request = Request::builder().method(method).uri(uri).header("x-api-key", token);
        read(gateway.send(request.body(Full::from(body.to_owned())).unwrap()).await).await
    };
    let long = format!("{{\"model\":\"m\",\"x\":\"{}\"}}", "x".repeat(3000));
    let path = "/v1/messages";
    for (method, path, body, token, status, kind) in [
        ("POST", path, MESSAGES, "wrong", 401, "authentication_error"),
        ("POST", path, "{", "token", 400, "invalid_request_error"),
        ("POST", path, "{}", "token", 400, "invalid_request_error"),
        ("POST", path, r#"{"model":"other"}"#, "token", 404, "not_found_error"),
        ("POST", path, &long, "token", 413, "request_too_large"),
        ("GET", path, "", "token", 405, "invalid_request_error"),
        ("POST", "/v1/messages/../x", "", "token", 400, "invalid_request_error"),
        // The provider refuses the gateway's key. It is not asked again.
        ("POST", path, MESSAGES, "token", 401, "api_error"),
        ("POST", path, MESSAGES, "token", 503, "overloaded_error"),
    ] {
        let answer = ask(method, path, body, token).await;
        assert_eq!(error(&answer), (status, kind.to_owned()), "{method} {path} {body}");
    }
    assert_eq!(a.hits(), 1);
}

#[tokio::test]
async fn a_provider_that_is_gone_or_late_is_told_in_anthropics_form() {
    let hanging = Provider::start(|_| hang()).await;
    let text = format!(
        "[timeouts]\ntotal = '100ms'\nfirst_byte = '50ms'\n[failover]\nwhen_all_open = 'refuse'\n\
         [[providers]]\nname = 'late'\nurl = 'http://{}/v1'\nprotocol = 'anthropic'\nmodels = ['late']\n\
         [[providers]]\nname = 'gone'\nurl = 'http://{}/v1'\nprotocol = 'anthropic'\nmodels = ['gone']\n",
        hanging.address,
        crate::support::nobody().await
    );
    let gateway = Gateway::from_config(&GatewayConfig::from_toml(&text).unwrap()).await;
    let ask =
        async |model: &str| gateway.post("/v1/messages", &MESSAGES.replace("\"m\"", &format!("\"{model}\""))).await;
    assert_eq!(error(&ask("late").await), (504, "timeout_error".to_owned()));
    assert_eq!(error(&ask("gone").await), (502, "api_error".to_owned()));
}

#[tokio::test]
async fn a_providers_own_error_passes_as_it_is() {
    let body = r#"{"type":"error","error":{"type":"invalid_request_error","message":"max_tokens: required"},"request_id":"req_1"}"#;
    let a = Provider::start(move |_| {
        Response::builder().status(400).header("content-type", "application/json").body(body.into()).unwrap()
    })
    .await;
    let gateway = gateway("", &[(&a, "anthropic")]).await;
    let answer = gateway.post("/v1/messages", MESSAGES).await;
    assert_eq!((answer.status, answer.body), (400, body.into()));
}

#[tokio::test]
async fn a_stream_that_breaks_off_ends_with_anthropics_error_event() {
    let (mut sender, stream) = streamed();
    let a = Provider::start(one_by_one(vec![stream])).await;
    let gateway = gateway("", &[(&a, "anthropic")]).await;
    let sending = gateway.send(gateway.request("/v1/messages", STREAM));
    let (response, ()) = tokio::join!(sending, async {
        sender.send_data(format!("{BEGIN}{DELTA}").into()).await.unwrap();
    });
    sender.abort(std::io::Error::other("gone"));
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let text = std::str::from_utf8(&text).unwrap();
    let data = text.strip_prefix(&format!("{BEGIN}{DELTA}event: error\ndata: ")).unwrap_or_else(|| panic!("{text}"));
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!((&data["type"], &data["error"]["type"]), (&json!("error"), &json!("api_error")));
    assert_eq!(data["error"]["message"], "The provider broke off in the middle of the answer.");
}

#[tokio::test]
async fn a_stream_that_begins_with_an_error_is_asked_of_another_provider() {
    let overloaded =
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"x\"}}\n\n";
    let whole: &'static str =
        format!("{BEGIN}{DELTA}event: message_stop\ndata: {{\"type\":\"message_stop\"}}\n\n").leak();
    let (a, b) = (Provider::start(move |_| events(overloaded)).await, Provider::start(move |_| events(whole)).await);
    let gateway = gateway("", &[(&a, "anthropic"), (&b, "anthropic")]).await;
    let answer = gateway.post("/v1/messages", STREAM).await;
    assert!(answer.is_by(&b));
    assert_eq!(answer.body, whole.as_bytes());
    assert_eq!(gateway.log(1).await[0]["end"], "complete");
}

#[tokio::test]
async fn a_heartbeat_that_ends_without_a_stream_ends_in_anthropics_form() {
    let (a, gate) = Provider::gated().await;
    gate.send(false).unwrap();
    let server = "heartbeat_after = '1ms'\nheartbeat = '1h'";
    let gateway = gateway(server, &[(&a, "anthropic")]).await;
    let response = gateway.send(gateway.request("/v1/messages", STREAM)).await;
    gate.send(true).unwrap();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let text = std::str::from_utf8(&text).unwrap();
    let (_, data) = text.split_once("event: error\ndata: ").unwrap_or_else(|| panic!("{text}"));
    assert_eq!(serde_json::from_str::<Value>(data).unwrap()["type"], "error");
}

#[tokio::test]
async fn counting_tokens_has_a_circuit_of_its_own() {
    let a = Provider::routing(|path, _| answer(if path.ends_with("/count_tokens") { 500 } else { 200 })).await;
    let gateway = gateway("", &[(&a, "anthropic")]).await;
    for _ in 0..2 {
        assert_eq!(gateway.post("/v1/messages/count_tokens", &crate::support::another(MESSAGES)).await.status, 500);
        assert_eq!(gateway.post("/v1/messages", MESSAGES).await.status, 200);
    }
    let state = |kind| gateway.state.circuit("a", "m", kind).unwrap().state();
    assert_eq!(state(AnswerKind::Count), CircuitState::Open);
    assert_eq!(state(AnswerKind::Whole), CircuitState::Closed);
    assert_eq!(gateway.post("/v1/messages/count_tokens", MESSAGES).await.status, 503);
    assert_eq!(gateway.post("/v1/messages", MESSAGES).await.status, 200);
}

#[tokio::test]
async fn models_are_listed_as_the_client_knows_them() {
    let (a, b) = (Provider::with_status(200).await, Provider::with_status(200).await);
    let gateway = gateway("", &[(&a, "openai"), (&b, "anthropic")]).await;
    let ask = async |path: &str, version: bool| {
        let mut request = Request::get(format!("http://{}{path}", gateway.address)).body(Full::default()).unwrap();
        if version {
            request.headers_mut().insert("anthropic-version", "2023-06-01".parse().unwrap());
        }
        let answer = read(gateway.send(request).await).await;
        (answer.status, answer.json())
    };
    let model = |id: &str| json!({"type": "model", "id": id, "display_name": id, "created_at": "1970-01-01T00:00:00Z"});
    let list = json!({"data": [model("m"), model("only-b")], "first_id": "m", "last_id": "only-b", "has_more": false});
    assert_eq!(ask("/v1/models", true).await, (200, list));
    assert_eq!(ask("/v1/models/only-b", true).await, (200, model("only-b")));
    let (status, refused) = ask("/v1/models/only-a", true).await;
    assert_eq!((status, &refused["type"]), (404, &json!("error")));
    let (_, list) = ask("/v1/models", false).await;
    assert_eq!((&list["object"], &list["data"][1]["id"]), (&json!("list"), &json!("only-a")));
}

#[tokio::test]
async fn what_a_provider_keeps_is_asked_of_those_that_speak_the_clients_protocol() {
    let (a, b) = (Provider::with_status(200).await, Provider::with_status(200).await);
    let gateway = gateway("", &[(&a, "openai"), (&b, "anthropic")]).await;
    assert!(gateway.post("/v1/messages/batches", r#"{"requests":[]}"#).await.is_by(&b));
    assert!(gateway.get("/v1/messages/batches/msgbatch_1/results").await.is_by(&b));
    assert!(gateway.get("/v1/files/file-1").await.is_by(&a));
    let request = Request::get(format!("http://{}/v1/files/file_1", gateway.address));
    let request = request.header("anthropic-version", "2023-06-01").body(Full::default()).unwrap();
    assert!(read(gateway.send(request).await).await.is_by(&b));
}

#[test]
fn a_model_is_lonely_if_no_other_provider_serves_it_in_the_same_protocol() {
    let provider = |name: &str, protocol: &str, model: &str| {
        format!("[[providers]]\nname = '{name}'\nurl = 'http://a/v1'\nprotocol = '{protocol}'\nmodels = ['{model}']\n")
    };
    let text = [
        provider("a", "openai", "m"),
        provider("b", "anthropic", "m"),
        provider("c", "both", "n"),
        provider("d", "both", "o"),
        provider("e", "openai", "o"),
    ];
    let config = GatewayConfig::from_toml(&text.concat()).unwrap();
    assert_eq!(
        config.warnings(),
        [
            "line 1: the model \"m\" has no other provider that speaks OpenAI's protocol than a",
            "line 6: the model \"m\" has no other provider that speaks Anthropic's protocol than b",
            "line 11: the model \"n\" has no other provider than c",
            "line 16: the model \"o\" has no other provider that speaks Anthropic's protocol than d",
        ]
    );
    let shown = config.to_string();
    assert!(
        shown.contains("model     m: a\n") && shown.contains("model     m in Anthropic's protocol: b\n"),
        "{shown}"
    );
}
