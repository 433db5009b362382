//! Connections to providers, and when their end is whose fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{CHAT, DEADLINE, Gateway, Provider, soon};

/// Answers every request, but closes a connection instead of giving the answer that `closes` names: the n-th on it,
/// from 0. Counts the connections and the closes.
async fn closing(closes: usize) -> (std::net::SocketAddr, Arc<[AtomicUsize; 2]>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let counts = Arc::new([const { AtomicUsize::new(0) }; 2]);
    let counted = Arc::clone(&counts);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted[0].fetch_add(1, Ordering::Relaxed);
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut stream = stream;
                for _ in 0..closes {
                    if !read_request(&mut stream).await {
                        return;
                    }
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                }
                if read_request(&mut stream).await {
                    counted[1].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    (address, counts)
}

/// Up to the end of its body, which no request of these tests has `}` in elsewhere than at the end.
async fn read_request(stream: &mut TcpStream) -> bool {
    let mut request = Vec::new();
    while !request.ends_with(b"}") {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return false;
        }
    }
    true
}

#[tokio::test]
async fn connections_are_reused() {
    let (address, counts) = closing(usize::MAX).await;
    let gateway = Gateway::over(&[address], "", "", "").await;
    for _ in 0..20 {
        assert_eq!(gateway.ask().await.status, 200);
        gateway.until(|gateway| gateway.failures_of("a") == 0).await;
    }
    assert!(counts[0].load(Ordering::Relaxed) < 20);
}

#[tokio::test]
async fn a_reused_connection_that_closes_before_an_answer_is_neutral_and_the_request_is_sent_again() {
    let (address, counts) = closing(3).await;
    let gateway = Gateway::over(&[address], "", "failure_threshold = 1", "").await;
    // A connection is put back a moment after its answer, so how often one is reused is up to chance.
    let start = std::time::Instant::now();
    while counts[1].load(Ordering::Relaxed) < 10 {
        assert!(start.elapsed() < DEADLINE);
        let answer = gateway.ask().await;
        assert_eq!((answer.status, &answer.body[..]), (200, &b"ok"[..]));
    }
    let snapshot = gateway.snapshot("a");
    assert_eq!((snapshot.failure_count, snapshot.trip_count), (0, 0));
}

#[tokio::test]
async fn a_new_connection_that_closes_before_an_answer_is_the_providers_failure() {
    let (address, counts) = closing(0).await;
    let gateway = Gateway::over(&[address], "", "", "").await;
    assert_eq!(gateway.ask().await.status, 502);
    assert_eq!((gateway.failures_of("a"), counts[1].load(Ordering::Relaxed)), (1, 1), "and it is not asked twice");
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_the_providers_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::over(&[listener.local_addr().unwrap()], "", "", "").await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            read_request(&mut stream).await;
            stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").await.unwrap();
        }
    });
    assert_eq!(gateway.ask().await.status, 502);
    assert_eq!(gateway.failures_of("a"), 1);
}

/// Answers one request on each connection, then does what `then` says with it.
async fn answering_once<F: Future<Output = ()> + Send + 'static>(
    then: impl Fn(TcpStream) -> F + Send + 'static,
) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if read_request(&mut stream).await {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                tokio::spawn(then(stream));
            }
        }
    });
    address
}

#[tokio::test]
async fn an_idle_connection_is_closed_when_the_provider_closes_it_and_at_its_idle_limit() {
    for (limit, provider_closes) in [("1h", true), ("50ms", false)] {
        let (gone, mut is_gone) = tokio::sync::mpsc::unbounded_channel();
        let (close, closes) = tokio::sync::watch::channel(false);
        let address = answering_once(move |mut stream| {
            let (gone, mut closes) = (gone.clone(), closes.clone());
            async move {
                if provider_closes {
                    closes.wait_for(|closes| *closes).await.unwrap();
                    stream.shutdown().await.unwrap();
                }
                assert_eq!(stream.read_buf(&mut Vec::new()).await.unwrap(), 0);
                gone.send(()).unwrap();
            }
        })
        .await;
        let extra = format!("connections = {{ idle_limit = '{limit}' }}");
        let gateway = Gateway::over(&[address], "cores = 1", "failure_threshold = 1", &extra).await;
        assert_eq!(gateway.ask().await.status, 200);
        assert!(is_gone.is_empty());
        close.send(true).unwrap();
        tokio::time::timeout(DEADLINE, is_gone.recv()).await.expect("the gateway closes it too").unwrap();
        assert_eq!(gateway.ask().await.status, 200);
        assert_eq!(gateway.trips("a"), 0);
    }
}

