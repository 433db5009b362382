//! The protocol for callers that have nothing but a name, and cannot carry a permit from one callback to the next.
//!
//! Not here: how a name finds its breaker: `registry`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::CircuitBreakerRegistry;
use crate::breaker::{CircuitBreaker, Told};
use crate::error::{CircuitOpenError, RejectionReason};
use crate::permit::{Permit, PermitType};
use crate::word;

impl CircuitBreakerRegistry {
    /// Asks for a permit, and waits for the result of a probe in flight. An unknown name is allowed.
    ///
    /// # Errors
    ///
    /// As [`CircuitBreaker::acquire`], in full.
    ///
    /// # Cancel safety
    ///
    /// As [`CircuitBreaker::acquire`]. After it has returned [`PermitType::Probe`], the caller has to resolve the
    /// probe. If the caller forgets, the lease ends it.
    ///
    /// # Panics
    ///
    /// As [`CircuitBreaker::acquire`].
    #[inline]
    pub fn acquire_permit<'a>(
        &'a self,
        name: &'a str,
    ) -> impl Future<Output = Result<PermitType, CircuitOpenError>> + Send + 'a {
        AcquirePermit { registry: self, name, wait: None }
    }

    /// As [`acquire_permit`](Self::acquire_permit), but never waits: while a probe is in flight, the call is rejected.
    ///
    /// # Errors
    ///
    /// As [`CircuitBreaker::try_acquire`], in full.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::{CircuitBreakerRegistry, PermitType};
    ///
    /// let breakers = CircuitBreakerRegistry::new(["openai"]);
    /// assert_eq!(breakers.try_acquire_permit("openai")?, PermitType::Normal);
    /// for _ in 0..3 {
    ///     breakers.record_failure("openai", "timeout", "no answer within 2 s");
    /// }
    /// assert_eq!(breakers.try_acquire_permit("openai").unwrap_err().provider(), "openai");
    /// # Ok::<(), fusebox::CircuitOpenError>(())
    /// ```
    pub fn try_acquire_permit(&self, name: &str) -> Result<PermitType, CircuitOpenError> {
        let answer = self.with(name, |breaker| match breaker.try_acquire_word() {
            Ok(word) => Ok(PermitType::of(word)),
            Err(rejection) => Err(breaker.explain(rejection)),
        });
        answer.unwrap_or(Ok(PermitType::Normal))
    }

    /// A normal call succeeded. Returns whether that counted: not for an unknown name, and not unless the circuit is
    /// closed.
    pub fn record_success(&self, name: &str) -> bool {
        self.record(name, |breaker| resolve(breaker, PermitType::Normal, Told::Success, Permit::succeed))
    }

    /// A normal call failed; see [`Permit::failure`]. Returns whether that counted, as
    /// [`record_success`](Self::record_success) does.
    ///
    /// # Panics
    ///
    /// If formatting `message` does.
    pub fn record_failure(&self, name: &str, error_type: &str, message: impl fmt::Display) -> bool {
        self.record(name, |breaker| {
            resolve(breaker, PermitType::Normal, Told::Failure, |permit| permit.fail(error_type, &message))
        })
    }

    /// The probe succeeded: the circuit closes. Returns whether that counted: not for an unknown name, not unless a
    /// probe is in flight, and not if another caller resolves it or takes it over at the same time.
    pub fn record_probe_success(&self, name: &str) -> bool {
        self.record(name, |breaker| resolve(breaker, PermitType::Probe, Told::Success, Permit::succeed))
    }

    /// The probe failed: the circuit opens again. Returns whether that counted, as
    /// [`record_probe_success`](Self::record_probe_success) does.
    ///
    /// # Panics
    ///
    /// If formatting `message` does; the probe then counts as dropped.
    pub fn record_probe_failure(&self, name: &str, error_type: &str, message: impl fmt::Display) -> bool {
        self.record(name, |breaker| {
            resolve(breaker, PermitType::Probe, Told::Failure, |permit| permit.fail(error_type, &message))
        })
    }

    fn record(&self, name: &str, outcome: impl FnOnce(&CircuitBreaker) -> bool) -> bool {
        self.with(name, |breaker| outcome(breaker)).unwrap_or(false)
    }
}

type Admission = Result<PermitType, CircuitOpenError>;
type Wait = Pin<Box<dyn Future<Output = Admission> + Send>>;

/// Written by hand as `Acquire` is: an `async fn` took three times as long.
struct AcquirePermit<'a> {
    registry: &'a CircuitBreakerRegistry,
    name: &'a str,
    wait: Option<Wait>,
}

impl Future for AcquirePermit<'_> {
    type Output = Admission;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Admission> {
        if self.wait.is_none() && self.registry.with(self.name, |breaker| word::passes(breaker.load())) != Some(false) {
            return Poll::Ready(Ok(PermitType::Normal));
        }
        self.poll_blocked(cx)
    }
}

impl AcquirePermit<'_> {
    #[cold]
    fn poll_blocked(&mut self, cx: &mut Context<'_>) -> Poll<Admission> {
        if let Some(wait) = &mut self.wait {
            return wait.as_mut().poll(cx);
        }
        // A rejection does not touch the breaker's reference count, for which its callers would compete.
        match self.registry.with(self.name, ask) {
            None => Poll::Ready(Ok(PermitType::Normal)),
            Some(Ok(answer)) => Poll::Ready(answer),
            Some(Err(wait)) => self.wait.insert(wait).as_mut().poll(cx),
        }
    }
}

/// The result, or the wait for it.
#[cold]
fn ask(breaker: &Arc<CircuitBreaker>) -> Result<Admission, Wait> {
    // Not asked twice: on a ramp, a call has one chance.
    if word::open_until(breaker.load()).is_some() {
        match breaker.try_acquire_word() {
            Ok(word) => return Ok(Ok(PermitType::of(word))),
            Err(rejection) if rejection.reason() == RejectionReason::ProbeInFlight => {}
            Err(rejection) => return Ok(Err(breaker.explain(rejection))),
        }
    }
    let breaker = Arc::clone(breaker);
    Err(Box::pin(async move {
        let permit = breaker.acquire().await;
        permit.map(|permit| PermitType::of(permit.into_word())).map_err(|rejection| breaker.explain(rejection))
    }))
}

#[inline]
fn resolve<'a>(
    breaker: &'a CircuitBreaker,
    kind: PermitType,
    told: Told,
    outcome: impl FnOnce(Permit<&'a CircuitBreaker>) -> bool,
) -> bool {
    let Some(permit) = Permit::standing_in(breaker, kind) else {
        breaker.count(told);
        return false;
    };
    outcome(permit)
}
