//! A provider that answers like `OpenAI`'s API and Anthropic's, and fails on demand. `benches/faults` mounts this file
//! as well, so it knows nothing of the gateway.

#[path = "answers.rs"]
mod answers;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use clap::ValueEnum;
use http::{Request, Response, StatusCode, header};
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

use self::answers::{WORDS, completion, embedding, file, message, message_events, response, response_events, stream};

/// Between two pieces.
const WRITING: Duration = Duration::from_millis(2);
/// Between two bytes of an answer that drips.
const DRIP: Duration = Duration::from_millis(50);
const REBIND: Duration = Duration::from_millis(20);

/// How long a simulated provider takes for the first piece of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Latency {
    /// 20 ms, a little more or less.
    #[value(name = "20ms")]
    Short,
    /// 0.6 s, with a long tail: one in a hundred takes from 1 to 20 s.
    #[value(name = "600ms-tail")]
    Tail,
}

impl Latency {
    fn draw(self) -> Duration {
        let seconds = match self {
            Self::Short => log_normal(0.02, 0.25),
            // Pareto, alpha 1.5.
            Self::Tail if fastrand::f64() < 0.01 => (1.0 - fastrand::f64()).powf(-1.0 / 1.5),
            Self::Tail => log_normal(0.6, 0.8),
        };
        Duration::from_secs_f64(seconds.min(20.0))
    }
}

/// By Box and Muller.
pub(super) fn log_normal(median: f64, sigma: f64) -> f64 {
    let normal = (-2.0 * (1.0 - fastrand::f64()).ln()).sqrt() * (std::f64::consts::TAU * fastrand::f64()).cos();
    median * (sigma * normal).exp()
}

/// How a simulated provider fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// It answers 500.
    #[value(name = "500")]
    Http500,
    /// It accepts requests and never answers them.
    Hang,
    /// It accepts requests, and answers all of them when it is healed.
    Pause,
    /// Its port is closed.
    Refuse,
    /// It answers 429.
    #[value(name = "429")]
    Http429,
    /// It breaks off in the middle of its answers.
    Abort,
    /// Its answers come one byte at a time.
    Slow,
    /// It stops in the middle of its answers.
    Stall,
    /// It sends comments instead of its streams.
    KeepAlive,
    /// It stops in the middle of its streams, and then sends comments.
    StallAlive,
}

impl Fault {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Self::value_variants().iter().copied()
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Fault::Http500 => "500",
            Fault::Hang => "hang",
            Fault::Pause => "pause",
            Fault::Refuse => "refuse",
            Fault::Http429 => "429",
            Fault::Abort => "abort",
            Fault::Slow => "slow",
            Fault::Stall => "stall",
            Fault::KeepAlive => "keep-alive",
            Fault::StallAlive => "stall-alive",
        }
    }

    /// `heal` is no fault; an error says what would be one.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, String> {
        match text {
            "heal" => Ok(None),
            _ => Self::from_str(text, false).map(Some).map_err(|_| {
                let faults: Vec<_> = Self::all().map(Self::as_str).collect();
                format!("expected heal or one of {}\n", faults.join(", "))
            }),
        }
    }
}

pub(super) struct Simulated {
    name: &'static str,
    address: SocketAddr,
    latency: Latency,
    fault: watch::Sender<Option<Fault>>,
    /// Whether the port is open, which follows the fault with a delay.
    listening: watch::Sender<bool>,
    /// Called for each request.
    on_request: Box<dyn Fn() + Send + Sync>,
    /// Requests that met each fault. Refused connections cannot be counted here.
    faults: Box<[AtomicU64]>,
}

impl Simulated {
    pub(super) fn start(
        name: &'static str,
        latency: Latency,
        on_request: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Arc<Self>> {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into(), name, latency, on_request)
    }

