//! Asking one provider: sending the request, and receiving its answer as far as nothing of it goes to the client yet.
//! Until then another provider can do better.
//!
//! Not here: what an answer means for the breaker: `judge`; connections: `upstream`.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{HeaderValue, Response, StatusCode, Version, response};
use memchr::memmem;
use tokio::time::Instant;

use super::attempts::AttemptId;
use super::blame::Blame;
use super::ending::{Ending, is_json};
use super::inside::{self, Inside};
use super::meaning::Form;
use super::receive::{Begun, Held, begin, hold, late};
use crate::proxy::body::parts::Parts;
use crate::proxy::config::Timeouts;
use crate::proxy::core::Core;
use crate::proxy::outcome::Outcome;
use crate::proxy::provider::Provider;
use crate::proxy::request::model::Format;
use crate::proxy::request::session::{Handshake, is_accepted};
use crate::proxy::request::upload::Progress;
use crate::proxy::request::{Prepared, headers};
use crate::proxy::timers::{Timer, within};
use crate::proxy::upstream::{Chain, RequestBody, SendError, Upstream, UpstreamBody};

/// A request to a provider, with all that it takes to wait for its answer. It may outlast its client.
pub(crate) struct Question {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) request: Arc<Prepared>,
    /// Its head as this provider is to have it. `None`: as it is in the request.
    #[cfg(feature = "otel")]
    pub(crate) head: Option<Box<http::request::Parts>>,
    /// Which of the provider's keys is sent.
    pub(crate) key: usize,
    pub(crate) body: RequestBody,
    /// Of a body that is passed on while the client still sends it.
    pub(crate) progress: Option<Arc<Progress>>,
    /// Longer answers are passed on while they come.
    pub(crate) max_held: u64,
    pub(crate) core: Arc<Core>,
    pub(crate) started: Instant,
    pub(crate) timer: Timer,
    /// Within which a stream's first piece has to be whole once it has begun.
    pub(crate) patience: Option<Duration>,
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
    /// A session has begun. The connection is in the extensions of its head.
    Session(Box<response::Parts>),
}

/// An answer with another status than 2xx or 3xx, or with an error inside.
pub(crate) struct ErrorReply {
    pub(crate) blame: Blame,
    pub(crate) head: response::Parts,
    /// `None` if it is too long, took too long, or cannot be read.
    pub(crate) body: Option<Bytes>,
    /// For the log.
    pub(crate) message: String,
}

/// The beginning of an answer that is passed on while it comes.
pub(crate) struct StreamStart {
    pub(crate) head: response::Parts,
    /// What was received to see whether the body begins at all.
    pub(crate) first: Bytes,
    pub(crate) body: UpstreamBody,
    /// `None` if its pieces cannot be read.
    pub(crate) form: Option<Form>,
    /// `None` if HTTP tells its end, or if nothing can be told.
    pub(crate) ending: Option<Ending>,
    /// Whether HTTP tells its end from one that broke off.
    pub(crate) has_an_end: bool,
}

