//! The failover path: which candidate is asked, which one next, and whose answer the client gets.
//!
//! Not here: how one provider is asked: `ask`.

use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tracing::warn;

use super::ask::{Asked, ErrorReply, InFlight, Question, Reply, ask};
use super::exchange::Exchange;
use super::judge::{Answer, Fallback, Verdict, error_verdict, judge};
use super::stream::Payload;
use crate::proxy::answer;
use crate::proxy::body::parts::Parts;
use crate::proxy::core::{Local, ProviderPermit};
use crate::proxy::outcome::Outcome;
use crate::proxy::provider::ProviderId;
use crate::proxy::request::upload::{Progress, Rest, Upload};
use crate::proxy::request::{Prepared, model};
use crate::proxy::silence::Awaited;
use crate::proxy::state::Live;
use crate::proxy::upstream::RequestBody;
use crate::{Cause, CircuitBreaker, Permit, Rejection, RejectionReason};

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
    /// In the order in which they are asked.
    candidates: &'a [ProviderId],
    untried: Vec<Candidate>,
    /// Requests to providers that were found silent. Each may still be the first to be answered.
    silent: Vec<InFlight>,
    /// The most useful failure so far.
    best: Option<Box<Fallback>>,
}

struct Candidate {
    id: ProviderId,
    /// Whether its rejection has been counted.
    is_rejected: bool,
}

/// What is to be done next.
enum Step {
    Ask(ProviderId, ProviderPermit),
    Pass(Answer),
    GiveUp,
}

impl<'a> Failover<'a> {
    pub(crate) fn new(
        live: &'a Arc<Local>,
        candidates: &'a [ProviderId],
        exchange: &'a mut Exchange,
        request: Arc<Prepared>,
        rest: Option<Box<Rest>>,
    ) -> Self {
        let untried = candidates.iter().map(|id| Candidate { id: *id, is_rejected: false }).collect();
        let is_once = rest.is_some();
        exchange.facts.is_replayable = !is_once;
        Self { live, exchange, request, rest, is_once, candidates, untried, silent: Vec::new(), best: None }
    }

    /// Asks the candidates in their order until one has answered. `None` if none has.
    pub(crate) async fn run(&mut self) -> Option<Answer> {
        loop {
            let (id, permit) = match next_at_once(self.live, &mut self.untried, &mut Vec::new()) {
                Some(next) => next,
                None => match Box::pin(self.next()).await {
                    Step::Ask(id, permit) => (id, permit),
                    Step::Pass(answer) => return Some(answer),
                    Step::GiveUp => return None,
                },
            };
            let (newest, progress) = self.ask(id, permit);
            let answer = self.wait(newest).await;
            if let Some(progress) = &progress {
                self.exchange.facts.bytes_in = progress.bytes();
                self.exchange.facts.closes = !progress.is_whole();
            }
            if answer.is_some() || self.is_once {
                return answer;
            }
        }
    }

    /// The winning answer, or else the most useful failure.
    pub(crate) fn finish(self, found: Option<Answer>) -> Answer {
        for InFlight { reply, asked } in self.silent {
            self.exchange.attempts.listen(asked.attempt, async move { reply.await.is_good() });
        }
        let model = self.request.named.as_ref().map(|named| named.model.as_str());
        let answer = found.unwrap_or_else(|| {
            if let Some(best) = self.best {
                return best.answer;
            }
            let retry_after = soonest(self.live, self.candidates);
            Answer { response: answer::unavailable(model, retry_after).map(Payload::Whole), provider: None }
        });
        let status = answer.response.status();
        if status.is_server_error() {
            warn!(model, status = status.as_u16(), "no provider could answer");
        }
        answer
    }

    fn ask(&mut self, id: ProviderId, permit: ProviderPermit) -> (InFlight, Option<Arc<Progress>>) {
        let provider = &self.live.providers[id];
        let Prepared { body, format, named, .. } = &*self.request;
        let body = match named.as_ref().and_then(|named| Some((named, provider.config.models.get(&named.model)?))) {
            Some((named, there)) if *there != named.model => model::rename(format, body, named, there),
            _ => Parts::from(body.clone()),
        };
        let (body, progress) = match self.rest.take() {
            None => (RequestBody::Whole(body), None),
            Some(rest) => {
                let (upload, progress) = Upload::new(body, rest);
                (RequestBody::Upload(Box::new(upload)), Some(progress))
            }
        };
        let awaited = match named {
            // No other provider can be asked, and how long it takes depends on the client.
            _ if self.is_once => None,
            Some(named) if named.is_stream => Some(Awaited::Stream),
            _ => Some(Awaited::Answer),
        };
        let attempts = &mut self.exchange.attempts;
        let attempt = attempts.begin(id, permit, self.request.model(), awaited);
        let question = Question {
            upstream: Arc::clone(&self.live.upstreams[id]),
            request: Arc::clone(&self.request),
            body,
            progress: progress.clone(),
            max_held: self.live.server.replay_answer_bytes,
            core: Arc::clone(attempts.core()),
            started: attempts.started(attempt),
            timer: attempts.timer(attempt),
        };
        (ask(provider, attempt, question), progress)
    }

