//! Calls of plain threads, without a runtime.
//!
//! Not here: how a call waits: `breaker::wait`. It does so by the same steps; only what it sleeps on is the thread.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::CircuitBreaker;
use super::call::{Outcome, Shown};
use super::totals::Told;
use crate::error::{CallError, Rejection};
use crate::permit::Permit;
use crate::sync::{Instant, Notified, block_until};

impl CircuitBreaker {
    /// As [`acquire`](Self::acquire), for a thread that may block: it waits for a probe in flight, or for its turn, for
    /// `timeout` at most, and no longer than the wait limit. It needs no runtime. A task must not call it, as it would
    /// block the thread that runs the other tasks.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire). After `timeout`, it is that of the wait limit.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use fusebox::CircuitBreaker;
    ///
    /// let breaker = CircuitBreaker::builder("ldap").failure_threshold(1).build()?;
    /// let permit = breaker.acquire_blocking(Duration::from_secs(1))?;
    /// permit.failure("timeout", "no answer within 2 s");
    /// assert!(breaker.acquire_blocking(Duration::from_secs(1)).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn acquire_blocking(&self, timeout: Duration) -> Result<Permit<&Self>, Rejection> {
        let word = self.acquire_word_blocking(timeout).inspect_err(|_| self.count(Told::Rejection))?;
        Ok(Permit::new(self, word))
    }

    fn acquire_word_blocking(&self, timeout: Duration) -> Result<u64, Rejection> {
        let blocked = match self.admit_at_once(self.load()) {
            Ok(word) => return Ok(word),
            Err(blocked) => blocked,
        };
        let goal = self.what_to_wait_for(&blocked, false)?.within(timeout);
        let blocking = async |at: Instant, notified: Notified<'_>| block_until(at, notified);
        // It is never pending, as it blocks the thread instead.
        match pin!(self.wait(goal, blocking)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => answer,
            Poll::Pending => unreachable!("it blocks"),
        }
    }

    /// As [`call`](Self::call), for a function of a thread that may block. It waits for a probe as
    /// [`acquire_blocking`](Self::acquire_blocking) does, up to the wait limit.
    ///
    /// # Errors
    ///
    /// [`CallError::Rejected`] as [`acquire_blocking`](Self::acquire_blocking), without a call of `f`; otherwise the
    /// error of `f` in [`CallError::Inner`].
    ///
    /// # Panics
    ///
    /// If `f` does. An ordinary call then counts for nothing, and a probe as failed, of type `dropped`.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::{CallError, CircuitBreaker};
    ///
    /// let breaker = CircuitBreaker::builder("ldap").failure_threshold(1).build()?;
    /// assert_eq!(breaker.call_blocking(|| Err::<(), _>("boom")), Err(CallError::Inner("boom")));
    /// let answer = breaker.call_blocking(|| Err::<(), _>("never called"));
    /// assert!(matches!(answer, Err(CallError::Rejected(_))));
    /// # Ok::<(), fusebox::ConfigError>(())
    /// ```
    pub fn call_blocking<T, E: fmt::Debug>(&self, f: impl FnOnce() -> Result<T, E>) -> Result<T, CallError<E>> {
        let permit = self.acquire_blocking(Duration::MAX)?;
        let result = f();
        match &result {
            Ok(_) => permit.success(),
            Err(error) => permit.failure("error", Shown(error)),
        }
        result.map_err(CallError::Inner)
    }

    /// As [`call_blocking`](Self::call_blocking), with a judge of its own: see [`call_with`](Self::call_with).
    ///
    /// # Errors
    ///
    /// As [`call_blocking`](Self::call_blocking).
    ///
    /// # Panics
    ///
    /// As [`call_blocking`](Self::call_blocking), and if `judge` does.
    pub fn call_blocking_with<T, E>(
        &self,
        f: impl FnOnce() -> Result<T, E>,
        judge: impl FnOnce(&Result<T, E>) -> Outcome,
    ) -> Result<T, CallError<E>> {
        let permit = self.acquire_blocking(Duration::MAX)?;
        let result = f();
        permit.resolve(judge(&result));
        result.map_err(CallError::Inner)
    }
}
