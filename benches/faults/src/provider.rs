//! A provider that answers like an LLM's, takes its time, and fails as it is told.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;

/// How the first provider fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Fault {
    /// It answers 500.
    #[value(name = "500")]
    Http500,
    /// It takes requests and does not answer.
    Hang,
    /// It takes requests, and answers them when it is healed.
    Pause,
    /// Nobody listens.
    Refuse,
    /// It answers 429.
    #[value(name = "429")]
    Http429,
    /// It closes the connection in the middle of an answer.
    Cut,
    /// A byte of an answer at a time.
    Drip,
    /// It stops in the middle of its streams.
    Stall,
}

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http500 => "500",
            Self::Hang => "hang",
            Self::Pause => "pause",
            Self::Refuse => "refuse",
            Self::Http429 => "429",
            Self::Cut => "cut answers",
            Self::Drip => "slow drip",
            Self::Stall => "stalled streams",
        }
    }

    /// Whether its requests ask for streams.
    pub(crate) fn is_of_streams(self) -> bool {
        self == Self::Stall
    }
}

/// How long it takes for the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Latency {
    /// 20 ms, log-normal, sigma 0.25.
    #[value(name = "20ms")]
    Short,
    /// 0.6 s, log-normal, sigma 0.8; one in a hundred Pareto from 1 s, alpha 1.5, up to 20 s.
    #[value(name = "600ms-tail")]
    Tail,
}

impl Latency {
    fn draw(self) -> Duration {
        let seconds = match self {
            Self::Short => log_normal(0.02, 0.25),
            Self::Tail if fastrand::f64() < 0.01 => (1.0 - fastrand::f64()).powf(-1.0 / 1.5),
            Self::Tail => log_normal(0.6, 0.8),
        };
        Duration::from_secs_f64(seconds.min(20.0))
    }
}

/// By Box and Muller.
fn log_normal(median: f64, sigma: f64) -> f64 {
    let normal = (-2.0 * (1.0 - fastrand::f64()).ln()).sqrt() * (std::f64::consts::TAU * fastrand::f64()).cos();
    median * (sigma * normal).exp()
}

pub(crate) struct Provider {
    address: SocketAddr,
    latency: Latency,
    fault: watch::Sender<Option<Fault>>,
    listening: watch::Sender<bool>,
    /// When each request came.
    asked: Mutex<Vec<Instant>>,
}

type Body = BoxBody<Bytes, io::Error>;

const EVENTS: usize = 20;
const BETWEEN_EVENTS: Duration = Duration::from_millis(5);
const BETWEEN_DROPS: Duration = Duration::from_millis(50);

impl Provider {
    pub(crate) async fn start(latency: Latency) -> io::Result<Arc<Self>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let provider = Arc::new(Self {
            address: listener.local_addr()?,
            latency,
            fault: watch::Sender::new(None),
            listening: watch::Sender::new(true),
            asked: Mutex::default(),
        });
        tokio::spawn(Arc::clone(&provider).serve(listener));
        Ok(provider)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Breaks or heals it, and returns when that has taken effect.
    pub(crate) async fn set(&self, fault: Option<Fault>) {
        self.fault.send_replace(fault);
        let listens = fault != Some(Fault::Refuse);
        // The sender lives in `self`.
        let _ = self.listening.subscribe().wait_for(|listening| *listening == listens).await;
    }

