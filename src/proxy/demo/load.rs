//! `fusebox demo --outage`: requests at a steady rate, an outage in the middle, and what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::{Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::provider::Fault;
use super::{MODEL, OPEN_FOR, Stage};
use crate::{CircuitBreaker, CircuitState};

const HEALTHY: Duration = Duration::from_secs(1);
/// No request takes longer unless it is lost.
const PATIENCE: Duration = Duration::from_secs(15);

type Http = Client<HttpConnector, Full<Bytes>>;

/// How one request went.
struct Sample {
    latency: Duration,
    error: Option<String>,
}

/// What came of it all. Times are in milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    fault: &'static str,
    outage_ms: f64,
    requests: usize,
    client_errors: usize,
    /// Requests that the gateway sent to the failing provider.
    faulty_provider_hits: u64,
    in_flight_at_trip: Option<usize>,
    probes: u64,
    trips: u64,
    time_to_open_ms: Option<f64>,
    /// From the heal.
    time_to_close_ms: Option<f64>,
    p50_ms: f64,
    p99_ms: f64,
    #[serde(skip)]
    errors: BTreeMap<String, usize>,
}

/// When the first provider's circuit first opened, and how many requests were in flight; and when it last closed.
#[derive(Default)]
struct Seen {
    opened: Option<(Instant, usize)>,
    closed: Option<Instant>,
}

pub(super) async fn drive(stage: &Stage, outage: Duration, fault: Fault, rate: u32) -> Summary {
    let primary = &stage.providers[0];
    let provider = stage.primary();
    let asked = || provider.metrics.asked();
    eprintln!("{rate} requests/s; {} fails with {} for {outage:?}, then heals", primary.name(), fault.as_str());
    let over = AtomicBool::new(false);
    let in_flight = Arc::new(());
    let script = async {
        sleep(HEALTHY).await;
        let (began, asked_before) = (Instant::now(), asked());
        primary.set(Some(fault)).await;
        sleep(outage).await;
        let hits = asked() - asked_before;
        primary.set(None).await;
        let healed = Instant::now();
        // One more open interval, and time for the probe, before giving up on the circuit.
        let limit = healed + OPEN_FOR * 3;
        while provider.breaker.state() != CircuitState::Closed && Instant::now() < limit {
            sleep(Duration::from_millis(10)).await;
        }
        sleep(HEALTHY).await;
        over.store(true, Ordering::Relaxed);
        (began, healed, hits)
    };
    let ((began, healed, hits), samples, seen) = tokio::join!(
        script,
        send_until(&over, stage.gateway, rate, &in_flight),
        watch_until(&over, &provider.breaker, &in_flight)
    );

    let mut latencies: Vec<Duration> = samples.iter().filter(|s| s.error.is_none()).map(|s| s.latency).collect();
    latencies.sort_unstable();
    let mut errors = BTreeMap::new();
    for error in samples.iter().filter_map(|sample| sample.error.clone()) {
        *errors.entry(error).or_default() += 1;
    }
    Summary {
        fault: fault.as_str(),
        outage_ms: millis(outage),
        requests: samples.len(),
        client_errors: errors.values().sum(),
        faulty_provider_hits: hits,
        in_flight_at_trip: seen.opened.map(|(_, in_flight)| in_flight),
        probes: provider.metrics.probes(),
        trips: provider.breaker.trip_count(),
        time_to_open_ms: seen.opened.map(|(at, _)| millis(at - began)),
        time_to_close_ms: seen.closed.filter(|at| *at >= healed).map(|at| millis(at - healed)),
        p50_ms: millis(percentile(&latencies, 50)),
        p99_ms: millis(percentile(&latencies, 99)),
        errors,
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or_default()
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e5).round() / 100.0
}

/// An open loop: a request is sent when it is due, however many are still waiting. Every other one asks for a stream.
async fn send_until(over: &AtomicBool, gateway: SocketAddr, rate: u32, in_flight: &Arc<()>) -> Vec<Sample> {
    let http: Http = Client::builder(TokioExecutor::new()).build_http();
    let mut requests = JoinSet::new();
    let mut samples = Vec::new();
    let mut due = interval(Duration::from_secs(1) / rate);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut stream = false;
    while !over.load(Ordering::Relaxed) {
        due.tick().await;
        stream = !stream;
        let (http, counted) = (http.clone(), Arc::clone(in_flight));
        requests.spawn(async move {
            let sample = ask(&http, gateway, stream).await;
            drop(counted);
            sample
        });
        while let Some(done) = requests.try_join_next() {
            samples.push(done.expect("no request panics"));
        }
    }
    samples.extend(requests.join_all().await);
    samples
}

async fn ask(http: &Http, gateway: SocketAddr, stream: bool) -> Sample {
    let start = Instant::now();
    let body = json!({"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "Hello"}]});
    let request = Request::post(format!("http://{gateway}/v1/chat/completions"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(body.to_string()))
        .expect("a valid request");
    let answered = timeout(PATIENCE, async {
        let response = http.request(request).await.map_err(|error| format!("no answer: {error}"))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| format!("cut: {error}"))?.to_bytes();
        let complete = if stream { body.ends_with(b"data: [DONE]\n\n") } else { body.ends_with(b"}") };
        match (status, complete) {
            (StatusCode::OK, true) => Ok(()),
            (StatusCode::OK, false) => Err("incomplete".to_owned()),
            _ => Err(format!("status {status}")),
        }
    });
    let error = answered.await.map_or_else(|_| Some(format!("no answer within {PATIENCE:?}")), Result::err);
    Sample { latency: start.elapsed(), error }
}

async fn watch_until(over: &AtomicBool, breaker: &CircuitBreaker, in_flight: &Arc<()>) -> Seen {
    let start = Instant::now();
    let mut seen = Seen::default();
    let mut before = CircuitState::Closed;
    let mut ticks = interval(Duration::from_millis(1));
    while !over.load(Ordering::Relaxed) {
        ticks.tick().await;
        let current = breaker.state();
        if current == before {
            continue;
        }
        let now = Instant::now();
        eprintln!("  {:6.2} s  {}: {before} -> {current}", (now - start).as_secs_f64(), breaker.name());
        if current == CircuitState::Closed {
            seen.closed = Some(now);
        } else if seen.opened.is_none() {
            seen.opened = Some((now, Arc::strong_count(in_flight) - 1));
        }
        before = current;
    }
    seen
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
        if let Some(in_flight) = self.in_flight_at_trip {
            writeln!(f, "in flight at the trip {in_flight}")?;
        }
        writeln!(f, "trips, probes         {}, {}", self.trips, self.probes)?;
        writeln!(f, "outage to open        {}", time(self.time_to_open_ms))?;
        writeln!(f, "heal to close         {}", time(self.time_to_close_ms))?;
        writeln!(f, "latency p50, p99      {} ms, {} ms", self.p50_ms, self.p99_ms)
    }
}
