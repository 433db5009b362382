//! What passes the gateway in each direction, and what it adds.

use fusebox::proxy::GatewayConfig;
use http::{HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::Full;
use serde_json::json;

use crate::support::{CHAT, Gateway, Provider, answer, read};

#[tokio::test]
async fn a_provider_does_not_learn_where_a_request_comes_from() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let mut request = gateway.request("/v1/chat/completions", CHAT);
    let names = [
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "forwarded",
        "via",
        "x-real-ip",
        "cf-connecting-ip",
        "cf-ray",
        "true-client-ip",
        "cdn-loop",
        "fly-client-ip",
        "fastly-client-ip",
        "x-amzn-trace-id",
        "x-envoy-external-address",
        "origin",
        "referer",
        "sec-fetch-mode",
        "sec-ch-ua",
        "access-control-request-method",
        "cookie",
        "x-fusebox-provider",
        "x-fusebox-anything",
    ];
    for name in names {
        request.headers_mut().insert(HeaderName::from_static(name), "marked".parse().unwrap());
    }
    for kept in
        ["user-agent", "openai-beta", "anthropic-version", "idempotency-key", "x-stainless-lang", "http-referer"]
    {
        request.headers_mut().insert(HeaderName::from_static(kept), "kept".parse().unwrap());
    }
    assert_eq!(read(gateway.send(request).await).await.status, 200);
    let seen = a.last().headers;
    assert!(!format!("{seen:?}").contains("marked"), "{seen:?}");
    assert_eq!(seen.values().filter(|value| *value == "kept").count(), 6, "{seen:?}");
}

#[tokio::test]
async fn a_client_gets_no_header_by_which_a_provider_speaks_for_its_own_site() {
    let a = Provider::start(|_| {
        let mut response = answer(200);
        for name in [
            "strict-transport-security",
            "alt-svc",
            "nel",
            "report-to",
            "reporting-endpoints",
            "set-cookie",
            "content-security-policy",
            "clear-site-data",
            "access-control-allow-origin",
            "access-control-expose-headers",
            "x-fusebox-replay",
        ] {
            response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static("marked"));
        }
        response.headers_mut().insert("openai-processing-ms", HeaderValue::from_static("7"));
        response
    })
    .await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let answer = gateway.ask().await;
    assert!(!format!("{:?}", answer.headers).contains("marked"), "{:?}", answer.headers);
    assert_eq!(answer.header("openai-processing-ms"), "7");
}

#[tokio::test]
async fn an_answer_and_its_line_in_the_log_name_the_providers_own_id_of_the_request() {
    for (name, id, shown) in [
        ("x-request-id", "req-1", "req-1"),
        ("request-id", "req-2", "req-2"),
        ("x-amzn-requestid", "req-3", "req-3"),
        ("request-id", "", ""),
        ("request-id", "\u{e4}", ""),
        ("x-other", "x", ""),
    ] {
        let a = Provider::start(move |_| {
            let mut response = answer(200);
            response
                .headers_mut()
                .insert(HeaderName::from_static(name), HeaderValue::from_bytes(id.as_bytes()).unwrap());
            response
        })
        .await;
        let gateway = Gateway::start(&[&a], "", "", "").await;
        let answer = gateway.ask().await;
        assert_eq!(answer.header("x-fusebox-provider-request-id"), shown);
        assert_eq!(answer.header("x-request-id").len(), 32, "the gateway's own");
        let logged = if shown.is_empty() { json!(null) } else { json!(shown) };
        assert_eq!(gateway.log(1).await[0]["provider_request_id"], logged);
    }
}

/// A gateway before a provider with these lines in its table.
async fn with(provider: &Provider, lines: &str) -> Gateway {
    let address = provider.address;
    let text = format!("[[providers]]\nname = 'a'\nurl = 'http://{address}/v1'\nmodels = ['m']\n{lines}");
    Gateway::from_config(&GatewayConfig::from_toml(&text).unwrap()).await
}

