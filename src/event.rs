//! What there is to tell of a transition: once, by the caller that made it, and after everything else. The log comes
//! last: a subscriber of `tracing` that panics must leave nothing behind that others wait for.
//!
//! Not here: in which order subscribers are told (`feed`), and events for single calls, which would cost more than the
//! calls.

use std::sync::Arc;
use std::time::SystemTime;

use crate::breaker::{CircuitBreaker, Past};
use crate::error::Escaped;
use crate::feed::Transition;
use crate::transition::{Cause, CircuitState};
use crate::word::step::{self, Kind};

/// Logs a transition as it was when it was made. It is a macro because `tracing` needs level and message at compile
/// time.
macro_rules! log {
    ($level:ident, $told:expr, $message:literal) => {{
        let told: &Transition = $told;
        tracing::event!(
            tracing::Level::$level,
            breaker = &*told.breaker,
            from = told.from.as_str(),
            to = told.to.as_str(),
            cause = told.cause.map(Cause::as_str),
            failure_count = told.failure_count,
            last_error = told.last_error.as_ref().map(|error| tracing::field::display(Escaped(error))),
            trip_count = told.trip_count,
            generation = told.generation,
            $message
        );
    }};
}

/// Tells of a transition that is logged or begins a generation.
#[cold]
pub(crate) fn emit(breaker: &CircuitBreaker, step: step::Transition, past: Past) {
    if !step.is_logged() {
        return breaker.feed().tell(step.before, step.after, None);
    }
    let told = &Transition {
        breaker: Arc::clone(breaker.shared_name()),
        from: step.before.circuit_state(),
        to: step.after.circuit_state(),
        cause: step.after.cause(),
        generation: step.after.generation,
        trip_count: past.counts.trips,
        failure_count: past.counts.failures,
        last_error: past.last_error,
        at: wall_clock(),
    };
    breaker.feed().tell(step.before, step.after, Some(told));
    match step.kind {
        Kind::EndRow | Kind::HandBack | Kind::GoodProbe | Kind::Evict => {}
        #[cfg(feature = "fleet")]
        Kind::Suspect => {}
        #[cfg(feature = "fleet")]
        Kind::Postpone => log!(INFO, told, "circuit stays open, another replica's probe failed"),
        #[cfg(feature = "fleet")]
        Kind::HearClosing if told.to == CircuitState::Recovering => {
            log!(INFO, told, "circuit recovering, another replica's probe succeeded");
        }
        #[cfg(feature = "fleet")]
        Kind::HearClosing => log!(INFO, told, "circuit closed, another replica's probe succeeded"),
        Kind::Trip => log!(WARN, told, "circuit opened"),
        Kind::Claim => log!(INFO, told, "circuit half-open, probing"),
        Kind::TakeOver => {
            log!(WARN, told, "the probe's lease ended, the next call takes it over");
        }
        Kind::Reopen => log!(WARN, told, "circuit opened again, the probe failed"),
        Kind::Extend => log!(WARN, told, "circuit stays open for longer"),
        Kind::Close if told.to == CircuitState::Recovering => {
            log!(INFO, told, "circuit recovering, the probe succeeded");
        }
        Kind::EndRamp => log!(INFO, told, "circuit closed, the ramp is over"),
        Kind::Close => log!(INFO, told, "circuit closed, the probe succeeded"),
        Kind::EndSilence => log!(INFO, told, "circuit closed, an answer came after all"),
        Kind::Isolate => log!(WARN, told, "circuit isolated by hand"),
        Kind::Disable => log!(WARN, told, "circuit disabled by hand"),
        Kind::Reset => log!(INFO, told, "circuit reset by hand"),
        Kind::Remove => log!(INFO, told, "circuit closed, its name was removed"),
    }
}

#[expect(clippy::disallowed_methods, reason = "it is told, and decides nothing")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
