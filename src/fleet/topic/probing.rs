//! One probe for all: who makes it, and for how long the others wait for it.

use std::time::Duration;

use super::{Action, Held, LEASE_TTL, Probing, Step, Then, Topic, error_of, jitter};
use crate::fleet::figures::LeaseResult;
use crate::fleet::store::Lease;
use crate::sync::Instant;
use crate::transition::CircuitState;

const RENEW_LEASE: Duration = Duration::from_millis(300);
/// So long does a replica that nobody calls keep the lease, before another one may have it; and so long does it probe
/// alone if the store did not answer.
const UNUSED_FOR: Duration = Duration::from_secs(1);
/// After so many leases in a row that nobody used, the next call probes alone.
const MOST_UNUSED: u32 = 3;
/// Replicas that wait for a lease do not ask for it all at once.
const ASK_JITTER: Duration = Duration::from_millis(50);

impl Topic {
    /// Holds the probe back from the calls when it is nearly due, and asks whether this replica is to make it.
    pub(super) fn ask(&mut self, step: &mut Step<'_>) {
        if !matches!(self.probing, Probing::Nobody) || self.ask_at(step).is_none_or(|at| at > step.now) {
            return;
        }
        let due = step.now + self.open_left();
        if let Some(permit) = self.breaker.hold_probe(step.rules.config.timeout) {
            self.probing = Probing::Held(Held { permit, due, ask_at: None, then: None });
            step.actions.push(Action::Lease);
        }
    }

    /// When to hold the probe back.
    pub(super) fn ask_at(&self, step: &Step<'_>) -> Option<Instant> {
        if self.opened.is_none() || !self.is_agreed() || self.unused > MOST_UNUSED {
            return None;
        }
        let snapshot = self.breaker.snapshot();
        let left = match snapshot.state {
            CircuitState::Open => snapshot.next_probe_in?,
            CircuitState::HalfOpen if !snapshot.probe_in_flight => Duration::ZERO,
            _ => return None,
        };
        let at = step.now + left.saturating_sub(step.rules.config.timeout);
        Some(self.ask_not_before.map_or(at, |until| until.max(at)))
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
            Probing::Held(held) => {
                step.rules.figures.lease(result);
                self.probing = Probing::Held(match answer {
                    Some(Lease::Granted) => Held { then: Some(Then::Lead), ..held },
                    Some(Lease::Held(left)) => {
                        let ask_at = step.now + left.min(LEASE_TTL) + jitter(ASK_JITTER);
                        Held { ask_at: Some(ask_at), ..held }
                    }
                    Some(Lease::Failed(_)) => held,
                    None => Held { then: Some(Then::Alone), ..held },
                });
                if let Some(Lease::Failed(left)) = answer {
                    self.wait_after_failure(left, &error_of("", "the probe of another replica failed"), step.now);
                }
                self.look_at_held(step);
            }
            // A renewal: if another one has it, this replica goes on all the same, as it would alone.
            Probing::Leased { since, look_at } if answer == Some(Lease::Granted) => {
                self.probing = Probing::Leased { since, look_at };
            }
            Probing::Alone { until } => self.probing = Probing::Alone { until },
            Probing::Leased { .. } | Probing::Nobody => {}
        }
    }

    pub(super) fn look_at_lease(&mut self, step: &mut Step<'_>) {
        let Probing::Leased { since, look_at } = self.probing else { return };
        if look_at > step.now {
            return;
        }
        let config = self.breaker.config();
        let used_for = step.now - since;
        self.probing = Probing::Leased { since, look_at: step.now + RENEW_LEASE };
        if used_for > step.rules.config.lease.unwrap_or(config.probe_lease()) {
            self.probing = Probing::Nobody;
            step.actions.push(Action::GiveBack);
        } else if used_for < UNUSED_FOR || self.breaker.snapshot().probe_in_flight {
            step.actions.push(Action::Lease);
        } else {
            // Nobody calls here, and another replica may have callers. A call that comes after all probes alone.
            step.actions.push(Action::GiveBack);
            self.probing = Probing::Nobody;
            self.unused += 1;
            self.ask_not_before = Some(step.now + UNUSED_FOR * (1 << self.unused) + jitter(UNUSED_FOR));
        }
    }

    pub(super) fn look_at_held(&mut self, step: &mut Step<'_>) {
        let is_agreed = self.opened.is_some() && self.is_agreed();
        let lease = self.breaker.config().probe_lease();
        let Probing::Held(held) = &mut self.probing else { return };
        if !is_agreed || step.now.saturating_duration_since(held.due) >= lease {
            self.probing = Probing::Nobody;
        } else if held.ask_at.is_some_and(|at| at <= step.now) {
            held.ask_at = None;
            step.actions.push(Action::Lease);
        } else if let Some(then) = held.then.filter(|_| held.due <= step.now) {
            // The permit is dropped, which hands the probe to a call that waits, or to the next one.
            self.probing = match then {
                Then::Lead => Probing::Leased { since: step.now, look_at: step.now + RENEW_LEASE },
                Then::Alone => Probing::Nobody,
            };
            if matches!(then, Then::Alone) {
                self.ask_not_before = Some(step.now + UNUSED_FOR);
            }
        }
    }
}
