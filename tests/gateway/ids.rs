//! Ids that mean something at one provider only: of files, batches and earlier responses.

use axum::body::Body;
use http::{Method, Request, Response};
use http_body_util::Full;
use serde_json::json;

use crate::support::{Answer, Gateway, Provider, another, read};

fn json(status: u16, body: &str) -> Response<Body> {
    Response::builder().status(status).header("content-type", "application/json").body(body.to_owned().into()).unwrap()
}

/// Answers a request that names no id with a new one, and one of its own with 200, and does not know any other.
async fn keeping(own: &'static str) -> Provider {
    Provider::routing(move |path, body| {
        let named =
            path.contains("resp_") || path.contains("file-") || body.contains("resp_") || body.contains("file-");
        if body.contains("outage") {
            json(500, "{}")
        } else if !named {
            json(200, &format!("{{\"id\":\"{own}\"}}"))
        } else if path.contains(own) || body.contains(own) {
            json(200, "{\"found\":true}")
        } else if path.contains("/responses") {
            json(400, r#"{"error":{"code":"previous_response_not_found","type":"invalid_request_error"}}"#)
        } else {
            json(404, r#"{"error":{"message":"No such file"}}"#)
        }
    })
    .await
}

async fn two(server: &str) -> (Gateway, Provider, Provider) {
    let (a, b) = (keeping("resp_a").await, keeping("resp_b").await);
    (Gateway::start(&[&a, &b], server, "", "").await, a, b)
}

async fn send(gateway: &Gateway, method: Method, path: &str, body: &str, chosen: Option<&str>) -> Answer {
    let uri = format!("http://{}{path}", gateway.address);
    let mut request = Request::builder().method(method).uri(uri).header("content-type", "application/json");
    if let Some(chosen) = chosen {
        request = request.header("x-fusebox-provider", chosen);
    }
    read(gateway.send(request.body(Full::from(body.to_owned())).unwrap()).await).await
}

async fn respond(gateway: &Gateway, fields: &str) -> Answer {
    let body = another(&format!("{{\"model\":\"m\"{fields}}}"));
    send(gateway, Method::POST, "/v1/responses", &body, None).await
}

#[tokio::test]
async fn a_request_that_names_an_earlier_response_goes_to_the_provider_that_made_it() {
    let (gateway, a, b) = two("").await;
    gateway.own_breaker("a").isolate("so that b is asked");
    assert_eq!(respond(&gateway, "").await.json()["id"], "resp_b");
    gateway.own_breaker("a").reset();
    let hits = a.hits();
    for _ in 0..3 {
        let answer = respond(&gateway, ",\"previous_response_id\":\"resp_b\"").await;
        assert!(answer.status == 200 && answer.is_by(&b));
    }
    assert_eq!(a.hits(), hits);
}

#[tokio::test]
async fn it_is_not_failed_over_after_that_provider_has_failed() {
    let (gateway, a, b) = two("").await;
    assert_eq!(respond(&gateway, "").await.json()["id"], "resp_a");
    let answer = respond(&gateway, ",\"previous_response_id\":\"resp_a\",\"x\":\"outage\"").await;
    assert_eq!((answer.status, answer.header("x-fusebox-attempts")), (500, "1"));
    gateway.own_breaker("a").isolate("nor while it is out");
    let answer = respond(&gateway, ",\"previous_response_id\":\"resp_a\"").await;
    assert_eq!((answer.status, b.hits()), (503, 0));
    drop(a);
}

#[tokio::test]
async fn if_nobody_knows_whose_an_id_is_every_provider_is_asked_and_not_found_hides_no_failure() {
    let (gateway, ..) = two("").await;
    let answer = respond(&gateway, ",\"previous_response_id\":\"resp_b\"").await;
    assert_eq!((answer.status, answer.header("x-fusebox-provider")), (200, "b"));
    let answer = respond(&gateway, ",\"previous_response_id\":\"resp_c\"").await;
    assert_eq!(answer.status, 400);

    let failing = Provider::with_status(500).await;
    let b = keeping("resp_b").await;
    let gateway = Gateway::start(&[&failing, &b], "", "", "").await;
    let answer = respond(&gateway, ",\"previous_response_id\":\"resp_c\"").await;
    assert_eq!((answer.status, answer.header("x-fusebox-attempts")), (500, "2"), "it may be the failing one's");
}

#[tokio::test]
async fn what_a_provider_keeps_is_found_changed_and_deleted_there() {
    let (a, b) = (keeping("file-a").await, keeping("file-b").await);
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    gateway.own_breaker("a").isolate("so that b is asked");
    assert_eq!(send(&gateway, Method::POST, "/v1/batches", "{\"x\":1}", None).await.json()["id"], "file-b");
    gateway.own_breaker("a").reset();
    for (method, path, body) in [
        (Method::GET, "/v1/files/file-b", ""),
        (Method::GET, "/v1/files/file-b/content", ""),
        (Method::DELETE, "/v1/files/file-b", ""),
        (Method::POST, "/v1/batches/file-b/cancel", ""),
        (Method::POST, "/v1/batches", "{\"input_file_id\":\"file-b\",\"endpoint\":\"/v1/chat/completions\"}"),
    ] {
        let answer = send(&gateway, method.clone(), path, body, None).await;
        assert!(answer.status == 200 && answer.is_by(&b), "{method} {path}: {answer:?}");
        assert_eq!((b.last().method, b.last().path), (method, format!("/base{path}")));
    }
    assert_eq!(a.hits(), 0);
    let answer = send(&gateway, Method::GET, "/v1/files/file-a", "", None).await;
    assert!(answer.is_by(&a), "nobody knew, so it is looked for");
    let answer = send(&gateway, Method::GET, "/v1/files/file-x", "", None).await;
    assert_eq!((answer.status, answer.header("x-fusebox-attempts")), (404, "2"));
    assert_eq!((gateway.trips("a"), gateway.trips("b")), (0, 0));
}

#[tokio::test]
async fn other_methods_and_paths_are_refused_as_before() {
    let (gateway, ..) = two("").await;
    for (method, path) in [
        (Method::GET, "/v1/responses"),
        (Method::DELETE, "/v1/chat/completions"),
        (Method::PUT, "/v1/files/file-b"),
        (Method::GET, "/v1/embeddings"),
    ] {
        assert_eq!(send(&gateway, method.clone(), path, "", None).await.status, 405, "{method} {path}");
    }
    assert_eq!(send(&gateway, Method::POST, "/v1/responses", "{}", None).await.status, 400, "it names no model");
}

#[tokio::test]
async fn a_client_chooses_the_provider_only_if_it_may() {
    let body = r#"{"model":"m"}"#;
    let (gateway, a, _) = two("").await;
    assert!(send(&gateway, Method::POST, "/v1/responses", body, Some("b")).await.is_by(&a));
    assert!(!a.last().headers.contains_key("x-fusebox-provider"));
    let (gateway, _, b) = two("allow_provider_header = true").await;
    assert!(send(&gateway, Method::POST, "/v1/responses", body, Some("b")).await.is_by(&b));
    assert!(!b.last().headers.contains_key("x-fusebox-provider"));
    assert!(send(&gateway, Method::GET, "/v1/files", "", Some("b")).await.is_by(&b));
    let answer = send(&gateway, Method::POST, "/v1/responses", body, Some("c")).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("invalid_provider")));
    let answer = send(&gateway, Method::POST, "/v1/responses", &body.replace("\"m\"", "\"x\""), Some("b")).await;
    assert_eq!(answer.status, 404);
}
