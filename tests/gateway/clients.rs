//! What passes between a client and a provider, and what is refused before any provider is asked.

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
    assert!(!seen.headers.contains_key("te"));

    assert_eq!((answer.status, answer.header("x-ratelimit-remaining")), (200, "7"));
    for name in ["set-cookie", "openai-organization", "keep-alive"] {
        assert!(!answer.headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn what_cannot_be_routed_is_refused_in_openais_form() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let large = format!("{{\"model\": \"m\", \"x\": \"{}\"}}", "x".repeat(33 << 20));
    for (path, body, status, code) in [
        ("/v1/chat/completions", "not json", 400, "invalid_model"),
        ("/v1/chat/completions", "{}", 400, "invalid_model"),
        ("/v1/chat/completions", r#"{"model": 3}"#, 400, "invalid_model"),
        ("/v1/chat/completions", r#"{"model": "other"}"#, 404, "model_not_found"),
        ("/v1/chat/completions", &large, 413, "body_too_large"),
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
async fn models_are_listed() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let list = gateway.get("/v1/models").await.json();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&"list".into(), &"m".into()));
}
