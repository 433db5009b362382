//! What passes between a client and a provider, and what is refused before any provider is asked.

use tokio::io::AsyncReadExt;
use tower::ServiceExt;

use crate::support::{CHAT, Gateway, Provider, answer, read};

#[tokio::test]
async fn a_request_passes_with_the_providers_key_and_without_the_clients() {
    let a = Provider::start(|_| {
        let mut response = answer(200);
        for (name, value) in [("set-cookie", "s=1"), ("openai-organization", "org"), ("keep-alive", "timeout=5")] {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response.headers_mut().insert("x-ratelimit-remaining", "7".parse().unwrap());
        response
    })
    .await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let mut request = gateway.request("/v1/embeddings?x=1", CHAT);
    for (name, value) in [
        ("authorization", "Bearer client-key"),
        ("x-api-key", "client-key"),
        ("cookie", "client-key"),
        ("connection", "keep-alive, x-hop"),
        ("x-hop", "client-key"),
        ("te", "trailers"),
        ("accept-encoding", "gzip"),
        ("x-request-id", "id-1"),
        ("x-custom", "kept"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let answer = read(gateway.send(request).await).await;

    let seen = a.last();
    assert_eq!((seen.method.as_str(), seen.path.as_str()), ("POST", "/base/v1/embeddings?x=1"));
    assert_eq!(seen.body, CHAT, "byte for byte");
    assert_eq!(seen.headers["authorization"], "Bearer provider-key");
    assert_eq!(seen.headers["host"], a.address.to_string());
    assert_eq!(
        (&seen.headers["x-custom"], &seen.headers["x-request-id"]),
        (&"kept".parse().unwrap(), &"id-1".parse().unwrap())
    );
    assert!(!format!("{:?}", seen.headers).contains("client-key"), "{:?}", seen.headers);
    assert!(!seen.headers.contains_key("te") && !seen.headers.contains_key("accept-encoding"));

    assert_eq!((answer.status, answer.header("x-ratelimit-remaining")), (200, "7"));
    for name in ["set-cookie", "openai-organization", "keep-alive"] {
        assert!(!answer.headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_routed_is_refused_in_the_form_of_openai() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    for (path, body, status, code) in [
        ("/v1/chat/completions", "not json", 400, "invalid_model"),
        ("/v1/chat/completions", "{}", 400, "invalid_model"),
        ("/v1/chat/completions", r#"{"model": 3}"#, 400, "invalid_model"),
        ("/v1/chat/completions", r#"{"model": "other"}"#, 404, "model_not_found"),
        ("/v1/../admin", CHAT, 400, "invalid_path"),
        ("/v1/%2e%2E/admin", CHAT, 400, "invalid_path"),
        ("/v1/%252e%252e/admin", CHAT, 400, "invalid_path"),
        ("/other", CHAT, 404, "not_found"),
        ("/health", CHAT, 405, "method_not_allowed"),
    ] {
        let answer = gateway.post(path, body).await;
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (status, Some(code)), "{path} {body:.60}");
    }
    assert_eq!(gateway.get("/v1/chat/completions").await.status, 405);
    assert_eq!(a.hits(), 0);
}

#[tokio::test]
async fn models_are_listed_and_can_be_asked_for_one_by_one() {
    let a = Provider::with_status(200).await;
    let text = format!(
        "[[providers]]\nname='a'\nurl='http://{}/v1'\nmodels=['org/m', 'a b']\naliases={{fast='x'}}",
        a.address
    );
    let gateway = Gateway::from_config(&fusebox::proxy::GatewayConfig::from_toml(&text).unwrap()).await;
    let list = gateway.get("/v1/models").await.json();
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!((list["object"].as_str(), ids), (Some("list"), vec!["a b", "fast", "org/m"]));
    for (path, id) in [("org/m", "org/m"), ("org%2Fm", "org/m"), ("a%20b", "a b"), ("fast", "fast")] {
        let model = gateway.get(&format!("/v1/models/{path}")).await.json();
        assert_eq!((&model["object"], &model["id"], &model["owned_by"]), (&"model".into(), &id.into(), &"a".into()));
    }
    let unknown = gateway.get("/v1/models/other").await;
    assert_eq!((unknown.status, unknown.json()["error"]["code"].as_str()), (404, Some("model_not_found")));
    assert_eq!(a.hits(), 0);
}

#[tokio::test]
async fn the_answer_for_an_unknown_model_lists_the_known_ones() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let answer = gateway.post("/v1/x", r#"{"model": "other"}"#).await;
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert_eq!(message, "No provider of this gateway serves the model 'other'. Available models: m.");
}

#[tokio::test]
async fn clients_must_send_one_of_the_tokens_if_there_are_any() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "auth_tokens = ['token-1', 'token-2']", "", "").await;
    let ask = async |authorization: Option<&str>| {
        let mut request = gateway.request("/v1/x", CHAT);
        if let Some(value) = authorization {
            request.headers_mut().insert("authorization", value.parse().unwrap());
        }
        read(gateway.send(request).await).await
    };
    for wrong in [
        None,
        Some(""),
        Some("Bearer"),
        Some("Bearer "),
        Some("token-1"),
        Some("Basic token-1"),
        Some("Bearer token-"),
        Some("Bearer token-12"),
    ] {
        let answer = ask(wrong).await;
        assert_eq!(
            (answer.status, answer.json()["error"]["code"].as_str()),
            (401, Some("invalid_api_key")),
            "{wrong:?}"
        );
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    assert_eq!(gateway.get("/v1/models").await.status, 401);
    assert_eq!((gateway.health().await.0, gateway.get("/ready").await.status), (200, 200), "load balancers have none");
    assert_eq!(a.hits(), 0);
    for right in ["Bearer token-1", "bearer token-2", "Bearer  token-1"] {
        assert_eq!(ask(Some(right)).await.status, 200, "{right}");
    }
    assert!(!format!("{:?}", a.last().headers).contains("token-"), "no provider sees it");
}

#[tokio::test]
async fn headers_and_connections_have_their_limits() {
    let a = Provider::with_status(200).await;
    let gateway =
        Gateway::start(&[&a], "max_headers = 10\nmax_header_bytes = 8192\nheader_timeout = '50ms'", "", "").await;
    let with = async |headers: usize, bytes: usize| {
        let mut request = gateway.request("/v1/x", CHAT);
        for index in 0..headers {
            let name: hyper::header::HeaderName = format!("x-{index}").parse().unwrap();
            request.headers_mut().insert(name, "x".repeat(bytes).parse().unwrap());
        }
        read(gateway.send(request).await).await.status
    };
    assert_eq!((with(2, 10).await, with(20, 10).await, with(1, 9000).await), (200, 431, 431));

    let mut silent = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let mut nothing = Vec::new();
    silent.read_to_end(&mut nothing).await.unwrap();
    assert_eq!(nothing, b"", "it is closed");

    let narrow = Gateway::start(&[&a], "max_connections = 1", "", "").await;
    let first = tokio::net::TcpStream::connect(narrow.address).await.unwrap();
    let answer = narrow.ask();
    tokio::pin!(answer);
    tokio::select! {
        biased;
        _ = &mut answer => panic!("there is no room"),
        () = async { for _ in 0..1000 { tokio::task::yield_now().await } } => {}
    }
    drop(first);
    assert_eq!(answer.await.status, 200);
}

#[tokio::test]
async fn the_router_for_embedders_answers_as_the_server_does() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let router = fusebox::proxy::create_router(std::sync::Arc::clone(&gateway.state));
    for (path, status) in [("/v1/x", 200), ("/health", 405), ("/v1/", 404), ("/other", 404)] {
        let request = gateway.request(path, CHAT).map(axum::body::Body::new);
        assert_eq!(router.clone().oneshot(request).await.unwrap().status(), status, "{path}");
        assert_eq!(gateway.post(path, CHAT).await.status, status, "{path}");
    }
    assert_eq!(a.hits(), 2);
}
