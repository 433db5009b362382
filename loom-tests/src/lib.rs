//! The core of fusebox for the model checker: the production sources, mounted by path beside a `sync` of their own, so
//! that no line of them knows of it. `cargo test -p loom-tests --release` explores the models in `tests/models`.

// A folder for the paths below to start from; the sources find each other, and `sync`, at the root.
#[path = "../../src"]
mod production {
    pub(crate) mod breaker;
    pub(crate) mod clock;
    pub(crate) mod config;
    pub(crate) mod error;
    pub(crate) mod event;
    pub(crate) mod feed;
    pub(crate) mod permit;
    pub(crate) mod registry;
    pub(crate) mod settings;
    pub mod silence;
    pub(crate) mod transition;
    #[path = "proxy/upstream/wake.rs"]
    pub(crate) mod wake;
    pub(crate) mod window;
    pub(crate) mod word;
}
pub mod sync;

/// Of the gateway, the one protocol between threads that is not the breaker's.
pub mod relay {
    use std::ops::ControlFlow;
    use std::task::{Context, Poll, Waker};

    use crate::production::wake::{self, Wanted};

    /// What a connection is polled with.
    pub struct Relay(wake::Relay);

    impl Default for Relay {
        fn default() -> Self {
            Self(wake::Relay::new())
        }
    }

    impl Relay {
        /// Until `wanted` breaks; it says whether there may be more.
        pub fn poll<T>(
            &self,
            cx: &mut Context<'_>,
            connection: impl FnMut(&mut Context<'_>),
            mut wanted: impl FnMut(&mut Context<'_>) -> ControlFlow<T, bool>,
        ) -> Poll<T> {
            let wanted = |cx: &mut Context<'_>| {
                wanted(cx).map_continue(|more| if more { Wanted::MayBeMore } else { Wanted::Nothing })
            };
            self.0.poll(cx, connection, wanted)
        }

        /// With nobody who wants anything.
        pub fn settle(&self, task: Option<&Waker>, connection: impl FnMut(&mut Context<'_>)) {
            self.0.settle(task, connection);
        }

        /// For what is going to wake.
        pub fn expect_wake(&self) {
            self.0.expect_wake();
        }

        /// Whether there is something to be polled.
        pub fn is_woken(&self) -> bool {
            self.0.is_woken()
        }
    }
}

/// What a breaker is told by other processes, for models from outside.
pub mod hearsay {
    use std::sync::Arc;
    use std::time::Duration;

    use crate::production::breaker::Suspicion;
    use crate::production::error::LastError;
    use crate::{CircuitBreaker, OwnedPermit};

    fn error(message: &str) -> Arc<LastError> {
        Arc::new(LastError::new("fleet", &message))
    }

    /// Returns the generation.
    pub fn suspect(breaker: &CircuitBreaker) -> Option<u32> {
        breaker.suspect()
    }

    /// What has become of it.
    pub fn suspicion(breaker: &CircuitBreaker, generation: u32) -> &'static str {
        match breaker.suspicion(generation) {
            Suspicion::Stands => "stands",
            Suspicion::Refuted => "refuted",
            Suspicion::Over => "over",
        }
    }

    /// The number of the last opening.
    pub fn generation(breaker: &CircuitBreaker) -> u32 {
        breaker.generation()
    }

    /// Nobody stands by it any more.
    pub fn trust(breaker: &CircuitBreaker) {
        breaker.trust();
    }

    /// Returns the generation that begins.
    pub fn cool_down(breaker: &CircuitBreaker, left: Duration) -> Option<u32> {
        breaker.cool_down_on_hearsay(left, &error("cooldown"))
    }

    /// Returns the generation that begins.
    pub fn open(breaker: &CircuitBreaker, left: Duration) -> Option<u32> {
        breaker.open_on_hearsay(left, &error("hearsay"))
    }

    /// Whether it closed.
    pub fn close(breaker: &CircuitBreaker, generation: u32) -> bool {
        breaker.close_on_hearsay(generation)
    }

    /// Returns the generation that begins.
    pub fn postpone(breaker: &CircuitBreaker, left: Duration) -> Option<u32> {
        breaker.postpone(left, true, &error("postponed"))
    }

    /// Claims the probe.
    pub fn hold(breaker: &Arc<CircuitBreaker>) -> Option<OwnedPermit> {
        breaker.hold_probe(Duration::ZERO)
    }

    /// Resolves it.
    pub fn held_failed(breaker: &CircuitBreaker, held: OwnedPermit, left: Duration) -> Option<u32> {
        breaker.held_probe_failed(held, left, &error("postponed"))
    }

    /// Resolves it.
    pub fn held_succeeded(breaker: &CircuitBreaker, held: OwnedPermit) -> bool {
        breaker.held_probe_succeeded(held)
    }
}

use production::{breaker, clock, config, error, event, feed, permit, registry, settings, transition, window, word};

pub use breaker::{AcquireOwned, BreakerSnapshot, CancelOnDrop, CircuitBreaker, Outcome};
pub use config::{Abandoned, Config, ConfigBuilder, ConfigError, Window};
pub use error::{CallError, CircuitOpenError, LastError, Rejection, RejectionReason, is_rejection};
pub use feed::Transition;
pub use permit::{OwnedPermit, Permit, PermitType};
pub use production::silence;
pub use registry::{CircuitBreakerRegistry, ProbeGuard, RegistryFull};
pub use transition::{Cause, CircuitState};
pub use window::LastCalls;
