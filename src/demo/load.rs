//! Requests at a steady rate; and with `--outage` an outage among them, with a summary of what clients noticed.
//!
//! Not here: showing it: `screen` and `view`.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fusebox::CircuitState;
use fusebox::proxy::{AppState, ProviderStats};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::provider::Fault;
use super::{Circuits, MODEL, OPEN_FOR, Stage};

const HEALTHY: Duration = Duration::from_secs(1);
/// No request takes longer unless it is lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// Until the gateway knows how long answers take.
const WARM_UP: Duration = Duration::from_secs(60);

type Http = Client<HttpConnector, Full<Bytes>>;

/// An open loop: a request is sent when it is due, however many are still waiting.
pub(super) struct Load {
    rate: u32,
    stream_share: f64,
    in_flight: AtomicI64,
    samples: Mutex<Samples>,
}

/// The newest of them, so that a demo that runs for days does not grow.
#[derive(Default)]
struct Samples {
    newest: VecDeque<Sample>,
    forgotten: usize,
}

/// More than an outage of several minutes has.
const MAX_SAMPLES: usize = 1_000_000;

/// How one request went.
#[derive(Clone)]
pub(super) struct Sample {
    started: Instant,
    pub(super) latency: Duration,
    pub(super) error: Option<String>,
    is_cut: bool,
}

impl Load {
    pub(super) fn new(rate: u32, stream_share: f64) -> Self {
        Self { rate, stream_share, in_flight: AtomicI64::new(0), samples: Mutex::default() }
    }

    pub(super) fn rate(&self) -> u32 {
        self.rate
    }

    pub(super) fn in_flight(&self) -> i64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether the gateway knows how long a provider's answers take.
    fn is_learnt(&self, stats: &ProviderStats) -> bool {
        (self.stream_share >= 1.0 || stats.has_learnt_answers) && (self.stream_share <= 0.0 || stats.has_learnt_streams)
    }

    /// The samples from the `from`-th on.
    pub(super) fn samples(&self, from: usize) -> Vec<Sample> {
        let samples = self.samples.lock();
        samples.newest.iter().skip(from.saturating_sub(samples.forgotten)).cloned().collect()
    }

    /// Sends until it is dropped, which drops the requests under way.
    pub(super) async fn send(&self, gateway: SocketAddr) {
        self.send_until(gateway, std::future::pending()).await;
    }

    /// Sends until `over` completes, and then waits for the requests under way.
    async fn send_until(&self, gateway: SocketAddr, over: impl Future<Output = ()>) {
        let http: Http = Client::builder(TokioExecutor::new()).build_http();
        let mut requests = JoinSet::new();
        let mut due = interval(Duration::from_secs(1) / self.rate);
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut over = std::pin::pin!(over);
        let (mut streams, mut number) = (0.0, 0_u64);
        let done = |sample: Sample| {
            self.in_flight.fetch_sub(1, Ordering::Relaxed);
            let mut samples = self.samples.lock();
            samples.newest.push_back(sample);
            if samples.newest.len() > MAX_SAMPLES {
                samples.newest.pop_front();
                samples.forgotten += 1;
            }
        };
        loop {
            tokio::select! {
                _ = due.tick() => {}
                () = &mut over => break,
            }
            // Streams are spread evenly: every second request, or every tenth.
            streams += self.stream_share;
            let is_stream = streams >= 1.0;
            streams -= f64::from(u8::from(is_stream));
            self.in_flight.fetch_add(1, Ordering::Relaxed);
            let http = http.clone();
            number += 1;
            requests.spawn(async move { ask(&http, gateway, is_stream, number).await });
            while let Some(ended) = requests.try_join_next() {
                done(ended.expect("no request panics"));
            }
        }
        while let Some(ended) = requests.join_next().await {
            done(ended.expect("no request panics"));
        }
    }
}

