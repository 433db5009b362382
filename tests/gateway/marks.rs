//! The end of a stream is its own mark, and not the end of the connection.

use std::time::Duration;

use http_body_util::BodyExt;
use serde_json::json;

use crate::raw::{self, Act};
use crate::support::{Gateway, answer, broken, streamed};

const CONTENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n";

/// The events with which the providers' streams end.
const MARKS: [&str; 8] = [
    "data: [DONE]\n\n",
    "data:[DONE]\r\n\r\n",
    "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: {\"choices\": [{\"delta\": {}, \"finish_reason\" : \"length\"}]}\n\ndata: {\"choices\":[],\"usage\":{}}\n\n",
    "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{}}\n\n",
    "data: {\"type\": \"response.incomplete\"}\n\n",
    "data: {\"type\":\"transcript.text.done\",\"text\":\"a\"}\n\n",
];

/// What looks like one, and is none.
const NO_MARKS: [&str; 5] = [
    "data: {\"choices\":[{\"delta\":{\"content\":\"[DONE]\"},\"finish_reason\":null}]}\n\n",
    "data: {\"choices\":[{\"delta\":{\"content\":\"say \\\"finish_reason\\\":\\\"stop\\\"\"},\"finish_reason\": null}]}\n\n",
    "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"message_stop\\\"\"}}]}\n\n",
    ": data: [DONE]\n\n",
    "data: {\"type\":\"response.output_text.done\"}\n\n",
];