#[tokio::test]
async fn a_key_is_sent_as_the_provider_wants_it() {
    for (lines, name, value) in [
        ("", "authorization", "Bearer secret-key"),
        ("key_header = 'x-api-key'", "x-api-key", "secret-key"),
        ("key_header = 'API-Key'", "api-key", "secret-key"),
        ("key_header = 'x-own'\nkey_prefix = 'Token '", "x-own", "Token secret-key"),
        ("key_prefix = 'Key '", "authorization", "Key secret-key"),
    ] {
        let a = Provider::with_status(200).await;
        let gateway = with(&a, &format!("api_key = 'secret-key'\n{lines}")).await;
        let mut request = gateway.request("/v1/chat/completions", CHAT);
        request.headers_mut().insert("x-own", "of the client".parse().unwrap());
        assert_eq!(read(gateway.send(request).await).await.status, 200);
        let seen = a.last().headers;
        assert_eq!(seen[name], value, "{lines}");
        assert_eq!(seen.values().filter(|value| value.to_str().unwrap().contains("secret-key")).count(), 1, "{seen:?}");
    }
}

#[tokio::test]
async fn a_providers_own_headers_and_query_go_with_each_request() {
    let a = Provider::with_status(200).await;
    let lines = "headers = { HTTP-Referer = 'https://us.example', x-custom = 'ours' }\nquery = { api-version = '2024-10-21', 'a b' = 'c&d' }";
    let gateway = with(&a, lines).await;
    let mut request = gateway.request("/v1/chat/completions?x=1&api%2Dversion=theirs&y=2", CHAT);
    request.headers_mut().insert("x-custom", "theirs".parse().unwrap());
    assert_eq!(read(gateway.send(request).await).await.status, 200);
    let seen = a.last();
    assert_eq!(seen.path, "/v1/chat/completions?x=1&y=2&a%20b=c%26d&api-version=2024-10-21");
    assert_eq!(
        (&seen.headers["http-referer"], &seen.headers["x-custom"]),
        (&"https://us.example".parse().unwrap(), &"ours".parse().unwrap())
    );

    gateway.post("/v1/chat/completions", CHAT).await;
    assert_eq!(a.last().path, "/v1/chat/completions?a%20b=c%26d&api-version=2024-10-21");
}

#[tokio::test]
async fn a_key_that_a_provider_quotes_is_struck_out_of_every_answer_that_is_held() {
    let quoting = |status: u16, encoding: &'static str| {
        Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .header("content-encoding", encoding)
            .header("x-echo", "secret-key")
            .body("{\"it\":\"is secret-key\"}".into())
            .unwrap()
    };
    for (status, encoding, body) in
        [(200, "identity", "{\"it\":\"is **********\"}"), (400, "identity", "{\"it\":\"is **********\"}")]
    {
        let a = Provider::start(move |_| quoting(status, encoding)).await;
        let answer = with(&a, "api_key = 'secret-key'").await.ask().await;
        assert_eq!((answer.status, &*answer.body, answer.header("x-echo")), (status, body.as_bytes(), "**********"));
    }
    // A compressed refusal cannot be read, and is not passed on.
    for status in [400, 403, 429, 500] {
        let a = Provider::start(move |_| {
            let mut response = quoting(status, "identity");
            response.headers_mut().append("content-encoding", HeaderValue::from_static("gzip"));
            response
        })
        .await;
        let answer = with(&a, "api_key = 'secret-key'").await.ask().await;
        assert!(!answer.body.windows(10).any(|bytes| bytes == b"secret-key"), "{answer:?}");
        assert_eq!(answer.header("content-encoding"), "");
        assert!(answer.json()["error"]["message"].is_string());
    }
}

