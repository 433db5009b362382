//! A gateway on loopback, providers that do as they are told, and a client.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use fusebox::proxy::{AnswerKind, AppState, BreakerSnapshot, CircuitBreaker, CircuitState, GatewayConfig, run_server};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// For what must happen soon, but not at a given time.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The output of a future that must complete soon.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("it takes too long")
}

pub(crate) async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

pub(crate) async fn until_open(address: SocketAddr) {
    soon(async {
        while TcpStream::connect(address).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

pub(crate) async fn until_closed(address: SocketAddr) {
    soon(async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A request as the provider saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) version: Version,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

type Script = dyn Fn(usize, &Seen) -> Response<Body> + Send + Sync;

/// A provider whose n-th answer is given by a function of n.
pub(crate) struct Provider {
    pub(crate) address: SocketAddr,
    hits: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Provider {
    pub(crate) async fn start(script: impl Fn(usize) -> Response<Body> + Send + Sync + 'static) -> Self {
        Self::start_on("127.0.0.1:0", script).await
    }

    pub(crate) async fn start_on(
        address: &str,
        script: impl Fn(usize) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        Self::start_behind(watch::channel(true).1, "", address, move |n, _| script(n)).await
    }

    /// A provider whose answers are given by a function of the request's body.
    pub(crate) async fn judging(script: impl Fn(&str) -> Response<Body> + Send + Sync + 'static) -> Self {
        Self::start_behind(watch::channel(true).1, "", "127.0.0.1:0", move |_, seen| script(&seen.text())).await
    }

    /// The same, of path and body.
    pub(crate) async fn routing(script: impl Fn(&str, &str) -> Response<Body> + Send + Sync + 'static) -> Self {
        let script = move |_, seen: &Seen| script(&seen.path, &seen.text());
        Self::start_behind(watch::channel(true).1, "", "127.0.0.1:0", script).await
    }

    /// The same, of all that is seen of a request.
    pub(crate) async fn seeing(script: impl Fn(&Seen) -> Response<Body> + Send + Sync + 'static) -> Self {
        Self::start_behind(watch::channel(true).1, "", "127.0.0.1:0", move |_, seen| script(seen)).await
    }

    /// Answers every request with 200, while the gate is open; until then it waits.
    pub(crate) async fn gated() -> (Self, watch::Sender<bool>) {
        Self::gated_for("").await
    }

    /// The same for requests whose body contains this text. All others are answered at once.
    pub(crate) async fn gated_for(text: &'static str) -> (Self, watch::Sender<bool>) {
        let (gate, is_open) = watch::channel(true);
        (Self::start_behind(is_open, text, "127.0.0.1:0", |_, _| answer(200)).await, gate)
    }

    async fn start_behind(
        gate: watch::Receiver<bool>,
        gated: &'static str,
        address: &str,
        script: impl Fn(usize, &Seen) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let hits = Arc::new(AtomicUsize::new(0));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let script: Arc<Script> = Arc::new(script);
        let (count, log) = (Arc::clone(&hits), Arc::clone(&seen));
        let app = axum::Router::new().fallback(async move |request: Request<Body>| {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let seen = Seen {
                version: head.version,
                method: head.method,
                path: head.uri.path_and_query().unwrap().to_string(),
                headers: head.headers,
                body,
            };
            let is_gated = seen.text().contains(gated);
            let mut response = script(count.fetch_add(1, Ordering::SeqCst), &seen);
            log.lock().push(seen);
            response.headers_mut().insert(BY, address.to_string().parse().unwrap());
            // An error says that the test is over.
            let _ = gate.clone().wait_for(|is_open| *is_open || !is_gated).await;
            if response.status() == HANG { std::future::pending().await } else { response }
        });
        tokio::spawn(axum::serve(listener, app).into_future());
        Self { address, hits, seen }
    }

    /// Answers every request with `status`.
    pub(crate) async fn with_status(status: u16) -> Self {
        Self::start(move |_| answer(status)).await
    }

    pub(crate) fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }

    pub(crate) fn last(&self) -> Seen {
        self.all().pop().expect("asked at least once")
    }

    pub(crate) fn all(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }
}

/// The address of the provider that answered.
const BY: &str = "x-by";

/// A status that no server sends: the provider never answers.
const HANG: StatusCode = StatusCode::IM_A_TEAPOT;

pub(crate) fn hang() -> Response<Body> {
    let mut response = Response::default();
    *response.status_mut() = HANG;
    response
}

pub(crate) fn answer(status: u16) -> Response<Body> {
    let body = format!("{{\"status\":{status}}}");
    Response::builder().status(status).header("content-type", "application/json").body(body.into()).unwrap()
}

/// An answer whose body is sent by the test, chunk by chunk.
pub(crate) fn streamed() -> (Sender<Bytes, std::io::Error>, Response<Body>) {
    let (sender, body) = Channel::new(4);
    (sender, Response::builder().header("content-type", "text/event-stream").body(Body::new(body)).unwrap())
}

/// A stream of these events, which is whole.
pub(crate) fn events(text: &'static str) -> Response<Body> {
    Response::builder().header("content-type", "text/event-stream").body(text.into()).unwrap()
}

/// An answer that is no stream, whose body is sent by the test.
pub(crate) fn dripped() -> (Sender<Bytes, std::io::Error>, Response<Body>) {
    let (sender, body) = Channel::new(4);
    (sender, Response::builder().header("content-type", "application/json").body(Body::new(body)).unwrap())
}

/// Hands out prepared responses in order.
pub(crate) fn one_by_one(responses: Vec<Response<Body>>) -> impl Fn(usize) -> Response<Body> + Send + Sync + 'static {
    let responses = Mutex::new(responses.into_iter());
    move |_| responses.lock().next().unwrap_or_else(|| answer(500))
}

/// What the access log is written to.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) state: Arc<AppState>,
    log: Log,
    client: Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>,
    stop: Option<oneshot::Sender<()>>,
    pub(crate) server: JoinHandle<()>,
}

impl Gateway {
    /// `providers` are called a, b, c in this order, and serve the model `m`. `extra` goes into every `[[providers]]`.
    pub(crate) async fn start(providers: &[&Provider], server: &str, breaker: &str, extra: &str) -> Self {
        let addresses: Vec<_> = providers.iter().map(|provider| provider.address).collect();
        Self::over(&addresses, server, breaker, extra).await
    }

    /// In front of one provider, which gives these answers in order.
    pub(crate) async fn answering(responses: Vec<Response<Body>>, server: &str, breaker: &str, extra: &str) -> Self {
        let a = Provider::start(one_by_one(responses)).await;
        Self::start(&[&a], server, breaker, extra).await
    }

    pub(crate) async fn over(providers: &[SocketAddr], server: &str, breaker: &str, extra: &str) -> Self {
        let mut text = format!("[server]\n{server}\n[breaker]\n{breaker}\n");
        for (name, address) in ["a", "b", "c"].iter().zip(providers) {
            let provider = format!(
                "[[providers]]\nname = '{name}'\nurl = 'http://{address}/base/v1'\nmodels = ['m']\n\
                 api_key = 'provider-key'\n{extra}\n"
            );
            text += &provider;
        }
        Self::from_config(&GatewayConfig::from_toml(&text).unwrap()).await
    }

    pub(crate) async fn from_config(config: &GatewayConfig) -> Self {
        let log = Log::default();
        let state = AppState::with_access_log(config, log.clone()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, admin_address) = (listener.local_addr().unwrap(), admin.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            stopped.await.ok();
        };
        let running = run_server(Arc::clone(&state), listener, Some(admin), stopped);
        let server = tokio::spawn(async { running.await.unwrap() });
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { address, admin: admin_address, state, log, client, stop: Some(stop), server }
    }

    /// The access log, once it has so many lines: a thread of its own writes it.
    pub(crate) async fn log(&self, lines: usize) -> Vec<Value> {
        self.until(|gateway| gateway.log.0.lock().split(|byte| *byte == b'\n').count() > lines).await;
        let text = String::from_utf8(self.log.0.lock().clone()).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines
    }

    pub(crate) async fn metrics(&mut self) -> String {
        let clients = std::mem::replace(&mut self.address, self.admin);
        let answer = self.get("/metrics").await;
        self.address = clients;
        assert_eq!(answer.status, 200);
        String::from_utf8(answer.body.to_vec()).unwrap()
    }

    pub(crate) fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Response<hyper::body::Incoming> {
        self.client.request(request).await.unwrap()
    }

    /// As [`send`](Self::send), for a task of its own.
    pub(crate) fn sending(
        &self,
        request: Request<Full<Bytes>>,
    ) -> impl Future<Output = Response<hyper::body::Incoming>> + Send + 'static {
        let sent = self.client.request(request);
        async { sent.await.unwrap() }
    }

    pub(crate) fn request(&self, path: &str, body: &str) -> Request<Full<Bytes>> {
        let uri = format!("http://{}{path}", self.address);
        Request::post(uri).header("content-type", "application/json").body(Full::from(body.to_owned())).unwrap()
    }

    /// Asks for a completion; the body is still to be read. No two of these requests are alike: the failures of the
    /// same one would count once.
    pub(crate) async fn begin(&self) -> Response<hyper::body::Incoming> {
        self.send(self.request("/v1/chat/completions", &another(CHAT))).await
    }

    /// Asks for a completion whose first chunk the provider sends meanwhile: there is no answer before that.
    pub(crate) async fn begin_with(
        &self,
        sender: &mut Sender<Bytes, std::io::Error>,
        chunk: &'static str,
    ) -> Response<hyper::body::Incoming> {
        let (response, ()) = tokio::join!(self.begin(), async { sender.send_data(chunk.into()).await.unwrap() });
        response
    }

    /// Asks for a completion and reads it.
    pub(crate) async fn ask(&self) -> Answer {
        read(self.begin().await).await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        read(self.send(self.request(path, body)).await).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        let uri = format!("http://{}{path}", self.address);
        read(self.send(Request::get(uri).body(Full::default()).unwrap()).await).await
    }

    pub(crate) async fn health(&self) -> (u16, Value) {
        let answer = self.get("/health").await;
        (answer.status, answer.json())
    }

    /// The provider's own circuit, or one of those of the model `m`: the one that is furthest from closed.
    pub(crate) fn snapshot(&self, provider: &str) -> BreakerSnapshot {
        let rank = |state| match state {
            CircuitState::Open => 2,
            CircuitState::Closed => 0,
            _ => 1,
        };
        let snapshots = self.circuits(provider).map(|circuit| circuit.snapshot());
        snapshots.into_iter().max_by_key(|it| (rank(it.state), it.trip_count, it.failure_count)).unwrap()
    }

    pub(crate) fn state_of(&self, provider: &str) -> String {
        self.snapshot(provider).state.to_string()
    }

    /// How often these circuits have opened.
    pub(crate) fn trips(&self, provider: &str) -> u64 {
        self.circuits(provider).iter().map(|circuit| circuit.trip_count()).sum()
    }

    /// The most failures in a row of any of these circuits.
    pub(crate) fn failures_of(&self, provider: &str) -> u32 {
        self.circuits(provider).iter().map(|circuit| circuit.failure_count()).max().unwrap()
    }

    fn circuits(&self, provider: &str) -> [Arc<CircuitBreaker>; 3] {
        [self.own_breaker(provider), self.breaker(provider), self.stream_breaker(provider)]
    }

    /// Waits until `provider`'s circuit is in `state`, which follows the answer by a moment.
    pub(crate) async fn reaches(&self, provider: &str, state: &str) {
        self.until(|gateway| gateway.state_of(provider) == state).await;
    }

    pub(crate) async fn until(&self, condition: impl Fn(&Self) -> bool) {
        until(|| condition(self)).await;
    }

    /// Waits until `provider`'s open time has passed.
    pub(crate) async fn reopens(&self, provider: &str) {
        self.until(|gateway| gateway.circuits(provider).iter().all(|circuit| circuit.would_allow())).await;
    }

    /// The circuit of the model `m` for whole answers.
    pub(crate) fn breaker(&self, provider: &str) -> Arc<CircuitBreaker> {
        self.state.circuit(provider, "m", AnswerKind::Whole).unwrap()
    }

    /// The same for streams.
    pub(crate) fn stream_breaker(&self, provider: &str) -> Arc<CircuitBreaker> {
        self.state.circuit(provider, "m", AnswerKind::Stream).unwrap()
    }

    /// The circuit above those of the provider's models.
    pub(crate) fn own_breaker(&self, provider: &str) -> Arc<CircuitBreaker> {
        self.state.circuit_breakers.get(provider).unwrap()
    }
}

/// The same body with a field that no other one has.
pub(crate) fn another(body: &str) -> String {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    format!("{}, \"user\": \"{number}\"}}", body.strip_suffix('}').unwrap())
}

pub(crate) const CHAT: &str = r#"{"messages": [{"role": "user", "content": "hi"}], "model": "m"}"#;

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn is_by(&self, provider: &Provider) -> bool {
        self.header(BY) == provider.address.to_string()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value: &HeaderValue| value.to_str().unwrap())
    }
}

