//! A provider and a client that speak HTTP/1 byte by byte, for `wire`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{DEADLINE, Gateway};

/// What a provider sends, and what it does then.
#[derive(Clone)]
pub(crate) enum Act {
    Send(&'static str),
    SendAndClose(&'static str),
    /// It sends nothing, and closes after this time.
    CloseAfter(Duration),
    /// It sends no more, but would read more.
    SendAndHalfClose(&'static str),
    /// Before it has read the body.
    SendEarly(&'static str),
}

pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A provider that is told its n-th answer byte by byte. Every connection's requests, as they came.
pub(crate) async fn provider(
    script: impl Fn(usize) -> Act + Send + Sync + 'static,
) -> (SocketAddr, Arc<Mutex<Vec<Vec<String>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen: Arc<Mutex<Vec<Vec<String>>>> = Arc::default();
    let (log, script) = (Arc::clone(&seen), Arc::new(script));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let connection = {
                let mut log = log.lock();
                log.push(Vec::new());
                log.len() - 1
            };
            let (log, script) = (Arc::clone(&log), Arc::clone(&script));
            tokio::spawn(async move {
                let mut read = Vec::new();
                loop {
                    let Some(head) = read_until(&mut stream, &mut read, head_length).await else { return };
                    let count = log.lock().iter().map(Vec::len).sum();
                    let act = script(count);
                    if let Act::SendEarly(bytes) = act {
                        log.lock()[connection].push(text(&read[..head]));
                        stream.write_all(bytes.as_bytes()).await.unwrap();
                        return;
                    }
                    let Some(whole) = read_until(&mut stream, &mut read, message_length).await else { return };
                    log.lock()[connection].push(text(&read[..whole]));
                    read.drain(..whole);
                    match act {
                        Act::Send(bytes) => stream.write_all(bytes.as_bytes()).await.unwrap(),
                        Act::SendAndClose(bytes) => return stream.write_all(bytes.as_bytes()).await.unwrap(),
                        Act::CloseAfter(time) => return tokio::time::sleep(time).await,
                        Act::SendAndHalfClose(bytes) => {
                            stream.write_all(bytes.as_bytes()).await.unwrap();
                            stream.shutdown().await.unwrap();
                        }
                        Act::SendEarly(_) => unreachable!(),
                    }
                }
            });
        }
    });
    (address, seen)
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Reads until `length` knows how long it is, and all of that is there.
pub(crate) async fn read_until(
    stream: &mut TcpStream,
    read: &mut Vec<u8>,
    length: impl Fn(&[u8]) -> Option<usize>,
) -> Option<usize> {
    loop {
        if let Some(length) = length(read).filter(|length| read.len() >= *length) {
            return Some(length);
        }
        let got = tokio::time::timeout(DEADLINE, stream.read_buf(read)).await.expect("in time");
        if got.unwrap_or(0) == 0 {
            return None;
        }
    }
}

pub(crate) fn head_length(read: &[u8]) -> Option<usize> {
    read.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Of a message with a length or in chunks, as the tests here send them.
pub(crate) fn message_length(read: &[u8]) -> Option<usize> {
    let head = head_length(read)?;
    let text = String::from_utf8_lossy(&read[..head]).to_lowercase();
    if text.contains("transfer-encoding: chunked") {
        let end = read[head..].windows(5).position(|window| window == b"0\r\n\r\n")?;
        return Some(head + end + 5);
    }
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    Some(head + length)
}

/// A client's connection.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    pub(crate) read: Vec<u8>,
}

impl Raw {
    pub(crate) async fn new(gateway: &Gateway) -> Self {
        Self { stream: TcpStream::connect(gateway.address).await.unwrap(), read: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// The next answer. Its connection may live on.
    pub(crate) async fn answer(&mut self) -> String {
        self.answer_of(message_length).await
    }

    pub(crate) async fn answer_of(&mut self, length: impl Fn(&[u8]) -> Option<usize>) -> String {
        let Some(length) = read_until(&mut self.stream, &mut self.read, length).await else {
            panic!("closed after {:?}", String::from_utf8_lossy(&self.read));
        };
        text(&self.read.drain(..length).collect::<Vec<_>>())
    }

    /// All that still comes until the gateway closes.
    pub(crate) async fn rest(&mut self) -> String {
        while read_until(&mut self.stream, &mut self.read, |read| Some(read.len() + 1)).await.is_some() {}
        text(&std::mem::take(&mut self.read))
    }
}

pub(crate) fn post(extra: &str, body: &str) -> String {
    format!("POST /v1/x HTTP/1.1\r\nhost: g\r\ncontent-length: {}\r\n{extra}\r\n{body}", body.len())
}

pub(crate) async fn until_metrics(gateway: &mut Gateway, condition: impl Fn(&str) -> bool) {
    let start = std::time::Instant::now();
    loop {
        let metrics = gateway.metrics().await;
        if condition(&metrics) {
            return;
        }
        assert!(start.elapsed() < DEADLINE, "{metrics}");
    }
}

pub(crate) async fn gateway(
    script: impl Fn(usize) -> Act + Send + Sync + 'static,
) -> (Gateway, Arc<Mutex<Vec<Vec<String>>>>) {
    let (address, seen) = provider(script).await;
    (Gateway::over(&[address], "cores = 1", "", "").await, seen)
}
