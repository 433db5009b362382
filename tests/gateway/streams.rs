//! Bodies on their way through.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::Sender;
use serde_json::json;

use crate::support::{CHAT, Gateway, Provider, answer, broken, events, one_by_one, soon, streamed, until_closed};

const STREAM: &str = r#"{"model": "m", "stream": true}"#;

#[tokio::test]
async fn a_stream_is_passed_on_chunk_by_chunk() {
    let (mut sender, response) = streamed();
    let gateway = Gateway::answering(vec![response], "", "", "").await;
    let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
    let mut body = response.into_body();
    // The second chunk is sent only when the first has arrived.
    for chunk in ["data: 1\n\n", "data: 2\n\n", "data: [DONE]\n\n"] {
        if !chunk.contains('1') {
            sender.send_data(chunk.into()).await.unwrap();
        }
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), chunk);
    }
    drop(sender);
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_broken_stream_ends_with_an_error_event_after_the_last_whole_event_and_counts_as_a_failure() {
    let (mut sender, response) = streamed();
    let gateway = Gateway::answering(vec![response], "", "", "").await;
    let response = gateway.begin_with(&mut sender, "data: 1\n\ndata: {\"half").await;
    assert_eq!(gateway.failures_of("a"), 0);
    sender.abort(std::io::Error::other("gone"));
    let (before, message) = broken(response).await;
    assert_eq!(
        (before.as_str(), message.as_str()),
        ("data: 1\n\n", "The provider broke off in the middle of the answer.")
    );
    assert_eq!(gateway.failures_of("a"), 1);
    let log = &gateway.log(1).await[0];
    assert_eq!(
        (&log["end"], &log["blamed"], &log["attempts"][0]["outcome"]),
        (&json!("cut"), &json!(["a"]), &json!("cut"))
    );
}

#[tokio::test]
async fn a_stream_that_falls_silent_ends_with_an_error_event_after_the_idle_timeout() {
    let (mut sender, response) = streamed();
    let gateway = Gateway::answering(vec![response], "", "", "timeouts.idle = '50ms'").await;
    let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
    assert_eq!(broken(response).await.1, "The provider fell silent in the middle of the answer.");
    assert_eq!(gateway.snapshot("a").failure_count, 1);
    assert_eq!(gateway.log(1).await[0]["attempts"][0]["outcome"], "idle_timeout");
}

#[tokio::test]
async fn a_stream_that_drips_for_too_long_ends_with_an_error_event_after_the_total_timeout() {
    let (mut sender, response) = streamed();
    let gateway = Gateway::answering(vec![response], "", "", "timeouts.total = '100ms'").await;
    let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
    let dripping = tokio::spawn(async move { while sender.send_data(":\n\n".into()).await.is_ok() {} });
    assert_eq!(broken(response).await.1, "The provider took too long for the whole answer.");
    assert_eq!(gateway.log(1).await[0]["attempts"][0]["outcome"], "total_timeout");
    assert_eq!(gateway.failures_of("a"), 1);
    dripping.await.unwrap();
}

/// Until nobody takes it any more. With a pause, or a busy machine would be given ever more to read.
async fn keep_alive(mut sender: Sender<Bytes, std::io::Error>, piece: &'static str) {
    let mut due = tokio::time::interval(Duration::from_millis(2));
    while sender.send_data(piece.into()).await.is_ok() {
        due.tick().await;
    }
}

#[tokio::test]
async fn what_only_keeps_a_stream_alive_does_not_keep_it_from_its_idle_timeout() {
    for ping in [
        ":\n\n",
        "event: ping\ndata: {\"type\": \"ping\"}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"\"}}]}\n\n",
        "data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"\"}}\n\n",
    ] {
        let (mut sender, response) = streamed();
        let gateway = Gateway::answering(vec![response], "", "", "timeouts.idle = '100ms'").await;
        let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
        let pinging = tokio::spawn(keep_alive(sender, ping));
        assert_eq!(broken(response).await.1, "The provider fell silent in the middle of the answer.", "{ping}");
        assert_eq!(gateway.log(1).await[0]["attempts"][0]["outcome"], "idle_timeout");
        soon(pinging).await.unwrap();
    }
}

