//! Answers that are no streams: nobody can use half of one, so a provider that breaks one off is replaced unseen.

use http_body_util::BodyExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{Gateway, Provider, dripped, one_by_one};

/// Answers one request with these bytes, and closes the connection.
async fn answer_raw(listener: &TcpListener, answer: &str) {
    let (mut connection, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"}") {
        connection.read_buf(&mut request).await.unwrap();
    }
    connection.write_all(answer.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn an_answer_that_breaks_off_in_the_middle_fails_over_with_or_without_a_length() {
    for head in ["content-length: 100\r\n", "content-type: application/json\r\nconnection: close\r\n"] {
        let a = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let b = Provider::with_status(200).await;
        let gateway = Gateway::over(&[a.local_addr().unwrap(), b.address], "", "", "").await;
        let half = format!("HTTP/1.1 200 OK\r\n{head}\r\n{{\"half\":");
        let (answer, ()) = tokio::join!(gateway.ask(), answer_raw(&a, &half));
        assert!(answer.is_by(&b) && answer.body == "{\"status\":200}");
        assert_eq!((answer.header("x-fusebox-provider"), answer.header("x-fusebox-attempts")), ("b", "2"));
        let log = &gateway.log(1).await[0];
        assert_eq!((&log["attempts"][0]["outcome"], &log["blamed"]), (&json!("cut"), &json!(["a"])), "{head}");
        assert_eq!(gateway.failures_of("a"), 1);
    }
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_complete_unless_it_is_incomplete_json() {
    let a = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::over(&[a.local_addr().unwrap()], "", "", "").await;
    for (kind, body) in [("application/json", "{\"a\":1}"), ("text/plain", "{\"half\":")] {
        let whole = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n{body}");
        let (answer, ()) = tokio::join!(gateway.ask(), answer_raw(&a, &whole));
        assert_eq!((answer.status, &answer.body[..]), (200, body.as_bytes()));
    }
    assert_eq!(gateway.failures_of("a"), 0);
}

#[tokio::test]
async fn an_answer_that_stalls_or_drips_for_too_long_fails_over() {
    for (extra, drips, outcome) in
        [("timeouts.idle = '50ms'", false, "idle_timeout"), ("timeouts.total = '100ms'", true, "total_timeout")]
    {
        let (mut sender, response) = dripped();
        let a = Provider::start(one_by_one(vec![response])).await;
        let b = Provider::with_status(200).await;
        let gateway = Gateway::start(&[&a, &b], "", "", extra).await;
        let dripping = tokio::spawn(async move {
            sender.send_data("{\"half\":".into()).await.unwrap();
            while drips && sender.send_data(" ".into()).await.is_ok() {}
            sender
        });
        assert!(gateway.ask().await.is_by(&b));
        assert_eq!(gateway.log(1).await[0]["attempts"][0]["outcome"], outcome);
        assert_eq!(gateway.failures_of("a"), 1);
        drop(dripping.await.unwrap());
    }
}

#[tokio::test]
async fn an_answer_in_many_pieces_arrives_whole() {
    let (mut sender, response) = dripped();
    let gateway = Gateway::answering(vec![response], "", "", "").await;
    let (answer, ()) = tokio::join!(gateway.ask(), async {
        for piece in ["{\"a\"", ":", "1", "}"] {
            sender.send_data(piece.into()).await.unwrap();
            tokio::task::yield_now().await;
        }
        drop(sender);
    });
    assert_eq!((answer.status, &answer.body[..], answer.header("content-length")), (200, &b"{\"a\":1}"[..], "7"));
}

#[tokio::test]
async fn an_answer_too_long_to_be_held_is_passed_on_and_judged_to_its_end() {
    let long = "x".repeat(5000);
    let (mut sender, response) = dripped();
    let whole = axum::response::Response::new(long.clone().into());
    let gateway = Gateway::answering(vec![whole, response], "replay_answer_bytes = 1000", "", "").await;
    let answer = gateway.ask().await;
    assert_eq!((answer.status, answer.body.len(), answer.header("content-length")), (200, 5000, "5000"));

    let (response, ()) = tokio::join!(gateway.begin(), async { sender.send_data(long.into()).await.unwrap() });
    sender.abort(std::io::Error::other("gone"));
    assert!(response.into_body().collect().await.is_err());
    assert_eq!(gateway.failures_of("a"), 1);
}

#[tokio::test]
async fn with_nothing_held_an_answer_is_passed_on_as_it_comes() {
    let (mut sender, response) = dripped();
    let gateway = Gateway::answering(vec![response], "replay_answer_bytes = 0", "", "").await;
    let response = gateway.begin_with(&mut sender, "{").await;
    assert_eq!(response.status(), 200);
    sender.send_data("}".into()).await.unwrap();
    drop(sender);
    assert_eq!(crate::support::read(response).await.body, "{}");
}

#[tokio::test]
async fn an_answer_without_a_body_is_complete() {
    let a =
        Provider::start(|_| axum::response::Response::builder().status(204).body(axum::body::Body::empty()).unwrap())
            .await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let empty = gateway.ask().await;
    assert_eq!((empty.status, empty.body.len()), (204, 0));
    assert_eq!(gateway.log(1).await[0]["end"], "complete");
}
