//! The failover path: who is asked, and who is asked next.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use tracing::warn;

use super::attempt::{Asked, Provider};
use super::path::leaves_its_base;
use super::server::AppState;
use super::{answer, headers};
use crate::{OwnedPermit, Rejection, RejectionReason};

/// Longer ones, query included, are refused: with the provider's base a URI must stay below 64 KiB.
const MAX_PATH: usize = 8 * 1024;
/// A request is held in memory whole, so that it can be sent again.
const MAX_BODY: usize = 32 * 1024 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// All that routing needs to know of a request.
#[derive(Deserialize)]
struct Routing {
    model: String,
}

/// Any `POST /v1/...` with a JSON `model`.
pub(crate) async fn forward(State(state): State<Arc<AppState>>, request: Request) -> Response {
    if request.method() != Method::POST {
        return answer::method_not_allowed().await;
    }
    let (mut head, body) = request.into_parts();
    if leaves_its_base(head.uri.path()) {
        let message = "The path has '.' or '..' segments, or characters that do not belong into one.";
        return answer::invalid(StatusCode::BAD_REQUEST, "invalid_path", None, message);
    }
    if head.uri.path_and_query().is_some_and(|path| path.as_str().len() > MAX_PATH) {
        return answer::invalid(StatusCode::URI_TOO_LONG, "path_too_long", None, "The path is too long.");
    }
    let body = match read(body).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let model = match serde_json::from_slice::<Routing>(&body) {
        Ok(Routing { model }) => model,
        Err(error) => {
            let message = format!("The body is not a JSON object with a string 'model': {error}.");
            return answer::invalid(StatusCode::BAD_REQUEST, "invalid_model", Some("model"), &message);
        }
    };
    let Some(candidates) = state.candidates(&model) else {
        return answer::unknown_model(&model);
    };
    headers::to_provider(&mut head.headers);

    let mut untried: Vec<&Arc<Provider>> = candidates.iter().collect();
    let mut declined = None;
    let response = loop {
        let Some((provider, permit)) = next_admitted(&mut untried).await else {
            break declined.unwrap_or_else(|| answer::unavailable(&model, soonest(candidates)));
        };
        match provider.ask(permit, &head, body.clone()).await {
            Asked::Answered(response) => break response,
            Asked::Declined(response) => declined = Some(response),
        }
    };
    if response.status().is_server_error() {
        warn!(model, status = response.status().as_u16(), "no provider could answer");
    }
    response
}

async fn read(body: Body) -> Result<Bytes, Response> {
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("The body is larger than {MAX_BODY} bytes.");
            Err(answer::invalid(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", None, &message))
        }
        Ok(Err(_)) => {
            Err(answer::invalid(StatusCode::BAD_REQUEST, "incomplete_body", None, "The body could not be read."))
        }
        Err(_) => {
            let message = format!("The body did not arrive within {BODY_TIMEOUT:?}.");
            Err(answer::invalid(StatusCode::REQUEST_TIMEOUT, "body_timeout", None, &message))
        }
    }
}

/// Takes the next provider to ask out of `untried`. A probe is claimed only by the request that is sent with it, and one in
/// flight is waited for only if nobody else can answer.
async fn next_admitted<'a>(untried: &mut Vec<&'a Arc<Provider>>) -> Option<(&'a Arc<Provider>, OwnedPermit)> {
    loop {
        let mut probed = Vec::new();
        for index in 0..untried.len() {
            match Arc::clone(&untried[index].breaker).try_acquire_owned() {
                Ok(permit) => return Some((untried.remove(index), permit)),
                Err(rejection) if rejection.reason() == RejectionReason::ProbeInFlight => probed.push(untried[index]),
                Err(_) => {}
            }
        }
        if probed.is_empty() {
            return None;
        }
        let granted = first_granted(&probed).await;
        if let Some((index, permit)) = granted {
            untried.retain(|other| !Arc::ptr_eq(other, probed[index]));
            return Some((probed[index], permit));
        }
        // Each is waited for once. Then whoever is left is looked at again: their open time may have passed.
        untried.retain(|provider| !probed.iter().any(|probed| Arc::ptr_eq(probed, provider)));
    }
}

/// Waits for the probes of all these providers at once, until one lets the request pass.
async fn first_granted(probed: &[&Arc<Provider>]) -> Option<(usize, OwnedPermit)> {
    type Wait = Pin<Box<dyn Future<Output = Result<OwnedPermit, Rejection>> + Send>>;
    let mut waits: Vec<Option<Wait>> =
        probed.iter().map(|provider| Some(Box::pin(Arc::clone(&provider.breaker).acquire_owned()) as Wait)).collect();
    poll_fn(|cx| {
        for (index, slot) in waits.iter_mut().enumerate() {
            let Some(wait) = slot else { continue };
            match wait.as_mut().poll(cx) {
                Poll::Ready(Ok(permit)) => return Poll::Ready(Some((index, permit))),
                Poll::Ready(Err(_)) => *slot = None,
                Poll::Pending => {}
            }
        }
        if waits.iter().all(Option::is_none) { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// When a request may pass again. A probe in flight is likely to end sooner than its lease.
fn soonest(candidates: &[Arc<Provider>]) -> Duration {
    let next = |provider: &Arc<Provider>| provider.breaker.snapshot().next_probe_in.unwrap_or_default();
    candidates.iter().map(next).min().unwrap_or_default()
}
