//! Load: wrk for as much as there can be, and requests at a given rate whatever becomes of them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::contender::beside;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// One answer of 600 bytes.
    Json,
    /// A stream of 21 events that come at once.
    Burst,
    /// The same, with 5 ms between them.
    Paced,
}

impl Kind {
    fn body(self) -> String {
        let model = match self {
            Self::Json => "json",
            Self::Burst => "burst",
            Self::Paced => "paced",
        };
        let stream = self != Self::Json;
        format!(
            r#"{{"model":"{model}","stream":{stream},"messages":[{{"role":"user","content":"Hello, how are you doing today? Please tell me about circuit breakers."}}]}}"#
        )
    }
}

/// What wrk says.
pub(crate) struct Saturated {
    pub(crate) requests: u64,
    pub(crate) per_second: f64,
    pub(crate) errors: u64,
}

pub(crate) fn saturate(kind: Kind, port: u16, cores: usize, seconds: u32, folder: &Path) -> Saturated {
    let script = folder.join("wrk.lua");
    let text = format!(
        "wrk.method = 'POST'\nwrk.headers['content-type'] = 'application/json'\nwrk.body = [[{}]]\n\
         done = function(summary)\n io.write(string.format('RESULT %d %d %d\\n', summary.requests, summary.duration, \
         summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status + summary.errors.timeout))\nend\n",
        kind.body()
    );
    fs::write(&script, text).expect("a temporary folder takes a file");
    let output = beside("wrk", cores)
        .args(["-t1", "-c64", &format!("-d{seconds}s"), "-s"])
        .arg(&script)
        .arg(format!("http://127.0.0.1:{port}/v1/chat/completions"))
        .output()
        .expect("wrk runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("RESULT ")).expect("wrk's summary");
    let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().expect("a number")).collect();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let per_second = numbers[0] as f64 / (numbers[1] as f64 / 1e6);
    Saturated { requests: numbers[0], per_second, errors: numbers[2] }
}

/// Latencies of the answers, sorted, in microseconds.
pub(crate) async fn at_rate(kind: Kind, port: u16, rate: u32, seconds: u32) -> Vec<u32> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let body = kind.body();
    let request: Arc<[u8]> = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
    .into();
    let idle: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let latencies: Arc<Mutex<Vec<u32>>> = Arc::default();
    let mut tick = interval(Duration::from_millis(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut tasks = tokio::task::JoinSet::new();
    let total = seconds * 1000;
    for millisecond in 0..total {
        tick.tick().await;
        let count = (millisecond + 1) * rate / 1000 - millisecond * rate / 1000;
        for _ in 0..count {
            let (request, idle, latencies) = (Arc::clone(&request), Arc::clone(&idle), Arc::clone(&latencies));
            let started = Instant::now();
            tasks.spawn(async move {
                let rested = idle.lock().await.pop();
                let mut stream = if let Some(stream) = rested {
                    stream
                } else {
                    let stream = TcpStream::connect(address).await.expect("a connection");
                    stream.set_nodelay(true).expect("a socket option");
                    stream
                };
                stream.write_all(&request).await.expect("a connection that takes a request");
                read(&mut stream).await;
                let took = u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX);
                // While connections are made, nothing is counted.
                if millisecond > total / 10 {
                    latencies.lock().await.push(took);
                }
                idle.lock().await.push(stream);
            });
        }
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
    let mut latencies = std::mem::take(&mut *latencies.lock().await);
    latencies.sort_unstable();
    latencies
}

/// One answer to its end.
async fn read(stream: &mut TcpStream) {
    let mut text = Vec::with_capacity(16 << 10);
    loop {
        assert_ne!(stream.read_buf(&mut text).await.expect("an answer"), 0, "the connection was closed");
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut headers);
        let Ok(httparse::Status::Complete(start)) = head.parse(&text) else { continue };
        assert_eq!(head.code, Some(200), "{}", String::from_utf8_lossy(&text));
        let length = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let is_whole = match length {
            Some(length) => {
                let length: usize = std::str::from_utf8(length.value).expect("digits").parse().expect("digits");
                text.len() >= start + length
            }
            None => text.ends_with(b"0\r\n\r\n"),
        };
        if is_whole {
            return;
        }
    }
}

pub(crate) fn percentile(sorted: &[u32], per_mille: usize) -> f64 {
    let at = (sorted.len() * per_mille / 1000).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(f64::NAN, |micros| f64::from(*micros) / 1000.0)
}
