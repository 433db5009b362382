//! Answers that the gateway gives by itself, in the form that `OpenAI`'s SDKs understand.
//!
//! Not here: when each is given: `request`, `route` and `edge`.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use strum::IntoStaticStr;
#[cfg(test)]
use strum::VariantArray;

use super::later::RETRY_AFTER_MS;

/// What an error is about, for programs. `docs/OPERATIONS.md` explains each; a test compares the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[cfg_attr(test, derive(VariantArray))]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Code {
    BodyTimeout,
    BodyTooLong,
    GatewayOverloaded,
    IncompleteBody,
    InvalidApiKey,
    InvalidHost,
    InvalidModel,
    InvalidPath,
    InvalidProvider,
    InvalidSession,
    MethodNotAllowed,
    ModelNotFound,
    ModelNotFoundInTime,
    NotFound,
    OriginNotAllowed,
    PathTooLong,
    ProviderBusy,
    ProviderRefused,
    ProviderStreamBroken,
    ProviderTimeout,
    ProviderUnreachable,
    ProvidersUnavailable,
    UnknownTransferCoding,
}

pub(crate) fn json(status: StatusCode, body: &Value) -> Response<Bytes> {
    let mut response = Response::new(body.to_string().into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The body of an error.
fn error_body(kind: &str, code: Code, param: Option<&str>, message: &str) -> Value {
    let code: &str = code.into();
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
}

/// An error that is the client's fault.
pub(crate) fn invalid(status: StatusCode, code: Code, param: Option<&str>, message: &str) -> Response<Bytes> {
    json(status, &error_body("invalid_request_error", code, param, message))
}

fn server_error(status: StatusCode, code: Code, message: &str) -> Response<Bytes> {
    json(status, &error_body("server_error", code, None, message))
}

/// The error that a stream ends with if its provider breaks off.
pub(crate) fn broken_stream(message: &str) -> Value {
    error_body("server_error", Code::ProviderStreamBroken, None, message)
}

/// How many models an error lists, so that a client need not guess which ones there are.
const MAX_LISTED: usize = 50;

/// An error repeats no more of a model's name than this.
const MAX_SHOWN_MODEL: usize = 200;

/// The first `bytes` of a text, or a few more if a character would be cut.
pub(crate) fn start_of(text: &str, bytes: usize) -> &str {
    let end = text.char_indices().map(|(at, _)| at).find(|at| *at >= bytes).unwrap_or(text.len());
    &text[..end]
}

/// `asked` is the protocol that the client speaks, if the gateway serves several; `other` is one in which the model is
/// served all the same.
pub(crate) fn unknown_model<'a>(
    model: &str,
    known: impl ExactSizeIterator<Item = &'a str>,
    asked: Option<&str>,
    other: Option<&str>,
) -> Response<Bytes> {
    let more = known.len().saturating_sub(MAX_LISTED);
    let names: Vec<_> = known.take(MAX_LISTED).collect();
    let known = match (names.as_slice(), more) {
        ([], _) => "No models are available.".to_owned(),
        (_, 0) => format!("Available models: {}.", names.join(", ")),
        _ => format!("Available models: {}, and {more} more.", names.join(", ")),
    };
    // The name may be as long as a body.
    let shown = start_of(model, MAX_SHOWN_MODEL);
    let within = asked.map_or(String::new(), |asked| format!(" in {asked}'s protocol"));
    let other = other.map_or(String::new(), |other| {
        format!(" It is served in {other}'s protocol, at that one's paths: nothing is translated.")
    });
    let message = format!("No provider of this gateway serves the model '{shown}'{within}.{other} {known}");
    invalid(StatusCode::NOT_FOUND, Code::ModelNotFound, Some("model"), &message)
}

/// The client has chosen a provider that there is not, or that does not serve its model.
pub(crate) fn invalid_provider() -> Response<Bytes> {
    let message = "The provider in 'x-fusebox-provider' is not one of this gateway, or does not serve the model.";
    invalid(StatusCode::BAD_REQUEST, Code::InvalidProvider, None, message)
}

/// A page of another origin asks for a session where no token is required.
pub(crate) fn origin_not_allowed() -> Response<Bytes> {
    let message = "Pages of this origin may not open a session here.";
    invalid(StatusCode::FORBIDDEN, Code::OriginNotAllowed, None, message)
}

/// In the form of `OpenAI`'s own answer, so that SDKs report a wrong key.
pub(crate) fn unauthorized() -> Response<Bytes> {
    let message = "This gateway requires 'authorization: Bearer' (or 'x-api-key', 'api-key') with one of its tokens.";
    let mut response = invalid(StatusCode::UNAUTHORIZED, Code::InvalidApiKey, None, message);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// Replaces a provider's own message, which may show a part of the gateway's key.
pub(crate) fn refused_by_provider(status: StatusCode) -> Response<Bytes> {
    let message = "The provider refused the request of the gateway, and no other provider could answer.";
    server_error(status, Code::ProviderRefused, message)
}

/// The provider's configured address is not the right one. Where it redirects to is not for the client, which would
/// follow without a key.
pub(crate) fn redirected() -> Response<Bytes> {
    let message = "The provider redirects to another address, and no other provider could answer.";
    server_error(StatusCode::BAD_GATEWAY, Code::ProviderRefused, message)
}

/// No provider may be asked at the moment.
pub(crate) fn unavailable(model: Option<&str>, retry_after: Option<Duration>) -> Response<Bytes> {
    let of_the_model = model.map_or(String::new(), |model| format!(" for the model '{model}'"));
    let Some(retry_after) = retry_after else {
        let message = format!("Every provider{of_the_model} is out of service.");
        return server_error(StatusCode::SERVICE_UNAVAILABLE, Code::ProvidersUnavailable, &message);
    };
    let seconds = in_seconds(retry_after);
    let message =
        format!("Every provider{of_the_model} is out of service. The next one is tried again in {seconds} s.");
    let mut response = server_error(StatusCode::SERVICE_UNAVAILABLE, Code::ProvidersUnavailable, &message);
    come_back(response.headers_mut(), retry_after);
    response
}

/// Says when to come back.
pub(crate) fn come_back(headers: &mut HeaderMap, after: Duration) {
    headers.insert(header::RETRY_AFTER, HeaderValue::from(in_seconds(after)));
    // SDKs prefer it, and it is one provider's.
    headers.remove(RETRY_AFTER_MS);
}

/// Rounded up, and at least 1.
fn in_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

/// The provider did not answer in time, and no other one could.
pub(crate) fn timed_out() -> Response<Bytes> {
    let message = "The provider did not answer in time, and no other provider could answer.";
    server_error(StatusCode::GATEWAY_TIMEOUT, Code::ProviderTimeout, message)
}

/// All providers have as many requests as they may have, and no place became free in time.
pub(crate) fn busy() -> Response<Bytes> {
    let message = "Every provider has as many requests as this gateway lets it have.";
    let mut response = server_error(StatusCode::SERVICE_UNAVAILABLE, Code::ProviderBusy, message);
    come_back(response.headers_mut(), Duration::from_secs(1));
    response
}

/// The gateway has run out of descriptors, ports or memory.
pub(crate) fn short() -> Response<Bytes> {
    let message = "The gateway has no room for another request at the moment.";
    let mut response = server_error(StatusCode::SERVICE_UNAVAILABLE, Code::GatewayOverloaded, message);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The provider gave no answer that could be passed on.
pub(crate) fn unreachable() -> Response<Bytes> {
    let message = "The provider could not be reached, and no other provider could answer.";
    server_error(StatusCode::BAD_GATEWAY, Code::ProviderUnreachable, message)
}

/// The provider's answer had a good status and nothing in it.
pub(crate) fn empty() -> Response<Bytes> {
    let message = "The provider gave no usable answer, and no other provider could answer.";
    server_error(StatusCode::BAD_GATEWAY, Code::ProviderUnreachable, message)
}

/// RFC 9112 section 3.2. A server that reads another `host` than the gateway would take the request for another host's.
pub(crate) fn invalid_host() -> Response<Bytes> {
    let message = "A request needs exactly one 'host' header.";
    invalid(StatusCode::BAD_REQUEST, Code::InvalidHost, None, message)
}

pub(crate) fn not_found() -> Response<Bytes> {
    invalid(StatusCode::NOT_FOUND, Code::NotFound, None, "Nothing is served at this path.")
}

pub(crate) fn method_not_allowed() -> Response<Bytes> {
    invalid(StatusCode::METHOD_NOT_ALLOWED, Code::MethodNotAllowed, None, "This path does not support that method.")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_operators_page_explains_every_code_and_no_other() {
        let (_, page) = include_str!("../../docs/OPERATIONS.md").split_once("## What clients get\n").unwrap();
        let (table, _) = page.split_once("\n## ").unwrap();
        let rows = table.lines().filter(|line| line.starts_with('|')).filter_map(|line| line.split('|').nth(2));
        let codes = rows.flat_map(|cell| cell.split('`').skip(1).step_by(2));
        let is_code = |text: &&str| text.contains('_') && text.bytes().all(|it| it.is_ascii_lowercase() || it == b'_');
        let explained: BTreeSet<&str> = codes.filter(is_code).collect();
        assert_eq!(explained, Code::VARIANTS.iter().map(Into::into).collect());
    }
}
