//! WebSocket sessions: a request for one is routed as any other, by failover on the handshake, and then the client's
//! connection becomes the session.
//!
//! Not here: what passes in it: `relay`; the handshake with a provider: `route::ask`.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{Request, Response, StatusCode, response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tracing::debug;

use super::draining::Drain;
use super::relay::{Relay, Socket, first_text, refuse};
use super::v1::{self, ClientBody};
use crate::proxy::answer::{self, Code};
use crate::proxy::core::{Core, Local};
use crate::proxy::observe::facts::End;
use crate::proxy::request::client::Peer;
use crate::proxy::request::model::{self, Format, Named};
use crate::proxy::request::session::{NOT_HTTP1, invalid_session};
use crate::proxy::request::{self as asked, Prepared};
use crate::proxy::route::attempts::AttemptId;
use crate::proxy::route::exchange::Exchange;
use crate::proxy::route::judge::Answer;
use crate::proxy::route::stream::Payload;
use crate::proxy::upstream::Chain;

/// Where a connection finds the session that it becomes.
#[derive(Clone, Default)]
pub(crate) struct Slot(Arc<Mutex<Option<Box<Session>>>>);

impl Slot {
    /// Runs the session that the connection has become, if it has.
    pub(crate) async fn run(&self, drain: &Drain) {
        let session = self.0.lock().take();
        if let Some(session) = session {
            // In a box: most connections never become one.
            Box::pin(session.run(drain)).await;
        }
    }
}

/// A session that begins when the connection has sent its answer.
pub(crate) struct Session {
    exchange: Exchange,
    live: Arc<Local>,
    request: Arc<Prepared>,
    client: OnUpgrade,
    /// `None` if the client's first message has to name a model before.
    provider: Option<Opened>,
}

/// A provider's side.
struct Opened {
    connection: OnUpgrade,
    attempt: AttemptId,
}

impl Opened {
    fn of(head: &mut response::Parts) -> Option<Self> {
        let (connection, attempt) = (head.extensions.remove::<OnUpgrade>()?, head.extensions.remove::<AttemptId>()?);
        Some(Self { connection, attempt })
    }
}

/// Answers a request for a session below `/v1/`.
pub(crate) fn serve<B, R>(
    core: Arc<Core>,
    peer: Option<Peer>,
    request: Request<B>,
    into: impl FnOnce(Response<ClientBody>) -> R,
) -> impl Future<Output = R> {
    let (mut head, _) = request.into_parts();
    let (client, slot) = (head.extensions.remove::<OnUpgrade>(), head.extensions.remove::<Slot>());
    let mut exchange = Exchange::begin(core, peer, &mut head);
    async move {
        let live = Arc::clone(exchange.attempts.local());
        let Some(client) = client else {
            return into(v1::refuse(exchange, invalid_session(NOT_HTTP1)));
        };
        let read = asked::check(&head, &live.server.auth_tokens).and_then(|token| {
            exchange.facts.token = token;
            asked::read_session(head, &live.server)
        });
        let request = match read {
            Ok(request) => request,
            Err(refused) => return into(v1::refuse(exchange, *refused)),
        };
        if let Some(named) = &request.named {
            exchange.facts.set_model(&named.model);
        }
        let (mut head, provider) =
            if let (None, true, Some(handshake)) = (&request.named, names_models(&request), &request.session) {
                let mut head = Response::new(()).into_parts().0;
                head.status = StatusCode::SWITCHING_PROTOCOLS;
                head.headers = handshake.accept();
                exchange.answer_with(&mut head, None, true);
                (head, None)
            } else {
                let Answer { response, provider } = v1::route(&live, &mut exchange, Arc::clone(&request), None).await;
                let (mut head, payload) = response.into_parts();
                let Some(opened) = Opened::of(&mut head) else {
                    let answer = Answer { response: Response::from_parts(head, payload), provider };
                    return into(ClientBody::answer(exchange, answer));
                };
                exchange.answer_with(&mut head, provider, true);
                (head, Some(opened))
            };
        head.extensions.clear();
        let session = Box::new(Session { exchange, live, request, client, provider });
        match slot {
            Some(slot) => *slot.0.lock() = Some(session),
            // The router is served by somebody else's server, which does not drain.
            None => drop(tokio::spawn(async move { session.run(&Drain::default()).await })),
        }
        into(Response::from_parts(head, ClientBody::nothing()))
    }
}

