//! Whose fault it is: a provider that says later, refuses a key, or fails for one model or one request, beside a
//! healthy one; and one that is alone. What is not to blame must not bear it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::ValueEnum;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::contender::start_with;
use crate::server::serve;
use crate::{millis, percentile};

const RATE: u32 = 1000;
const OUTAGE: Duration = Duration::from_secs(10);
const ANSWERS_TAKE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// 429 with `retry-after: 1`.
    RateLimit,
    /// 401.
    Key,
    /// 429 with `insufficient_quota`.
    Quota,
    /// 500 for one model of two.
    OneFails,
    /// One model of two hangs.
    OneHangs,
    /// One request in ten is the same one, which gets 500 from everybody.
    Poison,
    /// The only provider fails three times and is well.
    Alone,
}

struct Provider {
    case: Case,
    is_failing: AtomicBool,
    /// How many requests have met the fault.
    met: AtomicUsize,
}

impl Provider {
    async fn start(case: Case) -> (Arc<Self>, SocketAddr) {
        let provider = Arc::new(Self { case, is_failing: AtomicBool::new(false), met: AtomicUsize::new(0) });
        let answering = Arc::clone(&provider);
        let address = serve(move |request| {
            let provider = Arc::clone(&answering);
            async move { provider.answer(request).await }
        })
        .await;
        (provider, address)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let has = |text: &str| body.windows(text.len()).any(|part| part == text.as_bytes());
        let of_model = has("\"model\": \"m\"");
        let is_met = self.is_failing.load(Ordering::Relaxed)
            && match self.case {
                Case::OneFails | Case::OneHangs => of_model,
                Case::Poison => has("poison"),
                Case::Alone => self.met.load(Ordering::Relaxed) < 3,
                Case::RateLimit | Case::Key | Case::Quota => true,
            };
        let answer = |status: u16, body: &'static str| {
            let answer = Response::builder().status(status).header("content-type", "application/json");
            answer.body(Full::from(body)).expect("an answer")
        };
        if !is_met {
            sleep(ANSWERS_TAKE).await;
            return answer(200, "{\"choices\": [1]}");
        }
        self.met.fetch_add(1, Ordering::Relaxed);
        match self.case {
            Case::RateLimit => {
                let mut answer = answer(429, "{\"error\": {\"code\": \"rate_limit_exceeded\"}}");
                answer.headers_mut().insert("retry-after", http::HeaderValue::from_static("1"));
                answer
            }
            Case::Key => answer(401, "{\"error\": {\"code\": \"invalid_api_key\"}}"),
            Case::Quota => answer(429, "{\"error\": {\"code\": \"insufficient_quota\"}}"),
            Case::OneHangs => std::future::pending().await,
            Case::OneFails | Case::Poison | Case::Alone => answer(500, "{\"error\": {}}"),
        }
    }
}

/// How one request went.
struct Sample {
    started: Instant,
    took: Duration,
    /// 0 if there was none.
    status: u16,
    is_of_the_failing_kind: bool,
}

pub(crate) fn head() {
    println!(
        "\n### {RATE} requests/s, answers take 20 ms, the fault lasts 10 s\n\n\
         | whose fault | client errors | requests sent into it | errors of the others | 503 of the others | \
         healthy p99, max ms | p99, max ms of the others |\n|---|---|---|---|---|---|---|"
    );
}

