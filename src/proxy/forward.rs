//! The failover path: who is asked, and who is asked next.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header, request};
use bytes::Bytes;
use http_body::Body;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tracing::warn;

use super::attempt::{Asked, Declined, Provider, Question};
use super::config::Secret;
use super::cores::{Core, Local, ProviderPermit};
use super::model::{self, Format, Named};
use super::path::leaves_its_base;
use super::record::{ClientBody, Payload, Record};
use super::state::Live;
use super::upload::{self, Read, Rest, Upload};
use super::upstream::RequestBody;
use super::{answer, headers};
use crate::{CircuitBreaker, Permit, Rejection, RejectionReason};

/// Longer ones, query included, are refused: with the provider's base a URI must stay below 64 KiB.
const MAX_PATH: usize = 8 * 1024;

/// An answer, and whose it is; without a provider it is the gateway's own.
type Answer = (Response<Payload>, Option<usize>);

/// Everything below `/v1/`.
pub(crate) async fn v1<B>(core: Arc<Core>, request: Request<B>) -> Response<ClientBody>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    let (mut head, body) = request.into_parts();
    let mut record = Record::start(core, &mut head);
    let live = Arc::clone(record.local());
    let (answer, provider) = match prepare(&live, &mut record, head, body).await {
        Ok(prepared) => route(&live, &mut record, prepared).await,
        Err(answer) => (answer.map(Payload::Whole), None),
    };
    record.answer(answer, provider)
}

/// A request that can be sent.
struct Prepared {
    head: request::Parts,
    body: Bytes,
    rest: Option<Rest>,
    format: Format,
    named: Option<Named>,
}

/// Reads a request as far as it must be known for its routing. An error is the answer to it, which may be a good one.
async fn prepare<B>(
    live: &Live,
    record: &mut Record,
    mut head: request::Parts,
    body: B,
) -> Result<Prepared, Response<Bytes>>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    record.set_closes(!body.is_end_stream());
    if !is_authorized(&live.server.auth_tokens, &head.headers) {
        return Err(answer::unauthorized());
    }
    if head
        .headers
        .get(header::TRANSFER_ENCODING)
        .is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        let message = "The only transfer coding that is understood is 'chunked'.";
        return Err(answer::invalid(StatusCode::NOT_IMPLEMENTED, "unknown_transfer_coding", None, message));
    }
    if leaves_its_base(head.uri.path()) {
        let message = "The path has '.' or '..' segments, or characters that do not belong into one.";
        return Err(answer::invalid(StatusCode::BAD_REQUEST, "invalid_path", None, message));
    }
    if head.uri.path_and_query().is_some_and(|path| path.as_str().len() > MAX_PATH) {
        return Err(answer::invalid(StatusCode::URI_TOO_LONG, "path_too_long", None, "The path is too long."));
    }
    if matches!(head.method, Method::GET | Method::HEAD)
        && let Some(answer) = models(live, head.uri.path())
    {
        return Err(answer);
    }
    if head.method != Method::POST {
        return Err(answer::method_not_allowed());
    }
    let invalid = |message: &str| answer::invalid(StatusCode::BAD_REQUEST, "invalid_model", Some("model"), message);
    let format = Format::of(head.headers.get(header::CONTENT_TYPE)).map_err(invalid)?;
    let (body, rest) = match upload::read(body, &live.server, record.timer()).await {
        Ok(Read::Whole(body)) => {
            record.set_closes(false);
            (body, None)
        }
        Ok(Read::Begun(body, rest)) => (body, Some(rest)),
        Err(fault) => return Err(fault.answer()),
    };
    record.set_bytes_in(body.len() as u64);
    let named = model::find(&format, &body, rest.is_none()).map_err(|message| invalid(&message))?;
    match &named {
        Some(named) => record.set_model(&named.model),
        None if format == Format::Json && rest.is_none() => return Err(invalid("The body has no 'model'.")),
        // A form may do without: a file belongs to no model.
        None if rest.is_none() || takes_files(head.uri.path()) => {}
        None => {
            let limit = live.server.replay_body_bytes;
            let message = format!("The body is long, and its 'model' does not come within the first {limit} bytes.");
            return Err(answer::invalid(
                StatusCode::PAYLOAD_TOO_LARGE,
                "model_not_found_in_time",
                Some("model"),
                &message,
            ));
        }
    }
    headers::to_provider(&mut head.headers);
    Ok(Prepared { head, body, rest, format, named })
}

/// Compares with every token, whichever fits, so that the time says nothing.
pub(crate) fn is_authorized(tokens: &[Secret], headers: &HeaderMap) -> bool {
    if tokens.is_empty() {
        return true;
    }
    let value = headers.get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
    let (scheme, token) = value.split_at(value.len().min("Bearer ".len()));
    let fits = tokens.iter().fold(false, |fits, known| fits | known.is(token.trim_ascii_start()));
    fits && scheme.eq_ignore_ascii_case(b"Bearer ")
}

fn takes_files(path: &str) -> bool {
    path == "/v1/files" || path.starts_with("/v1/uploads")
}

/// `GET /v1/models` and `GET /v1/models/{id}`.
fn models(live: &Live, path: &str) -> Option<Response<Bytes>> {
    let object = |model: &str, provider: &Provider| -> Value {
        json!({"id": model, "object": "model", "created": 0, "owned_by": provider.name()})
    };
    let models = live.models();
    let below = path.strip_prefix("/v1/models")?;
    if below.is_empty() {
        let data: Vec<_> = models.iter().map(|(model, provider)| object(model, provider)).collect();
        return Some(answer::json(StatusCode::OK, &json!({"object": "list", "data": data})));
    }
    let wanted = percent_decode_str(below.strip_prefix('/')?).decode_utf8_lossy();
    Some(match models.iter().find(|(model, _)| *model == wanted) {
        Some((model, provider)) => answer::json(StatusCode::OK, &object(model, provider)),
        None => answer::unknown_model(&wanted, models.iter().map(|(model, _)| *model)),
    })
}

