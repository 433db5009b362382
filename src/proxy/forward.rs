//! What a request asks for: it is read as far as its routing needs, and then `failover` has it answered.
//!
//! Not here: who answers: `failover`.

use std::future::Future;
use std::sync::Arc;

use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header, request};
use bytes::Bytes;
use http_body::Body;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::attempt::Prepared;
use super::client_body::{ClientBody, Payload};
use super::config::Secret;
use super::cores::Core;
use super::failover::Failover;
use super::model::{self, Format};
use super::path::leaves_its_base;
use super::provider::Provider;
use super::record::Record;
use super::state::Live;
use super::upload::{self, Read, Rest};
use super::{answer, headers};

/// Longer ones, query included, are refused: with the provider's base a URI must stay below 64 KiB.
const MAX_PATH: usize = 8 * 1024;

/// Everything below `/v1/`. No `async fn`, and no future around it: each would keep the request once more.
pub(crate) fn v1<B, R>(
    core: Arc<Core>,
    request: Request<B>,
    into: impl FnOnce(Response<ClientBody>) -> R,
) -> impl Future<Output = R>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    let (mut head, body) = request.into_parts();
    let mut record = Record::start(core, &mut head);
    async move {
        let live = Arc::clone(record.local());
        let (answer, provider) = match prepare(&live, &mut record, head, body).await {
            Err(answer) => (answer.map(Payload::Whole), None),
            Ok((request, rest)) => match candidates(&live, &request) {
                Err(answer) => ((*answer).map(Payload::Whole), None),
                Ok(candidates) => {
                    let mut failover = Failover::new(&live, candidates, &mut record, request, rest);
                    let found = failover.run().await;
                    failover.finish(found)
                }
            },
        };
        into(ClientBody::answer(record, answer, provider))
    }
}

/// Who may answer a request, in the order in which they are asked. An error is the answer, if nobody serves its model.
fn candidates<'a>(live: &'a Live, request: &Prepared) -> Result<&'a [usize], Box<Response<Bytes>>> {
    let Some(named) = &request.named else { return Ok(live.all()) };
    live.candidates(&named.model).ok_or_else(|| {
        let known = live.models();
        Box::new(answer::unknown_model(&named.model, known.iter().map(|(model, _)| *model)))
    })
}

/// Reads a request as far as it must be known for its routing. An error is the answer to it, which may be a good one.
async fn prepare<B>(
    live: &Live,
    record: &mut Record,
    mut head: request::Parts,
    body: B,
) -> Result<(Arc<Prepared>, Option<Box<Rest>>), Response<Bytes>>
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
    // Its length first: what comes then looks at all of it, more than once.
    if head.uri.path_and_query().is_some_and(|path| path.as_str().len() > MAX_PATH) {
        return Err(answer::invalid(StatusCode::URI_TOO_LONG, "path_too_long", None, "The path is too long."));
    }
    if leaves_its_base(head.uri.path()) {
        let message = "The path has '.' or '..' segments, or characters that do not belong into one.";
        return Err(answer::invalid(StatusCode::BAD_REQUEST, "invalid_path", None, message));
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
    if head.headers.get_all(header::CONTENT_TYPE).iter().count() > 1 {
        return Err(invalid("There is more than one content type."));
    }
    let format = Format::of(head.headers.get(header::CONTENT_TYPE)).map_err(invalid)?;
    let (body, rest) = match upload::read(body, &live.server, &record.core().app.budget, record.timer()).await {
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
        None if (body.len() as u64) < live.server.replay_body_bytes => return Err(answer::short()),
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
    Ok((Arc::new(Prepared { head, body, format, named }), rest))
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