impl Reply {
    /// Whether it shows that the provider answers.
    pub(crate) fn is_good(&self) -> bool {
        match self {
            Self::Whole(..) | Self::Stream(_) | Self::Session(_) => true,
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
        if let Some(handshake) = &Arc::clone(&question.request).session {
            // In a box: it is rare, and its state would be a part of every request's.
            return Box::pin(open(&mut question, &provider, handshake)).await;
        }
        match send(&mut question, timeouts).await {
            Ok(response) => receive(&mut question, timeouts, response).await,
            Err(reply) => reply,
        }
    }
}

/// Sends a request, and waits for the head of its answer.
async fn send(question: &mut Question, timeouts: &Timeouts) -> Result<Response<UpstreamBody>, Reply> {
    let Question { upstream, request, key, body, progress, started, timer, .. } = question;
    #[cfg(feature = "otel")]
    let head = &question.head;
    let body = std::mem::replace(body, RequestBody::Whole(Parts::default()));
    // While the client still sends the body, the provider is not late.
    let since = || since(*started, progress.as_deref());
    let limit = first_limit(request, timeouts);
    let until = || since() + limit;
    #[cfg(not(feature = "otel"))]
    let head = &request.head;
    #[cfg(feature = "otel")]
    let head = head.as_deref().unwrap_or(&request.head);
    let sent = within(timer, until, pin!(upstream.send(head, *key, body))).await;
    if let Some(fault) = progress.as_ref().and_then(|progress| progress.fault()) {
        return Err(Reply::ClientFault(fault.answer()));
    }
    match sent {
        Some(Ok(response)) => Ok(response),
        Some(Err(error)) => Err(not_sent(&error)),
        None => Err(first_byte_late(since(), timeouts)),
    }
}

fn not_sent(error: &SendError) -> Reply {
    let outcome = match error {
        SendError::Connect(_) => Outcome::Connect,
        SendError::Shortage(_) => Outcome::Shortage,
        SendError::ConnectTimeout(_) => Outcome::ConnectTimeout,
        SendError::Connection(_) => Outcome::Connection,
        SendError::Cut(..) => Outcome::Cut,
    };
    Reply::Failed(outcome, error.to_string())
}

/// Asks for a session. A refusal is judged as that of any other request.
async fn open(question: &mut Question, provider: &Provider, handshake: &Handshake) -> Reply {
    let Question { upstream, request, key: secret, started, timer, .. } = question;
    let timeouts = &provider.config.timeouts;
    let there = provider.config.models.get(request.model()).map(String::as_str);
    let (asked, key) = handshake.to_provider(&request.head, there);
    let (head, ()) = asked.into_parts();
    let until = *started + timeouts.first_byte();
    let response = match within(timer, || until, pin!(upstream.open(&head, *secret))).await {
        Some(Ok(response)) => response,
        Some(Err(error)) => return not_sent(&error),
        None => return first_byte_late(*started, timeouts),
    };
    if response.status().is_success() {
        let message = format!("{} in answer to a WebSocket handshake", response.status());
        return Reply::Failed(Outcome::Protocol, message);
    }
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return receive(question, timeouts, response).await;
    }
    let (mut head, _) = response.into_parts();
    if !is_accepted(&head.headers, &key) {
        return Reply::Failed(Outcome::Protocol, "its answer to the WebSocket handshake is invalid".to_owned());
    }
    headers::to_client(&mut head.headers);
    upstream.strike_out_secrets(&mut head.headers);
    handshake.to_client(&mut head.headers);
    Reply::Session(Box::new(head))
}

