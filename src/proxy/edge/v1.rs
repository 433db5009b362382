//! One request below `/v1/` and its answer: the request is read and routed, and the answer's body takes the exchange
//! with it to the end.
//!
//! Not here: the phases of a request: `route`.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, request};
use http_body::{Body, Frame, SizeHint};
use percent_encoding::percent_decode_str;
use strum::VariantArray;

use super::heartbeat::{Answering, Waited, Waiting};
use crate::proxy::answer;
use crate::proxy::core::{Core, Local};
use crate::proxy::observe::facts::End;
use crate::proxy::protocol::Protocol;
use crate::proxy::provider::Provider;
use crate::proxy::request::client::Peer;
use crate::proxy::request::ids;
use crate::proxy::request::model::Format;
use crate::proxy::request::upload::Rest;
use crate::proxy::request::{self as asked, Prepared, Received};
use crate::proxy::route::exchange::Exchange;
use crate::proxy::route::explain::explain;
use crate::proxy::route::failover::{Failover, Whose};
use crate::proxy::route::judge::Answer;
use crate::proxy::route::stream::Payload;
use crate::proxy::state::{Candidate, Live};
use crate::proxy::timers::within;

/// Serves a request below `/v1/`. This is no `async fn`, and no future is around it: each would store the request once
/// more.
pub(crate) fn serve<B, R>(
    core: Arc<Core>,
    peer: Option<Peer>,
    request: Request<B>,
    into: impl FnOnce(Response<ClientBody>) -> R,
) -> impl Future<Output = R>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    let (mut head, body) = request.into_parts();
    let mut exchange = Exchange::begin(core, peer, &mut head);
    async move {
        let live = Arc::clone(exchange.attempts.local());
        let answer = match read(&live, &mut exchange, head, body).await {
            Err(answer) => own(&exchange, answer),
            Ok((request, None)) if request.asks_for_a_stream() && live.server.heartbeat_after.is_some() => {
                return into(Box::pin(wait(exchange, live, request)).await);
            }
            Ok((request, rest)) => route(&live, &mut exchange, request, rest).await,
        };
        into(ClientBody::answer(exchange, answer))
    }
}

/// An answer of the gateway's own, in the form of the client's protocol.
pub(super) fn own(exchange: &Exchange, response: Response<Bytes>) -> Answer {
    let response = exchange.facts.protocol.own(response, Some(&exchange.facts.id));
    Answer { response: response.map(Payload::Whole), provider: None }
}

/// The same, for a request that is over with it.
pub(super) fn refuse(exchange: Exchange, response: Response<Bytes>) -> Response<ClientBody> {
    let answer = own(&exchange, response);
    ClientBody::answer(exchange, answer)
}

/// Asks the providers of the request's model.
pub(super) async fn route(
    live: &Arc<Local>,
    exchange: &mut Exchange,
    request: Arc<Prepared>,
    rest: Option<Box<Rest>>,
) -> Answer {
    match candidates(live, &request, exchange) {
        Err(answer) => own(exchange, *answer),
        Ok(Route { candidates, whose }) => {
            let mut failover = Failover::new(live, candidates, whose, exchange, request, rest);
            let found = failover.run().await;
            let has_failed = found.is_none();
            let answer = match failover.finish(found) {
                Answer { response, provider: None } => match response.into_parts() {
                    (head, Payload::Whole(body)) => own(exchange, Response::from_parts(head, body)),
                    (head, payload) => Answer { response: Response::from_parts(head, payload), provider: None },
                },
                answer => answer,
            };
            if has_failed { explain(exchange, answer) } else { answer }
        }
    }
}

/// Answers a request for a stream, after `heartbeat_after` with the head alone.
async fn wait(mut exchange: Exchange, live: Arc<Local>, request: Arc<Prepared>) -> Response<ClientBody> {
    let (after, every) = (live.server.heartbeat_after.unwrap_or_default(), live.server.heartbeat);
    let core = Arc::clone(exchange.attempts.core());
    let (id, has_head) = (exchange.facts.id.clone(), Arc::<AtomicBool>::default());
    exchange.facts.has_head = Some(Arc::clone(&has_head));
    let until = exchange.facts.started + after;
    let mut answering: Answering = Box::pin(async move {
        let answer = route(&live, &mut exchange, request, None).await;
        (exchange, answer)
    });
    match within(&mut core.timers.timer(), || until, Pin::new(&mut answering)).await {
        Some((exchange, answer)) => ClientBody::answer(exchange, answer),
        None => Waiting::begin(answering, core.timers.timer(), every, id, &has_head).map(ClientBody::waiting),
    }
}

