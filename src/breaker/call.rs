//! Calls that are a future: asked for, run, and judged by their result.
//!
//! Not here: the protocol: a call takes a permit and resolves it, as anybody could.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use super::CircuitBreaker;
use crate::error::{CallError, is_rejection};
use crate::permit::Permit;

/// How a call went, as [`CircuitBreaker::call_with`] wants to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It went well: as [`Permit::success`].
    Success,
    /// The upstream failed: as [`Permit::failure`].
    Failure {
        /// A short kind such as `timeout`.
        error_type: String,
        /// What there is to say about it.
        message: String,
    },
    /// The upstream said when to come back: as [`Permit::cool_down`].
    CoolDown {
        /// For how long the circuit is open.
        duration: Duration,
        /// A short kind such as `429`.
        error_type: String,
        /// What there is to say about it.
        message: String,
    },
    /// It says nothing about the upstream: as [`Permit::cancel`].
    Neutral,
}

impl Outcome {
    /// The upstream failed.
    pub fn failure(error_type: impl Into<String>, message: impl fmt::Display) -> Self {
        Self::Failure { error_type: error_type.into(), message: message.to_string() }
    }

    /// The upstream said when to come back.
    pub fn cool_down(duration: Duration, error_type: impl Into<String>, message: impl fmt::Display) -> Self {
        Self::CoolDown { duration, error_type: error_type.into(), message: message.to_string() }
    }

    /// `Ok` is a success, a rejection by any breaker neutral, and every other error a failure of type `error`.
    pub fn of<T, E: Error + 'static>(result: &Result<T, E>) -> Self {
        match result {
            Ok(_) => Self::Success,
            Err(error) => Self::of_error(error),
        }
    }

    /// The same of an error that is at hand as a reference only, such as what `anyhow::Error` derefs to.
    pub fn of_error(error: &(dyn Error + 'static)) -> Self {
        if is_rejection(error) { Self::Neutral } else { Self::failure("error", error) }
    }
}

impl CircuitBreaker {
    /// Runs `future` if the circuit lets it, waiting for a probe in flight, and records its result: `Ok` is a success,
    /// `Err` a failure of type `error`, with what `Debug` shows of it as its message. Where some errors are nobody's
    /// fault, or `future` has a breaker inside, use [`call_with`](Self::call_with).
    ///
    /// # Errors
    ///
    /// [`CallError::Rejected`] as [`acquire`](Self::acquire), without `future` having been polled; otherwise the
    /// future's own error in [`CallError::Inner`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops `future`. An ordinary call then counts for nothing; a probe counts as failed, type `dropped`,
    /// unless [`cancel_on_drop`](Self::cancel_on_drop) was chosen.
    ///
    /// # Panics
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), fusebox::ConfigError> {
    /// use fusebox::{CallError, CircuitBreaker};
    ///
    /// let breaker = CircuitBreaker::builder("openai").failure_threshold(1).build()?;
    /// let answer = breaker.call(async { Err::<(), _>("boom") }).await;
    /// assert_eq!(answer, Err(CallError::Inner("boom")));
    ///
    /// let answer = breaker.call(async { Err::<(), _>("never polled") }).await;
    /// assert!(matches!(answer, Err(CallError::Rejected(_))));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn call<T, E: fmt::Debug>(&self, future: impl Future<Output = Result<T, E>>) -> Result<T, CallError<E>> {
        // Not by way of `run`: a future within a future costs half of the call.
        let permit = self.acquire().await?;
        match future.await {
            Ok(value) => {
                permit.success();
                Ok(value)
            }
            Err(error) => {
                permit.failure("error", Shown(&error));
                Err(CallError::Inner(error))
            }
        }
    }

    /// As [`call`](Self::call), with a judge of its own: `judge` sees the result and says how the call went.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    ///
    /// # Cancel safety
    ///
    /// As [`call`](Self::call).
    ///
    /// # Panics
    ///
    /// As [`acquire`](Self::acquire). If `judge` panics, a probe counts as dropped.
    ///
    /// # Examples
    ///
    /// A breaker for each model inside one for the provider: what the inner one rejects says nothing about the
    /// provider.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::io;
    ///
    /// use fusebox::{CircuitBreaker, CircuitState, Outcome};
    ///
    /// let provider = CircuitBreaker::builder("openai").failure_threshold(2).build()?;
    /// let model = CircuitBreaker::builder("openai/gpt-4.1").failure_threshold(1).build()?;
    /// for _ in 0..5 {
    ///     let chat = async { Err::<(), _>(io::Error::other("no such deployment")) };
    ///     assert!(provider.call_with(model.call(chat), Outcome::of).await.is_err());
    /// }
    /// assert_eq!((model.state(), provider.state()), (CircuitState::Open, CircuitState::Closed));
    ///
    /// // A status that is the caller's own fault.
    /// let missing = async { Ok::<_, io::Error>(404) };
    /// let judge = |answer: &Result<u16, io::Error>| match answer {
    ///     Ok(500..) => Outcome::failure("5xx", "the server failed"),
    ///     Ok(400..) => Outcome::Neutral,
    ///     other => Outcome::of(other),
    /// };
    /// assert_eq!(provider.call_with(missing, judge).await?, 404);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn call_with<T, E>(
        &self,
        future: impl Future<Output = Result<T, E>>,
        judge: impl FnOnce(&Result<T, E>) -> Outcome,
    ) -> Result<T, CallError<E>> {
        run(self.acquire().await?, future, |permit, result| permit.resolve(judge(result))).await
    }

    /// The same calls, where one that is dropped before its end counts for nothing even if it is the probe: for a
    /// server whose own client may leave at any time, which is not the upstream's failure.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use fusebox::{CircuitBreaker, Outcome};
    ///
    /// let breaker = CircuitBreaker::builder("openai").build()?;
    /// let answer = async { Ok::<_, std::io::Error>(200) };
    /// assert_eq!(breaker.cancel_on_drop().call_with(answer, Outcome::of).await?, 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancel_on_drop(&self) -> CancelOnDrop<'_> {
        CancelOnDrop(self)
    }
}