/// Whether the messages of a session name models, as `OpenAI`'s responses do. Other kinds of sessions have one model.
fn names_models(request: &Prepared) -> bool {
    request.head.uri.path() == "/v1/responses"
}

impl Session {
    /// Runs until one of both sides ends it, or the gateway drains.
    async fn run(mut self: Box<Self>, drain: &Drain) {
        let core = Arc::clone(self.exchange.attempts.core());
        core.app.metrics.sessions.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.relay(drain).await {
            debug!(error = %Chain(&error), "a session did not begin");
        }
        core.app.metrics.sessions.fetch_sub(1, Ordering::Relaxed);
    }

    async fn relay(&mut self, drain: &Drain) -> hyper::Result<()> {
        let server = &self.live.server;
        let (patience, drain_limit) = (server.write_timeout, server.drain_limit);
        let max = usize::try_from(server.max_message_bytes).unwrap_or(usize::MAX);
        let mut client = open((&mut self.client).await?, Role::Server, max).await;
        let mut first = None;
        let opened = if let Some(opened) = self.provider.take() {
            Ok(opened)
        } else {
            let routed = drain.unless_begun(self.route_by_first_message(&mut client, &mut first)).await;
            routed.unwrap_or(Err((1001, None)))
        };
        let Opened { connection, attempt } = match opened {
            Ok(opened) => opened,
            Err((code, event)) => {
                refuse(client, event, code).await;
                self.exchange.facts.end = End::Complete;
                return Ok(());
            }
        };
        let provider = open(connection.await?, Role::Client, max).await;
        let config = &Arc::clone(&self.live.providers[self.exchange.attempts.provider(attempt)]).config;
        let names_models = names_models(&self.request);
        let relay = Relay { client, provider, config, patience, first, names_models, drain_limit };
        relay.run(drain, &mut self.exchange, attempt).await;
        Ok(())
    }

    /// Waits for the client's first message, and asks the providers of the model that it names. An error is the code
    /// that the session ends with, and the event that says why.
    async fn route_by_first_message(
        &mut self,
        client: &mut Socket,
        first: &mut Option<Message>,
    ) -> Result<Opened, (u16, Option<Message>)> {
        let text = first_text(client, self.live.server.write_timeout).await.map_err(|code| (code, None))?;
        let answer = match model::find(&Format::Json, text.as_bytes(), true) {
            Ok(Some(named)) => {
                self.exchange.facts.set_model(&named.model);
                let named = Some(Named::elsewhere(named.model));
                Arc::get_mut(&mut self.request).expect("nobody has been asked yet").named = named;
                *first = Some(Message::Text(text));
                v1::route(&self.live, &mut self.exchange, Arc::clone(&self.request), None).await
            }
            Ok(None) => v1::own(&self.exchange, invalid_model("The first message has no 'model'.")),
            Err(message) => v1::own(&self.exchange, invalid_model(&message)),
        };
        let (mut head, payload) = answer.response.into_parts();
        if let Some(opened) = Opened::of(&mut head) {
            return Ok(opened);
        }
        let code = if head.status.is_server_error() { 1013 } else { 1008 };
        let Payload::Whole(body) = payload else { return Err((code, None)) };
        Err((code, error_event(head.status, &body)))
    }
}

fn invalid_model(message: &str) -> Response<Bytes> {
    answer::invalid(StatusCode::BAD_REQUEST, Code::InvalidModel, Some("model"), message)
}

/// An answer as an event of a session, in the form of `OpenAI`'s.
fn error_event(status: StatusCode, body: &[u8]) -> Option<Message> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let event = serde_json::json!({"type": "error", "status": status.as_u16(), "error": body.get("error")?});
    Some(Message::Text(event.to_string().into()))
}

async fn open(connection: hyper::upgrade::Upgraded, role: Role, max: usize) -> Socket {
    // tungstenite's buffers are for few connections with much traffic.
    let config = WebSocketConfig::default()
        .read_buffer_size(4 << 10)
        .write_buffer_size(0)
        .max_message_size(Some(max))
        .max_frame_size(Some(max));
    WebSocketStream::from_raw_socket(TokioIo::new(connection), role, Some(config)).await
}
