//! Streams whose clients have the head of an answer before there is content.

use http::Response;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::support::{Gateway, Provider, another, answer, events, hang, one_by_one, read, soon, streamed};

const STREAM: &str = r#"{"model": "m", "stream": true}"#;
const SERVER: &str = "heartbeat_after = '50ms'\nheartbeat = '20ms'";
const COMMENT: &str = ": keep-alive\n\n";

/// The head of the answer to a stream that was asked for, and its body.
async fn begin(gateway: &Gateway) -> Response<hyper::body::Incoming> {
    soon(gateway.send(gateway.request("/v1/chat/completions", &another(STREAM)))).await
}

async fn next(response: &mut Response<hyper::body::Incoming>) -> Option<String> {
    let frame = soon(response.body_mut().frame()).await?.unwrap();
    Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
}

/// What comes when the comments are over.
async fn after_comments(response: &mut Response<hyper::body::Incoming>) -> String {
    loop {
        let text = next(response).await.unwrap();
        let rest = text.trim_start_matches(COMMENT);
        if !rest.is_empty() {
            return rest.to_owned();
        }
    }
}

#[tokio::test]
async fn a_client_gets_the_head_and_comments_until_there_is_content() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let gateway = Gateway::start(&[&a], SERVER, "", "").await;
    let mut answer = begin(&gateway).await;
    assert_eq!(
        (answer.status(), &answer.headers()["x-accel-buffering"]),
        (http::StatusCode::OK, &"no".parse().unwrap())
    );
    assert_eq!(answer.headers()["content-type"], "text/event-stream; charset=utf-8");
    assert!(answer.headers().contains_key("x-request-id"));
    for _ in 0..3 {
        assert_eq!(next(&mut answer).await.unwrap(), COMMENT);
    }
    sender.send_data("data: 1\n\n".into()).await.unwrap();
    assert_eq!(after_comments(&mut answer).await, "data: 1\n\n");
    sender.send_data("data: [DONE]\n\n".into()).await.unwrap();
    drop(sender);
    assert_eq!(next(&mut answer).await.unwrap(), "data: [DONE]\n\n");
    assert_eq!(next(&mut answer).await, None);
    let log = &gateway.log(1).await[0];
    assert_eq!((&log["status"], &log["end"], &log["stream"]), (&json!(200), &json!("complete"), &json!(true)));
    assert_eq!(log["attempts"][0]["outcome"], "ok");
}

#[tokio::test]
async fn a_request_moves_on_to_the_next_provider_behind_the_comments() {
    let a = Provider::start(|_| hang()).await;
    let b = Provider::start(|_| events("data: 1\n\ndata: [DONE]\n\n")).await;
    let gateway = Gateway::start(&[&a, &b], SERVER, "", "timeouts.first_byte = '200ms'").await;
    let mut answer = begin(&gateway).await;
    assert_eq!(next(&mut answer).await.unwrap(), COMMENT);
    assert_eq!(after_comments(&mut answer).await, "data: 1\n\ndata: [DONE]\n\n");
    let log = &gateway.log(1).await[0];
    assert_eq!(log["attempts"][0]["outcome"], "first_byte_timeout");
    assert_eq!((&log["attempts"][1]["outcome"], &log["provider"]), (&json!("ok"), &json!("b")));
}

#[tokio::test]
async fn a_stream_that_all_providers_fail_ends_with_an_error_event() {
    for (second, code) in [(500, Value::Null), (0, json!("provider_timeout"))] {
        let a = Provider::start(|_| hang()).await;
        let b = Provider::start(move |_| if second == 0 { hang() } else { answer(second) }).await;
        let gateway = Gateway::start(&[&a, &b], SERVER, "", "timeouts.first_byte = '100ms'").await;
        let mut answer = begin(&gateway).await;
        assert_eq!(answer.status(), 200);
        let event = after_comments(&mut answer).await;
        let data = event.strip_prefix("event: error\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
        let error: Value = serde_json::from_str(data).unwrap();
        assert!(error["error"].is_object(), "{error}");
        if !code.is_null() {
            assert_eq!(error["error"]["code"], code);
        }
        assert_eq!(next(&mut answer).await, None);
        let log = &gateway.log(1).await[0];
        assert_eq!((&log["status"], &log["end"]), (&json!(200), &json!("cut")));
    }
}

#[tokio::test]
async fn an_answer_that_comes_in_time_has_its_own_status() {
    let a = Provider::start(|_| answer(400)).await;
    let gateway = Gateway::start(&[&a], "heartbeat_after = '10s'", "", "").await;
    assert_eq!(read(begin(&gateway).await).await.status, 400);
    let whole = gateway.post("/v1/chat/completions", r#"{"model": "x", "stream": true}"#).await;
    assert_eq!(whole.status, 404);
}

#[tokio::test]
async fn an_answer_that_is_no_stream_gets_no_comments() {
    let a = Provider::start(|_| answer(200)).await;
    let gateway = Gateway::start(&[&a], "heartbeat_after = '1ms'\nheartbeat = '1ms'", "", "").await;
    let answer = gateway.ask().await;
    assert!(answer.is_by(&a) && !std::str::from_utf8(&answer.body).unwrap().contains("keep-alive"));
}

#[tokio::test]
async fn a_client_that_leaves_behind_the_comments_calls_its_request_off() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let gateway = Gateway::start(&[&a], SERVER, "", "").await;
    let mut answer = begin(&gateway).await;
    assert_eq!(next(&mut answer).await.unwrap(), COMMENT);
    drop(answer);
    soon(async {
        while sender.send_data(": wait\n\n".into()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let log = &gateway.log(1).await[0];
    assert_eq!((&log["status"], &log["end"]), (&json!(200), &json!("client_left")));
    assert_eq!(log["blamed"], json!([]));
}