/// Reads a request, and answers those that no provider is needed for. An error is the answer, which may be a good one.
async fn read<B>(
    live: &Live,
    exchange: &mut Exchange,
    head: request::Parts,
    body: B,
) -> Result<(Arc<Prepared>, Option<Box<Rest>>), Response<Bytes>>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    exchange.facts.closes = !body.is_end_stream();
    exchange.facts.token = asked::check(&head, &live.server.auth_tokens).map_err(|answer| *answer)?;
    if matches!(head.method, Method::GET | Method::HEAD)
        && let Some(answer) = models(live, exchange.facts.protocol, head.uri.path())
    {
        return Err(answer);
    }
    let reads_or_deletes = matches!(head.method, Method::GET | Method::DELETE);
    if head.method != Method::POST && !(reads_or_deletes && ids::is_about_what_is_kept(head.uri.path())) {
        return Err(answer::method_not_allowed());
    }
    let core = exchange.attempts.core();
    let (timer, mut received) = (core.timers.timer(), Received { bytes: 0, is_whole: false });
    let read = asked::read(head, body, &live.server, &core.app.budget, timer, &mut received).await;
    exchange.facts.bytes_in = received.bytes;
    exchange.facts.closes &= !received.is_whole;
    let (request, rest) = read?;
    if let Some(named) = &request.named {
        exchange.facts.set_model(&named.model);
    }
    Ok((request, rest))
}

/// Who may answer a request.
struct Route<'a> {
    /// In the order in which they are asked.
    candidates: &'a [Candidate],
    whose: Whose,
}

/// The providers that may answer a request. An error is the answer, if no provider serves its model.
fn candidates<'a>(live: &'a Live, request: &Prepared, exchange: &Exchange) -> Result<Route<'a>, Box<Response<Bytes>>> {
    let protocol = exchange.facts.protocol;
    let candidates = match &request.named {
        None => live.all(protocol),
        Some(named) => live
            .candidates(protocol, &named.model)
            .ok_or_else(|| Box::new(unknown_model(live, protocol, &named.model)))?,
    };
    let of = |name: &str| {
        let is_it = |(id, _): &&Candidate| live.providers[*id].name() == name;
        candidates.iter().find(is_it).map(std::slice::from_ref)
    };
    if let Some(chosen) = &request.chosen {
        let candidates = chosen.to_str().ok().and_then(of).ok_or_else(|| Box::new(answer::invalid_provider()))?;
        return Ok(Route { candidates, whose: Whose::Anybodys });
    }
    if candidates.len() < 2 {
        return Ok(Route { candidates, whose: Whose::Anybodys });
    }
    let mut ids: Vec<_> = ids::in_path(request.head.uri.path()).collect();
    if request.format == Format::Json {
        ids.append(&mut ids::in_request(&request.body));
    }
    let owners = &exchange.attempts.core().app.owners;
    let owner = ids.iter().find_map(|id| owners.of(id));
    match owner.as_deref().and_then(of) {
        Some(candidates) => Ok(Route { candidates, whose: Whose::Anybodys }),
        None if ids.is_empty() => Ok(Route { candidates, whose: Whose::Anybodys }),
        None => Ok(Route { candidates, whose: Whose::Unknown }),
    }
}

/// No provider serves the model to clients of this protocol.
fn unknown_model(live: &Live, protocol: Protocol, model: &str) -> Response<Bytes> {
    let known = live.models(protocol);
    let others = || Protocol::VARIANTS.iter().filter(|other| **other != protocol);
    let asked = others().any(|other| !live.all(*other).is_empty()).then(|| protocol.name());
    let other = others().find(|other| live.candidates(**other, model).is_some());
    answer::unknown_model(model, known.iter().map(|(model, _)| *model), asked, other.map(|other| other.name()))
}