#[tokio::test]
async fn a_provider_that_keeps_a_stream_alive_and_sends_no_content_has_a_time_limit() {
    let (sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let b = Provider::start(|_| events("data: 1\n\ndata: [DONE]\n\n")).await;
    let gateway = Gateway::start(&[&a, &b], "", "", "timeouts.first_content = '100ms'").await;
    let pinging = tokio::spawn(keep_alive(sender, ": wait\n\n"));
    let answer = gateway.post("/v1/chat/completions", r#"{"model": "m", "stream": true}"#).await;
    assert!(answer.is_by(&b));
    let log = &gateway.log(1).await[0];
    assert_eq!(log["attempts"][0]["outcome"], "first_content_timeout");
    assert_eq!(gateway.failures_of("a"), 1);
    soon(pinging).await.unwrap();
}

#[tokio::test]
async fn a_stream_whose_first_piece_comes_byte_by_byte_is_too_slow() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let b = Provider::start(|_| events("data: 1\n\ndata: [DONE]\n\n")).await;
    let gateway = Gateway::start(&[&a, &b], "", "", "timeouts.min_rate = 10").await;
    let dripping = tokio::spawn(async move {
        sender.send_data(": wait\n\ndata: ".into()).await.unwrap();
        while sender.send_data("x".into()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    let answer = gateway.post("/v1/chat/completions", STREAM).await;
    assert!(answer.is_by(&b));
    assert_eq!(gateway.log(1).await[0]["attempts"][0]["outcome"], "too_slow");
    assert_eq!(gateway.failures_of("a"), 1);
    soon(dripping).await.unwrap();
}

#[tokio::test]
async fn spaces_before_an_answer_that_is_no_stream_end_no_time_limit() {
    let (mut sender, body) = http_body_util::channel::Channel::<bytes::Bytes, std::io::Error>::new(4);
    let response = http::Response::builder().header("content-type", "application/json");
    let a = Provider::start(one_by_one(vec![response.body(axum::body::Body::new(body)).unwrap()])).await;
    let gateway = Gateway::start(&[&a], "", "", "timeouts.idle = '50ms'").await;
    let asked = gateway.ask();
    let answered = async {
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(200) {
            sender.send_data("\n".into()).await.unwrap();
            tokio::task::yield_now().await;
        }
        // From the first byte of the answer on, they do not count.
        sender.send_data("{\"a\":".into()).await.unwrap();
        while sender.send_data(" ".into()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    let (answer, ()) = tokio::join!(asked, soon(answered));
    assert_eq!(answer.status, 504);
    assert_eq!(gateway.log(1).await[0]["attempts"][0]["outcome"], "idle_timeout");
}

#[tokio::test]
async fn lines_of_json_are_passed_on_whole_and_end_with_the_line_that_says_so() {
    let (mut sender, mut response) = streamed();
    response.headers_mut().insert("content-type", "application/x-ndjson".parse().unwrap());
    let gateway = Gateway::answering(vec![response], "", "", "").await;
    // Neither an empty line nor an empty message is content.
    let first = "\n{\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":false}\n";
    let (response, ()) = tokio::join!(gateway.begin(), async {
        sender.send_data(first.into()).await.unwrap();
        sender.send_data("{\"message\":{\"content\":\"hi\"},".into()).await.unwrap();
        sender.send_data("\"done\":false}\n{\"half".into()).await.unwrap();
    });
    let mut body = response.into_body();
    let begun = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(begun, format!("{first}{{\"message\":{{\"content\":\"hi\"}},\"done\":false}}\n"));
    sender.send_data("\":1}\n{\"done\": true}\n".into()).await.unwrap();
    let rest = soon(body.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(rest, "{\"half\":1}\n{\"done\": true}\n");
    sender.abort(std::io::Error::other("whatever comes then"));
    drop(body);
    assert_eq!(gateway.log(1).await[0]["attempts"][0]["outcome"], "ok");
}

#[tokio::test]
async fn a_broken_stream_without_events_is_cut_off_for_the_client_too() {
    let (mut sender, mut response) = streamed();
    response.headers_mut().insert("content-type", "audio/mpeg".parse().unwrap());
    let gateway = Gateway::answering(vec![response], "", "", "").await;
    let response = gateway.begin_with(&mut sender, "ID3").await;
    sender.abort(std::io::Error::other("gone"));
    assert!(response.into_body().collect().await.is_err(), "half a piece of music must not look whole");
    assert_eq!(gateway.failures_of("a"), 1);
}

#[tokio::test]
async fn a_compressed_stream_is_passed_on_as_it_is() {
    let (mut sender, mut response) = streamed();
    response.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    let gateway = Gateway::answering(vec![response], "", "", "").await;
    let response = gateway.begin_with(&mut sender, "\x1f no end of an event").await;
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "\x1f no end of an event");
    sender.abort(std::io::Error::other("gone"));
    assert!(body.collect().await.is_err(), "nothing can be said within it");
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_blames_no_provider() {
    let (mut sender, response) = streamed();
    let gateway = Gateway::answering(vec![answer(500), response], "", "", "").await;
    gateway.ask().await;
    let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
    drop(response);
    let log = &gateway.log(2).await[1];
    assert_eq!((&log["end"], &log["blamed"]), (&json!("client_left"), &json!([])));
    assert_eq!(log["attempts"][0]["outcome"], "client_left");
    assert_eq!(gateway.failures_of("a"), 1, "neither counted nor forgiven");
    soon(async {
        while sender.send_data("data: 2\n\n".into()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_whole_answer_ends_a_row_of_failures() {
    let a = Provider::start(|n| answer(if n == 2 { 200 } else { 500 })).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    gateway.ask().await;
    gateway.ask().await;
    assert_eq!(gateway.failures_of("a"), 2);
    assert_eq!(gateway.ask().await.status, 200);
    gateway.until(|gateway| gateway.failures_of("a") == 0).await;
}

#[tokio::test]
async fn a_success_of_a_request_sent_before_a_failure_does_not_reset_the_count() {
    let (mut sender, response) = streamed();
    let gateway = Gateway::answering(vec![response, answer(500), answer(200)], "", "", "").await;
    let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
    // Requests of one millisecond count as sent together.
    let begun = std::time::Instant::now();
    gateway.until(|_| begun.elapsed() >= Duration::from_millis(2)).await;
    gateway.ask().await;
    drop(sender);
    response.into_body().collect().await.unwrap();
    gateway.log(2).await;
    assert_eq!(gateway.failures_of("a"), 1, "it says how the provider was, not how it is");
    gateway.ask().await;
    gateway.until(|gateway| gateway.failures_of("a") == 0).await;
}

#[tokio::test]
async fn the_rest_of_a_probes_stream_is_judged_as_a_normal_call() {
    let (mut sender, response) = streamed();
    let gateway =
        Gateway::answering(vec![answer(500), response], "", "failure_threshold = 1\nopen_for = '1ms'", "").await;
    gateway.ask().await;
    gateway.reopens("a").await;
    let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
    assert_eq!(gateway.state_of("a"), "closed", "the first byte was enough");
    sender.abort(std::io::Error::other("gone"));
    broken(response).await;
    let breaker = gateway.breaker("a");
    assert_eq!((breaker.trip_count(), breaker.snapshot().failed_probe_count), (2, 0));
}

#[tokio::test]
async fn if_broken_streams_opened_the_circuit_a_probe_is_judged_at_its_end() {
    let (streams, responses): (Vec<_>, Vec<_>) = (0..3).map(|_| streamed()).unzip();
    let a = Provider::start(one_by_one(responses)).await;
    let gateway = Gateway::start(&[&a], "", "failure_threshold = 1\nopen_for = '1ms'", "").await;
    let mut streams = streams.into_iter();
    let mut begin = async |state: &str| {
        let mut sender = streams.next().unwrap();
        let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
        assert_eq!(gateway.state_of("a"), state, "a good first byte proves nothing");
        (sender, response)
    };
    let break_off = async |sender: http_body_util::channel::Sender<bytes::Bytes, std::io::Error>, response| {
        sender.abort(std::io::Error::other("gone"));
        broken(response).await;
        gateway.reopens("a").await;
    };
    let (sender, response) = begin("closed").await;
    break_off(sender, response).await;
    let (sender, response) = begin("half_open").await;
    break_off(sender, response).await;
    let snapshot = gateway.snapshot("a");
    assert_eq!(
        (snapshot.trip_count, snapshot.failed_probe_count),
        (1, 1),
        "one cut stream, and no more, for a reopening"
    );
    let (sender, response) = begin("half_open").await;
    drop(sender);
    response.into_body().collect().await.unwrap();
    gateway.reaches("a", "closed").await;
}

#[tokio::test]
async fn a_probe_that_is_judged_at_its_end_succeeds_before_its_lease_ends() {
    let (mut first, one) = streamed();
    let (mut second, two) = streamed();
    let a = Provider::start(one_by_one(vec![one, two])).await;
    let gateway = Gateway::start(
        &[&a],
        "",
        "failure_threshold = 1\nopen_for = '1ms'",
        "timeouts = { first_byte = '40ms', idle = '40ms' }",
    )
    .await;
    let response = gateway.begin_with(&mut first, "data: 1\n\n").await;
    first.abort(std::io::Error::other("gone"));
    broken(response).await;
    gateway.reopens("a").await;
    let response = gateway.begin_with(&mut second, "data: 1\n\n").await;
    let reading = tokio::spawn(response.into_body().collect());
    let start = std::time::Instant::now();
    while gateway.state_of("a") != "closed" {
        assert!(start.elapsed() < crate::support::DEADLINE);
        second.send_data("data: more\n\n".into()).await.unwrap();
        tokio::task::yield_now().await;
    }
    // From then on it is an ordinary call.
    second.abort(std::io::Error::other("gone"));
    reading.await.unwrap().unwrap();
    gateway.reaches("a", "open").await;
    assert_eq!(gateway.trips("a"), 2);
}

#[tokio::test]
async fn a_client_that_leaves_is_neutral_and_its_probe_is_handed_back() {
    let a =
        Provider::start(|n| if n == 1 { crate::support::hang() } else { answer(if n == 0 { 500 } else { 200 }) }).await;
    let gateway = Gateway::start(&[&a], "", "failure_threshold = 1\nopen_for = '1ms'", "").await;
    gateway.ask().await;
    gateway.reopens("a").await;
    {
        // A client of its own, so that dropping the request closes the connection.
        use tokio::io::AsyncWriteExt;
        let mut client = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        let head = format!("POST /v1/x HTTP/1.1\r\nhost: g\r\ncontent-length: {}\r\n\r\n{CHAT}", CHAT.len());
        client.write_all(head.as_bytes()).await.unwrap();
        gateway.until(|_| a.hits() == 2).await;
        assert!(gateway.snapshot("a").probe_in_flight);
    }
    gateway.until(|gateway| !gateway.snapshot("a").probe_in_flight).await;
    assert_eq!(gateway.state_of("a"), "half_open");
    assert_eq!(gateway.ask().await.status, 200);
    gateway.reaches("a", "closed").await;
}

#[tokio::test]
async fn a_drain_lets_streams_finish_and_refuses_new_connections() {
    let (mut sender, response) = streamed();
    let mut gateway = Gateway::answering(vec![response], "", "", "").await;
    let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
    gateway.stop();
    until_closed(gateway.address).await;
    sender.send_data("data: 2\n\n".into()).await.unwrap();
    drop(sender);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "data: 1\n\ndata: 2\n\n");
    gateway.server.await.unwrap();
}

#[tokio::test]
async fn a_drain_ends_at_its_limit() {
    let (mut sender, response) = streamed();
    let mut gateway = Gateway::answering(vec![response], "drain_limit = '50ms'", "", "").await;
    let response = gateway.begin_with(&mut sender, "1").await;
    gateway.stop();
    (&mut gateway.server).await.unwrap();
    drop(response);
}
