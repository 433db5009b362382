//! What is logged: each transition once, by the caller whose compare-and-swap made it, after it was made. An event comes last:
//! a subscriber that panics must leave nothing behind that others wait for.
//!
//! Not here: events for single calls, which would cost more than the calls.

use crate::breaker::{CircuitBreaker, Past};
use crate::error::Escaped;
use crate::word::Snapshot;

/// A function that logs a transition with what an operator asks for first, as it was when the transition was made: events of
/// several threads may come out of order, and `generation` tells their order. A macro, since `tracing` wants level and message
/// at compile time.
macro_rules! transition {
    ($name:ident, $level:ident, $message:literal) => {
        #[cold]
        #[inline(never)]
        pub(crate) fn $name(breaker: &CircuitBreaker, word: Snapshot, past: &Past) {
            tracing::event!(
                tracing::Level::$level,
                provider = breaker.name(),
                failure_count = word.failure_count,
                last_error = past.last_error.as_ref().map(|error| tracing::field::display(Escaped(error))),
                trip_count = past.trips,
                generation = word.generation,
                $message
            );
        }
    };
}

transition!(failed, WARN, "circuit opened");
transition!(fell_silent, WARN, "circuit opened, requests go unanswered");
transition!(half_opened, INFO, "circuit half-open, probing");
transition!(probe_taken_over, WARN, "the probe's lease ended, the next call takes it over");
transition!(probe_failed, WARN, "circuit opened again, the probe failed");
transition!(probe_fell_silent, WARN, "circuit opened again, the probe goes unanswered");

// Of the word before: closing resets the failure count.
transition!(probe_succeeded, INFO, "circuit closed, the probe succeeded");
transition!(silence_ended, INFO, "circuit closed, an answer came after all");
transition!(probe_let_go, INFO, "circuit closed, its name was removed while a probe was in flight");
