//! Answers that the gateway gives by itself, in the form that `OpenAI`'s SDKs understand.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

fn error(status: StatusCode, kind: &str, code: &str, param: Option<&str>, message: &str) -> Response {
    let body = json!({"error": {"message": message, "type": kind, "param": param, "code": code}});
    (status, axum::Json(body)).into_response()
}

pub(crate) fn invalid(status: StatusCode, code: &str, param: Option<&str>, message: &str) -> Response {
    error(status, "invalid_request_error", code, param, message)
}

pub(crate) fn unknown_model(model: &str) -> Response {
    let message = format!("The model '{model}' is served by no provider of this gateway.");
    invalid(StatusCode::NOT_FOUND, "model_not_found", Some("model"), &message)
}

/// No provider may be asked now.
pub(crate) fn unavailable(model: &str, retry_after: Duration) -> Response {
    let seconds = retry_after.as_millis().div_ceil(1000).max(1);
    let message =
        format!("Every provider of the model '{model}' is failing. The next one is tried again in {seconds} s.");
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "server_error", "providers_unavailable", None, &message);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_str(&seconds.to_string()).expect("digits"));
    response
}

/// The last provider that could be asked did not answer in time.
pub(crate) fn timed_out() -> Response {
    let message = "The provider did not answer in time, and no other one could.";
    error(StatusCode::GATEWAY_TIMEOUT, "server_error", "provider_timeout", None, message)
}

/// The last provider that could be asked gave no answer that could be passed on.
pub(crate) fn unreachable() -> Response {
    let message = "The provider could not be reached, and no other one could answer.";
    error(StatusCode::BAD_GATEWAY, "server_error", "provider_unreachable", None, message)
}

pub(crate) async fn not_found() -> Response {
    invalid(StatusCode::NOT_FOUND, "not_found", None, "There is nothing at this path.")
}

pub(crate) async fn method_not_allowed() -> Response {
    invalid(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", None, "This path does not take that method.")
}
