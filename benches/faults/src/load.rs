//! Requests at a steady rate, each sent when it is due, however many are still waiting.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// No request takes longer unless it is lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// How one request went.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) started: Instant,
    pub(crate) took: Duration,
    pub(crate) is_good: bool,
}

/// Sends until `over`, and waits for what is under way then.
pub(crate) async fn send(port: u16, rate: u32, is_stream: bool, mut over: watch::Receiver<bool>) -> Vec<Sample> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let samples = Arc::new(Mutex::new(Vec::new()));
    let mut under_way = tokio::task::JoinSet::new();
    let mut due = interval(Duration::from_secs(1) / rate);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        tokio::select! {
            _ = due.tick() => {}
            _ = over.wait_for(|over| *over) => break,
        }
        let (client, samples) = (client.clone(), Arc::clone(&samples));
        under_way.spawn(async move {
            let started = Instant::now();
            let is_good = timeout(PATIENCE, ask(client, port, &body(is_stream, false))).await.unwrap_or(false);
            let sample = Sample { started, took: started.elapsed(), is_good };
            samples.lock().expect("nobody panics").push(sample);
        });
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
    std::mem::take(&mut *samples.lock().expect("nobody panics"))
}

/// Sends so many requests at once that take a hundred times as long as usual, and waits for their answers.
pub(crate) async fn burst(port: u16, requests: usize) -> Vec<Sample> {
    let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
    let ask = |client: Client<HttpConnector, Full<Bytes>>| async move {
        let started = Instant::now();
        let is_good = timeout(PATIENCE, ask(client, port, &body(false, true))).await.unwrap_or(false);
        Sample { started, took: started.elapsed(), is_good }
    };
    (0..requests).map(|_| ask(client.clone())).collect::<tokio::task::JoinSet<_>>().join_all().await
}

/// No two are alike: the failures of the same request would count once.
fn body(is_stream: bool, is_long: bool) -> String {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let effort = if is_long { "high" } else { "low" };
    format!("{{\"model\": \"m\", \"stream\": {is_stream}, \"reasoning_effort\": \"{effort}\", \"user\": \"{number}\"}}")
}

/// Whether there was a whole and good answer.
async fn ask(client: Client<HttpConnector, Full<Bytes>>, port: u16, body: &str) -> bool {
    let is_stream = body.contains("\"stream\": true");
    let request = Request::post(format!("http://127.0.0.1:{port}/v1/chat/completions"))
        .header("content-type", "application/json")
        .body(Full::from(body.to_owned()))
        .expect("a valid request");
    let Ok(response) = client.request(request).await else { return false };
    let status = response.status();
    let Ok(body) = response.into_body().collect().await else { return false };
    let body = body.to_bytes();
    status == 200 && if is_stream { body.ends_with(b"data: [DONE]\n\n") } else { body.ends_with(b"}") }
}
