//! What is logged: each transition once, by the caller whose compare-and-swap made it, after it was made. An event comes last:
//! a subscriber that panics must leave nothing behind that others wait for.
//!
//! Not here: events for single calls, which would cost more than the calls.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::breaker::{CircuitBreaker, Past};
use crate::error::Escaped;
use crate::word::Snapshot;

/// Logs a transition with what an operator asks for first, as it was when the transition was made: events of several threads
/// may come out of order, and `generation` tells their order. A macro, since `tracing` wants level and message at compile time.
macro_rules! transition {
    ($level:ident, $breaker:expr, $word:expr, $past:expr, $message:literal) => {{
        let (breaker, past): (&CircuitBreaker, &Past) = ($breaker, $past);
        emit(|| {
            tracing::event!(
                tracing::Level::$level,
                provider = breaker.name(),
                failure_count = $word.failure_count,
                last_error = past.last_error.as_ref().map(|error| tracing::field::display(Escaped(error))),
                trip_count = past.trips,
                generation = $word.generation,
                $message
            );
        });
    }};
}

/// A permit may be dropped while a panic unwinds. A second panic, of a subscriber, would then abort the process.
fn emit(event: impl FnOnce()) {
    if std::thread::panicking() {
        // The panic hook has told of it.
        let _ = catch_unwind(AssertUnwindSafe(event));
    } else {
        event();
    }
}

#[cold]
pub(crate) fn opened(breaker: &CircuitBreaker, after: Snapshot, past: &Past) {
    if after.silent {
        transition!(WARN, breaker, after, past, "circuit opened, requests go unanswered");
    } else {
        transition!(WARN, breaker, after, past, "circuit opened");
    }
}

#[cold]
pub(crate) fn reopened(breaker: &CircuitBreaker, after: Snapshot, past: &Past) {
    if after.silent {
        transition!(WARN, breaker, after, past, "circuit opened again, the probe goes unanswered");
    } else {
        transition!(WARN, breaker, after, past, "circuit opened again, the probe failed");
    }
}

#[cold]
pub(crate) fn half_opened(breaker: &CircuitBreaker, after: Snapshot, past: &Past) {
    transition!(INFO, breaker, after, past, "circuit half-open, probing");
}

/// `before`: closing resets the failure count.
#[cold]
pub(crate) fn closed(breaker: &CircuitBreaker, before: Snapshot, past: &Past) {
    if before.silent {
        transition!(INFO, breaker, before, past, "circuit closed, an answer came after all");
    } else {
        transition!(INFO, breaker, before, past, "circuit closed, the probe succeeded");
    }
}

/// The registry lets the breaker go, and with it those that wait for its probe.
#[cold]
pub(crate) fn closed_by_removal(breaker: &CircuitBreaker, before: Snapshot, past: &Past) {
    transition!(INFO, breaker, before, past, "circuit closed, its name was removed while a probe was in flight");
}

#[cold]
pub(crate) fn probe_taken_over(breaker: &CircuitBreaker, after: Snapshot, past: &Past) {
    transition!(WARN, breaker, after, past, "the probe's lease ended, the next call takes it over");
}
