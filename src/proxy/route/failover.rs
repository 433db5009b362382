//! The failover path: which candidate is asked, which one next, and whose answer the client gets.
//!
//! Not here: how one provider is asked: `ask`.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::StatusCode;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::ask::{Asked, InFlight, Question, Reply, ask};
use super::choose::{Candidate, Refused, next_at_once};
use super::exchange::Exchange;
use super::judge::{Answer, Fallback, Verdict, judge};
use super::stream::Payload;
use crate::proxy::answer;
use crate::proxy::body::parts::Parts;
use crate::proxy::circuits::AnswerKind;
use crate::proxy::config::WhenAllOpen;
use crate::proxy::core::{Local, Permits, first_granted, first_granted_or_never};
use crate::proxy::outcome::Outcome;
use crate::proxy::provider::CircuitId;
use crate::proxy::request::upload::{Progress, Rest, Upload};
use crate::proxy::request::{Prepared, ids, model};
use crate::proxy::state;
use crate::proxy::upstream::RequestBody;

/// A request that waits for silent providers looks for another candidate this often: a circuit may have closed, or
/// there may be room in the allowance for sending requests twice.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A request on its way from one candidate to the next.
///
/// A request's future is one allocation, as large as the largest of its states. So what is awaited in the usual case is
/// kept small, and everything else is in boxes; a test holds the size.
pub(crate) struct Failover<'a> {
    live: &'a Arc<Local>,
    exchange: &'a mut Exchange,
    request: Arc<Prepared>,
    /// What the client still has to send of a long body.
    rest: Option<Box<Rest>>,
    /// Whether the body can be sent only once.
    is_once: bool,
    /// How much of a long body has been passed on.
    progress: Option<Arc<Progress>>,
    /// In the order in which they are asked.
    candidates: &'a [state::Candidate],
    kind: AnswerKind,
    whose: Whose,
    untried: Vec<Candidate>,
    /// Requests to providers that were found silent. Each may still be the first to be answered.
    silent: Vec<InFlight>,
    /// A stream that has begun at a provider whose streams stop in the middle. It is used if nobody does better.
    aside: Option<Box<(Asked, Reply)>>,
    /// The most useful failure so far.
    best: Option<Box<Fallback>>,
    /// Whether a candidate had no place free.
    is_full: bool,
}

/// Which provider has what a request names by its ids.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Any candidate may be asked as for any other request.
    Anybodys,
    /// One of them has it, and nobody knows which: what one has not found another may have.
    Unknown,
}

/// What is to be done next.
enum Step {
    Ask(CircuitId, Permits),
    Pass(Answer),
    GiveUp,
}

impl<'a> Failover<'a> {
    pub(crate) fn new(
        live: &'a Arc<Local>,
        candidates: &'a [state::Candidate],
        whose: Whose,
        exchange: &'a mut Exchange,
        request: Arc<Prepared>,
        rest: Option<Box<Rest>>,
    ) -> Self {
        let kind = kind_of(&request);
        let untried = circuit_ids(candidates, kind).map(|id| Candidate { id, is_rejected: false }).collect();
        let is_once = rest.is_some();
        // Sessions are all alike: nothing tells one that fails everywhere from any other.
        if !is_once && kind != AnswerKind::Session {
            exchange.attempts.set_request(&request);
        }
        exchange.facts.is_replayable = !is_once;
        let (silent, best, progress) = (Vec::new(), None, None);
        Self {
            live,
            exchange,
            request,
            rest,
            is_once,
            progress,
            candidates,
            kind,
            whose,
            untried,
            silent,
            aside: None,
            best,
            is_full: false,
        }
    }

    /// Asks the candidates in their order until one has answered. `None` if none has.
    pub(crate) async fn run(&mut self) -> Option<Answer> {
        let found = loop {
            let at_once = if self.silent.is_empty() && self.may_ask() {
                let skipped = &mut self.exchange.attempts.skipped;
                next_at_once(self.live, &mut self.untried, &mut Refused::default(), skipped)
            } else {
                None
            };
            let (id, permit) = match at_once {
                Some(next) => next,
                None => match Box::pin(self.next()).await {
                    Step::Ask(id, permit) => (id, permit),
                    Step::Pass(answer) => break Some(answer),
                    Step::GiveUp => break None,
                },
            };
            let newest = self.ask(id, Some(permit));
            let answer = self.wait(newest).await;
            if answer.is_some() || self.is_once {
                break answer;
            }
        };
        if let Some(progress) = &self.progress {
            self.exchange.facts.bytes_in = progress.bytes();
            self.exchange.facts.closes = !progress.is_whole();
        }
        found
    }

