//! Load: wrk for as much as there can be, and requests at a given rate whatever becomes of them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::contender::beside;

/// The kind of request.
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
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Json => "JSON",
            Self::Burst => "SSE in a burst",
            Self::Paced => "SSE with 5 ms between events",
        }
    }

    /// As the command line has it, and the model.
    fn name(self) -> String {
        self.to_possible_value().expect("none is skipped").get_name().to_owned()
    }

    fn body(self) -> String {
        let (model, stream) = (self.name(), self != Self::Json);
        format!(
            r#"{{"model":"{model}","stream":{stream},"messages":[{{"role":"user","content":"Hello, how are you doing today? Please tell me about circuit breakers."}}]}}"#
        )
    }

    fn request(self) -> Vec<u8> {
        let body = self.body();
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json";
        format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into()
    }
}

/// A connection on which one request was answered.
pub(crate) fn ask_once(kind: Kind, port: u16) -> Option<std::net::TcpStream> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    stream.write_all(&kind.request()).ok()?;
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while !is_whole(&text) {
        let length = stream.read(&mut piece).ok().filter(|length| *length > 0)?;
        text.extend_from_slice(&piece[..length]);
    }
    Some(stream)
}

/// What wrk says.
pub(crate) struct Saturated {
    requests: u32,
    pub(crate) per_second: f64,
    pub(crate) errors: u64,
    /// Of the median, of 99 and of 99.9 percent, in milliseconds.
    pub(crate) latency: [f64; 3],
}

impl Saturated {
    pub(crate) fn requests(&self) -> f64 {
        self.requests.into()
    }
}

pub(crate) fn saturate(kind: Kind, port: u16, cores: usize, seconds: u32, folder: &Path) -> Saturated {
    let script = folder.join("wrk.lua");
    let text = format!(
        "wrk.method = 'POST'\nwrk.headers['content-type'] = 'application/json'\nwrk.body = [[{}]]\n\
         done = function(summary, latency)\n local errors = summary.errors\n \
         io.write(string.format('RESULT %d %d %d %d %d %d\\n', summary.requests, summary.duration, \
         errors.connect + errors.read + errors.write + errors.status + errors.timeout, \
         latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))\nend\n",
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
    let numbers: Vec<u32> = line.split(' ').map(|number| number.parse().expect("a number")).collect();
    let [requests, micros, errors, ..] = numbers[..] else { panic!("wrk's summary is {line:?}") };
    let per_second = f64::from(requests) / (f64::from(micros) / 1e6);
    let latency = [3, 4, 5].map(|index| f64::from(numbers[index]) / 1e3);
    Saturated { requests, per_second, errors: errors.into(), latency }
}

/// Latencies at a given rate, whatever becomes of the requests before: of the median, of 99 and of 99.9 percent, in
/// milliseconds. By a process of its own, which shares no core with a contender that has one.
pub(crate) fn at_rate(kind: Kind, port: u16, cores: usize, rate: u32, seconds: u32) -> [f64; 3] {
    let output = beside(std::env::current_exe().expect("this program"), cores)
        .args(["rate", &kind.name(), &port.to_string(), &rate.to_string(), &seconds.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .expect("this program runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text.split_whitespace().map(|number| number.parse().expect("a number")).collect();
    numbers.try_into().expect("three numbers")
}

/// What [`at_rate`] reads.
pub(crate) fn print_at_rate(kind: &str, port: u16, rate: u32, seconds: u32) {
    let kind = Kind::from_str(kind, false).expect("what is asked");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let sorted = runtime.block_on(latencies(kind, port, rate, seconds));
    for per_mille in [500, 990, 999] {
        println!("{}", percentile(&sorted, per_mille));
    }
}

/// Of the answers, sorted, in microseconds.
async fn latencies(kind: Kind, port: u16, rate: u32, seconds: u32) -> Vec<u32> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let request: Arc<[u8]> = kind.request().into();
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
            // Not from when it was due: tokio's timers are a millisecond late, which would hide what is to be measured.
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
    while !is_whole(&text) {
        assert_ne!(stream.read_buf(&mut text).await.expect("an answer"), 0, "the connection was closed");
    }
}

fn is_whole(answer: &[u8]) -> bool {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(start)) = head.parse(answer) else { return false };
    assert_eq!(head.code, Some(200), "{}", String::from_utf8_lossy(answer));
    match head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length")) {
        Some(length) => {
            let length: usize = std::str::from_utf8(length.value).expect("digits").parse().expect("digits");
            answer.len() >= start + length
        }
        None => answer.ends_with(b"0\r\n\r\n"),
    }
}

fn percentile(sorted: &[u32], per_mille: usize) -> f64 {
    let at = (sorted.len() * per_mille / 1000).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(f64::NAN, |micros| f64::from(*micros) / 1000.0)
}