pub(crate) async fn run(case: Case, folder: PathBuf, fusebox: PathBuf) -> String {
    let (first, address) = Provider::start(case).await;
    let mut providers = vec![Arc::clone(&first)];
    let mut text = "[breaker]\nopen_for = '30s'\n".to_owned();
    let mut add = |name: &str, address: SocketAddr| {
        let provider = format!("[[providers]]\nname = '{name}'\nurl = 'http://{address}/v1'\nmodels = ['m', 'n']\n");
        text.push_str(&provider);
    };
    add("a", address);
    if case != Case::Alone {
        // A request that fails everywhere fails there, too.
        let (second, address) = Provider::start(if case == Case::Poison { case } else { Case::Alone }).await;
        add("b", address);
        providers.push(second);
    }
    let proxy = tokio::task::spawn_blocking(move || start_with(&folder, &fusebox, &text)).await.expect("a gateway");
    let name = case.to_possible_value().expect("a name").get_name().to_owned();
    if case == Case::Alone {
        return format!("{name} | {}", alone(proxy.port, &first).await);
    }
    let sending = tokio::spawn(send(proxy.port, case, Duration::from_secs(4) + OUTAGE + Duration::from_secs(2)));
    sleep(Duration::from_secs(4)).await;
    let began = Instant::now();
    for provider in providers.iter().filter(|provider| provider.case == case) {
        provider.is_failing.store(true, Ordering::Relaxed);
    }
    sleep(OUTAGE).await;
    let met = first.met.load(Ordering::Relaxed);
    for provider in &providers {
        provider.is_failing.store(false, Ordering::Relaxed);
    }
    let healed = Instant::now();
    let samples = sending.await.expect("no panic");
    let is_then = |sample: &&Sample| (began..healed).contains(&sample.started);
    let others: Vec<_> = samples.iter().filter(is_then).filter(|it| !it.is_of_the_failing_kind).collect();
    let times = |mut times: Vec<Duration>| {
        times.sort_unstable();
        format!("{}, {}", millis(percentile(&times, 99)), millis(times.last().copied().unwrap_or_default()))
    };
    format!(
        "{name} | {} | {met} | {} | {} | {} | {}",
        samples.iter().filter(|sample| sample.status != 200).count(),
        others.iter().filter(|sample| sample.status != 200).count(),
        others.iter().filter(|sample| sample.status == 503).count(),
        times(samples.iter().filter(|sample| sample.started < began).map(|sample| sample.took).collect()),
        times(others.iter().map(|sample| sample.took).collect()),
    )
}

async fn send(port: u16, case: Case, time: Duration) -> Vec<Sample> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let samples = Arc::new(Mutex::new(Vec::new()));
    let mut under_way = tokio::task::JoinSet::new();
    let mut due = interval(Duration::from_secs(1) / RATE);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let over = Instant::now() + time;
    let mut number = 0_u32;
    while Instant::now() < over {
        due.tick().await;
        number += 1;
        let (client, samples) = (client.clone(), Arc::clone(&samples));
        under_way.spawn(async move {
            let is_poison = case == Case::Poison && number.is_multiple_of(10);
            // A rate limit is one model's.
            let model = if number.is_multiple_of(2) || case == Case::RateLimit { "m" } else { "n" };
            let body = if is_poison {
                "{\"model\": \"m\", \"messages\": \"poison\"}".to_owned()
            } else {
                format!("{{\"model\": \"{model}\", \"messages\": [], \"user\": \"{number}\"}}")
            };
            let started = Instant::now();
            let status = timeout(Duration::from_secs(60), ask(client, port, body)).await.unwrap_or_default();
            let is_of_the_failing_kind = match case {
                Case::OneFails | Case::OneHangs => model == "m",
                Case::Poison => is_poison,
                _ => false,
            };
            let sample = Sample { started, took: started.elapsed(), status, is_of_the_failing_kind };
            samples.lock().expect("nobody panics").push(sample);
        });
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
    std::mem::take(&mut *samples.lock().expect("nobody panics"))
}

/// The only provider fails three times. How long until a request is served again, and what the clients get meanwhile.
async fn alone(port: u16, provider: &Provider) -> String {
    let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
    let body = |number: u32| format!("{{\"model\": \"m\", \"user\": \"{number}\"}}");
    provider.is_failing.store(true, Ordering::Relaxed);
    let began = Instant::now();
    let mut refused = 0;
    for number in 0.. {
        match ask(client.clone(), port, body(number)).await {
            200 => break,
            503 => refused += 1,
            _ => {}
        }
        sleep(Duration::from_millis(50)).await;
    }
    let took = began.elapsed().as_secs_f64();
    format!("served again after {took:.2} s | {} | {refused} refused | | |", provider.met.load(Ordering::Relaxed))
}

async fn ask(client: Client<HttpConnector, Full<Bytes>>, port: u16, body: String) -> u16 {
    let request = Request::post(format!("http://127.0.0.1:{port}/v1/chat/completions"))
        .header("content-type", "application/json")
        .body(Full::from(body))
        .expect("a valid request");
    let Ok(response) = client.request(request).await else { return 0 };
    let status = response.status().as_u16();
    if response.into_body().collect().await.is_ok() { status } else { 0 }
}
