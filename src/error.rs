//! Why a call may not pass, first in two machine words and then, for whoever asks, in full.
//!
//! Not here: when a call is refused: `word` and `breaker`.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::duration;
use crate::sync::Instant;

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectionReason {
    /// The circuit is open, and its open time has not passed.
    Open,
    /// The same, and it is open because calls go unanswered: see [`silence`](crate::silence).
    Silent,
    /// A probe is in flight, and the call did not ask to wait for it.
    ProbeInFlight,
    /// The call waited for a probe, and the circuit is open again.
    Reopened,
    /// The call waited for a probe for as long as the wait limit allows.
    WaitLimit,
    /// A probe is in flight, and as many calls wait for it as the configuration allows.
    TooManyWaiters,
}

impl fmt::Display for RejectionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Open => "the circuit is open",
            Self::Silent => "the circuit is open, calls go unanswered",
            Self::ProbeInFlight => "a probe is in flight",
            Self::Reopened => "the circuit has opened again",
            Self::WaitLimit => "the probe took longer than the wait limit",
            Self::TooManyWaiters => "too many calls wait for the probe",
        })
    }
}

/// A call that may not pass: why, and when to come back. It costs no allocation;
/// [`CircuitBreaker::explain`](crate::CircuitBreaker::explain) tells the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rejection {
    reason: RejectionReason,
    retry_after_ms: u32,
}

impl Rejection {
    pub(crate) fn new(reason: RejectionReason, ticks_left: u32) -> Self {
        Self { reason, retry_after_ms: ticks_left }
    }

    /// The same for another reason.
    pub(crate) fn because(self, reason: RejectionReason) -> Self {
        Self { reason, ..self }
    }

    /// Why.
    pub fn reason(&self) -> RejectionReason {
        self.reason
    }

    /// How long until a call has a chance, at the latest: until the open time has passed or, with a probe in flight,
    /// until its lease ends. In whole milliseconds; while the circuit is open for longer than 20 ms, exact to the tick of
    /// the system's coarse clock, which is 10 ms at most.
    pub fn retry_after(&self) -> Duration {
        duration(self.retry_after_ms)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, retry after {:?}", self.reason, self.retry_after())
    }
}

impl Error for Rejection {}

/// The failure that opened a circuit.
#[derive(Debug)]
pub struct LastError {
    error_type: Box<str>,
    message: Box<str>,
    at: Instant,
}

impl LastError {
    pub(crate) fn new(error_type: &str, message: &dyn fmt::Display) -> Self {
        Self { error_type: error_type.into(), message: message.to_string().into(), at: Instant::now() }
    }

    /// The kind that the caller gave, such as `timeout`. A probe that was dropped unresolved has `dropped`.
    pub fn error_type(&self) -> &str {
        &self.error_type
    }

    /// What the caller said about it.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// How long ago it was recorded.
    pub fn age(&self) -> Duration {
        Instant::now().saturating_duration_since(self.at)
    }
}

impl fmt::Display for LastError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error_type)?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

/// A [`Rejection`] in full, as the by-name protocol and [`CircuitBreaker::explain`](crate::CircuitBreaker::explain) give
/// it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CircuitOpenError {
    /// The name of the breaker.
    pub provider: Arc<str>,
    /// Why the call was refused.
    pub reason: RejectionReason,
    /// How often the circuit went from closed to open.
    pub trip_count: u64,
    /// The failure that opened the circuit last.
    pub last_error: Option<Arc<LastError>>,
    pub(crate) retry_after: Duration,
}

impl CircuitOpenError {
    /// As [`Rejection::retry_after`].
    pub fn retry_after(&self) -> Duration {
        self.retry_after
    }
}

impl fmt::Display for CircuitOpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.provider, self.reason)?;
        if let Some(error) = &self.last_error {
            write!(f, " (last error: {error})")?;
        }
        write!(f, ", retry after {:?}", self.retry_after)
    }
}

impl Error for CircuitOpenError {}

/// What [`CircuitBreaker::call`](crate::CircuitBreaker::call) can fail with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallError<E> {
    /// The call was refused, and its future never polled.
    Rejected(Rejection),
    /// The future's own error.
    Inner(E),
}

impl<E> From<Rejection> for CallError<E> {
    /// So that `?` passes a refusal on.
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl<E: fmt::Display> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(rejection) => rejection.fmt(f),
            Self::Inner(error) => error.fmt(f),
        }
    }
}

// The inner error is shown as it is, so what it names as its source is the source.
impl<E: Error> Error for CallError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Rejected(_) => None,
            Self::Inner(error) => error.source(),
        }
    }
}
