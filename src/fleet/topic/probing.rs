//! One probe for all: who makes it, and for how long the others wait for it.

use std::time::Duration;

use super::{Action, LEASE_TTL, Probing, Step, Topic, error_of, jitter};
use crate::fleet::figures::LeaseResult;
use crate::fleet::store::Lease;
use crate::sync::Instant;
use crate::transition::CircuitState;

const RENEW_LEASE: Duration = Duration::from_millis(500);
/// So long does a replica that nobody calls keep the lease, before another one may have it; and so long does it probe
/// alone if the store did not answer.
const UNUSED_FOR: Duration = Duration::from_secs(1);
/// Replicas that wait for a lease do not ask for it all at once.
const ASK_JITTER: Duration = Duration::from_millis(50);

impl Topic {
    /// Holds the probe back from the calls when it is nearly due, and asks whether this replica is to make it.
    pub(super) fn ask(&mut self, step: &mut Step<'_>) {
        if !matches!(self.probing, Probing::Nobody) || self.ask_at(step).is_none_or(|at| at > step.now) {
            return;
        }
        if let Some(permit) = self.breaker.hold_probe(step.rules.config.timeout) {
            self.probing = Probing::Held { permit, since: step.now, ask_at: None, unused: 0 };
            step.actions.push(Action::Lease);
        }
    }

    /// When to hold the probe back.
    pub(super) fn ask_at(&self, step: &Step<'_>) -> Option<Instant> {
        if self.opened.is_none() || !self.is_agreed() {
            return None;
        }
        let snapshot = self.breaker.snapshot();
        let left = match snapshot.state {
            CircuitState::Open => snapshot.next_probe_in?,
            CircuitState::HalfOpen if !snapshot.probe_in_flight => Duration::ZERO,
            _ => return None,
        };
        let at = step.now + left.saturating_sub(step.rules.config.timeout);
        Some(self.alone_until.map_or(at, |until| until.max(at)))
    }

    /// The store has answered, or has not.
    pub(in crate::fleet) fn leased(&mut self, answer: Option<Lease>, step: &mut Step<'_>) {
        let result = match answer {
            Some(Lease::Granted) => LeaseResult::Granted,
            Some(Lease::Held(_)) => LeaseResult::Held,
            Some(Lease::Failed(_)) => LeaseResult::Failed,
            None => LeaseResult::Error,
        };
        match std::mem::replace(&mut self.probing, Probing::Nobody) {
            Probing::Held { permit, since, unused, .. } => {
                step.rules.figures.lease(result);
                match answer {
                    // Dropping the permit hands the probe to a call that waits, or to the next one.
                    Some(Lease::Granted) => {
                        drop(permit);
                        let look_at = step.now + RENEW_LEASE;
                        self.probing = Probing::Leased { since: step.now, look_at, unused };
                    }
                    Some(Lease::Held(left)) => {
                        let ask_at = step.now + left.min(LEASE_TTL) + jitter(ASK_JITTER);
                        self.probing = Probing::Held { permit, since, ask_at: Some(ask_at), unused };
                    }
                    Some(Lease::Failed(left)) => {
                        self.probing = Probing::Held { permit, since, ask_at: None, unused };
                        self.wait_after_failure(left, &error_of("", "", "the probe failed of another"));
                    }
                    None => {
                        drop(permit);
                        self.alone_until = Some(step.now + UNUSED_FOR);
                    }
                }
            }
            // A renewal: if another one has it, this replica goes on all the same, as it would alone.
            Probing::Leased { since, look_at, unused } if answer == Some(Lease::Granted) => {
                self.probing = Probing::Leased { since, look_at, unused };
            }
            Probing::Alone { until } => self.probing = Probing::Alone { until },
            Probing::Leased { .. } | Probing::Nobody => {}
        }
    }

    pub(super) fn look_at_lease(&mut self, step: &mut Step<'_>) {
        let Probing::Leased { since, look_at, unused } = self.probing else { return };
        if look_at > step.now {
            return;
        }
        let config = self.breaker.config();
        let used_for = step.now - since;
        self.probing = Probing::Leased { since, look_at: step.now + RENEW_LEASE, unused };
        if used_for > step.rules.config.lease.unwrap_or(config.probe_lease()) {
            self.probing = Probing::Nobody;
            step.actions.push(Action::GiveBack);
        } else if used_for < UNUSED_FOR || self.breaker.snapshot().probe_in_flight {
            step.actions.push(Action::Lease);
        } else if let Some(permit) = self.breaker.hold_probe(Duration::ZERO) {
            // Nobody calls here: another replica may have callers.
            step.actions.push(Action::GiveBack);
            let unused = (unused + 1).min(4);
            let ask_at = step.now + UNUSED_FOR * (1 << unused) + jitter(UNUSED_FOR);
            self.probing = Probing::Held { permit, since: step.now, ask_at: Some(ask_at), unused };
        }
    }

    pub(super) fn look_at_held(&mut self, step: &mut Step<'_>) {
        let is_agreed = self.opened.is_some() && self.is_agreed();
        let lease = self.breaker.config().probe_lease();
        let Probing::Held { since, ask_at, .. } = &mut self.probing else { return };
        if !is_agreed || step.now - *since >= lease {
            self.probing = Probing::Nobody;
        } else if ask_at.is_some_and(|at| at <= step.now) {
            *ask_at = None;
            step.actions.push(Action::Lease);
        }
    }
}
