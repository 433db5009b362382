//! Request bodies: renamed models, forms, and bodies that are too long to be kept.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Gateway, Provider, answer, hang, nobody, read};
use fusebox::proxy::GatewayConfig;

const FORM: &str = "--xyz\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n--xyz\r\n\
                    content-disposition: form-data; name=\"model\"\r\n\r\nm\r\n--xyz--\r\n";

fn form(gateway: &Gateway, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let mut request = gateway.request(path, "");
    request.headers_mut().insert("content-type", "multipart/form-data; boundary=xyz".parse().unwrap());
    *request.body_mut() = Full::new(body.into());
    request
}

#[tokio::test]
async fn each_provider_is_asked_for_the_model_by_its_own_name() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let text = format!(
        "[[providers]]\nname='a'\nurl='http://{}/v1'\naliases={{fast='a/small'}}\n\
         [[providers]]\nname='b'\nurl='http://{}/v1'\naliases={{fast='b-\"small\"'}}",
        a.address, b.address
    );
    let gateway = Gateway::from_config(&GatewayConfig::from_toml(&text).unwrap()).await;
    let answer = gateway.post("/v1/embeddings", r#"{ "input": [1.0], "model" : "fast" }"#).await;
    assert_eq!(answer.status, 200);
    assert_eq!(a.last().body, r#"{ "input": [1.0], "model" : "a/small" }"#);
    assert_eq!(b.last().body, r#"{ "input": [1.0], "model" : "b-\"small\"" }"#);

    read(gateway.send(form(&gateway, "/v1/audio/transcriptions", FORM.replace("\n\r\nm\r\n", "\n\r\nfast\r\n"))).await)
        .await;
    assert_eq!(b.last().body, FORM.replace("\n\r\nm\r\n", "\n\r\nb-\"small\"\r\n"));
}

#[tokio::test]
async fn a_form_goes_to_the_providers_of_its_model_and_fails_over() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    let answer = read(gateway.send(form(&gateway, "/v1/audio/transcriptions", FORM)).await).await;
    assert!(answer.is_by(&b));
    assert_eq!((a.last().body, b.last().body), (FORM.into(), FORM.into()), "byte for byte");
    assert_eq!(b.last().headers["content-type"], "multipart/form-data; boundary=xyz");
    assert_eq!(gateway.log(1).await[0]["model"], "m");
}

#[tokio::test]
async fn a_form_without_a_model_goes_to_the_first_provider_that_can_answer() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    let without = FORM.replace("name=\"model\"", "name=\"purpose\"");
    let answer = read(gateway.send(form(&gateway, "/v1/files", without)).await).await;
    assert!(answer.is_by(&b));
    assert_eq!(answer.header("x-fusebox-provider"), "b");
}

#[tokio::test]
async fn a_form_that_cannot_be_read_is_refused() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let mut request = form(&gateway, "/v1/images/edits", FORM);
    request.headers_mut().insert("content-type", "multipart/form-data".parse().unwrap());
    let answer = read(gateway.send(request).await).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (400, Some("invalid_model")));
    assert_eq!(a.hits(), 0);
}

/// Longer than `replay_body_bytes` in these tests.
fn long() -> String {
    format!("{{\"model\":\"m\",\"input\":\"{}\"}}", "x".repeat(100_000))
}

const SHORT_REPLAY: &str = "replay_body_bytes = 65536";

#[tokio::test]
async fn a_body_too_long_to_be_held_goes_to_one_provider_and_the_answer_says_so() {
    let (a, b) = (Provider::start(|n| answer(if n == 0 { 200 } else { 500 })).await, Provider::with_status(200).await);
    let gateway = Gateway::start(&[&a, &b], SHORT_REPLAY, "", "").await;
    let body = long();
    let answer = gateway.post("/v1/embeddings", &body).await;
    assert_eq!((answer.status, answer.header("x-fusebox-replay")), (200, "no"));
    assert!(answer.is_by(&a) && a.last().body == body.as_bytes());
    assert_eq!(a.last().headers["content-length"], body.len().to_string());
    assert_eq!(gateway.log(1).await[0]["bytes_in"], body.len());

    let answer = gateway.post("/v1/embeddings", &body).await;
    assert!(answer.status == 500 && answer.is_by(&a) && b.hits() == 0, "it can be sent only once");
    assert_eq!(gateway.failures_of("a"), 1);
    let short = gateway.ask().await;
    assert!(short.is_by(&b) && short.header("x-fusebox-replay").is_empty());
}

