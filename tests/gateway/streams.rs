//! Bodies on their way through.

use http_body_util::BodyExt;

use crate::support::{CHAT, Gateway, Provider, answer, one_by_one, streamed};

#[tokio::test]
async fn a_stream_passes_chunk_by_chunk_as_it_comes() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
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
async fn a_stream_that_breaks_off_in_the_middle_is_cut_and_counts_as_a_failure() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
    assert_eq!(gateway.failures_of("a"), 0);
    sender.abort(std::io::Error::other("gone"));
    assert!(response.into_body().collect().await.is_err(), "a cut stream must not look complete");
    assert_eq!(gateway.failures_of("a"), 1);
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_cut_after_the_timeout() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let gateway = Gateway::start(&[&a], "", "", "timeouts.idle = '50ms'").await;
    let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
    assert!(response.into_body().collect().await.is_err());
    assert_eq!(gateway.failures_of("a"), 1);
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
async fn the_rest_of_a_probes_stream_is_judged_as_an_ordinary_call() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![answer(500), response])).await;
    let gateway = Gateway::start(&[&a], "", "failure_threshold = 1\nopen_for = '1ms'", "").await;
    gateway.ask().await;
    gateway.reopens("a").await;
    let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
    assert_eq!(gateway.state_of("a"), "closed", "the first byte was enough");
    sender.abort(std::io::Error::other("gone"));
    assert!(response.into_body().collect().await.is_err());
    let breaker = gateway.breaker("a");
    assert_eq!((breaker.trip_count(), breaker.snapshot().failed_probe_count), (2, 0));
}

#[tokio::test]
async fn a_client_that_goes_away_is_neutral_and_hands_its_probe_on() {
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
        assert!(gateway.breaker("a").snapshot().probe_in_flight);
    }
    gateway.until(|gateway| !gateway.breaker("a").snapshot().probe_in_flight).await;
    assert_eq!(gateway.state_of("a"), "half_open");
    assert_eq!(gateway.ask().await.status, 200);
    gateway.reaches("a", "closed").await;
}

#[tokio::test]
async fn a_drain_lets_streams_finish_and_refuses_new_connections() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let mut gateway = Gateway::start(&[&a], "", "", "").await;
    let response = gateway.begin_with(&mut sender, "1").await;
    gateway.stop();
    while tokio::net::TcpStream::connect(gateway.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    sender.send_data("2".into()).await.unwrap();
    drop(sender);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "12");
    gateway.server.await.unwrap();
}

#[tokio::test]
async fn a_drain_ends_at_its_limit() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let mut gateway = Gateway::start(&[&a], "drain_limit = '50ms'", "", "").await;
    let response = gateway.begin_with(&mut sender, "1").await;
    gateway.stop();
    (&mut gateway.server).await.unwrap();
    drop(response);
}
