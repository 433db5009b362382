//! The failover path: who is asked, who is asked next, and who is heard.
//!
//! Not here: how one provider is asked: `attempt`.

use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::http::Response;
use tracing::warn;

use super::answer;
use super::attempt::{Asked, Asking, Declined, First, Prepared, Question, Refusal, Running};
use super::classify::Outcome;
use super::client_body::Payload;
use super::cores::{Local, ProviderPermit};
use super::model;
use super::parts::Parts;
use super::record::Record;
use super::silence::Awaited;
use super::state::Live;
use super::upload::{Progress, Rest, Upload};
use super::upstream::RequestBody;
use crate::{CircuitBreaker, Permit, Rejection, RejectionReason};

/// An answer, and whose it is; without a provider it is the gateway's own.
pub(crate) type Answer = (Response<Payload>, Option<usize>);

/// A request on its way from one candidate to the next.
///
/// What is awaited on the usual way is kept small, and all else is in boxes: a request's future is one allocation of the size of
/// the largest of its states.
pub(crate) struct Failover<'a> {
    live: &'a Arc<Local>,
    record: &'a mut Record,
    request: Arc<Prepared>,
    /// Of a body of which a part is still with the client: it can be sent only once.
    rest: Option<Box<Rest>>,
    is_once: bool,
    /// In the order in which they are asked.
    candidates: &'a [usize],
    untried: Vec<Candidate>,
    /// Those that fell silent: each may still be the first to answer.
    silent: Vec<Running>,
    /// What is no answer, but better than nothing.
    best: Option<Box<(Declined, usize)>>,
}

struct Candidate {
    index: usize,
    /// Whether that has been counted.
    is_rejected: bool,
}

/// What is to be done next.
enum Step {
    Ask(usize, ProviderPermit),
    Pass(Answer),
    GiveUp,
}

impl<'a> Failover<'a> {
    pub(crate) fn new(
        live: &'a Arc<Local>,
        candidates: &'a [usize],
        record: &'a mut Record,
        request: Arc<Prepared>,
        rest: Option<Box<Rest>>,
    ) -> Self {
        let untried = candidates.iter().map(|index| Candidate { index: *index, is_rejected: false }).collect();
        let is_once = rest.is_some();
        if is_once {
            record.set_not_replayable();
        }
        Self { live, record, request, rest, is_once, candidates, untried, silent: Vec::new(), best: None }
    }

    /// Asks the candidates in their order until one has answered. `None` if none has.
    pub(crate) async fn run(&mut self) -> Option<Answer> {
        loop {
            let (index, permit) = match next_at_once(self.live, &mut self.untried, &mut Vec::new()) {
                Some(next) => next,
                None => match Box::pin(self.next()).await {
                    Step::Ask(index, permit) => (index, permit),
                    Step::Pass(answer) => return Some(answer),
                    Step::GiveUp => return None,
                },
            };
            let (running, progress) = self.ask(index, permit);
            let answer = self.wait(running).await;
            if let Some(progress) = &progress {
                self.record.set_bytes_in(progress.bytes());
                self.record.set_closes(!progress.is_whole());
            }
            if answer.is_some() || self.is_once {
                return answer;
            }
        }
    }

    /// The answer, if it has to be the best of what was no answer.
    pub(crate) fn finish(self, found: Option<Answer>) -> Answer {
        for running in self.silent {
            self.record.listen(running.asking.attempt, async move { running.call.await.is_good() });
        }
        let model = self.request.named.as_ref().map(|named| named.model.as_str());
        let answer = found.unwrap_or_else(|| match self.best {
            Some(best) => {
                let (declined, index) = *best;
                (declined.answer, declined.is_its_own.then_some(index))
            }
            None => (answer::unavailable(model, soonest(self.live, self.candidates)).map(Payload::Whole), None),
        });
        if answer.0.status().is_server_error() {
            warn!(model, status = answer.0.status().as_u16(), "no provider could answer");
        }
        answer
    }