#[tokio::test]
async fn a_long_body_is_renamed_too_and_must_name_its_model_early() {
    let a = Provider::with_status(200).await;
    let text = format!(
        "[server]\n{SHORT_REPLAY}\nsearch_body_bytes = 1048576\n[[providers]]\nname='a'\nurl='http://{}/v1'\naliases={{fast='a/small'}}",
        a.address
    );
    let gateway = Gateway::from_config(&GatewayConfig::from_toml(&text).unwrap()).await;
    let input = "x".repeat(2_000_000);
    let body = format!("{{\"model\":\"fast\",\"input\":\"{input}\"}}");
    assert_eq!(gateway.post("/v1/embeddings", &body).await.status, 200);
    assert_eq!(a.last().body, body.replace("fast", "a/small"));

    let late = format!("{{\"input\":\"{input}\",\"model\":\"fast\"}}");
    let answer = gateway.post("/v1/embeddings", &late).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (413, Some("model_not_found_in_time")));
    assert_eq!(a.hits(), 1);
    // A file belongs to no model.
    let file =
        format!("--xyz\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n{input}\r\n--xyz--\r\n");
    assert_eq!(read(gateway.send(form(&gateway, "/v1/files", file)).await).await.status, 200);
}

/// A client that promises a long body and sends only the beginning of it.
async fn begin_upload(gateway: &Gateway, promised: usize) -> TcpStream {
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    let head =
        format!("POST /v1/x HTTP/1.1\r\nhost: g\r\ncontent-length: {promised}\r\n\r\n{{\"model\":\"m\",\"x\":\"");
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all("x".repeat(100_000).as_bytes()).await.unwrap();
    client
}

#[tokio::test]
async fn a_client_that_stalls_in_a_long_body_or_leaves_blames_no_provider() {
    let a = Provider::with_status(200).await;
    let gateway =
        Gateway::start(&[&a], "replay_body_bytes = 65536\nbody_timeout = '100ms'", "", "timeouts.total = '10ms'").await;
    let mut client = begin_upload(&gateway, 1_000_000).await;
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    drop(begin_upload(&gateway, 1_000_000).await);
    for line in gateway.log(2).await {
        assert_eq!((&line["attempts"][0]["outcome"], &line["blamed"]), (&json!("client_left"), &json!([])), "{line}");
    }
    assert_eq!(gateway.failures_of("a"), 0);
}

#[tokio::test]
async fn a_provider_that_hangs_after_a_long_body_has_failed() {
    let a = Provider::start(|_| hang()).await;
    let gateway = Gateway::start(&[&a], SHORT_REPLAY, "", "timeouts.total = '100ms'").await;
    assert_eq!(gateway.post("/v1/x", &long()).await.status, 504);
    assert_eq!(gateway.failures_of("a"), 1);

    let gateway = Gateway::over(&[nobody().await], SHORT_REPLAY, "", "").await;
    assert_eq!(gateway.post("/v1/x", &long()).await.status, 502);
    assert_eq!(gateway.failures_of("a"), 1);
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused_with_or_without_a_length() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "max_body_bytes = 1000\nreplay_body_bytes = 1024", "", "").await;
    let answer = gateway.post("/v1/x", &long()).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (413, Some("body_too_long")));
    assert_eq!(a.hits(), 0);

    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    let body = format!("{{\"model\":\"m\",\"x\":\"{}\"}}", "x".repeat(2000));
    let chunked = format!(
        "POST /v1/x HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    client.write_all(chunked.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!((&answer, a.hits()), (b"HTTP/1.1 413", 0));
}

#[tokio::test]
async fn a_client_that_is_refused_in_the_middle_of_its_body_can_read_why() {
    let a = Provider::with_status(200).await;
    let gateway =
        Gateway::start(&[&a], "max_body_bytes = 100000000\nreplay_body_bytes = 1024\nsearch_body_bytes = 2048", "", "")
            .await;
    // The body names no model early enough. There is more of it than the system buffers.
    let head = "POST /v1/x HTTP/1.1\r\nhost: g\r\ncontent-length: 50000000\r\n\r\n{\"x\":\"";
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    client.write_all(head.as_bytes()).await.unwrap();
    let piece = "x".repeat(1_000_000);
    for _ in 0..49 {
        client.write_all(piece.as_bytes()).await.unwrap();
    }
    let mut answer = Vec::new();
    client.shutdown().await.unwrap();
    client.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("connection: close"), "{answer}");
    assert!(answer.contains("model_not_found_in_time"), "{answer}");
}