#[tokio::test]
async fn a_client_may_show_its_token_in_any_of_the_headers_that_sdks_use() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "auth_tokens = ['token-1']", "", "").await;
    for (name, value, status) in [
        ("x-api-key", "token-1", 200),
        ("api-key", "token-1", 200),
        ("authorization", "Bearer token-1", 200),
        ("x-api-key", "token-2", 401),
        ("api-key", "Bearer token-1", 401),
        ("x-api-key", "", 401),
        ("x-goog-api-key", "token-1", 401),
    ] {
        let mut request = gateway.request("/v1/x", CHAT);
        request.headers_mut().insert(HeaderName::from_static(name), value.parse().unwrap());
        assert_eq!(read(gateway.send(request).await).await.status, status, "{name}: {value}");
    }
    assert!(!format!("{:?}", a.last().headers).contains("token-"), "no provider sees it");
}

#[tokio::test]
async fn a_model_at_the_end_of_a_long_body_is_found_and_the_body_can_be_sent_again() {
    let file = "x".repeat(300_000);
    let json = format!("{{\"input\":\"{file}\",\"model\":\"m\"}}");
    let part =
        |name: &str, value: &str| format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    let form = format!("{}{}--b--\r\n", part("file", &file), part("model", "m"));
    for (kind, body) in [("application/json", json), ("multipart/form-data; boundary=b", form)] {
        let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
        let gateway = Gateway::start(&[&a, &b], "replay_body_bytes = 65536", "", "").await;
        let mut request = gateway.request("/v1/audio/transcriptions", &body);
        request.headers_mut().insert("content-type", kind.parse().unwrap());
        let answer = read(gateway.send(request).await).await;
        assert!(answer.status == 200 && answer.is_by(&b), "{answer:?}");
        assert_eq!((a.last().body.len(), b.last().body == body), (body.len(), true));
        assert_eq!(answer.header("x-fusebox-replay"), "");

        let gateway = Gateway::start(&[&a], "replay_body_bytes = 65536\nsearch_body_bytes = 131072", "", "").await;
        let mut request = gateway.request("/v1/audio/transcriptions", &body);
        request.headers_mut().insert("content-type", kind.parse().unwrap());
        let answer = read(gateway.send(request).await).await;
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (413, Some("model_not_found_in_time")));
    }
}

#[tokio::test]
async fn pages_of_the_configured_origins_may_ask_and_read() {
    let a = Provider::with_status(200).await;
    let server = "auth_tokens = ['token-1']\ncors = { origins = ['https://app.example'] }";
    let gateway = Gateway::start(&[&a], server, "", "").await;
    let preflight = async |gateway: &Gateway, origin: &str| {
        let request = Request::builder()
            .method(Method::OPTIONS)
            .uri(format!("http://{}/v1/chat/completions", gateway.address))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .body(Full::default())
            .unwrap();
        read(gateway.send(request).await).await
    };
    let answer = preflight(&gateway, "https://app.example").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, "https://app.example"));
    for method in ["GET", "POST", "DELETE"] {
        assert!(answer.header("access-control-allow-methods").contains(method), "{method}");
    }
    assert!(answer.header("access-control-allow-headers").contains("authorization"));
    assert_eq!(preflight(&gateway, "https://evil.example").await.header("access-control-allow-origin"), "");
    assert_eq!(a.hits(), 0);

    for (origin, allowed) in [("https://app.example", "https://app.example"), ("https://evil.example", "")] {
        for (token, status) in [("Bearer token-1", 200), ("Bearer x", 401)] {
            let mut request = gateway.request("/v1/chat/completions", CHAT);
            request.headers_mut().insert("origin", origin.parse().unwrap());
            request.headers_mut().insert("authorization", token.parse().unwrap());
            let answer = read(gateway.send(request).await).await;
            assert_eq!((answer.status, answer.header("access-control-allow-origin")), (status, allowed));
            assert!(answer.header("access-control-expose-headers").contains("x-request-id"));
        }
    }
    let off = Gateway::start(&[&a], "auth_tokens = ['token-1']", "", "").await;
    let answer = preflight(&off, "https://app.example").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (401, ""));
    let any = Gateway::start(&[&a], "cors = { origins = ['*'] }", "", "").await;
    assert_eq!(preflight(&any, "https://x.example").await.header("access-control-allow-origin"), "https://x.example");
}
