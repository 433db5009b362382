//! Streams of a provider that works, and does all that good ones do. So each alarm is a false one. Only the gateway is
//! tried. The requests that reach its fallback are those that an alarm sent there.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::contender::start_with;
use crate::metrics::{metrics, sum};
use crate::provider::log_normal;
use crate::server::serve;

/// Streams per second.
const RATE: f64 = 250.0;
const FIRST_MINUTE: Duration = Duration::from_secs(60);
/// Until the first piece, by the median.
const FIRST: f64 = 0.3;
/// Between two pieces, by the median.
const GAP: f64 = 0.02;
/// Of a stream, on average, and at the most.
const PIECES: f64 = 40.0;
const MOST_PIECES: f64 = 150.0;
/// How likely a piece is to come after 2 to 60 s.
const LONG_PAUSES: f64 = 0.01;
/// How often the provider does nothing for 50 to 300 ms, in seconds.
const BATCHES: f64 = 3.0;
/// How many of a hundred clients read slowly.
const SLOW_CLIENTS: usize = 5;
/// What such a client reads at once, and how long it rests then.
const SIP: usize = 16 << 10;
const REST: Duration = Duration::from_secs(1);
/// How often the gateway is stopped, and for how long.
const STOPS: Duration = Duration::from_secs(10);
const STOPPED_FOR: [u64; 4] = [40, 100, 250, 1000];
/// No stream is longer: its pauses are limited.
const PATIENCE: Duration = Duration::from_secs(600);

pub(crate) fn head() {
    println!(
        "\n| healthy streams | pieces | long pauses | batches | slow clients | stops of the gateway | alarms | \
         of them in the first minute | sent to the fallback | lost |\n|---|---|---|---|---|---|---|---|---|---|"
    );
}

#[derive(Default)]
struct Seen {
    pieces: AtomicUsize,
    long_pauses: AtomicUsize,
    batches: AtomicUsize,
    slow_clients: AtomicUsize,
    stops: AtomicUsize,
    lost: AtomicUsize,
}

fn count(counter: &AtomicUsize) -> usize {
    counter.fetch_add(1, Ordering::Relaxed) + 1
}