/// Receives an answer as far as nothing of it goes to the client yet.
fn receive(
    question: &mut Question,
    timeouts: &Timeouts,
    response: Response<UpstreamBody>,
) -> impl Future<Output = Reply> {
    let (mut head, mut body) = response.into_parts();
    async move {
        let Question { progress, max_held, core, started, timer, upstream, request, patience, .. } = question;
        let since = || since(*started, progress.as_deref());
        let headed = Instant::now();
        // Otherwise it ends with its connection, and a whole answer looks like one that was broken off.
        let has_an_end = head.version == Version::HTTP_2
            || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT)
            || [header::CONTENT_LENGTH, header::TRANSFER_ENCODING].iter().any(|name| head.headers.contains_key(name));
        // The gateway speaks for itself (RFC 9110 section 2.5). An HTTP/1.0 answer would close the client's connection.
        head.version = Version::HTTP_11;
        headers::to_client(&mut head.headers);
        upstream.strike_out_secrets(&mut head.headers);
        let outcome = Outcome::of(head.status);
        if outcome != Outcome::Ok {
            // Boxed: it is rare, and its state would be a part of every request's.
            let max = (*max_held).max(MAX_ERROR);
            let body = Box::pin(error_body(outcome, &head, body, core, max, since(), timeouts)).await;
            let said = body.as_deref().unwrap_or_default();
            let blame = Blame::of(head.status, &head.headers, said, request.named.is_some());
            let message = head.status.to_string();
            return Reply::Error(Box::new(ErrorReply { blame, head, body, message }));
        }

        let kind = Kind::of(&head.headers);
        let mut begun = None;
        // One that was not asked for as a stream may have taken longer than that already.
        let until = |has_begun: bool| {
            let whole_by = since() + timeouts.total;
            let from = if request.asks_for_a_stream() { since() } else { headed };
            let limit = if has_begun { timeouts.first_content() } else { timeouts.first_byte() };
            if kind.is_stream() { whole_by.min(from + limit) } else { whole_by }
        };
        if kind == Kind::Page && head.status.is_success() {
            return Reply::Failed(Outcome::Empty, "a good status, and an HTML page".to_owned());
        }
        // A stream that was asked for is passed on as it comes, whatever its type. An answer that is no stream is held
        // to its end, and so is an error.
        if kind.is_stream() || request.asks_for_a_stream() || *max_held == 0 {
            let first = match begin(timer, &mut body, until, kind.form(), *patience).await {
                Ok(Begun::Well(first)) => first,
                Ok(Begun::TooSlow) => {
                    let message = "the first piece of the stream began, and was not whole in time";
                    return Reply::Failed(Outcome::TooSlow, message.to_owned());
                }
                Ok(Begun::KeptAlive) => {
                    let (outcome, message) = late(Outcome::FirstContentTimeout, since(), timeouts);
                    return Reply::Failed(outcome, message);
                }
                Ok(Begun::Late) => return first_byte_late(since(), timeouts),
                Ok(Begun::Error(inside)) => return error_inside(head, inside, upstream),
                Ok(Begun::Empty) if head.status == StatusCode::OK => {
                    return Reply::Failed(Outcome::Empty, "a good status, and a stream without content".to_owned());
                }
                Ok(Begun::Empty) => return Reply::Whole(head, Bytes::new()),
                Err(error) => return Reply::Failed(Outcome::Cut, Chain(&error).to_string()),
            };
            let inside = match kind {
                Kind::Json => inside::of_answer(&first),
                _ => None,
            };
            if let Some(inside) = inside {
                return error_inside(head, inside, upstream);
            }
            if kind != Kind::Json || !begins_with_an_error(&first) {
                return stream(head, body, first, kind, has_an_end);
            }
            begun = Some(first);
        }
        let max = if begun.is_some() { MAX_ERROR } else { *max_held };
        match hold(timer, &mut body, begun, max, &core.app.budget, since(), timeouts).await {
            Ok(Held::Whole(whole)) => judge_whole(head, whole, kind, has_an_end, request, upstream),
            Ok(Held::TooLong(first)) => stream(head, body, first, kind, has_an_end),
            Err((outcome, message)) => Reply::Failed(outcome, message),
        }
    }
}

fn stream(head: response::Parts, body: UpstreamBody, first: Bytes, kind: Kind, has_an_end: bool) -> Reply {
    let ending = (kind == Kind::Json && !has_an_end).then(Ending::default);
    Reply::Stream(Box::new(StreamStart { head, first, body, form: kind.form(), ending, has_an_end }))
}

/// Whether a whole answer with a good status is one.
fn judge_whole(
    head: response::Parts,
    whole: Bytes,
    kind: Kind,
    has_an_end: bool,
    request: &Prepared,
    upstream: &Upstream,
) -> Reply {
    let fail = |outcome, message: &str| Reply::Failed(outcome, message.to_owned());
    if whole.is_empty() {
        // A form may ask for a plain text, of which there may be none.
        let is_missed = head.status == StatusCode::OK && request.format == Format::Json;
        return if is_missed { fail(Outcome::Empty, "a good status, and no body") } else { Reply::Whole(head, whole) };
    }
    if kind == Kind::Json {
        if !has_an_end && !is_json(&whole) {
            return fail(Outcome::Cut, "the connection was closed within a JSON document");
        }
        if whole.trim_ascii_start().starts_with(b"<") {
            return fail(Outcome::Empty, "a good status, and a page that is said to be JSON");
        }
    }
    // Some say nothing of the type of their errors, or something else.
    if (kind == Kind::Json || whole.starts_with(b"{"))
        && let Some(inside) = inside::of_answer(&whole)
    {
        return error_inside(head, inside, upstream);
    }
    Reply::Whole(head, upstream.without_secrets(whole))
}

/// An error inside an answer with a good status, as the answer that it should have been.
fn error_inside(mut head: response::Parts, inside: Inside, upstream: &Upstream) -> Reply {
    let message = format!("{} with an error inside: {}", head.status, upstream.showable(&inside.code));
    let blame = inside.blame(&head.headers);
    head.status = inside.status;
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Reply::Error(Box::new(ErrorReply { blame, head, body: Some(inside.body), message }))
}