#[tokio::test]
async fn no_more_idle_connections_are_kept_than_configured() {
    for (max, expected) in [(0, 5), (1, 4), (8, 0)] {
        let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
        let closed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&closed);
        let (answer, answers) = tokio::sync::watch::channel(false);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (arrived, count, mut answers) = (arrived.clone(), Arc::clone(&count), answers.clone());
                tokio::spawn(async move {
                    read_request(&mut stream).await;
                    arrived.send(()).unwrap();
                    answers.wait_for(|answer| *answer).await.unwrap();
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                    stream.read_buf(&mut Vec::new()).await.unwrap();
                    count.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        let extra = format!("connections = {{ idle_limit = '1h', max_idle = {max} }}");
        let gateway = Gateway::over(&[address], "cores = 1", "", &extra).await;
        // The requests come at once, so that each needs its own connection.
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..5 {
            let request = gateway.request("/v1/x", CHAT);
            let send = gateway.sending(request);
            asked.spawn(async move { crate::support::read(send.await).await.status });
        }
        for _ in 0..5 {
            arrivals.recv().await.unwrap();
        }
        answer.send(true).unwrap();
        assert_eq!(asked.join_all().await, [200; 5]);
        gateway.until(|_| closed.load(Ordering::SeqCst) >= expected).await;
        assert_eq!(closed.load(Ordering::SeqCst), expected);
    }
}

#[tokio::test]
async fn a_connection_is_not_used_beyond_its_maximum_age() {
    let (address, counts) = closing(usize::MAX).await;
    let gateway = Gateway::over(&[address], "cores = 1", "", "connections = { max_age = '5ms' }").await;
    let start = std::time::Instant::now();
    while counts[0].load(Ordering::Relaxed) < 3 {
        assert_eq!(gateway.ask().await.status, 200);
        assert!(start.elapsed() < DEADLINE);
    }
}

#[tokio::test]
async fn in_a_burst_of_clients_no_connection_is_dropped() {
    let (address, _) = closing(usize::MAX).await;
    let gateway = Gateway::over(&[address], "max_connections = 1", "", "").await;
    // The kernel retries a dropped connection, which would not help: only one is ever accepted.
    let burst = async {
        let mut connected = Vec::new();
        for _ in 0..300 {
            connected.push(TcpStream::connect(gateway.address).await.unwrap());
        }
    };
    tokio::time::timeout(DEADLINE, burst).await.expect("all are in the queue");
}

#[tokio::test]
async fn a_client_that_sends_no_more_after_its_request_gets_its_answer() {
    for version in ["1.1", "1.0"] {
        let (a, gate) = Provider::gated().await;
        let gateway = Gateway::start(&[&a], "cores = 1", "", "").await;
        gate.send_replace(false);
        let mut client = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        let length = CHAT.len();
        let request =
            format!("POST /v1/chat/completions HTTP/{version}\r\nhost: g\r\ncontent-length: {length}\r\n\r\n{CHAT}");
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        gateway.until(|_| a.hits() == 1).await;
        if version == "1.1" {
            // The gateway has noticed it, and asks whether the client is still there.
            let mut interim = [0; 25];
            soon(client.read_exact(&mut interim)).await.unwrap();
            assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        gate.send_replace(true);
        let mut answer = String::new();
        soon(client.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.") && answer.contains(" 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("{\"status\":200}"), "{answer}");
        assert_eq!(gateway.log(1).await[0]["end"], "complete");
    }
}

#[tokio::test]
async fn a_client_that_closes_its_connection_is_noticed_before_its_answer_is_there() {
    let (a, gate) = Provider::gated().await;
    let gateway = Gateway::start(&[&a], "cores = 1", "", "").await;
    gate.send_replace(false);
    let mut client = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let length = CHAT.len();
    let request = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: {length}\r\n\r\n{CHAT}");
    client.write_all(request.as_bytes()).await.unwrap();
    gateway.until(|_| a.hits() == 1).await;
    drop(client);
    assert_eq!(gateway.log(1).await[0]["end"], "client_left");
}
