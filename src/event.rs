//! What is logged: each transition once, by the caller whose compare-and-swap made it, after it was made.
//!
//! Not here: events for single calls, which would cost more than the calls.

use crate::breaker::CircuitBreaker;
use crate::word::Snapshot;

/// Logs a transition with what an operator asks for first; failure count and last error are those of `$word`. A macro, since
/// `tracing` wants level and message at compile time.
macro_rules! transition {
    ($level:ident, $breaker:expr, $word:expr, $message:literal) => {{
        let breaker: &CircuitBreaker = $breaker;
        tracing::event!(
            tracing::Level::$level,
            provider = breaker.name(),
            failure_count = $word.failure_count,
            last_error = breaker.history().last_error($word.generation).map(tracing::field::display),
            trip_count = breaker.trip_count(),
            $message
        );
    }};
}

#[cold]
pub(crate) fn opened(breaker: &CircuitBreaker, after: Snapshot) {
    if after.silent {
        transition!(WARN, breaker, after, "circuit opened, requests go unanswered");
    } else {
        transition!(WARN, breaker, after, "circuit opened");
    }
}

#[cold]
pub(crate) fn reopened(breaker: &CircuitBreaker, after: Snapshot) {
    if after.silent {
        transition!(WARN, breaker, after, "circuit opened again, the probe goes unanswered");
    } else {
        transition!(WARN, breaker, after, "circuit opened again, the probe failed");
    }
}

#[cold]
pub(crate) fn half_opened(breaker: &CircuitBreaker, after: Snapshot) {
    transition!(INFO, breaker, after, "circuit half-open, probing");
}

/// `before`: closing resets the failure count.
#[cold]
pub(crate) fn closed(breaker: &CircuitBreaker, before: Snapshot) {
    if before.silent {
        transition!(INFO, breaker, before, "circuit closed, an answer came after all");
    } else {
        transition!(INFO, breaker, before, "circuit closed, the probe succeeded");
    }
}

#[cold]
pub(crate) fn probe_taken_over(breaker: &CircuitBreaker, after: Snapshot) {
    transition!(WARN, breaker, after, "the probe's lease ended, the next call takes it over");
}
