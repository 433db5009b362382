//! Asking one provider: sending the request, and receiving its answer as far as nothing of it goes to the client yet.
//! Until then another provider can do better.
//!
//! Not here: what an answer means for the breaker: `judge`; connections: `upstream`.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{HeaderValue, Response, Version, response};
use serde::de::IgnoredAny;
use tokio::time::Instant;

use super::attempts::AttemptId;
use super::receive::{Held, begin, hold, late};
use crate::proxy::body::parts::Parts;
use crate::proxy::config::Timeouts;
use crate::proxy::core::Core;
use crate::proxy::outcome::Outcome;
use crate::proxy::provider::Provider;
use crate::proxy::request::upload::Progress;
use crate::proxy::request::{Prepared, headers};
use crate::proxy::timers::{Timer, within};
use crate::proxy::upstream::{Chain, RequestBody, SendError, Upstream, UpstreamBody};

/// A request to a provider, with all that it takes to wait for its answer. It may outlast its client.
pub(crate) struct Question {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) request: Arc<Prepared>,
    pub(crate) body: RequestBody,
    /// Of a body that is passed on while the client still sends it.
    pub(crate) progress: Option<Arc<Progress>>,
    /// Longer answers are passed on while they come.
    pub(crate) max_held: u64,
    pub(crate) core: Arc<Core>,
    pub(crate) started: Instant,
    pub(crate) timer: Timer,
}

/// What came back, as far as it had to be received before the attempt can be judged.
pub(crate) enum Reply {
    /// The client did not send the body that it had announced, and gets this.
    ClientFault(Response<Bytes>),
    /// There is no answer that could be passed on.
    Failed(Outcome, String),
    Error(Box<ErrorReply>),
    Whole(response::Parts, Bytes),
    Stream(Box<StreamStart>),
}

/// An answer with another status than 2xx or 3xx.
pub(crate) struct ErrorReply {
    pub(crate) outcome: Outcome,
    pub(crate) head: response::Parts,
    pub(crate) body: UpstreamBody,
}

/// The beginning of an answer that is passed on while it comes.
pub(crate) struct StreamStart {
    pub(crate) head: response::Parts,
    /// What was received to see whether the body begins at all.
    pub(crate) first: Option<Bytes>,
    pub(crate) body: UpstreamBody,
    /// Whether it consists of server-sent events that can be read.
    pub(crate) is_events: bool,
    /// Whether it has content. Otherwise the provider has only kept the stream alive so far.
    pub(crate) has_content: bool,
    /// Whether HTTP tells its end from one that broke off.
    pub(crate) has_an_end: bool,
}

impl Reply {
    /// Whether it shows that the provider answers.
    pub(crate) fn is_good(&self) -> bool {
        match self {
            Self::Whole(..) => true,
            Self::Stream(start) => start.has_content,
            Self::ClientFault(_) | Self::Failed(..) | Self::Error(_) => false,
        }
    }
}

/// A request under way to a provider.
pub(crate) struct InFlight {
    /// In a box: it may outlast its client's request.
    pub(crate) reply: Pin<Box<dyn Future<Output = Reply> + Send>>,
    pub(crate) asked: Asked,
}

/// The provider that was asked, and when.
pub(crate) struct Asked {
    pub(crate) attempt: AttemptId,
    pub(crate) provider: Arc<Provider>,
    pub(crate) upstream: Arc<Upstream>,
    progress: Option<Arc<Progress>>,
    started: Instant,
}

impl Asked {
    /// When the request was sent completely. Its time limits count from then.
    pub(crate) fn since(&self) -> Instant {
        since(self.started, self.progress.as_deref())
    }
}

/// Sends a request, and waits for the whole answer, or for the first content of a stream.
pub(crate) fn ask(provider: &Arc<Provider>, attempt: AttemptId, question: Question) -> InFlight {
    let asked = Asked {
        attempt,
        provider: Arc::clone(provider),
        upstream: Arc::clone(&question.upstream),
        progress: question.progress.clone(),
        started: question.started,
    };
    InFlight { reply: Box::pin(reply(Arc::clone(provider), question)), asked }
}

#[expect(clippy::manual_async_fn, reason = "an async fn would store its arguments twice")]
fn reply(provider: Arc<Provider>, mut question: Question) -> impl Future<Output = Reply> {
    async move {
        let timeouts = &provider.config.timeouts;
        match send(&mut question, timeouts).await {
            Ok(response) => receive(&mut question, timeouts, response).await,
            Err(reply) => reply,
        }
    }
}