/// The whole body, as a client reads it.
async fn rest(response: http::Response<hyper::body::Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Reads up to an event, and leaves.
async fn close_at(response: http::Response<hyper::body::Incoming>, event: &str) {
    let mut body = response.into_body();
    let mut read = Vec::new();
    while !read.ends_with(event.as_bytes()) {
        read.extend_from_slice(&body.frame().await.unwrap().unwrap().into_data().unwrap());
    }
}

async fn end_of(gateway: &Gateway) -> (String, String) {
    let line = gateway.log(1).await.remove(0);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    (text(&line["end"]), text(&line["attempts"][0]["outcome"]))
}

#[tokio::test]
async fn a_client_that_closes_at_the_mark_has_had_a_complete_stream() {
    for mark in MARKS {
        let (mut sender, response) = streamed();
        let gateway = Gateway::answering(vec![response], "", "", "").await;
        let response = gateway.begin_with(&mut sender, CONTENT).await;
        sender.send_data(mark.into()).await.unwrap();
        // As the openai SDK does: it does not wait for the end of the connection, which is still to come.
        close_at(response, mark).await;
        assert_eq!(end_of(&gateway).await, ("complete".into(), "ok".into()), "{mark}");
    }
}

#[tokio::test]
async fn a_client_that_closes_before_the_mark_has_left() {
    for no_mark in NO_MARKS {
        let (mut sender, response) = streamed();
        let gateway = Gateway::answering(vec![response], "", "", "").await;
        let response = gateway.begin_with(&mut sender, CONTENT).await;
        sender.send_data(no_mark.into()).await.unwrap();
        close_at(response, no_mark).await;
        assert_eq!(end_of(&gateway).await, ("client_left".into(), "client_left".into()), "{no_mark}");
    }
}

#[tokio::test]
async fn a_provider_that_breaks_off_after_the_mark_has_answered() {
    let (mut sender, response) = streamed();
    let gateway = Gateway::answering(vec![answer(500), response], "", "", "").await;
    gateway.ask().await;
    let response = gateway.begin_with(&mut sender, CONTENT).await;
    sender.send_data("data: [DONE]\n\n".into()).await.unwrap();
    gateway.until(|gateway| gateway.failures_of("a") == 0).await;
    sender.abort(std::io::Error::other("gone"));
    assert_eq!(rest(response).await, format!("{CONTENT}data: [DONE]\n\n"));
    let line = &gateway.log(2).await[1];
    assert_eq!((&line["end"], &line["attempts"][0]["outcome"]), (&json!("complete"), &json!("ok")));
    assert_eq!(gateway.failures_of("a"), 0);
}

#[tokio::test]
async fn a_provider_that_keeps_the_connection_open_after_the_mark_has_answered() {
    let (mut sender, response) = streamed();
    let extra = "[timeouts]\nidle = '50ms'";
    let gateway = Gateway::answering(vec![response], "", "", extra).await;
    let response = gateway.begin_with(&mut sender, CONTENT).await;
    sender.send_data("data: [DONE]\n\n".into()).await.unwrap();
    assert_eq!(rest(response).await, format!("{CONTENT}data: [DONE]\n\n"));
    assert_eq!(end_of(&gateway).await, ("complete".into(), "ok".into()));
    drop(sender);
}

#[tokio::test]
async fn a_probe_whose_client_closes_at_the_mark_closes_the_circuit_that_cut_streams_opened() {
    let (mut cut, first) = streamed();
    let (mut sender, second) = streamed();
    let gateway = Gateway::answering(vec![first, second], "", "failure_threshold = 1\nopen_for = '1ms'", "").await;
    let response = gateway.begin_with(&mut cut, CONTENT).await;
    cut.abort(std::io::Error::other("gone"));
    broken(response).await;
    gateway.reopens("a").await;
    let response = gateway.begin_with(&mut sender, CONTENT).await;
    assert_eq!(gateway.state_of("a"), "half_open", "a good beginning proves nothing");
    sender.send_data("data: [DONE]\n\n".into()).await.unwrap();
    close_at(response, "data: [DONE]\n\n").await;
    gateway.reaches("a", "closed").await;
}

#[tokio::test]
async fn a_chunked_stream_without_a_mark_is_a_success_with_an_outcome_of_its_own() {
    let (mut sender, response) = streamed();
    let gateway = Gateway::answering(vec![answer(500), response], "", "", "").await;
    gateway.ask().await;
    let response = gateway.begin_with(&mut sender, CONTENT).await;
    drop(sender);
    assert_eq!(rest(response).await, CONTENT);
    let line = &gateway.log(2).await[1];
    assert_eq!((&line["end"], &line["attempts"][0]["outcome"]), (&json!("complete"), &json!("unmarked")));
    assert_eq!(line["provider"], "a");
    assert_eq!(gateway.failures_of("a"), 0);
}

#[tokio::test]
async fn a_stream_that_ends_in_the_middle_of_an_event_is_cut() {
    let (mut sender, response) = streamed();
    let gateway = Gateway::answering(vec![response], "", "", "").await;
    let response = gateway.begin_with(&mut sender, CONTENT).await;
    sender.send_data("data: {\"choices\":[{\"delta\":{\"con".into()).await.unwrap();
    drop(sender);
    let (passed, message) = broken(response).await;
    assert_eq!((passed.as_str(), message.as_str()), (CONTENT, "The provider broke off in the middle of the answer."));
    assert_eq!(end_of(&gateway).await, ("cut".into(), "cut".into()));
    assert_eq!(gateway.failures_of("a"), 1);
}

#[tokio::test]
async fn the_last_event_needs_no_empty_line_if_it_marks_the_end() {
    let (mut sender, response) = streamed();
    let gateway = Gateway::answering(vec![response], "", "", "").await;
    let response = gateway.begin_with(&mut sender, CONTENT).await;
    sender.send_data("data: [DONE]\n".into()).await.unwrap();
    drop(sender);
    assert_eq!(rest(response).await, format!("{CONTENT}data: [DONE]\n"));
    assert_eq!(end_of(&gateway).await, ("complete".into(), "ok".into()));
}

#[tokio::test]
async fn a_stream_that_ends_with_its_connection_is_complete_only_with_a_mark() {
    const HEADS: [&str; 2] = [
        "HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
    ];
    for head in HEADS {
        for (end, outcome, failures) in [("data: [DONE]\n\n", "ok", 0), ("", "cut", 1), ("data: {\"half", "cut", 1)] {
            let whole: &'static str = format!("{head}{CONTENT}{end}").leak();
            let (address, _) = raw::provider(move |_| Act::SendAndClose(whole)).await;
            let gateway = Gateway::over(&[address], "", "", "").await;
            let response = gateway.begin().await;
            if outcome == "ok" {
                assert_eq!(rest(response).await, format!("{CONTENT}{end}"));
            } else {
                assert_eq!(broken(response).await.0, CONTENT, "{head}{end}");
            }
            let (ended, seen) = end_of(&gateway).await;
            assert_eq!((ended == "complete", seen.as_str()), (failures == 0, outcome), "{head}{end}");
            assert_eq!(gateway.failures_of("a"), failures);
        }
    }
}

#[tokio::test]
async fn a_stream_that_pauses_before_its_mark_is_still_cut_off() {
    let (mut sender, response) = streamed();
    let gateway = Gateway::answering(vec![response], "", "", "[timeouts]\nidle = '50ms'").await;
    let started = std::time::Instant::now();
    let response = gateway.begin_with(&mut sender, CONTENT).await;
    broken(response).await;
    assert!(started.elapsed() >= Duration::from_millis(50));
    assert_eq!(end_of(&gateway).await, ("cut".into(), "idle_timeout".into()));
    drop(sender);
}