    /// The winning answer, or else the most useful failure.
    pub(crate) fn finish(self, found: Option<Answer>) -> Answer {
        let soonest = match &found {
            None => self.soonest(),
            Some(answer) => {
                self.remember(answer);
                None
            }
        };
        if let Some((asked, _)) = self.aside.as_deref() {
            self.exchange.attempts.settle(asked.attempt, Outcome::Overtaken, &"");
        }
        for InFlight { reply, asked } in self.silent {
            self.exchange.attempts.listen(asked.attempt, async move { reply.await.is_good() });
        }
        self.exchange.attempts.forget_request();
        let model = self.request.named.as_ref().map(|named| named.model.as_str());
        let answer = found.unwrap_or_else(|| {
            let Some(best) = self.best else {
                if self.is_full {
                    return Answer { response: answer::busy().map(Payload::Whole), provider: None };
                }
                return Answer { response: answer::unavailable(model, soonest).map(Payload::Whole), provider: None };
            };
            let mut answer = best.answer;
            let status = answer.response.status();
            if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
                && let Some(soonest) = soonest
            {
                // Any of the providers may answer next time.
                answer::come_back(answer.response.headers_mut(), soonest);
            }
            answer
        });
        let status = answer.response.status();
        if status.is_server_error() {
            warn!(model, status = status.as_u16(), "no provider could answer");
        }
        answer
    }

    /// Remembers that the ids in an answer are this provider's.
    fn remember(&self, answer: &Answer) {
        let Some(provider) = answer.provider.filter(|_| self.live.providers.iter().len() > 1) else { return };
        if ids::has_new_ids(self.request.head.uri.path()) && answer.response.status().is_success() {
            let begun = match answer.response.body() {
                Payload::Whole(bytes) | Payload::Failed(bytes) => bytes,
                Payload::Stream(stream) => stream.begun(),
            };
            let owners = &self.exchange.attempts.core().app.owners;
            owners.remember(&ids::in_answer(begun), self.live.providers[provider].breaker.shared_name());
        }
    }

    /// The shortest time until one of the candidates takes a request again. `None` if nobody knows.
    fn soonest(&self) -> Option<Duration> {
        circuit_ids(self.candidates, self.kind).filter_map(|id| self.live.free_in(id)).min()
    }

    /// Sends the request to a provider, which is silent if there are no permits.
    fn ask(&mut self, id: CircuitId, permits: Option<Permits>) -> InFlight {
        let provider = &self.live.providers[id.provider];
        let Prepared { body, format, named, .. } = &*self.request;
        let body = match named.as_ref().and_then(|named| Some((named, provider.config.models.get(&named.model)?))) {
            Some((named, there)) if *there != named.model && self.kind != AnswerKind::Session => {
                model::rename(format, body, named, there)
            }
            _ => Parts::from(body.clone()),
        };
        let body = match self.rest.take() {
            None => RequestBody::Whole(body),
            Some(rest) => {
                let (upload, progress) = Upload::new(body, rest);
                self.progress = Some(progress);
                RequestBody::Upload(Box::new(upload))
            }
        };
        // If it is sent once, no other provider can be asked, and how long it takes depends on the client.
        let attempts = &mut self.exchange.attempts;
        let attempt = attempts.begin(id, permits, self.request.model(), !self.is_once);
        #[cfg(feature = "otel")]
        let head = attempts.traced.attempt().map(|traceparent| {
            let mut head = Box::new(self.request.head.clone());
            head.headers.insert(crate::proxy::traces::TRACEPARENT, traceparent);
            head
        });
        let question = Question {
            #[cfg(feature = "otel")]
            head,
            upstream: Arc::clone(&self.live.upstreams[id.provider]),
            request: Arc::clone(&self.request),
            key: attempts.key(attempt),
            body,
            progress: self.progress.clone(),
            max_held: self.live.server.replay_answer_bytes,
            core: Arc::clone(attempts.core()),
            started: attempts.started(attempt),
            timer: attempts.timer(attempt),
            patience: attempts.patience(attempt),
        };
        ask(provider, attempt, question)
    }