/// No two requests are alike: the failures of the same one would count once.
async fn ask(http: &Http, gateway: SocketAddr, is_stream: bool, number: u64) -> Sample {
    let start = Instant::now();
    let text = format!("Hello {number}");
    let body = json!({"model": MODEL, "stream": is_stream, "messages": [{"role": "user", "content": text}]});
    let request = Request::post(format!("http://{gateway}/v1/chat/completions"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(body.to_string()))
        .expect("a valid request");
    let answered = timeout(PATIENCE, async {
        let response = http.request(request).await.map_err(|error| format!("no answer: {error}"))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| format!("cut: {error}"))?.to_bytes();
        let is_complete = if is_stream { body.ends_with(b"data: [DONE]\n\n") } else { body.ends_with(b"}") };
        match status {
            StatusCode::OK if is_complete => Ok(()),
            StatusCode::OK if memchr::memmem::find(&body, b"event: error\n").is_some() => Err(CUT.to_owned()),
            StatusCode::OK => Err("incomplete".to_owned()),
            _ => Err(format!("status {status}")),
        }
    });
    let error = answered.await.map_or_else(|_| Some(format!("no answer within {PATIENCE:?}")), Result::err);
    Sample { started: start, latency: start.elapsed(), is_cut: error.as_deref() == Some(CUT), error }
}

const CUT: &str = "a stream that ended with an error event";

/// What clients and the gateway noticed. Times are in milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    fault: &'static str,
    outage_ms: f64,
    rate: u32,
    stream_share: f64,
    requests: usize,
    /// Streams that were cut are included.
    client_errors: usize,
    /// Streams that broke off after they had begun, and ended with an error event.
    cut_streams: usize,
    /// Requests that the gateway sent to the failing provider during the outage.
    faulty_provider_hits: u64,
    /// How many of those were in flight when its circuit opened.
    in_flight_at_trip: Option<u64>,
    /// The outcomes of the requests that were sent to it during the outage.
    faulty_provider_outcomes: BTreeMap<&'static str, u64>,
    /// How many requests met each fault, as the failing provider itself counted them.
    faults_served: BTreeMap<&'static str, u64>,
    probes: u64,
    trips: u64,
    time_to_open_ms: Option<f64>,
    /// Since it was healed.
    time_to_close_ms: Option<f64>,
    p50_ms: f64,
    p99_ms: f64,
    /// Of requests before the outage.
    healthy: Latencies,
    /// Of requests during the outage.
    outage: Latencies,
    #[serde(skip)]
    errors: BTreeMap<String, usize>,
}

/// Of requests without an error.
#[expect(clippy::struct_field_names, reason = "JSON has no other place for a unit")]
#[derive(Debug, Serialize)]
struct Latencies {
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Latencies {
    fn of<'a>(samples: impl Iterator<Item = &'a Sample>) -> Self {
        let mut sorted: Vec<_> = samples.filter(|sample| sample.error.is_none()).map(|sample| sample.latency).collect();
        sorted.sort_unstable();
        let [p50_ms, p99_ms, max_ms] = [50, 99, 100].map(|percent| millis(percentile(&sorted, percent)));
        Self { p50_ms, p99_ms, max_ms }
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50_ms, p99_ms, max_ms } = self;
        write!(f, "p50 {p50_ms} ms, p99 {p99_ms} ms, max {max_ms} ms")
    }
}

/// When the first provider's circuit first opened, and how many requests were in flight to it then; and when it last
/// closed.
#[derive(Default)]
struct Seen {
    opened: Option<(Instant, u64)>,
    closed: Option<Instant>,
}