/// A breaker whose calls may be dropped: see [`CircuitBreaker::cancel_on_drop`].
#[derive(Clone, Copy, Debug)]
#[must_use = "it calls nothing by itself"]
pub struct CancelOnDrop<'a>(&'a CircuitBreaker);

impl CancelOnDrop<'_> {
    /// As [`CircuitBreaker::call`].
    ///
    /// # Errors
    ///
    /// As [`CircuitBreaker::call`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops `future`, and the call counts for nothing; a probe is handed back.
    ///
    /// # Panics
    ///
    /// As [`CircuitBreaker::acquire`].
    pub async fn call<T, E: fmt::Debug>(self, future: impl Future<Output = Result<T, E>>) -> Result<T, CallError<E>> {
        run(self.0.acquire().await?.cancel_on_drop(), future, record).await
    }

    /// As [`CircuitBreaker::call_with`].
    ///
    /// # Errors
    ///
    /// As [`CircuitBreaker::call`].
    ///
    /// # Cancel safety
    ///
    /// As [`call`](Self::call).
    ///
    /// # Panics
    ///
    /// As [`CircuitBreaker::acquire`].
    pub async fn call_with<T, E>(
        self,
        future: impl Future<Output = Result<T, E>>,
        judge: impl FnOnce(&Result<T, E>) -> Outcome,
    ) -> Result<T, CallError<E>> {
        let permit = self.0.acquire().await?.cancel_on_drop();
        run(permit, future, |permit, result| permit.resolve(judge(result))).await
    }
}

async fn run<'a, T, E>(
    permit: Permit<&'a CircuitBreaker>,
    future: impl Future<Output = Result<T, E>>,
    record: impl FnOnce(Permit<&'a CircuitBreaker>, &Result<T, E>),
) -> Result<T, CallError<E>> {
    let result = future.await;
    record(permit, &result);
    result.map_err(CallError::Inner)
}

#[inline]
fn record<T, E: fmt::Debug>(permit: Permit<&CircuitBreaker>, result: &Result<T, E>) {
    match result {
        Ok(_) => permit.success(),
        Err(error) => permit.failure("error", Shown(error)),
    }
}

/// An error that need have no more than `Debug`. A text is shown without its quotes.
pub(super) struct Shown<'a, E>(pub(super) &'a E);

impl<E: fmt::Debug> fmt::Display for Shown<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:?}", self.0);
        let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        f.write_str(quoted.unwrap_or(&text))
    }
}
