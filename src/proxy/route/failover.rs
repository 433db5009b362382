//! The failover path: which candidate is asked, which one next, and whose answer the client gets.
//!
//! Not here: how one provider is asked: `ask`.

use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

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
        let (silent, best, progress) = (Vec::new(), None, None);
        Self { live, exchange, request, rest, is_once, progress, candidates, untried, silent, best }
    }

    /// Asks the candidates in their order until one has answered. `None` if none has.
    pub(crate) async fn run(&mut self) -> Option<Answer> {
        let found = loop {
            let at_once = if self.silent.is_empty() {
                next_at_once(self.live, &mut self.untried, &mut Refused::default())
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

    /// Sends the request to a provider, which is silent if there is no permit.
    fn ask(&mut self, id: ProviderId, permit: Option<ProviderPermit>) -> InFlight {
        let provider = &self.live.providers[id];
        let Prepared { body, format, named, .. } = &*self.request;
        let body = match named.as_ref().and_then(|named| Some((named, provider.config.models.get(&named.model)?))) {
            Some((named, there)) if *there != named.model => model::rename(format, body, named, there),
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
            progress: self.progress.clone(),
            max_held: self.live.server.replay_answer_bytes,
            core: Arc::clone(attempts.core()),
            started: attempts.started(attempt),
            timer: attempts.timer(attempt),
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
            if let Some((id, permit)) = self.admitted(&mut refused) {
                return Step::Ask(id, permit);
            }
            if self.silent.is_empty() {
                if let Some(id) = self.last_to_answer(&refused.silent) {
                    debug!(provider = self.live.providers[id].name(), "a request goes to a silent provider");
                    self.untried.retain(|candidate| candidate.id != id && !self.is_once);
                    let asked = self.ask(id, None);
                    self.silent.push(asked);
                } else if refused.awaited.is_empty() {
                    return Step::GiveUp;
                }
            }
            let (live, awaited, is_waiting) = (self.live, refused.awaited, !self.silent.is_empty());
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
                    self.untried.retain(|it| !awaited.contains(&it.id) || live.providers[it.id].is_silent());
                }
                Ok(None) => {}
                Err((asked, reply)) => {
                    // With no other attempt under way the client waits for what an error says.
                    let waits = self.silent.is_empty();
                    if let Some(answer) = self.judge(&asked, reply, waits).await {
                        return Step::Pass(answer);
                    }
                }
            }
        }
    }

    /// As [`next_at_once`], within the allowance for sending requests twice.
    fn admitted(&mut self, refused: &mut Refused) -> Option<(ProviderId, ProviderPermit)> {
        if !self.may_send_twice() {
            return None;
        }
        let (id, permit) = next_at_once(self.live, &mut self.untried, refused)?;
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
    fn last_to_answer(&self, silent: &[ProviderId]) -> Option<ProviderId> {
        let newest = |id: &ProviderId| self.live.providers[*id].silence.as_ref()?.newest_answer();
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

/// The candidates that do not let a request pass now, but may soon, or will if nobody else does.
#[derive(Default)]
struct Refused {
    /// They have a probe in flight, or recover.
    awaited: Vec<ProviderId>,
    silent: Vec<ProviderId>,
}

/// Takes the first provider out of `untried` that lets the request pass now.
fn next_at_once(
    live: &Arc<Local>,
    untried: &mut Vec<Candidate>,
    refused: &mut Refused,
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
                match rejection.reason() {
                    RejectionReason::Silent => refused.silent.push(id),
                    RejectionReason::ProbeInFlight if live.providers[id].is_silent() => refused.silent.push(id),
                    RejectionReason::ProbeInFlight | RejectionReason::Recovering => refused.awaited.push(id),
                    _ => {}
                }
            }
        }
    }
    None
}

/// As [`first_granted`], and waits on if none of them lets the request pass.
async fn first_granted_or_never(live: &Arc<Local>, awaited: &[ProviderId]) -> Option<(ProviderId, ProviderPermit)> {
    match first_granted(live, awaited).await {
        None => pending().await,
        granted => granted,
    }
}

/// Waits for all these providers at once, until one lets the request pass. Only the request that is sent with a probe
/// claims it, and nobody waits for one provider while another can answer.
async fn first_granted(live: &Arc<Local>, awaited: &[ProviderId]) -> Option<(ProviderId, ProviderPermit)> {
    type Wait<'a> = Pin<Box<dyn Future<Output = Result<Permit<&'a CircuitBreaker>, Rejection>> + Send + 'a>>;
    let wait = |id: &ProviderId| Some(Box::pin(live.providers[*id].breaker.acquire()) as Wait<'_>);
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
