//! A guard for a probe that was asked for by name, so that it cannot be forgotten.
//!
//! Not here: how a probe is resolved: `permit`.

use std::fmt;
use std::time::Duration;

use super::CircuitBreakerRegistry;
use crate::permit::{OwnedPermit, Permit, PermitType};

/// Resolves the probe of a caller that got [`PermitType::Probe`] by name, whatever happens to the caller.
///
/// It stands for the probe that is in flight when the guard is made. If there is none, it does nothing. A guard that is
/// dropped unresolved counts as a failure of type `dropped`, and the opening of the circuit is logged as a warning.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use fusebox::{CircuitBreakerRegistry, PermitType, ProbeGuard};
///
/// let breakers = CircuitBreakerRegistry::new(["openai", "anthropic"]);
/// let counted = match breakers.acquire_permit("openai").await? {
///     PermitType::Normal => breakers.record_success("openai"),
///     PermitType::Probe => ProbeGuard::new(&breakers, "openai").success(),
/// };
/// assert!(counted);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping the guard records a failure"]
pub struct ProbeGuard {
    permit: Option<OwnedPermit>,
}

impl ProbeGuard {
    /// Takes charge of the probe in flight for `provider`.
    pub fn new(registry: &CircuitBreakerRegistry, provider: impl AsRef<str>) -> Self {
        let breaker = registry.get(provider.as_ref());
        Self { permit: breaker.and_then(|breaker| Permit::standing_in(breaker, PermitType::Probe)) }
    }

    /// The probe succeeded: the circuit closes. Returns whether that counted: not if the probe was resolved already, or
    /// was taken over after its lease.
    pub fn success(self) -> bool {
        self.permit.is_some_and(Permit::succeed)
    }

    /// The probe failed: the circuit opens again. Returns whether that counted, as [`success`](Self::success) does.
    ///
    /// # Panics
    ///
    /// If formatting `message` does; the probe then counts as dropped.
    pub fn failure(self, error_type: &str, message: impl fmt::Display) -> bool {
        self.permit.is_some_and(|permit| permit.fail(error_type, &message))
    }

    /// The upstream said when to come back: see [`Permit::cool_down`]. Returns whether that counted.
    ///
    /// # Panics
    ///
    /// If formatting `message` does; the probe then counts as dropped.
    pub fn cool_down(self, duration: Duration, error_type: &str, message: impl fmt::Display) -> bool {
        self.permit.is_some_and(|permit| permit.cool(duration, error_type, &message))
    }
}