pub(super) async fn drive(stage: &Stage, outage: Duration, fault: Fault) -> Summary {
    let primary = &stage.providers[0];
    let circuits = stage.circuits(0);
    let rate = stage.load.rate();
    eprintln!("{rate} requests/s; {} fails with {} for {outage:?}, then heals", primary.name(), fault.as_str());
    let (end, over) = tokio::sync::oneshot::channel::<()>();
    let script = async {
        let warm_by = Instant::now() + WARM_UP;
        while !stage.load.is_learnt(&stage.stats(0)) && Instant::now() < warm_by {
            sleep(Duration::from_millis(10)).await;
        }
        sleep(HEALTHY).await;
        let (began, before) = (Instant::now(), stage.stats(0));
        primary.set(Some(fault)).await;
        sleep(outage).await;
        let hits = stage.stats(0).requests - before.requests;
        primary.set(None).await;
        let healed = Instant::now();
        // Enough for another open time and a probe.
        let limit = healed + OPEN_FOR * 3;
        while circuits.worst().state() != CircuitState::Closed && Instant::now() < limit {
            sleep(Duration::from_millis(10)).await;
        }
        sleep(HEALTHY).await;
        drop(end);
        (began, healed, hits, before.other_outcomes)
    };
    let sending = stage.load.send_until(stage.gateway, async {
        // An error says that the sender is gone.
        let _ = over.await;
    });
    let watching = Watch::start(Arc::clone(&stage.state), stage.circuits(0), primary.name());
    let ((began, healed, hits, before), ()) = tokio::join!(script, sending);
    let seen = watching.end();

    let samples = stage.load.samples(0);
    let all = Latencies::of(samples.iter());
    let mut errors = BTreeMap::new();
    for error in samples.iter().filter_map(|sample| sample.error.clone()) {
        *errors.entry(error).or_default() += 1;
    }
    let ProviderStats { other_outcomes: mut outcomes, probes, .. } = stage.stats(0);
    outcomes.retain(|name, count| {
        *count -= before.get(name).copied().unwrap_or_default();
        *count > 0
    });
    Summary {
        fault: fault.as_str(),
        outage_ms: millis(outage),
        rate,
        stream_share: stage.load.stream_share,
        requests: samples.len(),
        client_errors: errors.values().sum(),
        cut_streams: samples.iter().filter(|sample| sample.is_cut).count(),
        faulty_provider_hits: hits,
        in_flight_at_trip: seen.opened.map(|(_, in_flight)| in_flight),
        faulty_provider_outcomes: outcomes,
        faults_served: primary.faults(),
        probes,
        trips: circuits.trips(),
        time_to_open_ms: seen.opened.map(|(at, _)| millis(at - began)),
        time_to_close_ms: seen.closed.filter(|at| *at >= healed).map(|at| millis(at - healed)),
        p50_ms: all.p50_ms,
        p99_ms: all.p99_ms,
        healthy: Latencies::of(samples.iter().filter(|sample| sample.started < began)),
        outage: Latencies::of(samples.iter().filter(|sample| (began..healed).contains(&sample.started))),
        errors,
    }
}

pub(super) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or_default()
}

pub(super) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e5).round() / 100.0
}

/// A thread that watches the circuit more closely than tokio's timers could: at 1000 requests/s each millisecond adds a
/// request in flight.
struct Watch {
    is_over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Seen>,
}

impl Watch {
    fn start(state: Arc<AppState>, circuits: Circuits, provider: &'static str) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            let mut before = CircuitState::Closed;
            while !over.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_micros(100));
                let current = circuits.worst().state();
                if current == before {
                    continue;
                }
                if current == CircuitState::Closed {
                    seen.closed = Some(Instant::now());
                } else if seen.opened.is_none() {
                    let now = Instant::now();
                    let in_flight = state.provider_stats(provider).map_or(0, |stats| stats.in_flight);
                    seen.opened = Some((now, in_flight));
                }
                before = current;
            }
            seen
        });
        Self { is_over, thread }
    }

    fn end(self) -> Seen {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic")
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |millis: Option<f64>| millis.map_or("never".to_owned(), |millis| format!("{millis} ms"));
        writeln!(f, "requests              {}", self.requests)?;
        writeln!(f, "client errors         {}", self.client_errors)?;
        for (error, count) in &self.errors {
            writeln!(f, "  {count:>6}  {error}")?;
        }
        writeln!(f, "faulty provider hits  {}", self.faulty_provider_hits)?;
        for (outcome, count) in &self.faulty_provider_outcomes {
            writeln!(f, "  {count:>6}  {outcome}")?;
        }
        if let Some(in_flight) = self.in_flight_at_trip {
            writeln!(f, "in flight at the trip {in_flight}")?;
        }
        writeln!(f, "trips, probes         {}, {}", self.trips, self.probes)?;
        writeln!(f, "outage to open        {}", time(self.time_to_open_ms))?;
        writeln!(f, "heal to close         {}", time(self.time_to_close_ms))?;
        writeln!(f, "latency before        {}", self.healthy)?;
        writeln!(f, "latency during        {}", self.outage)
    }
}