pub(crate) async fn read(response: Response<hyper::body::Incoming>) -> Answer {
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    Answer { status: head.status.as_u16(), headers: head.headers, body }
}

/// A port that nobody listens on.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// The whole events before the error event, and that one's message.
pub(crate) async fn broken(response: Response<hyper::body::Incoming>) -> (String, String) {
    let text = response.into_body().collect().await.expect("well-formed HTTP").to_bytes();
    let text = String::from_utf8(text.to_vec()).unwrap();
    let (before, error) = text.split_once("event: error\ndata: ").unwrap_or_else(|| panic!("no error event: {text}"));
    let error: serde_json::Value = serde_json::from_str(error.strip_suffix("\n\n").unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "provider_stream_broken");
    (before.to_owned(), error["error"]["message"].as_str().unwrap().to_owned())
}

/// `name` is what no other test uses.
pub(crate) fn temp_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("fusebox-test-{}-{name}", std::process::id()))
}

/// A file of this process, which is removed with it.
pub(crate) struct TempFile(PathBuf);

impl TempFile {
    pub(crate) fn new(name: &str, text: impl AsRef<[u8]>) -> Self {
        let path = temp_path(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Deref for TempFile {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // It is of no interest any more, and the test has failed if it is not there.
        let _ = std::fs::remove_file(&self.0);
    }
}