/// Answers `GET /v1/models` and `GET /v1/models/{id}`.
fn models(live: &Live, protocol: Protocol, path: &str) -> Option<Response<Bytes>> {
    let object = |model: &str, provider: &Provider| protocol.model(model, provider.name());
    let models = live.models(protocol);
    let below = path.strip_prefix("/v1/models")?;
    if below.is_empty() {
        let objects: Vec<_> = models.iter().map(|(model, provider)| object(model, provider)).collect();
        let list = protocol.models(&objects);
        return Some(answer::json(StatusCode::OK, &list));
    }
    let wanted = percent_decode_str(below.strip_prefix('/')?).decode_utf8_lossy();
    Some(match models.iter().find(|(model, _)| *model == wanted) {
        Some((model, provider)) => answer::json(StatusCode::OK, &object(model, provider)),
        None => unknown_model(live, protocol, &wanted),
    })
}

/// The body of an answer on its way to the client.
pub(crate) struct ClientBody {
    /// `None` while there is no answer yet.
    answer: Option<(Payload, Exchange)>,
    waiting: Option<Box<Waiting>>,
}

impl ClientBody {
    /// For a head that nothing follows. Somebody else has the exchange.
    pub(super) fn nothing() -> Self {
        Self { answer: None, waiting: None }
    }

    pub(super) fn answer(mut exchange: Exchange, answer: Answer) -> Response<Self> {
        let (mut head, payload) = answer.response.into_parts();
        exchange.answer_with(&mut head, answer.provider, matches!(payload, Payload::Stream(_)));
        if matches!(&payload, Payload::Whole(bytes) if bytes.is_empty()) {
            // An empty body is never polled.
            exchange.facts.end = End::Complete;
        }
        Response::from_parts(head, Self { answer: Some((payload, exchange)), waiting: None })
    }

    fn waiting(waiting: Waiting) -> Self {
        Self { answer: None, waiting: Some(Box::new(waiting)) }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(waiting) = &mut self.waiting {
            match ready!(waiting.poll(cx)) {
                Waited::Comment(comment) => return Poll::Ready(Some(Ok(Frame::data(comment)))),
                Waited::Over(answer) => self.answer = Some(*answer),
            }
            self.waiting = None;
        }
        let Some((payload, exchange)) = &mut self.answer else { return Poll::Ready(None) };
        let mut last = |bytes: &mut Bytes, end| {
            exchange.facts.end = end;
            let bytes = std::mem::take(bytes);
            Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
        };
        let frame = match payload {
            Payload::Whole(bytes) => last(bytes, End::Complete),
            Payload::Failed(bytes) => last(bytes, End::Cut),
            Payload::Stream(stream) => stream.poll(exchange, cx),
        };
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            exchange.facts.count_bytes_out(data.len());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.answer {
            Some((Payload::Whole(bytes) | Payload::Failed(bytes), _)) => bytes.is_empty(),
            Some((Payload::Stream(stream), _)) => stream.is_over(),
            None => self.waiting.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.answer {
            Some((Payload::Whole(bytes), _)) => SizeHint::with_exact(bytes.len() as u64),
            Some((Payload::Stream(stream), _)) => stream.size_hint(),
            Some((Payload::Failed(_), _)) | None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;
    use crate::proxy::GatewayConfig;
    use crate::proxy::state::AppState;

    /// Each request allocates this future once. An `async fn` in the wrong place stores the request or its body twice,
    /// which shows here and nowhere else.
    #[tokio::test]
    async fn the_future_of_a_request_is_no_larger_than_it_has_to_be() {
        let text = "[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:1/v1'\nmodels = ['m']";
        let core = Core::new(AppState::new(&GatewayConfig::from_toml(text).unwrap()).unwrap());
        let request = Request::post("/v1/x").body(Full::new(Bytes::new())).unwrap();
        let future = serve(core, None, request, |answer| answer);
        let size = size_of_val(&future);
        assert!(size <= MAX_FUTURE, "{size}");
    }

    /// Its size on 64-bit Linux, 2,448 bytes, and room for two words.
    const MAX_FUTURE: usize = 2464;
}
