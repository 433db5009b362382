//! Why a call is rejected: in one machine word, and in full for callers that ask.
//!
//! Not here: when a call is rejected: `word` and `breaker`.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::sync::Instant;
use crate::transition::{Cause, listed};
use crate::word::step::FOREVER;

listed! {
    /// Why a call was rejected.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[non_exhaustive]
    pub enum RejectionReason {
        /// The circuit is open, and its open time has not passed.
        Open,
        /// As `Open`, and the circuit is open because calls go unanswered: see [`silence`](crate::silence).
        Silent,
        /// A probe is in flight, and the call did not ask to wait for it.
        ProbeInFlight,
        /// The circuit recovers, and the call has its turn later: see
        /// [`ConfigBuilder::ramp`](crate::ConfigBuilder::ramp).
        Recovering,
        /// The call waited for a probe or for its turn, and the circuit is open again.
        Reopened,
        /// The call waited for a probe for as long as the wait limit allows.
        WaitLimit,
        /// A probe is in flight, and as many calls wait for it as the configuration allows.
        TooManyWaiters,
        /// The call would have to wait, and there is no tokio runtime to wait in: a plain thread has
        /// [`acquire_blocking`](crate::CircuitBreaker::acquire_blocking).
        NoRuntime,
    }
}

impl fmt::Display for RejectionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Open => "the circuit is open",
            Self::Silent => "the circuit is open, calls go unanswered",
            Self::ProbeInFlight => "a probe is in flight",
            Self::Recovering => "the circuit recovers, and lets only a share of the calls pass",
            Self::Reopened => "the circuit has opened again",
            Self::WaitLimit => "the probe took longer than the wait limit",
            Self::TooManyWaiters => "too many calls wait for the probe",
            Self::NoRuntime => "the call would have to wait, for which there is no tokio runtime",
        })
    }
}

/// A breaker does not let a call pass: why, and when to come back. It costs no allocation. The breaker's
/// [`explain`](crate::CircuitBreaker::explain) tells the rest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rejection {
    /// From the lowest bit: 8 bits for the reason, 16 for the [`Number`] of the breaker, 8 for the cause (0 is none),
    /// and 32 for the time in milliseconds. It is one word because one is made for each rejected call.
    bits: u64,
}

/// By which a breaker knows its own rejections: a number of 16 bits, in the place where a rejection has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Number(u32);

impl Number {
    const MASK: u32 = 0xffff << 8;

    /// Of 65,536 breakers two may have the same.
    pub(crate) fn new(made: u32) -> Self {
        Self(made << 8 & Self::MASK)
    }
}

impl Rejection {
    #[inline]
    pub(crate) fn new(breaker: Number, reason: RejectionReason, cause: Option<Cause>, ticks_left: u32) -> Self {
        let cause = cause.map_or(0, |cause| cause as u64 + 1);
        Self { bits: u64::from(ticks_left) << 32 | cause << 24 | u64::from(breaker.0) | reason as u64 }
    }

    pub(crate) fn is_by(self, breaker: Number) -> bool {
        self.bits & u64::from(Number::MASK) == u64::from(breaker.0)
    }

    /// The same rejection with another reason.
    pub(crate) fn because(self, reason: RejectionReason) -> Self {
        Self { bits: self.bits & !0xff | reason as u64 }
    }

    /// Why the call was rejected.
    pub fn reason(&self) -> RejectionReason {
        RejectionReason::ALL[(self.bits & 0xff) as usize]
    }

    /// Why the circuit is open. `None` if it is half-open, and a probe is in flight.
    pub fn cause(&self) -> Option<Cause> {
        let cause = (self.bits >> 24 & 0xff) as usize;
        cause.checked_sub(1).map(|cause| Cause::ALL[cause])
    }

    /// How long until a call has a chance, at the latest: until the open time has passed, until the lease of the probe
    /// in flight ends, or until the call would have its turn while the circuit recovers; a call that comes then has the
    /// chances of that time. `None` if nobody knows, since the circuit is isolated. It is never too short: a call that
    /// comes that much later is not rejected because of the same opening. It is in whole milliseconds. While more than
    /// 20 ms are left, it may be too long by a tick of the system's coarse clock, which is 10 ms at most.
    pub fn retry_after(&self) -> Option<Duration> {
        let millis = self.bits >> 32;
        (millis != u64::from(FOREVER)).then(|| Duration::from_millis(millis))
    }
}

/// The end of a rejection's text.
fn write_retry_after(f: &mut fmt::Formatter<'_>, retry_after: Option<Duration>) -> fmt::Result {
    match retry_after {
        Some(retry_after) => write!(f, ", retry after {retry_after:?}"),
        None => f.write_str(", until it is reset by hand"),
    }
}

impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (reason, retry_after) = (self.reason(), self.retry_after());
        f.debug_struct("Rejection").field("reason", &reason).field("retry_after", &retry_after).finish()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason())?;
        write_retry_after(f, self.retry_after())
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

    /// The type that the caller gave, such as `timeout`. It is `dropped` for a probe that was dropped unresolved.
    pub fn error_type(&self) -> &str {
        &self.error_type
    }

    /// The caller's message, unchanged. It may contain line breaks and control characters, which
    /// [`Display`](fmt::Display) does not escape either.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// How long ago the failure was recorded.
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

