//! Logging: each transition once, by the caller whose compare-and-swap made it, and after everything else: a subscriber
//! that panics must leave nothing behind that others wait for.
//!
//! Not here: events for single calls, which would cost more than the calls.

use crate::breaker::{CircuitBreaker, Past};
use crate::error::Escaped;
use crate::word::Snapshot;

/// Logs a transition with its context at the time when it was made. Events of several threads may come out of order;
/// `generation` tells their order. It is a macro because `tracing` needs level and message at compile time.
macro_rules! transition {
    ($level:ident, $breaker:expr, $word:expr, $past:expr, $message:literal) => {{
        let (breaker, past): (&CircuitBreaker, &Past) = ($breaker, $past);
        tracing::event!(
            tracing::Level::$level,
            breaker = breaker.name(),
            failure_count = $word.failure_count,
            last_error = past.last_error.as_ref().map(|error| tracing::field::display(Escaped(error))),
            trip_count = past.trips,
            generation = $word.generation,
            $message
        );
    }};
}

#[cold]
pub(crate) fn failed(breaker: &CircuitBreaker, after: Snapshot, past: &Past) {
    transition!(WARN, breaker, after, past, "circuit opened");
}

#[cold]
pub(crate) fn fell_silent(breaker: &CircuitBreaker, after: Snapshot, past: &Past) {
    transition!(WARN, breaker, after, past, "circuit opened, requests go unanswered");
}

#[cold]
pub(crate) fn half_opened(breaker: &CircuitBreaker, after: Snapshot, past: &Past) {
    transition!(INFO, breaker, after, past, "circuit half-open, probing");
}

#[cold]
pub(crate) fn probe_taken_over(breaker: &CircuitBreaker, after: Snapshot, past: &Past) {
    transition!(WARN, breaker, after, past, "the probe's lease ended, the next call takes it over");
}

#[cold]
pub(crate) fn probe_failed(breaker: &CircuitBreaker, after: Snapshot, past: &Past) {
    transition!(WARN, breaker, after, past, "circuit opened again, the probe failed");
}

#[cold]
pub(crate) fn probe_fell_silent(breaker: &CircuitBreaker, after: Snapshot, past: &Past) {
    transition!(WARN, breaker, after, past, "circuit opened again, the probe goes unanswered");
}

// Closing resets the failure count, so that these are of the word before.

#[cold]
pub(crate) fn probe_succeeded(breaker: &CircuitBreaker, before: Snapshot, past: &Past) {
    transition!(INFO, breaker, before, past, "circuit closed, the probe succeeded");
}

#[cold]
pub(crate) fn silence_ended(breaker: &CircuitBreaker, before: Snapshot, past: &Past) {
    transition!(INFO, breaker, before, past, "circuit closed, an answer came after all");
}

#[cold]
pub(crate) fn probe_let_go(breaker: &CircuitBreaker, before: Snapshot, past: &Past) {
    transition!(INFO, breaker, before, past, "circuit closed, its name was removed while a probe was in flight");
}
