//! What is told of one request, collected while it is served, and the headers by which its answer tells of it.
//!
//! Not here: the line of the access log: `access_log`; the request's attempts: `route::attempts`.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http::header::{CONNECTION, HeaderName, USER_AGENT};
use http::{HeaderValue, Method, StatusCode, Uri, request, response};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::proxy::answer::{self, start_of};
use crate::proxy::protocol::Protocol;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROVIDER: HeaderName = HeaderName::from_static("x-fusebox-provider");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-fusebox-attempts");
const PROVIDER_REQUEST_ID: HeaderName = HeaderName::from_static("x-fusebox-provider-request-id");
const REPLAY: HeaderName = HeaderName::from_static("x-fusebox-replay");

/// A client may send a name of any length.
const MAX_LOGGED_MODEL: usize = 200;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    /// The client got a complete answer, whatever its status.
    Complete,
    /// The provider broke off in the middle of the answer.
    Cut,
    ClientLeft,
}

/// How many tokens an answer took, as far as it says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) tokens_in: Option<u64>,
    pub(crate) tokens_out: Option<u64>,
    /// Of those in, how many came from a cache.
    pub(crate) cached: Option<u64>,
}

/// What is told of a request, except for its attempts.
pub(crate) struct Facts {
    pub(crate) started: Instant,
    pub(crate) id: HeaderValue,
    /// The provider's own name for the request that it answered.
    pub(crate) provider_id: Option<HeaderValue>,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) protocol: Protocol,
    /// Whom it is from. `None` if that is not known, as in a server that the gateway is a part of.
    pub(crate) client: Option<IpAddr>,
    pub(crate) user_agent: Option<HeaderValue>,
    pub(crate) usage: Usage,
    /// The place of the token that the client has shown.
    pub(crate) token: Option<usize>,
    /// The model's name for the log, cut where it is long.
    pub(crate) model: Option<Box<str>>,
    /// `None` until there is an answer.
    pub(crate) status: Option<u16>,
    /// Whether the client has the head of a 200 before there is an answer, whatever that will be.
    pub(crate) has_head: Option<Arc<AtomicBool>>,
    pub(crate) end: End,
    pub(crate) is_stream: bool,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// From the request to the first byte that the client gets.
    pub(crate) first_byte: Option<Duration>,
    /// Whether the request could be sent to another provider.
    pub(crate) is_replayable: bool,
    /// Whether the client may still be sending a body that nobody will read, so that its connection has to be closed
    /// (RFC 9112 section 9.6).
    pub(crate) closes: bool,
}

impl Facts {
    /// Takes the client's id for the request, or sets a new one, which goes on to the provider as well.
    #[inline]
    pub(crate) fn of(head: &mut request::Parts, client: Option<IpAddr>) -> Self {
        let id = head.headers.get(&REQUEST_ID).filter(|id| is_usable(id)).cloned().unwrap_or_else(new_id);
        head.headers.insert(REQUEST_ID, id.clone());
        Self {
            started: Instant::now(),
            id,
            provider_id: None,
            method: head.method.clone(),
            uri: head.uri.clone(),
            protocol: Protocol::of(head.uri.path(), &head.headers),
            client,
            user_agent: head.headers.get(&USER_AGENT).cloned(),
            usage: Usage::default(),
            token: None,
            model: None,
            status: None,
            has_head: None,
            end: End::ClientLeft,
            is_stream: false,
            bytes_in: 0,
            bytes_out: 0,
            first_byte: None,
            is_replayable: true,
            closes: false,
        }
    }

    /// The error that a stream of this request ends with if it breaks off.
    pub(crate) fn broken_stream(&self, message: &str) -> Value {
        self.protocol.error(answer::broken_stream(message), StatusCode::BAD_GATEWAY, self.id.to_str().ok())
    }

    pub(crate) fn set_model(&mut self, model: &str) {
        self.model = Some(start_of(model, MAX_LOGGED_MODEL).into());
    }

    /// A piece of the answer goes to the client.
    pub(crate) fn count_bytes_out(&mut self, bytes: usize) {
        self.bytes_out += bytes as u64;
        self.first_byte.get_or_insert_with(|| self.started.elapsed());
    }

    /// Puts the headers that tell of the request into its answer, and notes the answer's status. `provider` is whose
    /// answer it is; `None` stands for the gateway's own.
    pub(crate) fn answer_with(&mut self, head: &mut response::Parts, provider: Option<HeaderValue>, attempts: usize) {
        let theirs = head.headers.insert(REQUEST_ID, self.id.clone());
        if provider.is_some() {
            let other = || OTHER_REQUEST_IDS.iter().find_map(|name| head.headers.get(*name).cloned());
            self.provider_id = theirs.or_else(other).filter(is_usable);
            if let Some(id) = &self.provider_id {
                head.headers.insert(PROVIDER_REQUEST_ID, id.clone());
            }
        }
        head.headers.insert(PROVIDER, provider.unwrap_or(HeaderValue::from_static("none")));
        let attempts = match attempts {
            1 => HeaderValue::from_static("1"),
            attempts => HeaderValue::from(attempts),
        };
        head.headers.insert(ATTEMPTS, attempts);
        if !self.is_replayable {
            head.headers.insert(REPLAY, HeaderValue::from_static("no"));
        }
        if self.closes {
            head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.status = Some(head.status.as_u16());
    }
}

/// What providers call the header that `OpenAI` calls `x-request-id`: Anthropic, Amazon, Azure.
const OTHER_REQUEST_IDS: [&str; 4] = ["request-id", "x-amzn-requestid", "apim-request-id", "x-ms-request-id"];

/// Whether an id can be shown as it is.
fn is_usable(id: &HeaderValue) -> bool {
    (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

fn new_id() -> HeaderValue {
    let mut id = [0; 32];
    let random = fastrand::u128(..).to_le_bytes();
    for (digits, byte) in id.chunks_exact_mut(2).zip(random) {
        digits.copy_from_slice(&[byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
    }
    HeaderValue::from_bytes(&id).expect("hexadecimal digits")
}
