//! What a client asks for: a request is read as far as its routing needs. Everything else passes byte for byte.
//!
//! Not here: which providers may answer it: `state` and `route`.

pub(crate) mod client;
pub(crate) mod headers;
pub(crate) mod ids;
pub(crate) mod model;
pub(crate) mod path;
pub(crate) mod session;
pub(crate) mod upload;

use std::sync::Arc;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header, request};
use http_body::Body;

use self::model::{Format, Named};
use self::path::leaves_its_base;
use self::session::Handshake;
use self::upload::{Read, Rest};
use super::answer::{self, Code};
use super::body::budget::Budget;
use super::config::{ServerConfig, Token};
use super::protocol::{ANTHROPIC_VERSION, Protocol, USUAL_VERSION};
use super::timers::Timer;

/// A longer path, query included, is refused: together with the provider's base a URI must stay below 64 KiB.
const MAX_PATH: usize = 8 * 1024;

/// In which a client may choose the provider.
const PROVIDER: &str = "x-fusebox-provider";

/// A request that can be sent.
pub(crate) struct Prepared {
    pub(crate) head: request::Parts,
    /// The whole body, or the beginning of a long one.
    pub(crate) body: Bytes,
    pub(crate) format: Format,
    /// `None` if the request belongs to no model.
    pub(crate) named: Option<Named>,
    /// The provider that the client has chosen, if it may.
    pub(crate) chosen: Option<HeaderValue>,
    /// If a session is asked for, which has no body.
    pub(crate) session: Option<Box<Handshake>>,
}

impl Prepared {
    pub(crate) fn asks_for_a_stream(&self) -> bool {
        self.named.as_ref().is_some_and(|named| named.is_stream)
    }

    /// Whether it asks for nothing but the number of its tokens, as Anthropic and `OpenAI` call it.
    pub(crate) fn asks_for_a_count(&self) -> bool {
        matches!(self.head.uri.path(), "/v1/messages/count_tokens" | "/v1/responses/input_tokens")
    }

    /// The model's name, empty if the request belongs to none.
    pub(crate) fn model(&self) -> &str {
        self.named.as_ref().map_or("", |named| &named.model)
    }
}

/// What is known of a request's body, whether the request can be answered or not.
pub(crate) struct Received {
    pub(crate) bytes: u64,
    pub(crate) is_whole: bool,
}

/// Checks what comes before the body. Returns the place of the token that is shown, if one has to be. An error is the
/// answer.
pub(crate) fn check(head: &request::Parts, auth_tokens: &[Token]) -> Result<Option<usize>, Box<Response<Bytes>>> {
    let refuse = |status, code, message| Err(Box::new(answer::invalid(status, code, None, message)));
    let shown = shown_token(auth_tokens, &head.headers);
    if shown.is_none() && !auth_tokens.is_empty() {
        return Err(Box::new(answer::unauthorized()));
    }
    let coding = head.headers.get(header::TRANSFER_ENCODING);
    if coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        let message = "The only supported transfer coding is 'chunked'.";
        return refuse(StatusCode::NOT_IMPLEMENTED, Code::UnknownTransferCoding, message);
    }
    // The length first: the checks that follow read the path several times.
    if head.uri.path_and_query().is_some_and(|path| path.as_str().len() > MAX_PATH) {
        return refuse(StatusCode::URI_TOO_LONG, Code::PathTooLong, "The path is too long.");
    }
    if leaves_its_base(head.uri.path()) {
        let message = "The path contains '.' or '..' segments, or characters that are not allowed in a path.";
        return refuse(StatusCode::BAD_REQUEST, Code::InvalidPath, message);
    }
    Ok(shown)
}