    fn ask(&mut self, index: usize, permit: ProviderPermit) -> (Running, Option<Arc<Progress>>) {
        let provider = &self.live.providers[index];
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
            // There is no other one to ask, and how long it takes is for the client to say.
            _ if self.is_once => None,
            Some(named) if named.is_stream => Some(Awaited::Stream),
            _ => Some(Awaited::Answer),
        };
        let attempt = self.record.begin_attempt(index, permit, awaited);
        let question = Question {
            upstream: Arc::clone(&self.live.upstreams[index]),
            request: Arc::clone(&self.request),
            body,
            progress: progress.clone(),
            max_held: self.live.server.replay_answer_bytes,
            core: Arc::clone(self.record.core()),
            started: self.record.attempt_started(attempt),
            timer: self.record.timer(),
        };
        (provider.ask(attempt, question), progress)
    }

    /// The next candidate where that is not clear at once: one has to be waited for, or there are some that fell silent and may
    /// answer meanwhile; if there is no other, they are waited for.
    async fn next(&mut self) -> Step {
        loop {
            let next = {
                let next = pin!(next_admitted(self.live, &mut self.untried));
                unless_answered(&mut self.silent, next).await
            };
            let (late, first, is_needed) = match next {
                Ok(Some((index, permit))) => return Step::Ask(index, permit),
                Ok(None) if self.silent.is_empty() => return Step::GiveUp,
                Ok(None) => {
                    let Err((late, first)) = unless_answered(&mut self.silent, pin!(pending::<Infallible>())).await;
                    (late, first, true)
                }
                Err((late, first)) => (late, first, false),
            };
            if let Some(answer) = self.judge(&late, first, is_needed).await {
                return Step::Pass(answer);
            }
        }
    }

    /// Waits for an answer of the newest attempt, or of one that fell silent before. `None` if the next candidate is to be
    /// asked: it is no answer, or there is none while the provider is silent.
    async fn wait(&mut self, mut newest: Running) -> Option<Answer> {
        let attempt = newest.asking.attempt;
        loop {
            let record = &*self.record;
            let until_silent = poll_fn(|cx| match newest.call.as_mut().poll(cx) {
                Poll::Ready(first) => Poll::Ready(Some(first)),
                Poll::Pending if record.is_silent(attempt) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            match unless_answered(&mut self.silent, pin!(until_silent)).await {
                Ok(Some(first)) => {
                    return match newest.asking.judge(first, self.record) {
                        Ok(asked) => self.keep(&newest.asking, asked),
                        Err(refusal) => Box::pin(self.refuse(&newest.asking, refusal, true)).await,
                    };
                }
                Ok(None) => {
                    self.silent.push(newest);
                    return None;
                }
                Err((late, first)) => {
                    if let Some(answer) = Box::pin(self.judge(&late, first, false)).await {
                        self.record.settle(attempt, Outcome::Overtaken, &"");
                        return Some(answer);
                    }
                }
            }
        }
    }

    /// Judges what came of an attempt. What is no answer is kept, if it is the best until now.
    async fn judge(&mut self, asking: &Asking, first: First, is_needed: bool) -> Option<Answer> {
        match asking.judge(first, self.record) {
            Ok(asked) => self.keep(asking, asked),
            Err(refusal) => self.refuse(asking, refusal, is_needed).await,
        }
    }

    async fn refuse(&mut self, asking: &Asking, refusal: Refusal, is_needed: bool) -> Option<Answer> {
        let asked = asking.refused(refusal, self.record.core(), &self.live.server, is_needed).await;
        self.keep(asking, asked)
    }

    fn keep(&mut self, asking: &Asking, asked: Asked) -> Option<Answer> {
        let provider = self.record.provider(asking.attempt);
        match asked {
            Asked::Answered(response) => Some((response, Some(provider))),
            Asked::Refused(response) => Some((response, None)),
            Asked::Declined(declined) => {
                if self.best.as_ref().is_none_or(|best| declined.usefulness() >= best.0.usefulness()) {
                    self.best = Some(Box::new((declined, provider)));
                }
                None
            }
        }
    }
}

/// Runs `future`, unless one of those that fell silent has something to say before. That is taken out of them.
async fn unless_answered<T>(
    silent: &mut Vec<Running>,
    mut future: Pin<&mut impl Future<Output = T>>,
) -> Result<T, (Asking, First)> {
    poll_fn(|cx| {
        for at in 0..silent.len() {
            if let Poll::Ready(first) = silent[at].call.as_mut().poll(cx) {
                return Poll::Ready(Err((silent.remove(at).asking, first)));
            }
        }
        future.as_mut().poll(cx).map(Ok)
    })
    .await
}

/// Takes the first provider out of `untried` that lets the request pass now. `worth_a_wait`: those that have
/// a probe in flight, or are only silent.
fn next_at_once(
    live: &Arc<Local>,
    untried: &mut Vec<Candidate>,
    worth_a_wait: &mut Vec<usize>,
) -> Option<(usize, ProviderPermit)> {
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
                if matches!(rejection.reason(), RejectionReason::ProbeInFlight | RejectionReason::Silent) {
                    worth_a_wait.push(index);
                }
            }
        }
    }
    None
}

/// The same, and waits if need be. A probe is claimed only by the request that is sent with it, and nobody is waited for while
/// somebody else can answer.
async fn next_admitted(live: &Arc<Local>, untried: &mut Vec<Candidate>) -> Option<(usize, ProviderPermit)> {
    loop {
        let mut awaited = Vec::new();
        let next = next_at_once(live, untried, &mut awaited);
        if next.is_some() || awaited.is_empty() {
            return next;
        }
        let granted = first_granted(live, &awaited).await;
        if let Some((index, permit)) = granted {
            untried.retain(|other| other.index != index);
            return Some((index, permit));
        }
        // Each is waited for once. Then whoever is left is looked at again: their open time may have passed.
        untried.retain(|candidate| !awaited.contains(&candidate.index));
    }
}

/// Waits for all these providers at once, until one lets the request pass.
async fn first_granted(live: &Arc<Local>, awaited: &[usize]) -> Option<(usize, ProviderPermit)> {
    type Wait<'a> = Pin<Box<dyn Future<Output = Result<Permit<&'a CircuitBreaker>, Rejection>> + Send + 'a>>;
    let wait = |index: &usize| Some(Box::pin(live.providers[*index].breaker.acquire_through_silence()) as Wait<'_>);
    let mut waits: Vec<Option<Wait<'_>>> = awaited.iter().map(wait).collect();
    poll_fn(|cx| {
        for (slot, index) in waits.iter_mut().zip(awaited) {
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
