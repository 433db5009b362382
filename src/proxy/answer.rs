//! Answers that the gateway gives by itself, in the form that `OpenAI`'s SDKs understand.
//!
//! Not here: when one is given: `failover` and `forward`.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use serde_json::{Value, json};

pub(crate) fn json(status: StatusCode, body: &Value) -> Response<Bytes> {
    let mut response = Response::new(body.to_string().into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn error(status: StatusCode, kind: &str, code: &str, param: Option<&str>, message: &str) -> Response<Bytes> {
    json(status, &json!({"error": {"message": message, "type": kind, "param": param, "code": code}}))
}

pub(crate) fn invalid(status: StatusCode, code: &str, param: Option<&str>, message: &str) -> Response<Bytes> {
    error(status, "invalid_request_error", code, param, message)
}

/// No client should have to guess what it may ask for.
const MAX_LISTED: usize = 50;

/// Longer names of models are cut where they are repeated to a client.
const MAX_SHOWN_MODEL: usize = 200;

/// The first `bytes` of a text, or a few more where a character would be cut.
pub(crate) fn start_of(text: &str, bytes: usize) -> &str {
    let end = text.char_indices().map(|(at, _)| at).find(|at| *at >= bytes).unwrap_or(text.len());
    &text[..end]
}

pub(crate) fn unknown_model<'a>(model: &str, known: impl ExactSizeIterator<Item = &'a str>) -> Response<Bytes> {
    let more = known.len().saturating_sub(MAX_LISTED);
    let names: Vec<_> = known.take(MAX_LISTED).collect();
    let known = match (names.as_slice(), more) {
        ([], _) => "There are none.".to_owned(),
        (_, 0) => format!("There are: {}.", names.join(", ")),
        _ => format!("There are: {}, and {more} more.", names.join(", ")),
    };
    // A body may be all model.
    let shown = start_of(model, MAX_SHOWN_MODEL);
    let message = format!("The model '{shown}' is served by no provider of this gateway. {known}");
    invalid(StatusCode::NOT_FOUND, "model_not_found", Some("model"), &message)
}

/// In the form of `OpenAI`'s own, so that SDKs tell a wrong key.
pub(crate) fn unauthorized() -> Response<Bytes> {
    let message = "This gateway needs 'authorization: Bearer' with one of its tokens.";
    let mut response = invalid(StatusCode::UNAUTHORIZED, "invalid_api_key", None, message);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// Instead of a provider's own words, which may show a part of the gateway's key.
pub(crate) fn refused_by_provider(status: StatusCode) -> Response<Bytes> {
    let message = "The provider refused the request of the gateway, and no other one could answer.";
    error(status, "server_error", "provider_refused", None, message)
}

/// No provider may be asked now.
pub(crate) fn unavailable(model: Option<&str>, retry_after: Duration) -> Response<Bytes> {
    let seconds = retry_after.as_millis().div_ceil(1000).max(1);
    let of_the_model = model.map_or(String::new(), |model| format!(" of the model '{model}'"));
    let message = format!("Every provider{of_the_model} is failing. The next one is tried again in {seconds} s.");
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "server_error", "providers_unavailable", None, &message);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_str(&seconds.to_string()).expect("digits"));
    response
}

/// The last provider that could be asked did not answer in time.
pub(crate) fn timed_out() -> Response<Bytes> {
    let message = "The provider did not answer in time, and no other one could.";
    error(StatusCode::GATEWAY_TIMEOUT, "server_error", "provider_timeout", None, message)
}

/// The gateway has no descriptor, port or memory left.
pub(crate) fn short() -> Response<Bytes> {
    let message = "The gateway has no room for another request at the moment.";
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "server_error", "gateway_overloaded", None, message);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The last provider that could be asked gave no answer that could be passed on.
pub(crate) fn unreachable() -> Response<Bytes> {
    let message = "The provider could not be reached, and no other one could answer.";
    error(StatusCode::BAD_GATEWAY, "server_error", "provider_unreachable", None, message)
}

/// RFC 9112 section 3.2: who reads another one than the gateway would take the request for another host's.
pub(crate) fn invalid_host() -> Response<Bytes> {
    let message = "A request needs one 'host' header, and no more than one.";
    invalid(StatusCode::BAD_REQUEST, "invalid_host", None, message)
}

pub(crate) fn not_found() -> Response<Bytes> {
    invalid(StatusCode::NOT_FOUND, "not_found", None, "There is nothing at this path.")
}

pub(crate) fn method_not_allowed() -> Response<Bytes> {
    invalid(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", None, "This path does not take that method.")
}

/// For a handler.
pub(crate) fn finished(response: Response<Bytes>) -> Response<Body> {
    response.map(Body::from)
}
