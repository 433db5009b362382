//! Logging: each transition once, by the caller that made it, and after everything else: a subscriber that panics must
//! leave nothing behind that others wait for.
//!
//! Not here: events for single calls, which would cost more than the calls.

use crate::breaker::{CircuitBreaker, Past};
use crate::error::Escaped;
use crate::transition::{Cause, CircuitState, Transition};
use crate::word::step::{self, Kind};

/// Logs a transition as it was when it was made. It is a macro because `tracing` needs level and message at compile
/// time.
macro_rules! transition {
    ($level:ident, $breaker:expr, $transition:expr, $past:expr, $message:literal) => {{
        let (breaker, transition, past): (&CircuitBreaker, Transition, &Past) = ($breaker, $transition, $past);
        tracing::event!(
            tracing::Level::$level,
            breaker = breaker.name(),
            from = transition.from.as_str(),
            to = transition.to.as_str(),
            cause = transition.cause.map(Cause::as_str),
            failure_count = past.counts.failures,
            last_error = past.last_error.as_ref().map(|error| tracing::field::display(Escaped(error))),
            trip_count = transition.trip_count,
            generation = transition.generation,
            $message
        );
    }};
}

#[cold]
pub(crate) fn emit(breaker: &CircuitBreaker, step: step::Transition, past: &Past) {
    let told = Transition {
        from: step.before.circuit_state(),
        to: step.after.circuit_state(),
        cause: step.after.cause(),
        generation: step.after.generation,
        trip_count: past.counts.trips,
    };
    match step.kind {
        Kind::EndRow | Kind::HandBack | Kind::GoodProbe | Kind::Evict => {}
        Kind::Trip => transition!(WARN, breaker, told, past, "circuit opened"),
        Kind::Claim => transition!(INFO, breaker, told, past, "circuit half-open, probing"),
        Kind::TakeOver => {
            transition!(WARN, breaker, told, past, "the probe's lease ended, the next call takes it over");
        }
        Kind::Reopen => transition!(WARN, breaker, told, past, "circuit opened again, the probe failed"),
        Kind::Extend => transition!(WARN, breaker, told, past, "circuit stays open for longer"),
        Kind::Close if told.to == CircuitState::Recovering => {
            transition!(INFO, breaker, told, past, "circuit recovering, the probe succeeded");
        }
        Kind::EndRamp => transition!(INFO, breaker, told, past, "circuit closed, the ramp is over"),
        Kind::Close => transition!(INFO, breaker, told, past, "circuit closed, the probe succeeded"),
        Kind::EndSilence => transition!(INFO, breaker, told, past, "circuit closed, an answer came after all"),
        Kind::Isolate => transition!(WARN, breaker, told, past, "circuit isolated by hand"),
        Kind::Disable => transition!(WARN, breaker, told, past, "circuit disabled by hand"),
        Kind::Reset => transition!(INFO, breaker, told, past, "circuit reset by hand"),
        Kind::Remove => transition!(INFO, breaker, told, past, "circuit closed, its name was removed"),
    }
}