    /// The next candidate when none can be asked at once, or when silent providers are waited for. Waits for a probe,
    /// or for a silent provider's answer, whichever comes first.
    ///
    /// If only silent candidates are left, one of them is asked: silence means that another provider should be asked,
    /// and never that the client is refused.
    async fn next(&mut self) -> Step {
        loop {
            let mut refused = Refused::default();
            if self.may_ask()
                && let Some((id, permit)) = self.admitted(&mut refused)
            {
                return Step::Ask(id, permit);
            }
            self.is_full |= refused.is_full;
            if let Some((asked, reply)) = self.aside.take().map(|aside| *aside)
                && let Some(answer) = self.judge(&asked, reply)
            {
                return Step::Pass(answer);
            }
            if self.silent.is_empty() {
                if !self.may_ask() {
                    return Step::GiveUp;
                }
                if let Some(id) = self.last_to_answer(&refused.silent) {
                    debug!(provider = self.live.providers[id.provider].name(), "a request goes to a silent provider");
                    self.untried.retain(|candidate| candidate.id != id && !self.is_once);
                    let asked = self.ask(id, None);
                    self.silent.push(asked);
                } else if refused.awaited.is_empty() {
                    match self.early() {
                        Some((id, permits)) => return Step::Ask(id, permits),
                        // Another request was the probe first: it is waited for, or is over already.
                        None if self.untried.iter().any(|it| self.live.has_moved_on(it.id)) => continue,
                        None => return Step::GiveUp,
                    }
                }
            }
            let (live, awaited, is_waiting) = (self.live, refused.awaited, !self.silent.is_empty());
            #[cfg(feature = "otel")]
            let began = Instant::now();
            let granted = {
                let granted = pin!(async {
                    if is_waiting {
                        timeout(LOOK_AGAIN, first_granted_or_never(live, &awaited)).await.unwrap_or_default()
                    } else {
                        first_granted(live, &awaited).await
                    }
                });
                unless_answered(&mut self.silent, granted).await
            };
            #[cfg(feature = "otel")]
            self.exchange.attempts.traced.waited(began);
            match granted {
                Ok(Some((id, permit))) => {
                    if !is_waiting || self.send_twice() {
                        self.untried.retain(|other| other.id != id);
                        return Step::Ask(id, permit);
                    }
                    permit.cancel();
                }
                // Each is waited for once. The rest is asked again: its open time may have passed meanwhile.
                Ok(None) if !is_waiting => {
                    self.untried.retain(|it| {
                        !awaited.contains(&it.id) || live.providers[it.id.provider].circuit(it.id).is_silent()
                    });
                }
                Ok(None) => {}
                Err((asked, reply)) => {
                    if let Some(answer) = self.judge(&asked, reply) {
                        return Step::Pass(answer);
                    }
                }
            }
        }
    }

    /// Whether the request may be sent once more.
    fn may_ask(&self) -> bool {
        self.live.failover.max_attempts.is_none_or(|max| (self.exchange.attempts.len() as u64) < max)
    }

    /// There is nobody else to ask: takes the probe of the circuit that reopens first, before it does.
    fn early(&mut self) -> Option<(CircuitId, Permits)> {
        if self.live.failover.when_all_open == WhenAllOpen::Refuse {
            return None;
        }
        let mut free: Vec<_> =
            self.untried.iter().filter_map(|it| Some((self.live.reopens_in(it.id)?, it.id))).collect();
        free.sort_by_key(|(left, _)| *left);
        let (id, permits) = free.into_iter().find_map(|(_, id)| Some((id, self.live.try_acquire_early(id).ok()?)))?;
        self.untried.retain(|other| other.id != id);
        Some((id, permits))
    }

    /// As [`next_at_once`], within the allowance for sending requests twice.
    fn admitted(&mut self, refused: &mut Refused) -> Option<(CircuitId, Permits)> {
        if !self.may_send_twice() {
            return None;
        }
        let (id, permit) = next_at_once(self.live, &mut self.untried, refused, &mut self.exchange.attempts.skipped)?;
        if self.silent.is_empty() || self.send_twice() {
            return Some((id, permit));
        }
        // Another core has just used the allowance.
        permit.cancel();
        self.untried.insert(0, Candidate { id, is_rejected: true });
        None
    }

    /// Whether another provider may be asked, although this request still waits for a silent one.
    fn may_send_twice(&self) -> bool {
        let Some(waiting) = self.silent.first() else { return true };
        waiting.asked.provider.may_send_twice(Instant::now())
    }

    fn send_twice(&self) -> bool {
        self.silent.first().is_some_and(|waiting| waiting.asked.provider.send_twice(Instant::now()))
    }

    /// The one of these silent candidates that has answered last.
    fn last_to_answer(&self, silent: &[CircuitId]) -> Option<CircuitId> {
        let model = self.request.model();
        let newest = |id: &CircuitId| self.live.providers[id.provider].silence.as_ref()?.newest_answer(model);
        // Of equals `max_by_key` finds the last one, and the first one is to be asked.
        silent.iter().rev().copied().max_by_key(newest)
    }

