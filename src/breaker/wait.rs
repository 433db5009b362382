//! Waiting for a probe in flight, or for one's turn while the circuit recovers.
//!
//! Not here: whether a call may pass, which the word decides anew after each wakeup.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::clock::duration;
use crate::config::MAX_DURATION;
use crate::error::{Rejection, RejectionReason};
use crate::permit::Permit;
use crate::sync::{AtomicUsize, Instant, Notified, Notify, Ordering, is_in_runtime, random, timeout_at};
use crate::word;

use super::CircuitBreaker;
use super::protocol::Blocked;
use super::totals::Told;

pub(super) struct Waiting {
    notify: Notify,
    /// It decides nothing but whether there is room for another waiter.
    count: AtomicUsize,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self { notify: Notify::new(), count: AtomicUsize::new(0) }
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    // To be called only after the word has changed.

    pub(super) fn notify_all(&self) {
        self.notify.notify_waiters();
    }

    /// Wakes the call that has waited longest. If it leaves before it looks, `Notify` wakes the next one in its place;
    /// if nobody waits, the next one to wait looks once more than it had to.
    pub(super) fn notify_one(&self) {
        self.notify.notify_one();
    }

    fn take_place(&self, max: usize) -> Option<Place<'_>> {
        // If there is no room, dropping the place gives it back.
        let place = Place(self);
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        (before < max).then_some(place)
    }
}

/// One waiter's place, given back when its wait ends or is cancelled.
struct Place<'a>(&'a Waiting);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) type Wait<'a> = Pin<Box<dyn Future<Output = Result<u64, Rejection>> + Send + 'a>>;

/// Asks for a permit, and waits if necessary. It is written by hand, with the wait in a box: in an `async fn` every
/// call would carry the space for a wait, at several times the cost of the call.
pub(crate) struct Acquire<'a> {
    breaker: &'a CircuitBreaker,
    wait: Option<Wait<'a>>,
}

impl<'a> Acquire<'a> {
    #[inline]
    pub(super) fn new(breaker: &'a CircuitBreaker) -> Self {
        Self { breaker, wait: None }
    }

    #[cold]
    fn poll_blocked(&mut self, cx: &mut Context<'_>) -> Poll<Result<Permit<&'a CircuitBreaker>, Rejection>> {
        let breaker = self.breaker;
        let answer = match &mut self.wait {
            Some(wait) => wait.as_mut().poll(cx),
            None => match breaker.admit_at_once(breaker.load()) {
                Ok(word) => Poll::Ready(Ok(word)),
                Err(blocked) => match breaker.what_a_task_waits_for(&blocked, false) {
                    Err(rejection) => Poll::Ready(Err(rejection)),
                    Ok(goal) => self.wait.insert(Box::pin(breaker.wait(goal, timeout_at))).as_mut().poll(cx),
                },
            },
        };
        #[cfg(feature = "metrics")]
        let answer = breaker.counted(answer);
        answer.map_ok(|word| Permit::new(breaker, word))
    }
}

impl<'a> Future for Acquire<'a> {
    type Output = Result<Permit<&'a CircuitBreaker>, Rejection>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.wait.is_none() {
            let word = self.breaker.load();
            if word::is_plain(word) {
                return Poll::Ready(Ok(Permit::new(self.breaker, word)));
            }
        }
        self.poll_blocked(cx)
    }
}

/// What a call waits for.
pub(super) struct Goal {
    /// The generation of the probe, or of the ramp. `None` if it waits for the end of a silence.
    waited_for: Option<u32>,
    /// The number that decides when the call has its turn. It is drawn once, or a waiter would have more chances than
    /// others.
    drawn: Option<u32>,
    /// The answer if there is no room.
    full: Rejection,
    through_silence: bool,
    /// Until when it waits at the latest, if that is before the wait limit has passed.
    latest: Option<Instant>,
}

