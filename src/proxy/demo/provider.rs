//! A provider that answers like `OpenAI`'s API and can be told to fail.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use bytes::Bytes;
use clap::ValueEnum;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

const WORDS: [&str; 6] = ["The ", "circuit ", "is ", "closed ", "again", "."];
const THINKING: Duration = Duration::from_millis(2);
const REBIND: Duration = Duration::from_millis(20);

/// How a simulated provider fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// It answers 500.
    #[value(name = "500")]
    Http500,
    /// It takes requests and never answers.
    Hang,
    /// Nobody listens on its port.
    Refuse,
}

impl Fault {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Fault::Http500 => "500",
            Fault::Hang => "hang",
            Fault::Refuse => "refuse",
        }
    }

    /// `heal` is no fault; an error says what would be one.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, &'static str> {
        match text {
            "heal" => Ok(None),
            _ => Self::from_str(text, false).map(Some).map_err(|_| "expected heal, 500, hang or refuse\n"),
        }
    }
}

pub(super) struct Simulated {
    name: &'static str,
    address: SocketAddr,
    fault: watch::Sender<Option<Fault>>,
    /// Whether the port is listened on, which follows the fault with a delay.
    listening: watch::Sender<bool>,
}

impl Simulated {
    pub(super) async fn start(name: &'static str) -> io::Result<Arc<Self>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let simulated = Arc::new(Self {
            name,
            address: listener.local_addr()?,
            fault: watch::Sender::new(None),
            listening: watch::Sender::new(true),
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

    /// Breaks or heals it, and returns when that has taken effect.
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
                listener = TcpListener::bind(self.address).await.ok();
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
        #[derive(Deserialize)]
        struct Asked {
            #[serde(default)]
            stream: bool,
            model: String,
        }
        let Ok(body) = request.into_body().collect().await else {
            return status(StatusCode::BAD_REQUEST, &json!({}));
        };
        let Ok(asked) = serde_json::from_slice::<Asked>(&body.to_bytes()) else {
            return status(StatusCode::BAD_REQUEST, &json!({"error": {"message": "no model"}}));
        };
        let fault = *self.fault.borrow();
        match fault {
            // Whoever got in before the port was closed is served.
            None | Some(Fault::Refuse) => {}
            Some(Fault::Http500) => {
                return status(StatusCode::INTERNAL_SERVER_ERROR, &json!({"error": {"message": "simulated fault"}}));
            }
            Some(Fault::Hang) => std::future::pending().await,
        }
        tokio::time::sleep(THINKING).await;
        let (kind, parts) = if asked.stream {
            ("text/event-stream", stream(&asked.model))
        } else {
            ("application/json", completion(&asked.model))
        };
        send(kind, parts)
    }
}

fn status(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// Sends the parts one after the other.
fn send(kind: &'static str, parts: Vec<Bytes>) -> Response<Body> {
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
    tokio::spawn(async move {
        for part in parts {
            if sender.send_data(part).await.is_err() {
                return;
            }
            tokio::time::sleep(THINKING).await;
        }
    });
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

fn stream(model: &str) -> Vec<Bytes> {
    let event = |delta: Value, finish: Option<&str>| {
        let chunk = json!({
            "id": "chatcmpl-demo", "object": "chat.completion.chunk", "created": 0, "model": model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        });
        Bytes::from(format!("data: {chunk}\n\n"))
    };
    let words = WORDS.iter().map(|word| event(json!({"role": "assistant", "content": word}), None));
    words.chain([event(json!({}), Some("stop")), Bytes::from_static(b"data: [DONE]\n\n")]).collect()
}

fn completion(model: &str) -> Vec<Bytes> {
    let body = json!({
        "id": "chatcmpl-demo", "object": "chat.completion", "created": 0, "model": model,
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": WORDS.concat()}, "finish_reason": "stop",
        }],
        "usage": {"prompt_tokens": 1, "completion_tokens": WORDS.len(), "total_tokens": 1 + WORDS.len()},
    });
    let text = Bytes::from(body.to_string());
    let half = text.len() / 2;
    vec![text.slice(..half), text.slice(half..)]
}