/// Shows any text on one line. Line breaks, escape sequences and characters that change the direction of writing are
/// escaped, so that no text forges a line of a log or moves the cursor of a terminal (CWE-117, CWE-150).
pub(crate) struct Escaped<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);
        impl fmt::Write for Escaping<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                text.split_inclusive(is_escaped).try_for_each(|piece| {
                    match piece.char_indices().next_back().filter(|(_, last)| is_escaped(*last)) {
                        Some((at, last)) => write!(self.0, "{}{}", &piece[..at], last.escape_default()),
                        None => self.0.write_str(piece),
                    }
                })
            }
        }
        fmt::write(&mut Escaping(f), format_args!("{}", self.0))
    }
}

/// Control characters, the Unicode line separators, and the controls of bidirectional text (UAX #9).
fn is_escaped(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A [`Rejection`] in full, as the by-name protocol and [`CircuitBreaker::explain`](crate::CircuitBreaker::explain)
/// give it.
///
/// # Examples
///
/// ```
/// use fusebox::{CircuitBreakerRegistry, RejectionReason};
///
/// let breakers = CircuitBreakerRegistry::new(["openai"]);
/// for _ in 0..3 {
///     breakers.record_failure("openai", "timeout", "no answer within 2 s");
/// }
/// let error = breakers.try_acquire_permit("openai").unwrap_err();
/// assert_eq!((error.provider(), error.reason(), error.trip_count()), ("openai", RejectionReason::Open, 1));
/// assert_eq!(error.last_error().unwrap().error_type(), "timeout");
/// ```
#[derive(Clone, Debug)]
pub struct CircuitOpenError {
    provider: Arc<str>,
    rejection: Rejection,
    trip_count: u64,
    last_error: Option<Arc<LastError>>,
}

impl CircuitOpenError {
    pub(crate) fn new(
        provider: Arc<str>,
        rejection: Rejection,
        trip_count: u64,
        last_error: Option<Arc<LastError>>,
    ) -> Self {
        Self { provider, rejection, trip_count, last_error }
    }

    /// The name of the breaker.
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// Why the call was rejected.
    pub fn reason(&self) -> RejectionReason {
        self.rejection.reason()
    }

    /// As [`Rejection::cause`].
    pub fn cause(&self) -> Option<Cause> {
        self.rejection.cause()
    }

    /// How often the circuit went from closed or recovering to open.
    pub fn trip_count(&self) -> u64 {
        self.trip_count
    }

    /// The failure that opened the circuit last.
    pub fn last_error(&self) -> Option<&LastError> {
        self.last_error.as_deref()
    }

    /// As [`Rejection::retry_after`].
    pub fn retry_after(&self) -> Option<Duration> {
        self.rejection.retry_after()
    }
}

impl fmt::Display for CircuitOpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.provider, self.reason())?;
        if let Some(error) = &self.last_error {
            write!(f, " (last error: {})", Escaped(error))?;
        }
        write_retry_after(f, self.retry_after())
    }
}

impl Error for CircuitOpenError {}

/// How [`CircuitBreaker::call`](crate::CircuitBreaker::call) can fail. It is an [`Error`] even if the inner type is
/// none, so that `?` accepts a `CallError<anyhow::Error>` and a `CallError<Box<dyn Error + Send + Sync>>`. Therefore
/// [`Error::source`] does not return the inner error; [`into_boxed`](Self::into_boxed) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallError<E> {
    /// The call was rejected, and its future was never polled.
    Rejected(Rejection),
    /// The future's own error.
    Inner(E),
}

impl<E> CallError<E> {
    /// The rejection or the inner error, with its sources.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io;
    ///
    /// use fusebox::CallError;
    ///
    /// let error = CallError::Inner(io::Error::other("no route to host"));
    /// assert!(error.into_boxed().is::<io::Error>());
    /// ```
    pub fn into_boxed(self) -> Box<dyn Error + Send + Sync>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        match self {
            Self::Rejected(rejection) => rejection.into(),
            Self::Inner(error) => error.into(),
        }
    }
}

impl<E> From<Rejection> for CallError<E> {
    /// For `?` on a rejection.
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

impl<E: fmt::Debug + fmt::Display> Error for CallError<E> {
    /// A rejection is its own source, so that it is found in a chain of errors.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Rejected(rejection) => Some(rejection),
            Self::Inner(_) => None,
        }
    }
}

/// Whether an error, or one of its sources, is a breaker's rejection.
///
/// # Examples
///
/// ```
/// use fusebox::{CallError, CircuitBreaker, is_rejection};
///
/// let breaker = CircuitBreaker::builder("openai").failure_threshold(1).build()?;
/// breaker.try_acquire()?.failure("timeout", "");
/// let rejected = breaker.try_acquire().unwrap_err();
/// assert!(is_rejection(&CallError::<std::io::Error>::Rejected(rejected)));
/// assert!(!is_rejection(&std::io::Error::other("reset by peer")));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn is_rejection(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source())
        .any(|error| error.is::<Rejection>() || error.is::<CircuitOpenError>())
}

#[cfg(test)]
mod tests {
    use super::Escaped;

    #[test]
    fn what_could_forge_a_line_is_escaped_and_all_else_is_left_as_it_is() {
        let shown = |text: &str| Escaped(text).to_string();
        assert_eq!(shown("5xx: a\\b \"c\" \u{e9}"), "5xx: a\\b \"c\" \u{e9}");
        assert_eq!(shown("a\r\n2026 WARN b"), "a\\r\\n2026 WARN b");
        assert_eq!(shown("\u{1b}[2J\u{9b}1A\u{2028}\u{202e}\u{7f}"), "\\u{1b}[2J\\u{9b}1A\\u{2028}\\u{202e}\\u{7f}");
        assert_eq!(shown(""), "");
    }
}