pub(crate) async fn run(streams: usize, folder: PathBuf, fusebox: PathBuf) -> String {
    let seen = Arc::<Seen>::default();
    let (primary, _) = Provider::start(Arc::clone(&seen)).await;
    let (fallback, asked) = Provider::start(Arc::default()).await;
    let text: String = [("a", primary), ("b", fallback)]
        .map(|(name, address)| format!("[[providers]]\nname = '{name}'\nurl = 'http://{address}/v1'\nmodels = ['m']\n"))
        .concat();
    let own = folder.clone();
    let gateway = tokio::task::spawn_blocking(move || start_with(&own, &fusebox, &text)).await.expect("a gateway");
    let (port, pid) = (gateway.port, gateway.pid());
    let log = folder.join(format!("{port}.err"));
    let stopping = tokio::spawn(stop_again_and_again(pid, Arc::clone(&seen)));
    let early = tokio::spawn(async move {
        sleep(FIRST_MINUTE).await;
        alarms(port).await
    });
    let mut under_way = JoinSet::new();
    let mut due = Instant::now();
    for number in 0..streams {
        due += Duration::from_secs_f64(-(1.0 - fastrand::f64()).ln() / RATE);
        sleep_until(due).await;
        let seen = Arc::clone(&seen);
        let is_slow = number % 100 < SLOW_CLIENTS;
        under_way.spawn(async move {
            if is_slow {
                count(&seen.slow_clients);
            }
            if !matches!(timeout(PATIENCE, ask(port, number, is_slow)).await, Ok(Ok(true))) {
                count(&seen.lost);
            }
        });
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
    stopping.abort();
    let early = early.await.expect("no panic");
    let all = alarms(port).await;
    drop(gateway);
    let log = std::fs::read_to_string(log).expect("the log of the gateway");
    for line in log.lines().filter(|line| line.contains("circuit opened") || line.contains("failed")) {
        println!("{line}");
    }
    let of = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    format!(
        "{streams} | {} | {} | {} | {} | {} | {all} | {early} | {} | {}",
        of(&seen.pieces),
        of(&seen.long_pauses),
        of(&seen.batches),
        of(&seen.slow_clients),
        of(&seen.stops),
        of(&asked),
        of(&seen.lost),
    )
}

/// Pauses of the gateway itself, for which the provider is not to blame.
async fn stop_again_and_again(pid: u32, seen: Arc<Seen>) {
    let signal = |name: &str| Command::new("kill").args([name, &pid.to_string()]).status().expect("kill runs");
    for pause in STOPPED_FOR.into_iter().cycle() {
        sleep(STOPS).await;
        signal("-STOP");
        sleep(Duration::from_millis(pause)).await;
        signal("-CONT");
        count(&seen.stops);
    }
}

struct Provider {
    seen: Arc<Seen>,
    asked: Arc<AtomicUsize>,
    /// Until then it schedules a batch, and sends nothing.
    busy_until: Mutex<Instant>,
}

impl Provider {
    /// Its address, and how many requests it has got.
    async fn start(seen: Arc<Seen>) -> (SocketAddr, Arc<AtomicUsize>) {
        let asked = Arc::<AtomicUsize>::default();
        let busy_until = Mutex::new(Instant::now());
        let provider = Arc::new(Self { seen, asked: Arc::clone(&asked), busy_until });
        tokio::spawn(Arc::clone(&provider).schedule());
        let address = serve(move |request| Arc::clone(&provider).answer(request)).await;
        (address, asked)
    }

    async fn schedule(self: Arc<Self>) {
        loop {
            sleep(Duration::from_secs_f64(-(1.0 - fastrand::f64()).ln() * BATCHES)).await;
            let until = Instant::now() + Duration::from_millis(fastrand::u64(50..300));
            *self.busy_until.lock().expect("nobody panics") = until;
            count(&self.seen.batches);
            sleep_until(until).await;
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Channel<Bytes, io::Error>> {
        count(&self.asked);
        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        // A client that reads slowly gets long pieces: short ones would fit into the buffers of the sockets, and the
        // gateway would never have to wait for it.
        let long = body.windows(4).any(|part| part == b"long");
        let (mut sender, body) = Channel::new(1);
        tokio::spawn(async move {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred")]
            let pieces = (-(1.0 - fastrand::f64()).ln() * PIECES).min(MOST_PIECES) as usize + 1;
            let kind = fastrand::usize(..3);
            for number in 0..pieces {
                self.pause(if number == 0 { FIRST } else { GAP }).await;
                count(&self.seen.pieces);
                // A client that leaves is no news.
                if sender.send_data(piece(kind, number, pieces, long)).await.is_err() {
                    return;
                }
            }
            let _ = sender.send_data(Bytes::from_static(b"data: [DONE]\n\n")).await;
        });
        let answer = Response::builder().header("content-type", "text/event-stream");
        answer.body(body).expect("an answer")
    }

    async fn pause(&self, usual: f64) {
        let is_long = fastrand::f64() < LONG_PAUSES;
        let seconds = if is_long {
            count(&self.seen.long_pauses);
            (2.0 * (1.0 - fastrand::f64()).powf(-1.0 / 1.5)).min(60.0)
        } else {
            log_normal(usual, 0.5)
        };
        sleep(Duration::from_secs_f64(seconds)).await;
        let until = *self.busy_until.lock().expect("nobody panics");
        sleep_until(until).await;
    }
}

/// Words; words after reasoning; or the call of a tool.
fn piece(kind: usize, number: usize, of: usize, long: bool) -> Bytes {
    let text = "word ".repeat(if long { 3200 } else { 1 });
    let delta = match kind {
        1 if number < of / 3 => format!("{{\"reasoning_content\":\"{text}\"}}"),
        2 => format!("{{\"tool_calls\":[{{\"index\":0,\"function\":{{\"arguments\":\"{text}\"}}}}]}}"),
        _ => format!("{{\"content\":\"{text}\"}}"),
    };
    let start = "data: {\"id\":\"1\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":[{\"index\":0,";
    Bytes::from(format!("{start}\"delta\":{delta}}}]}}\n\n"))
}

/// Whether the whole stream came.
async fn ask(port: u16, number: usize, is_slow: bool) -> io::Result<bool> {
    let socket = TcpSocket::new_v4()?;
    if is_slow {
        socket.set_recv_buffer_size(u32::try_from(SIP).expect("small"))?;
    }
    let stream = socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    stream.set_nodelay(true)?;
    let (mut client, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(SIP)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    tokio::spawn(connection);
    let length = if is_slow { "long" } else { "short" };
    let body = format!("{{\"model\": \"m\", \"stream\": true, \"user\": \"{length} {number}\"}}");
    let request = Request::post("/v1/chat/completions")
        .header("host", "gateway")
        .header("content-type", "application/json")
        .body(Full::<Bytes>::from(body))
        .map_err(io::Error::other)?;
    let response = client.send_request(request).await.map_err(io::Error::other)?;
    let is_good = response.status() == 200;
    let mut body = response.into_body();
    let (mut end, mut read) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(io::Error::other)?;
        let Some(data) = frame.data_ref() else { continue };
        end.extend_from_slice(data);
        end.drain(..end.len().saturating_sub(16));
        read += data.len();
        if is_slow && read >= SIP {
            read = 0;
            sleep(REST).await;
        }
    }
    Ok(is_good && end.ends_with(b"data: [DONE]\n\n"))
}

/// How often a circuit has opened.
async fn alarms(port: u16) -> f64 {
    let metrics = tokio::task::spawn_blocking(move || metrics(port)).await.expect("no panic");
    sum(&metrics.expect("metrics"), "fusebox_circuit_trips_total")
}