    pub(super) fn start_on(
        address: SocketAddr,
        name: &'static str,
        latency: Latency,
        on_request: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Arc<Self>> {
        let listener = bind(address)?;
        let simulated = Arc::new(Self {
            name,
            address: listener.local_addr()?,
            latency,
            fault: watch::Sender::new(None),
            listening: watch::Sender::new(true),
            on_request: Box::new(on_request),
            faults: Fault::all().map(|_| AtomicU64::new(0)).collect(),
        });
        tokio::spawn(Arc::clone(&simulated).serve(listener));
        Ok(simulated)
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn fault(&self) -> Option<Fault> {
        *self.fault.borrow()
    }

    /// How many requests met each fault that any met.
    pub(super) fn faults(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.faults.iter().map(|count| count.load(Ordering::Relaxed));
        Fault::all().map(Fault::as_str).zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// Breaks or heals the provider, and returns when that has taken effect.
    pub(super) async fn set(&self, fault: Option<Fault>) {
        self.fault.send_replace(fault);
        let listens = fault != Some(Fault::Refuse);
        // The sender lives in `self`, so this cannot fail.
        let _ = self.listening.subscribe().wait_for(|listening| *listening == listens).await;
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut fault = self.fault.subscribe();
        let mut listener = Some(listener);
        let mut connections = GracefulShutdown::new();
        loop {
            let refuse = *fault.borrow_and_update() == Some(Fault::Refuse);
            if refuse {
                listener = None;
                // Requests in flight are finished, idle connections closed.
                tokio::spawn(std::mem::take(&mut connections).shutdown());
            } else if listener.is_none() {
                listener = bind(self.address).ok();
            }
            self.listening.send_replace(listener.is_some());
            let Some(open) = &listener else {
                tokio::select! {
                    _ = fault.changed() => {}
                    // The port may be taken for a moment.
                    () = tokio::time::sleep(REBIND), if !refuse => {}
                }
                continue;
            };
            tokio::select! {
                _ = fault.changed() => {}
                accepted = open.accept() => if let Ok((stream, _)) = accepted {
                    let _ = stream.set_nodelay(true);
                    let simulated = Arc::clone(&self);
                    let service = service_fn(move |request| {
                        let simulated = Arc::clone(&simulated);
                        async move { Ok::<_, Infallible>(simulated.answer(request).await) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    tokio::spawn(connections.watch(http.serve_connection(TokioIo::new(stream), service)));
                },
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        #[derive(Default, Deserialize)]
        struct Asked {
            #[serde(default)]
            stream: bool,
            reasoning_effort: Option<String>,
            model: String,
        }
        let path = request.uri().path().to_owned();
        if let Some(fault) = path.strip_prefix("/simulate/") {
            return match Fault::parse(fault) {
                Ok(Some(Fault::Refuse)) => {
                    status(StatusCode::BAD_REQUEST, &json!("it could not be healed by a request"))
                }
                Ok(fault) => {
                    self.fault.send_replace(fault);
                    status(StatusCode::OK, &json!(fault.map_or("healthy", Fault::as_str)))
                }
                Err(expected) => status(StatusCode::NOT_FOUND, &json!(expected)),
            };
        }
        (self.on_request)();
        let is_form =
            request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"multipart/"));
        let Ok(body) = request.into_body().collect().await else {
            return status(StatusCode::BAD_REQUEST, &json!({}));
        };
        let asked = if is_form { Ok(Asked::default()) } else { serde_json::from_slice(&body.to_bytes()) };
        let Ok(asked) = asked else {
            return status(StatusCode::BAD_REQUEST, &json!({"error": {"message": "no model"}}));
        };
        let fault = self.fault();
        if let Some(fault) = fault.filter(|fault| *fault != Fault::Refuse) {
            self.faults[fault as usize].fetch_add(1, Ordering::Relaxed);
        }
        match fault {
            Some(Fault::Http500) => {
                return status(StatusCode::INTERNAL_SERVER_ERROR, &json!({"error": {"message": "simulated fault"}}));
            }
            Some(Fault::Http429) => {
                let mut answer =
                    status(StatusCode::TOO_MANY_REQUESTS, &json!({"error": {"message": "simulated fault"}}));
                answer.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
                return answer;
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Pause) => {
                // The sender lives in `self`, so this cannot fail.
                let _ = self.fault.subscribe().wait_for(|fault| *fault != Some(Fault::Pause)).await;
            }
            // A connection that was accepted before the port was closed is served.
            None
            | Some(Fault::Refuse | Fault::Abort | Fault::Slow | Fault::Stall | Fault::KeepAlive | Fault::StallAlive) => {
            }
        }
        // Who thinks hard takes a hundred times as long.
        let times = if asked.reasoning_effort.as_deref() == Some("high") { 100 } else { 1 };
        tokio::time::sleep(self.latency.draw() * times).await;
        let (kind, parts) = match path.as_str() {
            "/v1/embeddings" => ("application/json", halves(&embedding(&asked.model))),
            "/v1/audio/transcriptions" => ("application/json", halves(&json!({"text": WORDS.concat()}))),
            "/v1/files" => ("application/json", halves(&file())),
            "/v1/messages/count_tokens" => ("application/json", halves(&json!({"input_tokens": 1}))),
            "/v1/messages" if asked.stream => ("text/event-stream", message_events(&asked.model)),
            "/v1/messages" => ("application/json", halves(&message(&asked.model, &[&WORDS.concat()]))),
            "/v1/responses" if asked.stream => ("text/event-stream", response_events(&asked.model)),
            "/v1/responses" => ("application/json", halves(&response(&asked.model, "completed"))),
            _ if asked.stream => ("text/event-stream", stream(&asked.model)),
            _ => ("application/json", halves(&completion(&asked.model))),
        };
        send(kind, parts, fault)
    }
}

/// With an accept queue as long as that of servers for many clients.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

fn status(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// Sends the parts one after the other. With a fault it stops before the end, or sends one byte at a time.
fn send(kind: &'static str, mut parts: Vec<Bytes>, fault: Option<Fault>) -> Response<Body> {
    let (mut sender, body) = Channel::<Bytes, io::Error>::new(1);
    let mut pause = WRITING;
    match fault {
        Some(Fault::Abort | Fault::Stall | Fault::StallAlive) => parts.truncate(parts.len() / 2),
        Some(Fault::KeepAlive) => parts.clear(),
        Some(Fault::Slow) => {
            let whole = Bytes::from(parts.concat());
            parts = (0..whole.len()).map(|at| whole.slice(at..=at)).collect();
            pause = DRIP;
        }
        _ => {}
    }
    tokio::spawn(async move {
        for part in parts {
            if sender.send_data(part).await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
        match fault {
            Some(Fault::Abort) => sender.abort(io::Error::other("simulated fault")),
            // Until the client gives up.
            Some(Fault::Stall | Fault::KeepAlive | Fault::StallAlive) => {
                let ping = if fault == Some(Fault::Stall) { "" } else { ": keep-alive\n\n" };
                while sender.send_data(ping.into()).await.is_ok() {
                    tokio::time::sleep(DRIP).await;
                }
            }
            _ => {}
        }
    });
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

fn halves(body: &Value) -> Vec<Bytes> {
    let text = Bytes::from(body.to_string());
    let half = text.len() / 2;
    vec![text.slice(..half), text.slice(half..)]
}