    /// Waits until the newest attempt, or one to a silent provider, is answered. `None` if the next candidate is to be
    /// asked: the newest attempt failed, or its provider was found silent.
    async fn wait(&mut self, mut newest: InFlight) -> Option<Answer> {
        let attempt = newest.asked.attempt;
        loop {
            let attempts = &self.exchange.attempts;
            let until_silent = poll_fn(|cx| match newest.reply.as_mut().poll(cx) {
                Poll::Ready(reply) => Poll::Ready(Some(reply)),
                Poll::Pending if attempts.is_silent(attempt) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            match unless_answered(&mut self.silent, pin!(until_silent)).await {
                Ok(Some(reply)) if self.is_doubtful(&newest.asked, &reply) && !self.untried.is_empty() => {
                    self.set_aside(newest.asked, reply);
                    return None;
                }
                Ok(Some(reply)) => return self.judge(&newest.asked, reply),
                Ok(None) => {
                    self.silent.push(newest);
                    return None;
                }
                Err((asked, reply)) if self.is_doubtful(&asked, &reply) => self.set_aside(asked, reply),
                Err((asked, reply)) => {
                    if let Some(answer) = self.judge(&asked, reply) {
                        self.exchange.attempts.settle(attempt, Outcome::Overtaken, &"");
                        return Some(answer);
                    }
                }
            }
        }
    }

    /// Whether a stream has begun where streams have been found to stop in the middle.
    fn is_doubtful(&self, asked: &Asked, reply: &Reply) -> bool {
        let attempts = &self.exchange.attempts;
        matches!(reply, Reply::Stream(_))
            && attempts.is_silent(asked.attempt)
            && attempts.circuit(asked.attempt).stalls()
    }

    fn set_aside(&mut self, asked: Asked, reply: Reply) {
        if let Some(before) = self.aside.replace(Box::new((asked, reply))) {
            self.exchange.attempts.settle(before.0.attempt, Outcome::Overtaken, &"");
        }
    }

    fn judge(&mut self, asked: &Asked, reply: Reply) -> Option<Answer> {
        let verdict = judge(asked, reply, self.exchange, self.request.model());
        if let Some(id) = self.exchange.attempts.has_another_key(asked.attempt) {
            self.untried.insert(0, Candidate { id, is_rejected: false });
        }
        self.keep(verdict)
    }

    /// Returns an answer, or keeps a fallback if it is the most useful one so far.
    fn keep(&mut self, verdict: Verdict) -> Option<Answer> {
        match verdict {
            Verdict::Answer(answer) => Some(answer),
            Verdict::Missing(fallback) if self.best.is_none() && self.whose == Whose::Anybodys => Some(fallback.answer),
            Verdict::Longer(fallback) => {
                let (longer, live) = (&self.live.failover.fallback_on_context_length, self.live);
                self.untried.retain(|it| longer.iter().any(|name| name == live.providers[it.id.provider].name()));
                if self.untried.is_empty() {
                    return Some(fallback.answer);
                }
                self.best = Some(Box::new(fallback));
                None
            }
            Verdict::Next(fallback) | Verdict::Missing(fallback) => {
                if self.best.as_ref().is_none_or(|best| fallback.usefulness() >= best.usefulness()) {
                    self.best = Some(Box::new(fallback));
                }
                None
            }
        }
    }
}

fn kind_of(request: &Prepared) -> AnswerKind {
    if request.session.is_some() {
        AnswerKind::Session
    } else if request.asks_for_a_stream() {
        AnswerKind::Stream
    } else if request.asks_for_a_count() {
        AnswerKind::Count
    } else {
        AnswerKind::Whole
    }
}

fn circuit_ids(candidates: &[state::Candidate], kind: AnswerKind) -> impl Iterator<Item = CircuitId> {
    candidates.iter().map(move |(provider, model)| CircuitId { provider: *provider, model: *model, kind })
}

/// Runs `future` until it completes, or until one of the requests to `silent` providers is answered, which is then
/// taken out.
async fn unless_answered<T>(
    silent: &mut Vec<InFlight>,
    mut future: Pin<&mut impl Future<Output = T>>,
) -> Result<T, (Asked, Reply)> {
    poll_fn(|cx| {
        for at in 0..silent.len() {
            if let Poll::Ready(reply) = silent[at].reply.as_mut().poll(cx) {
                return Poll::Ready(Err((silent.remove(at).asked, reply)));
            }
        }
        future.as_mut().poll(cx).map(Ok)
    })
    .await
}
