//! Providers over HTTP/2.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use fusebox::proxy::GatewayConfig;
use h2::{Reason, RecvStream};
use http::{Request, Response, Version};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::{CHAT, Gateway, Provider, broken, one_by_one, read, streamed};

const HTTP2: &str = "http2 = true";

#[tokio::test]
async fn requests_are_the_same_over_http2() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "replay_body_bytes = 65536", "", HTTP2).await;
    let answer = gateway.ask().await;
    assert!(answer.status == 200 && answer.is_by(&a));
    let seen = a.last();
    assert_eq!((seen.version, &*seen.path), (Version::HTTP_2, "/base/v1/chat/completions"));
    assert_eq!(seen.headers["authorization"], "Bearer provider-key");
    assert!(!seen.headers.contains_key("connection") && !seen.headers.contains_key("host"), "{:?}", seen.headers);

    let long = format!("{{\"model\":\"m\",\"input\":\"{}\"}}", "x".repeat(2_000_000));
    let answer = gateway.post("/v1/embeddings", &long).await;
    assert_eq!((answer.status, answer.header("x-fusebox-replay")), (200, "no"));
    assert_eq!(a.last().body, long.as_bytes());
    assert_eq!(a.last().version, Version::HTTP_2);
}

#[tokio::test]
async fn a_stream_over_http2_is_judged_to_its_end() {
    let (mut whole, one) = streamed();
    let (mut cut, two) = streamed();
    let a = Provider::start(one_by_one(vec![one, two])).await;
    let gateway = Gateway::start(&[&a], "", "", HTTP2).await;
    let response = gateway.begin_with(&mut whole, "data: 1\n\n").await;
    whole.send_data("data: 2\n\n".into()).await.unwrap();
    drop(whole);
    assert_eq!(read(response).await.body, "data: 1\n\ndata: 2\n\n");
    let response = gateway.begin_with(&mut cut, "data: 1\n\n").await;
    cut.abort(std::io::Error::other("gone"));
    assert_eq!(broken(response).await.0, "data: 1\n\n");
    gateway.until(|gateway| gateway.failures_of("a") == 1).await;
}

/// What the provider does with a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Answer,
    Reset(Reason),
    /// All that is on the connection is lost.
    Close,
}

/// Does what `script` says with the n-th request of all, on the connection of that number. Counts connections and
/// requests.
async fn provider(script: impl Fn(usize, usize) -> Act + Send + Sync + 'static) -> (SocketAddr, Arc<[AtomicUsize; 2]>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let counts = Arc::new([const { AtomicUsize::new(0) }; 2]);
    let counted = Arc::clone(&counts);
    let script = Arc::new(script);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let connection_number = counted[0].fetch_add(1, Ordering::SeqCst);
            let (counted, script) = (Arc::clone(&counted), Arc::clone(&script));
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let _: Request<RecvStream> = request;
                    match script(connection_number, counted[1].fetch_add(1, Ordering::SeqCst)) {
                        Act::Answer => {
                            let mut body = respond.send_response(Response::new(()), false).unwrap();
                            body.send_data(Bytes::from_static(b"ok"), true).unwrap();
                        }
                        Act::Reset(reason) => respond.send_reset(reason),
                        Act::Close => return,
                    }
                }
            });
        }
    });
    (address, counts)
}

async fn gateway(address: SocketAddr) -> Gateway {
    Gateway::over(&[address], "cores = 1", "failure_threshold = 1", HTTP2).await
}

#[tokio::test]
async fn many_requests_at_once_share_a_connection() {
    let (address, counts) = provider(|_, _| Act::Answer).await;
    let gateway = gateway(address).await;
    assert_eq!(gateway.ask().await.status, 200);
    let mut asked = JoinSet::new();
    for _ in 0..50 {
        let sent = gateway.sending(gateway.request("/v1/x", CHAT));
        asked.spawn(async { read(sent.await).await });
    }
    let answers = asked.join_all().await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == "ok"));
    assert_eq!([0, 1].map(|index| counts[index].load(Ordering::SeqCst)), [1, 51]);
}

#[tokio::test]
async fn a_closed_http2_connection_and_a_refused_stream_are_neutral() {
    for act in [Act::Close, Act::Reset(Reason::REFUSED_STREAM)] {
        let (address, counts) = provider(move |_, n| if n % 3 == 2 { act } else { Act::Answer }).await;
        let gateway = gateway(address).await;
        for _ in 0..20 {
            assert_eq!(gateway.ask().await.status, 200);
        }
        let snapshot = gateway.snapshot("a");
        assert_eq!((snapshot.failure_count, snapshot.trip_count), (0, 0));
        assert!(counts[0].load(Ordering::SeqCst) > 5);
    }
}

#[tokio::test]
async fn a_request_that_lost_its_connection_is_sent_again_on_a_new_one() {
    let (address, counts) =
        provider(|connection, n| if connection < 2 && n > 1 { Act::Close } else { Act::Answer }).await;
    let config = "cores = 1\nreplay_body_bytes = 1024";
    let gateway = Gateway::over(&[address], config, "failure_threshold = 1", HTTP2).await;
    assert_eq!(gateway.ask().await.status, 200);
    // A body that can be sent only once gets a new connection, so that there is another one.
    let long = format!("{{\"model\":\"m\",\"input\":\"{}\"}}", "x".repeat(2000));
    assert_eq!(gateway.post("/v1/embeddings", &long).await.status, 200);
    assert_eq!(gateway.ask().await.status, 200);
    assert_eq!((counts[0].load(Ordering::SeqCst), gateway.trips("a")), (3, 0));
}

#[tokio::test]
async fn a_stream_that_is_reset_after_the_provider_saw_it_is_the_providers_failure() {
    let (address, counts) =
        provider(|_, n| if n == 1 { Act::Reset(Reason::INTERNAL_ERROR) } else { Act::Answer }).await;
    let gateway = gateway(address).await;
    assert_eq!(gateway.ask().await.status, 200);
    assert_eq!(gateway.ask().await.status, 502);
    assert_eq!((gateway.trips("a"), counts[1].load(Ordering::SeqCst)), (1, 2), "it is not asked twice");
    assert_eq!(gateway.log(2).await[1]["attempts"][0]["outcome"], json!("connection"));
}

#[tokio::test]
async fn a_provider_that_does_not_speak_the_configured_http2_has_failed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        }
    });
    let gateway = gateway(address).await;
    assert_eq!(gateway.ask().await.status, 502);
    assert_eq!(gateway.trips("a"), 1);
}

#[test]
fn what_cannot_be_is_said() {
    let mistakes = GatewayConfig::from_toml(
        "[connections]\nmax_age = '0s'\n[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1/v1'\nmodels = ['m']\n\
         http2 = 'yes'\nconnections = { max_idle = -1 }",
    )
    .unwrap_err();
    assert_eq!(
        mistakes.mistakes(),
        [
            "line 2: connections.max_age is 0s, expected 1ms to 1day",
            "line 7: providers[0].http2 is \"yes\", expected true or false",
            "line 8: providers[0].connections.max_idle is -1, expected a whole number, 0 to 1000000",
        ]
    );
}