impl Goal {
    /// Waits for no longer than `timeout`.
    pub(super) fn within(self, timeout: Duration) -> Self {
        Self { latest: Some(Instant::now() + timeout.min(MAX_DURATION)), ..self }
    }
}

impl CircuitBreaker {
    pub(super) fn what_to_wait_for(&self, blocked: &Blocked, through_silence: bool) -> Result<Goal, Rejection> {
        let (waited_for, drawn, left) = match *blocked {
            Blocked::ByProbe { generation, lease_left } => (Some(generation), None, lease_left),
            Blocked::ByRamp { generation, drawn, turn_left } => (Some(generation), Some(drawn), turn_left),
            Blocked::Rejected(rejection) if through_silence && rejection.reason() == RejectionReason::Silent => {
                let full = rejection.because(RejectionReason::TooManyWaiters);
                return Ok(Goal { waited_for: None, drawn: None, full, through_silence, latest: None });
            }
            Blocked::Rejected(rejection) => return Err(rejection),
        };
        let full = self.reject(RejectionReason::TooManyWaiters, None, left);
        Ok(Goal { waited_for, drawn, full, through_silence, latest: None })
    }

    /// The same for a call that waits as a task, which takes a runtime and its timer.
    pub(super) fn what_a_task_waits_for(&self, blocked: &Blocked, through_silence: bool) -> Result<Goal, Rejection> {
        let goal = self.what_to_wait_for(blocked, through_silence)?;
        if is_in_runtime() { Ok(goal) } else { Err(goal.full.because(RejectionReason::NoRuntime)) }
    }

    pub(super) async fn acquire_word_through_silence(&self) -> Result<u64, Rejection> {
        match self.admit_at_once(self.load()) {
            Ok(word) => Ok(word),
            Err(blocked) => self.wait(self.what_a_task_waits_for(&blocked, true)?, timeout_at).await,
        }
    }

    /// `timeout_at` is the runtime's, or one that blocks the thread.
    pub(super) async fn wait<'a, F: Future>(
        &'a self,
        goal: Goal,
        timeout_at: impl Fn(Instant, Notified<'a>) -> F,
    ) -> Result<u64, Rejection> {
        let Goal { mut waited_for, mut drawn, full, through_silence, latest } = goal;
        let Some(_place) = self.waiting.take_place(self.settings.max_waiters()) else { return Err(full) };
        self.count(Told::Wait);
        let give_up = Instant::now() + self.settings.wait_limit();
        let give_up = latest.map_or(give_up, |latest| latest.min(give_up));
        loop {
            // Before the word is read, so that no transition in between is missed.
            let notified = self.waiting.notify.notified();
            // Once: after a second reading, the wait would begin later than the time that `left` counts from.
            let now = Instant::now();
            let draw = || *drawn.get_or_insert_with(random);
            let (left, late) = match self.admit(self.load(), self.clock.tick_at(now), waited_for, draw) {
                Ok(word) => return Ok(word),
                Err(Blocked::ByProbe { generation, lease_left }) => {
                    waited_for = Some(generation);
                    let left = duration(lease_left);
                    (left, self.reject(RejectionReason::WaitLimit, None, lease_left))
                }
                Err(Blocked::ByRamp { generation, turn_left, .. }) => {
                    waited_for = Some(generation);
                    let (left, late) = (duration(turn_left), self.reject(RejectionReason::Recovering, None, turn_left));
                    // Its turn does not come any earlier, so there is no point in waiting for less.
                    if now + left > give_up {
                        return Err(late);
                    }
                    (left, late)
                }
                Err(Blocked::Rejected(rejection))
                    if through_silence && rejection.reason() == RejectionReason::Silent =>
                {
                    (rejection.retry_after().unwrap_or_default(), rejection)
                }
                Err(Blocked::Rejected(rejection)) => return Err(rejection),
            };
            if now >= give_up {
                return Err(late);
            }
            // It does not matter which of the two ends the wait: the word decides.
            let _ = timeout_at(give_up.min(now + left), notified).await;
        }
    }
}