/// How long the body of an error may take if another provider may do better.
const MAX_ERROR_BODY: Duration = Duration::from_secs(1);

/// The whole body of an error, which says why. `None` if it is too long, takes too long or is compressed, so that the
/// gateway could not strike out its key.
async fn error_body(
    outcome: Outcome,
    head: &response::Parts,
    mut body: UpstreamBody,
    core: &Core,
    max: u64,
    since: Instant,
    timeouts: &Timeouts,
) -> Option<Bytes> {
    // The address that it redirects to is not for the client.
    if is_encoded(&head.headers) || outcome == Outcome::Redirected {
        return None;
    }
    let mut timer = core.timers.timer();
    let received = hold(&mut timer, &mut body, None, max, &core.app.budget, since, timeouts);
    let limit = if outcome == Outcome::ClientError { timeouts.first_byte } else { MAX_ERROR_BODY };
    match tokio::time::timeout(limit, received).await.ok()?.ok()? {
        Held::Whole(body) => Some(body),
        Held::TooLong(_) => None,
    }
}

/// An error that is longer is passed on while it comes, as any other answer.
const MAX_ERROR: u64 = 64 << 10;

/// Whether an error stands at the beginning of a JSON document.
fn begins_with_an_error(text: &[u8]) -> bool {
    memmem::find(&text[..text.len().min(100)], b"\"error\"").is_some()
}

/// What is to be made of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Server-sent events that can be read.
    Events,
    /// A JSON document in each line.
    Lines,
    /// Another stream.
    Stream,
    Json,
    /// For people to look at, such as the page of a load balancer.
    Page,
    Other,
}

const LINES: [&str; 7] = [
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/jsonlines",
    "application/x-jsonlines",
    "application/stream+json",
    "application/json-seq",
];

impl Kind {
    fn of(headers: &HeaderMap) -> Self {
        let value = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let essence = value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let is = |name: &&str| essence.eq_ignore_ascii_case(name.as_bytes());
        let begins =
            |start: &&str| essence.get(..start.len()).is_some_and(|begun| begun.eq_ignore_ascii_case(start.as_bytes()));
        let kind = if is(&"application/json") {
            Self::Json
        } else if is(&"text/event-stream") {
            Self::Events
        } else if LINES.iter().any(is) {
            Self::Lines
        } else if ["audio/", "video/"].iter().any(begins) {
            Self::Stream
        } else if ["text/html", "application/xhtml+xml"].iter().any(is) {
            Self::Page
        } else if essence.to_ascii_lowercase().ends_with(b"+json") {
            Self::Json
        } else {
            Self::Other
        };
        // The gateway asks for uncompressed answers. A compressed one can only be passed on as it is.
        match kind {
            _ if !is_encoded(headers) => kind,
            Self::Events | Self::Lines | Self::Stream => Self::Stream,
            Self::Json | Self::Page | Self::Other => Self::Other,
        }
    }

    fn form(self) -> Option<Form> {
        match self {
            Self::Events => Some(Form::Events),
            Self::Lines => Some(Form::Lines),
            Self::Stream | Self::Json | Self::Page | Self::Other => None,
        }
    }

    fn is_stream(self) -> bool {
        matches!(self, Self::Events | Self::Lines | Self::Stream)
    }
}

/// Whether a body is compressed or the like.
pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
    codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// How long the first piece of an answer may take. One that is no stream has no first piece before it is made.
fn first_limit(request: &Prepared, timeouts: &Timeouts) -> Duration {
    if request.asks_for_a_stream() { timeouts.first_byte() } else { timeouts.total }
}

/// When a request was sent completely, which for a body that the client still sends is now.
fn since(started: Instant, progress: Option<&Progress>) -> Instant {
    progress.map_or(started, |progress| progress.since().max(started))
}

fn first_byte_late(since: Instant, timeouts: &Timeouts) -> Reply {
    let (outcome, message) = late(Outcome::FirstByteTimeout, since, timeouts);
    Reply::Failed(outcome, message)
}