async fn route(live: &Arc<Local>, record: &mut Record, prepared: Prepared) -> Answer {
    let Prepared { head, body, rest, format, named } = prepared;
    let model = named.as_ref().map(|named| named.model.as_str());
    let candidates = match model {
        None => Some(live.all()),
        Some(model) => live.candidates(model),
    };
    let Some(candidates) = candidates else {
        let known = live.models();
        let answer = answer::unknown_model(model.unwrap_or_default(), known.iter().map(|(model, _)| *model));
        return (answer.map(Payload::Whole), None);
    };
    let mut untried: Vec<Candidate> =
        candidates.iter().map(|index| Candidate { index: *index, is_rejected: false }).collect();
    let mut best: Option<(Declined, usize)> = None;
    // A body of which a part is still with the client can be sent only once.
    let mut once = rest;
    let is_once = once.is_some();
    if is_once {
        record.set_not_replayable();
    }
    let found = loop {
        let Some((index, permit)) = next_admitted(live, &mut untried).await else { break None };
        let provider = &live.providers[index];
        let body = match (&named, model.and_then(|model| provider.config.models.get(model))) {
            (Some(named), Some(there)) if *there != named.model => model::rename(&format, &body, named, there),
            _ => body.clone(),
        };
        let (body, progress) = match once.take() {
            None => (RequestBody::Whole(body), None),
            Some(rest) => {
                let (upload, progress) = Upload::new(body, rest);
                (RequestBody::Upload(Box::new(upload)), Some(progress))
            }
        };
        record.begin_attempt(index, permit);
        let question = Question {
            upstream: &live.upstreams[index],
            head: &head,
            body,
            progress: progress.as_deref(),
            limits: &live.server,
        };
        let asked = provider.ask(question, record).await;
        if let Some(progress) = &progress {
            record.set_bytes_in(progress.bytes());
            record.set_closes(!progress.is_whole());
        }
        match asked {
            Asked::Answered(response) => break Some((response, Some(index))),
            Asked::Refused(response) => break Some((response, None)),
            Asked::Declined(declined) => {
                if best.as_ref().is_none_or(|(best, _)| declined.usefulness() >= best.usefulness()) {
                    best = Some((declined, index));
                }
            }
        }
        if is_once {
            break None;
        }
    };
    let answer = found.unwrap_or_else(|| match best {
        Some((declined, index)) => (declined.answer, declined.is_its_own.then_some(index)),
        None => (answer::unavailable(model, soonest(live, candidates)).map(Payload::Whole), None),
    });
    if answer.0.status().is_server_error() {
        warn!(model, status = answer.0.status().as_u16(), "no provider could answer");
    }
    answer
}

struct Candidate {
    index: usize,
    /// Whether that has been counted.
    is_rejected: bool,
}

/// Takes the next provider to ask out of `untried`. A probe is claimed only by the request that is sent with it, and one in
/// flight is waited for only if nobody else can answer.
async fn next_admitted(live: &Arc<Local>, untried: &mut Vec<Candidate>) -> Option<(usize, ProviderPermit)> {
    loop {
        let mut probed = Vec::new();
        for at in 0..untried.len() {
            let Candidate { index, is_rejected } = untried[at];
            match live.try_acquire(index) {
                Ok(permit) => {
                    untried.remove(at);
                    return Some((index, permit));
                }
                Err(rejection) => {
                    if !is_rejected {
                        live.providers[index].metrics.reject();
                        untried[at].is_rejected = true;
                    }
                    if rejection.reason() == RejectionReason::ProbeInFlight {
                        probed.push(index);
                    }
                }
            }
        }
        if probed.is_empty() {
            return None;
        }
        let granted = first_granted(live, &probed).await;
        if let Some((index, permit)) = granted {
            untried.retain(|other| other.index != index);
            return Some((index, permit));
        }
        // Each is waited for once. Then whoever is left is looked at again: their open time may have passed.
        untried.retain(|candidate| !probed.contains(&candidate.index));
    }
}

/// Waits for the probes of all these providers at once, until one lets the request pass.
async fn first_granted(live: &Arc<Local>, probed: &[usize]) -> Option<(usize, ProviderPermit)> {
    type Wait<'a> = Pin<Box<dyn Future<Output = Result<Permit<&'a CircuitBreaker>, Rejection>> + Send + 'a>>;
    let wait = |index: &usize| Some(Box::pin(live.providers[*index].breaker.acquire()) as Wait<'_>);
    let mut waits: Vec<Option<Wait<'_>>> = probed.iter().map(wait).collect();
    poll_fn(|cx| {
        for (slot, index) in waits.iter_mut().zip(probed) {
            let Some(wait) = slot else { continue };
            match wait.as_mut().poll(cx) {
                Poll::Ready(Ok(permit)) => return Poll::Ready(Some((*index, live.hold(*index, permit)))),
                Poll::Ready(Err(_)) => *slot = None,
                Poll::Pending => {}
            }
        }
        if waits.iter().all(Option::is_none) { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// When a request may pass again. A probe in flight is likely to end sooner than its lease.
fn soonest(live: &Live, candidates: &[usize]) -> Duration {
    let next = |index: &usize| live.providers[*index].breaker.snapshot().next_probe_in.unwrap_or_default();
    candidates.iter().map(next).min().unwrap_or_default()
}