/// Sends a request, and waits for the head of its answer.
async fn send(question: &mut Question, timeouts: &Timeouts) -> Result<Response<UpstreamBody>, Reply> {
    let Question { upstream, request, body, progress, started, timer, .. } = question;
    let body = std::mem::replace(body, RequestBody::Whole(Parts::default()));
    // While the client still sends the body, the provider is not late.
    let since = || since(*started, progress.as_deref());
    let until = || since() + timeouts.first_byte.min(timeouts.total);
    let sent = within(timer, until, pin!(upstream.send(&request.head, body))).await;
    if let Some(fault) = progress.as_ref().and_then(|progress| progress.fault()) {
        return Err(Reply::ClientFault(fault.answer()));
    }
    match sent {
        Some(Ok(response)) => Ok(response),
        Some(Err(error)) => {
            let outcome = match error {
                SendError::Connect(_) => Outcome::Connect,
                SendError::Shortage(_) => Outcome::Shortage,
                SendError::ConnectTimeout(_) => Outcome::ConnectTimeout,
                SendError::Connection(_) => Outcome::Connection,
            };
            Err(Reply::Failed(outcome, error.to_string()))
        }
        None => Err(first_byte_late(since(), timeouts)),
    }
}

/// Receives an answer as far as nothing of it goes to the client yet.
fn receive(
    question: &mut Question,
    timeouts: &Timeouts,
    response: Response<UpstreamBody>,
) -> impl Future<Output = Reply> {
    let (mut head, mut body) = response.into_parts();
    async move {
        let Question { progress, max_held, core, started, timer, upstream, .. } = question;
        let since = || since(*started, progress.as_deref());
        let until = || since() + timeouts.first_byte.min(timeouts.total);
        // Otherwise it ends with its connection, and a whole answer looks like one that was broken off.
        let has_an_end = head.version == Version::HTTP_2
            || [header::CONTENT_LENGTH, header::TRANSFER_ENCODING].iter().any(|name| head.headers.contains_key(name));
        headers::to_client(&mut head.headers);
        upstream.strike_out_key(&mut head.headers);
        let outcome = Outcome::of(head.status);
        if outcome != Outcome::Ok {
            return Reply::Error(Box::new(ErrorReply { outcome, head, body }));
        }

        let is_event_stream = has_type(&head.headers, &["text/event-stream"]);
        // The gateway asks for uncompressed answers. A compressed one can only be passed on as it is.
        let is_events = is_event_stream && !head.headers.contains_key(header::CONTENT_ENCODING);
        let is_stream = is_event_stream || has_type(&head.headers, &["audio/", "video/", "application/x-ndjson"]);
        if !is_stream && *max_held > 0 {
            return match hold(timer, &mut body, *max_held, &core.app.budget, since(), timeouts).await {
                Ok(Held::Whole(whole)) => {
                    if !has_an_end && has_type(&head.headers, &["application/json"]) && !is_json(&whole) {
                        let message = "the connection was closed within a JSON document";
                        return Reply::Failed(Outcome::Cut, message.to_owned());
                    }
                    Reply::Whole(head, whole)
                }
                Ok(Held::TooLong(first)) => {
                    let first = Some(first);
                    Reply::Stream(Box::new(StreamStart { head, first, body, is_events, has_content: true, has_an_end }))
                }
                Err((outcome, message)) => Reply::Failed(outcome, message),
            };
        }
        match begin(timer, &mut body, until, is_events).await {
            Ok(Some((first, has_content))) => {
                Reply::Stream(Box::new(StreamStart { head, first, body, is_events, has_content, has_an_end }))
            }
            Ok(None) => first_byte_late(since(), timeouts),
            Err(error) => Reply::Failed(Outcome::Cut, Chain(&error).to_string()),
        }
    }
}

/// When a request was sent completely, which for a body that the client still sends is now.
fn since(started: Instant, progress: Option<&Progress>) -> Instant {
    progress.map_or(started, |progress| progress.since().max(started))
}

fn first_byte_late(since: Instant, timeouts: &Timeouts) -> Reply {
    let (outcome, message) = late(Outcome::FirstByteTimeout, since, timeouts);
    Reply::Failed(outcome, message)
}

fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(text).is_ok()
}

fn has_type(headers: &HeaderMap, types: &[&str]) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    types
        .iter()
        .any(|wanted| value.get(..wanted.len()).is_some_and(|start| start.eq_ignore_ascii_case(wanted.as_bytes())))
}