    /// The next candidate when none can be asked at once. Waits for a probe, or for a request to a silent provider to
    /// be answered, whichever comes first.
    async fn next(&mut self) -> Step {
        loop {
            let next = {
                let next = pin!(next_admitted(self.live, &mut self.untried));
                unless_answered(&mut self.silent, next).await
            };
            // With no other candidate left the client waits for what an error says.
            let (asked, reply, waits) = match next {
                Ok(Some((id, permit))) => return Step::Ask(id, permit),
                Ok(None) if self.silent.is_empty() => return Step::GiveUp,
                Ok(None) => {
                    let Err((asked, reply)) = unless_answered(&mut self.silent, pin!(pending::<Infallible>())).await;
                    (asked, reply, true)
                }
                Err((asked, reply)) => (asked, reply, false),
            };
            if let Some(answer) = self.judge(&asked, reply, waits).await {
                return Step::Pass(answer);
            }
        }
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
                Ok(Some(reply)) => {
                    return match judge(&newest.asked, reply, self.exchange, self.request.model()) {
                        Ok(verdict) => self.keep(verdict),
                        Err(error) => Box::pin(self.judge_error(&newest.asked, *error, true)).await,
                    };
                }
                Ok(None) => {
                    self.silent.push(newest);
                    return None;
                }
                Err((asked, reply)) => {
                    if let Some(answer) = Box::pin(self.judge(&asked, reply, false)).await {
                        self.exchange.attempts.settle(attempt, Outcome::Overtaken, &"");
                        return Some(answer);
                    }
                }
            }
        }
    }

    async fn judge(&mut self, asked: &Asked, reply: Reply, waits: bool) -> Option<Answer> {
        match judge(asked, reply, self.exchange, self.request.model()) {
            Ok(verdict) => self.keep(verdict),
            Err(error) => self.judge_error(asked, *error, waits).await,
        }
    }

    async fn judge_error(&mut self, asked: &Asked, error: ErrorReply, waits: bool) -> Option<Answer> {
        let attempts = &self.exchange.attempts;
        let id = attempts.provider(asked.attempt);
        let verdict = error_verdict(asked, id, error, attempts.core(), &self.live.server, waits).await;
        self.keep(verdict)
    }

    /// Returns an answer, or keeps a fallback if it is the most useful one so far.
    fn keep(&mut self, verdict: Verdict) -> Option<Answer> {
        match verdict {
            Verdict::Answer(answer) => Some(answer),
            Verdict::Next(fallback) => {
                if self.best.as_ref().is_none_or(|best| fallback.usefulness() >= best.usefulness()) {
                    self.best = Some(Box::new(fallback));
                }
                None
            }
        }
    }
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

/// Takes the first provider out of `untried` that lets the request pass now. Fills `worth_a_wait` with those that have
/// a probe in flight or are only silent.
fn next_at_once(
    live: &Arc<Local>,
    untried: &mut Vec<Candidate>,
    worth_a_wait: &mut Vec<ProviderId>,
) -> Option<(ProviderId, ProviderPermit)> {
    for at in 0..untried.len() {
        let Candidate { id, is_rejected } = untried[at];
        match live.try_acquire(id) {
            Ok(permit) => {
                untried.remove(at);
                return Some((id, permit));
            }
            Err(rejection) => {
                if !is_rejected {
                    live.providers[id].metrics.reject();
                    untried[at].is_rejected = true;
                }
                let is_worth_a_wait = matches!(
                    rejection.reason(),
                    RejectionReason::ProbeInFlight | RejectionReason::Recovering | RejectionReason::Silent
                );
                if is_worth_a_wait {
                    worth_a_wait.push(id);
                }
            }
        }
    }
    None
}

/// As [`next_at_once`], and waits if no provider lets the request pass now. Only the request that is sent with a probe
/// claims it, and nobody waits for one provider while another can answer.
async fn next_admitted(live: &Arc<Local>, untried: &mut Vec<Candidate>) -> Option<(ProviderId, ProviderPermit)> {
    loop {
        let mut awaited = Vec::new();
        let next = next_at_once(live, untried, &mut awaited);
        if next.is_some() || awaited.is_empty() {
            return next;
        }
        let granted = first_granted(live, &awaited).await;
        if let Some((id, permit)) = granted {
            untried.retain(|other| other.id != id);
            return Some((id, permit));
        }
        // Each is waited for once. The rest is asked again: its open time may have passed meanwhile.
        untried.retain(|candidate| !awaited.contains(&candidate.id));
    }
}

/// Waits for all these providers at once, until one lets the request pass.
async fn first_granted(live: &Arc<Local>, awaited: &[ProviderId]) -> Option<(ProviderId, ProviderPermit)> {
    type Wait<'a> = Pin<Box<dyn Future<Output = Result<Permit<&'a CircuitBreaker>, Rejection>> + Send + 'a>>;
    let wait = |id: &ProviderId| Some(Box::pin(live.providers[*id].breaker.acquire_through_silence()) as Wait<'_>);
    let mut waits: Vec<Option<Wait<'_>>> = awaited.iter().map(wait).collect();
    poll_fn(|cx| {
        for (slot, id) in waits.iter_mut().zip(awaited) {
            let Some(wait) = slot else { continue };
            match wait.as_mut().poll(cx) {
                Poll::Ready(Ok(permit)) => return Poll::Ready(Some((*id, live.hold(*id, permit)))),
                Poll::Ready(Err(_)) => *slot = None,
                Poll::Pending => {}
            }
        }
        if waits.iter().all(Option::is_none) { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// The shortest time until one of the candidates takes a request again. A probe in flight is likely to end before its
/// lease. `None` if all are isolated.
fn soonest(live: &Live, candidates: &[ProviderId]) -> Option<Duration> {
    let snapshots = candidates.iter().map(|id| live.providers[*id].breaker.snapshot());
    let known = snapshots.filter(|snapshot| snapshot.cause != Some(Cause::Isolated));
    known.map(|snapshot| snapshot.next_probe_in.unwrap_or_default()).min()
}
