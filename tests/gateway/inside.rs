//! Answers with a good status that are none.

use http::Response;
use serde_json::json;

use crate::support::{CHAT, Gateway, Provider, answer, one_by_one, read, soon, streamed};

const STREAM: &str = r#"{"model": "m", "stream": true}"#;
const GOOD: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\ndata: [DONE]\n\n";

fn typed(kind: &str, body: impl Into<axum::body::Body>) -> Response<axum::body::Body> {
    Response::builder().header("content-type", kind).body(body.into()).unwrap()
}

/// A gateway before a provider that answers so, and a good one.
async fn before(kind: &'static str, body: &'static str) -> (Gateway, Provider, Provider) {
    let a = Provider::start(move |_| typed(kind, body)).await;
    let b = Provider::start(|_| typed("text/event-stream", GOOD)).await;
    (Gateway::start(&[&a, &b], "", "", "").await, a, b)
}

#[tokio::test]
async fn a_json_answer_that_is_an_error_is_a_failed_attempt_and_the_next_provider_answers() {
    for (body, outcome, failures) in [
        (r#"{"error":{"message":"m","type":"server_error"}}"#, "5xx", 1),
        (r#"{"error":"it broke"}"#, "5xx", 1),
        (r#"{"type":"error","error":{"type":"overloaded_error"}}"#, "5xx", 1),
        (r#"{"object":"response","status":"failed","error":{"code":"server_error"},"output":[]}"#, "5xx", 1),
        (r#"{"error":{"code":"rate_limit_exceeded","type":"tokens"}}"#, "429", 0),
        (r#"{"error":{"code":"insufficient_quota"}}"#, "no_credit", 0),
        (r#"{"error":{"code":404,"message":"no such model"}}"#, "unknown_model", 0),
        ("<html>down</html>", "empty", 1),
        ("", "empty", 1),
    ] {
        let (gateway, _, b) = before("application/json", body).await;
        let answer = gateway.ask().await;
        assert!(answer.status == 200 && answer.is_by(&b), "{body}");
        assert_eq!(gateway.failures_of("a"), failures, "{body}");
        let line = &gateway.log(1).await[0];
        assert_eq!((&line["attempts"][0]["outcome"], &line["provider"]), (&json!(outcome), &json!("b")), "{line}");
    }
}

#[tokio::test]
async fn a_page_is_no_answer_whatever_was_asked_for() {
    for body in [CHAT, STREAM] {
        let (gateway, _, b) = before("text/html; charset=utf-8", "<h1>Bad gateway</h1>").await;
        assert!(gateway.post("/v1/chat/completions", body).await.is_by(&b));
        assert_eq!(gateway.failures_of("a"), 1);
    }
}

#[tokio::test]
async fn a_stream_without_content_is_a_failed_attempt_and_the_next_provider_answers() {
    let role = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
    let error = "data: {\"error\":{\"message\":\"m\",\"code\":502},\"choices\":[{\"delta\":{\"content\":\"\"},\"finish_reason\":\"error\"}]}\n\n";
    let started =
        "event: message_start\ndata: {\"type\":\"message_start\"}\n\nevent: ping\ndata: {\"type\":\"ping\"}\n\n";
    let overloaded = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n";
    let created = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"error\":null}}\n\n";
    let failed = "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"rate_limit_exceeded\"}}}\n\n";
    for (body, outcome) in [
        (String::new(), "empty"),
        ("data: [DONE]\n\n".to_owned(), "empty"),
        ("data: [DONE]".to_owned(), "empty"),
        (role.to_owned(), "empty"),
        (format!("{role}data: [DONE]\n\n"), "empty"),
        (": wait\n\n".repeat(3), "empty"),
        ("data: {\"error\":{\"message\":\"m\"}}\n\n".to_owned(), "5xx"),
        ("data: {\"error\":{\"message\":\"m\"}}".to_owned(), "5xx"),
        (format!(": wait\n\n: wait\n\n{error}data: [DONE]\n\n"), "5xx"),
        (format!("{started}{overloaded}"), "5xx"),
        (format!("{created}{failed}"), "429"),
        (format!("{created}event: error\ndata: {{\"type\":\"error\",\"code\":\"server_error\"}}\n\n"), "5xx"),
    ] {
        let body: &'static str = body.leak();
        let (gateway, _, b) = before("text/event-stream", body).await;
        let answer = gateway.post("/v1/chat/completions", STREAM).await;
        assert!(answer.is_by(&b) && answer.body == GOOD, "{body}");
        let line = &gateway.log(1).await[0];
        assert_eq!(
            (&line["attempts"][0]["outcome"], &line["stream"]),
            (&json!(outcome), &json!(true)),
            "{body} {line}"
        );
    }
}

#[tokio::test]
async fn if_no_provider_does_better_the_client_gets_the_error_with_the_status_that_it_stands_for() {
    let event = "data: {\"error\":{\"message\":\"slow down\",\"type\":\"rate_limit_error\"}}\n\n";
    for (kind, body, status, message) in [
        ("application/json", r#"{"error":{"message":"slow down","code":429}}"#, 429, "slow down"),
        ("text/event-stream", event, 429, "slow down"),
        ("application/json", r#"{"error":{"message":"no","type":"invalid_request_error"}}"#, 400, "no"),
        (
            "application/json",
            r#"{"error":{"message":"busy: provider-key","type":"overloaded_error"}}"#,
            503,
            "busy: ************",
        ),
    ] {
        let a = Provider::start(move |_| typed(kind, body)).await;
        let gateway = Gateway::start(&[&a], "", "", "").await;
        let answer = gateway.post("/v1/chat/completions", STREAM).await;
        assert_eq!((answer.status, answer.header("content-type")), (status, "application/json"));
        assert_eq!(answer.json()["error"]["message"], message);
    }
    let a = Provider::start(|_| typed("application/json", "")).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let answer = gateway.ask().await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (502, Some("provider_unreachable")));
}

#[tokio::test]
async fn a_wrong_request_inside_a_good_status_is_the_clients_fault_and_no_other_provider_is_asked() {
    let (gateway, _, b) = before("application/json", r#"{"error":{"code":"context_length_exceeded"}}"#).await;
    assert_eq!((gateway.ask().await.status, b.hits(), gateway.failures_of("a")), (400, 0, 0));
}

#[tokio::test]
async fn an_answer_that_only_mentions_an_error_is_passed_on_as_it_is() {
    for body in [
        r#"{"choices":[{"message":{"content":"the \"error\" is yours"}}]}"#,
        r#"{"error":null,"output":[{"type":"message"}]}"#,
        r#"{"error":{"code":"x"},"choices":[{"message":{"content":"a part"}}]}"#,
        r#"{"object":"fine_tuning.job","error":{"code":null,"message":null}}"#,
    ] {
        let (gateway, a, _) = before("application/json", body).await;
        let answer = gateway.ask().await;
        assert!(answer.is_by(&a) && answer.body == body);
    }
}

#[tokio::test]
async fn an_error_after_content_is_passed_on_and_counts_as_a_stream_that_broke_off() {
    let error = "event: error\ndata: {\"error\":{\"type\":\"overloaded_error\"}}\n\n";
    for (end, outcome, failures) in [
        (error, "cut", 1),
        (
            "data: {\"error\":{\"code\":502},\"choices\":[{\"delta\":{},\"finish_reason\":\"error\"}]}\n\ndata: [DONE]\n\n",
            "cut",
            1,
        ),
        ("data: {\"error\":{\"code\":\"rate_limit_exceeded\"}}\n\n", "429", 0),
    ] {
        let (mut sender, response) = streamed();
        let a = Provider::start(one_by_one(vec![response])).await;
        let gateway = Gateway::start(&[&a], "", "", "").await;
        let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
        sender.send_data(end.into()).await.unwrap();
        drop(sender);
        let answer = read(response).await;
        assert_eq!(answer.body, format!("data: 1\n\n{end}"), "unchanged");
        let line = &gateway.log(1).await[0];
        assert_eq!((&line["attempts"][0]["outcome"], &line["end"]), (&json!(outcome), &json!("cut")), "{line}");
        assert_eq!(gateway.failures_of("a"), failures);
    }
}

#[tokio::test]
async fn a_key_that_an_error_in_a_stream_quotes_as_its_code_is_not_kept() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let gateway = Gateway::start(&[&a], "", "failure_threshold = 1", "").await;
    let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
    sender.send_data("data: {\"error\":{\"code\":\"provider-key\"}}\n\n".into()).await.unwrap();
    gateway.until(|gateway| gateway.trips("a") == 1).await;
    let error = gateway.snapshot("a").last_error.unwrap().message().to_owned();
    assert_eq!(error, "an error in the middle of the answer: ************");
    drop(response);
}

#[tokio::test]
async fn an_error_without_a_type_is_one_and_the_page_of_a_redirect_is_none() {
    let error = r#"{"error":{"message":"m"}}"#;
    for kind in ["text/plain", "application/octet-stream"] {
        let (gateway, _, b) = before(kind, error).await;
        assert!(gateway.ask().await.is_by(&b), "{kind}");
    }
    let a = Provider::start(|_| {
        let mut response = typed("text/html", "<a>there</a>");
        *response.status_mut() = http::StatusCode::FOUND;
        response
    })
    .await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let answer = gateway.ask().await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (502, Some("provider_refused")));
    assert_eq!(gateway.failures_of("a"), 0);
}

#[tokio::test]
async fn a_client_that_leaves_at_an_error_event_leaves_the_failure_behind() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
    sender.send_data("data: {\"error\":{\"message\":\"m\"}}\n\n".into()).await.unwrap();
    gateway.until(|gateway| gateway.failures_of("a") == 1).await;
    drop(response);
    assert_eq!(gateway.log(1).await[0]["attempts"][0]["outcome"], "cut");
}

#[tokio::test]
async fn a_stream_that_was_asked_for_is_passed_on_as_it_comes_whatever_its_type() {
    for kind in ["application/json", "text/plain", "application/octet-stream"] {
        let (mut sender, body) = http_body_util::channel::Channel::<bytes::Bytes, std::io::Error>::new(4);
        let body = axum::body::Body::new(body);
        let a = Provider::start(one_by_one(vec![typed(kind, body)])).await;
        let gateway = Gateway::start(&[&a], "", "", "").await;
        let sent = gateway.send(gateway.request("/v1/chat/completions", STREAM));
        let (response, ()) = tokio::join!(sent, async { sender.send_data("{\"a\":".into()).await.unwrap() });
        assert_eq!(response.status(), 200);
        sender.send_data("1}".into()).await.unwrap();
        drop(sender);
        assert_eq!(soon(read(response)).await.body, "{\"a\":1}");
        assert_eq!(gateway.log(1).await[0]["attempts"][0]["outcome"], "ok", "{kind}");
    }
}

#[tokio::test]
async fn an_error_in_json_that_comes_in_pieces_where_a_stream_was_asked_for_is_one_too() {
    let (mut sender, body) = http_body_util::channel::Channel::<bytes::Bytes, std::io::Error>::new(4);
    let a = Provider::start(one_by_one(vec![typed("application/json", axum::body::Body::new(body))])).await;
    let b = Provider::start(|_| typed("text/event-stream", GOOD)).await;
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    let asked = async { gateway.post("/v1/chat/completions", STREAM).await };
    let (answer, ()) = tokio::join!(asked, async {
        sender.send_data("{\"error\": {\"message\":".into()).await.unwrap();
        gateway.until(|_| a.hits() == 1).await;
        sender.send_data("\"m\"}}".into()).await.unwrap();
        drop(sender);
    });
    assert!(answer.is_by(&b));
}

#[tokio::test]
async fn an_error_in_the_first_line_of_json_lines_is_one_too() {
    for kind in ["application/x-ndjson", "application/jsonl"] {
        let (gateway, _, b) = before(kind, "{\"error\":\"overloaded\"}\n").await;
        assert!(gateway.post("/v1/chat/completions", STREAM).await.is_by(&b), "{kind}");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_stream_has_no_time_limit_for_its_first_byte() {
    let (a, gate) = Provider::gated().await;
    let b = Provider::start(|_| answer(200)).await;
    let limits = "timeouts.first_byte = '50ms'\nsilence.enabled = false";
    let gateway = Gateway::start(&[&a, &b], "", "", limits).await;
    gate.send_replace(false);
    let asked = tokio::spawn(gateway.sending(gateway.request("/v1/chat/completions", CHAT)));
    // The stream is given up meanwhile, as it began later.
    assert!(gateway.post("/v1/chat/completions", STREAM).await.is_by(&b));
    gate.send_replace(true);
    assert!(read(asked.await.unwrap()).await.is_by(&a));
}