/// Reads a request as far as its routing needs. An error is the answer.
pub(crate) async fn read<B>(
    mut head: request::Parts,
    body: B,
    limits: &ServerConfig,
    budget: &Arc<Budget>,
    timer: Timer,
    received: &mut Received,
) -> Result<(Arc<Prepared>, Option<Box<Rest>>), Response<Bytes>>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    let invalid = |message: &str| answer::invalid(StatusCode::BAD_REQUEST, Code::InvalidModel, Some("model"), message);
    if head.headers.get_all(header::CONTENT_TYPE).iter().count() > 1 {
        return Err(invalid("The request has more than one content type."));
    }
    let format = Format::of(head.headers.get(header::CONTENT_TYPE)).map_err(invalid)?;
    let takes_files = takes_files(head.uri.path());
    let is_enough = |begun: &[u8]| takes_files || !matches!(model::find(&format, begun, false), Ok(None));
    let (body, rest) = match upload::read(body, limits, budget, timer, is_enough).await {
        Ok(Read::Whole(body)) => {
            received.is_whole = true;
            (body, None)
        }
        Ok(Read::Begun(body, rest)) => (body, Some(rest)),
        Err(fault) => return Err(fault.answer()),
    };
    received.bytes = body.len() as u64;
    let is_kept = ids::is_about_what_is_kept(head.uri.path());
    let named = match model::find(&format, &body, rest.is_none()) {
        Ok(named) => named,
        Err(_) if is_kept && body.is_empty() => None,
        Err(message) => return Err(invalid(&message)),
    };
    match &named {
        Some(_) => {}
        None if is_kept && rest.is_none() => {}
        None if format == Format::Json && rest.is_none() => return Err(invalid("The body has no 'model'.")),
        // A form may have no model: a file belongs to none.
        None if rest.is_none() || takes_files => {}
        None if (body.len() as u64) < limits.search_body_bytes.max(limits.replay_body_bytes) => {
            return Err(answer::short());
        }
        None => {
            let limit = limits.search_body_bytes.max(limits.replay_body_bytes);
            let message = format!("The body is long, and its 'model' is not within the first {limit} bytes.");
            return Err(answer::invalid(
                StatusCode::PAYLOAD_TOO_LARGE,
                Code::ModelNotFoundInTime,
                Some("model"),
                &message,
            ));
        }
    }
    let chosen = if limits.allow_provider_header { head.headers.remove(PROVIDER) } else { None };
    let protocol = Protocol::of(head.uri.path(), &head.headers);
    headers::to_provider(&mut head.headers);
    if protocol == Protocol::Anthropic && !head.headers.contains_key(ANTHROPIC_VERSION) {
        head.headers.insert(ANTHROPIC_VERSION, USUAL_VERSION);
    }
    Ok((Arc::new(Prepared { head, body, format, named, chosen, session: None }), rest))
}

/// Reads a request for a session. An error is the answer.
pub(crate) fn read_session(
    mut head: request::Parts,
    server: &ServerConfig,
) -> Result<Arc<Prepared>, Box<Response<Bytes>>> {
    // A page may open a session wherever it comes from (RFC 6455 section 10.2). A token that it shows is leave enough.
    if server.auth_tokens.is_empty() && !is_own_page(&head, &server.cors_origins) {
        return Err(Box::new(answer::origin_not_allowed()));
    }
    let (handshake, model) = Handshake::read(&head)?;
    let chosen = if server.allow_provider_header { head.headers.remove(PROVIDER) } else { None };
    headers::to_provider(&mut head.headers);
    head.headers.remove(header::CONTENT_TYPE);
    let (body, format, named) = (Bytes::new(), Format::Json, model.map(Named::elsewhere));
    Ok(Arc::new(Prepared { head, body, format, named, chosen, session: Some(Box::new(handshake)) }))
}

/// Whether a request is no page's, or that of a page that the gateway may trust: one of its own host, or of an origin
/// that is allowed.
fn is_own_page(head: &request::Parts, allowed: &[HeaderValue]) -> bool {
    let Some(origin) = head.headers.get(header::ORIGIN) else { return true };
    let host = head.headers.get(header::HOST).map_or(&b""[..], HeaderValue::as_bytes);
    let is_of_its_host = origin.as_bytes().rsplit(|byte| *byte == b'/').next().is_some_and(|it| it == host);
    is_of_its_host || allowed.iter().any(|it| it == "*" || it == origin)
}

/// The place of the token that is shown in one of the headers in which SDKs send their key. Compares with every token
/// even if one fits, so that the time reveals nothing.
pub(crate) fn shown_token(tokens: &[Token], headers: &HeaderMap) -> Option<usize> {
    if tokens.is_empty() {
        return None;
    }
    let value = |name| headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
    let find = |shown: &[u8]| {
        let places = tokens.iter().enumerate();
        places.fold(None, |found, (place, known)| if known.token.is(shown) { Some(place) } else { found })
    };
    let (scheme, bearer) = value(header::AUTHORIZATION.as_str()).split_at_checked("Bearer ".len()).unwrap_or_default();
    let by_bearer = find(bearer.trim_ascii_start()).filter(|_| scheme.eq_ignore_ascii_case(b"Bearer "));
    let [by_x_api_key, by_api_key] = ["x-api-key", "api-key"].map(|name| find(value(name)));
    let by_page = session::keys(headers).fold(None, |found, key| find(key.as_bytes()).or(found));
    by_bearer.or(by_x_api_key).or(by_api_key).or(by_page)
}

/// Whether a request may be answered at all.
pub(crate) fn is_authorized(tokens: &[Token], headers: &HeaderMap) -> bool {
    tokens.is_empty() || shown_token(tokens, headers).is_some()
}

/// Whether a request has exactly one host, or none where the protocol does not require one.
pub(crate) fn has_a_host<B>(request: &http::Request<B>) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.is_empty() || Authority::try_from(host.as_bytes()).is_ok(),
        // HTTP/2 has it in a field of its own (RFC 9113 section 8.3.1).
        (None, _) if request.version() == Version::HTTP_2 => request.uri().authority().is_some(),
        (None, _) => request.version() < Version::HTTP_11,
        (Some(_), Some(_)) => false,
    }
}

fn takes_files(path: &str) -> bool {
    path == "/v1/files" || path.starts_with("/v1/uploads")
}