    /// When requests came.
    pub(crate) fn asked(&self) -> Vec<Instant> {
        self.asked.lock().expect("nobody panics").clone()
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut fault = self.fault.subscribe();
        let mut listener = Some(listener);
        let mut connections = GracefulShutdown::new();
        loop {
            let refuses = *fault.borrow_and_update() == Some(Fault::Refuse);
            if refuses {
                listener = None;
                tokio::spawn(std::mem::take(&mut connections).shutdown());
            } else if listener.is_none() {
                listener = TcpListener::bind(self.address).await.ok();
            }
            self.listening.send_replace(listener.is_some());
            let Some(open) = &listener else {
                tokio::select! {
                    _ = fault.changed() => {}
                    () = sleep(Duration::from_millis(20)), if !refuses => {}
                }
                continue;
            };
            tokio::select! {
                _ = fault.changed() => {}
                accepted = open.accept() => if let Ok((stream, _)) = accepted {
                    let _ = stream.set_nodelay(true);
                    let provider = Arc::clone(&self);
                    let service = service_fn(move |request| {
                        let provider = Arc::clone(&provider);
                        async move { Ok::<_, Infallible>(provider.answer(request).await) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    tokio::spawn(connections.watch(http.serve_connection(TokioIo::new(stream), service)));
                },
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() == "/check" {
            return whole(StatusCode::OK, "{}");
        }
        self.asked.lock().expect("nobody panics").push(Instant::now());
        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let is_stream = body.windows(14).any(|window| window == b"\"stream\": true");
        let fault = *self.fault.borrow();
        match fault {
            Some(Fault::Http500) => return whole(StatusCode::INTERNAL_SERVER_ERROR, "{}"),
            Some(Fault::Http429) => return whole(StatusCode::TOO_MANY_REQUESTS, "{}"),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Pause) => {
                let _ = self.fault.subscribe().wait_for(|fault| *fault != Some(Fault::Pause)).await;
            }
            _ => {}
        }
        sleep(self.latency.draw()).await;
        if is_stream { self.stream(fault) } else { Self::completion(fault) }
    }

    fn completion(fault: Option<Fault>) -> Response<Body> {
        const TEXT: &str = r#"{"object":"chat.completion","choices":[{"message":{"content":"Hello, how are you?"}}]}"#;
        let (mut sender, body) = Channel::<Bytes, io::Error>::new(1);
        match fault {
            Some(Fault::Cut) => {
                tokio::spawn(async move {
                    let _ = sender.send_data(Bytes::from_static(&TEXT.as_bytes()[..40])).await;
                    sender.abort(io::Error::other("cut"));
                });
            }
            Some(Fault::Drip) => {
                tokio::spawn(async move {
                    for at in 0..TEXT.len() {
                        if sender.send_data(Bytes::from_static(&TEXT.as_bytes()[at..=at])).await.is_err() {
                            return;
                        }
                        sleep(BETWEEN_DROPS).await;
                    }
                });
            }
            _ => return whole(StatusCode::OK, TEXT),
        }
        // Its length is known, as it is of all answers: who closes before it has cut it.
        let head = Response::builder().header("content-type", "application/json").header("content-length", TEXT.len());
        head.body(body.boxed()).expect("a valid answer")
    }

    fn stream(&self, fault: Option<Fault>) -> Response<Body> {
        const EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"word \"}}]}\n\n";
        let (mut sender, body) = Channel::<Bytes, io::Error>::new(1);
        let mut now = self.fault.subscribe();
        tokio::spawn(async move {
            for number in 0..EVENTS {
                // What is under way stops as well.
                let stalls = fault == Some(Fault::Stall) && number == EVENTS / 2;
                if stalls || *now.borrow() == Some(Fault::Stall) && number >= EVENTS / 2 {
                    let _ = now.wait_for(|fault| *fault != Some(Fault::Stall)).await;
                    std::future::pending::<()>().await;
                }
                if sender.send_data(Bytes::from_static(EVENT.as_bytes())).await.is_err() {
                    return;
                }
                sleep(BETWEEN_EVENTS).await;
            }
            let _ = sender.send_data(Bytes::from_static(b"data: [DONE]\n\n")).await;
        });
        Response::builder().header("content-type", "text/event-stream").body(body.boxed()).expect("a valid answer")
    }
}

fn whole(status: StatusCode, text: &'static str) -> Response<Body> {
    let body = Full::from(text).map_err(|never| match never {}).boxed();
    Response::builder().status(status).header("content-type", "application/json").body(body).expect("a valid answer")
}
