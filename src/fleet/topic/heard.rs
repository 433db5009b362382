//! What a replica makes of what others say of a breaker.

use std::sync::Arc;
use std::time::Duration;

use super::{Action, By, Made, Opened, Probing, Rules, Step, Suspected, Topic, error_of, jitter, plain};
use crate::error::LastError;
use crate::fleet::config::{Deliberate, Mode};
use crate::fleet::message::{Kind, Message};
use crate::fleet::store::Stands;
use crate::sync::Instant;
use crate::transition::CircuitState;

/// A suspicion is looked at so soon for the first time.
pub(super) const FIRST_LOOK: Duration = Duration::from_millis(5);
/// Between the medians of a deliberation, and where no median is known.
pub(super) const SHORTEST_DELIBERATION: Duration = Duration::from_millis(50);
const UNLEARNT_DELIBERATION: Duration = Duration::from_millis(150);
const LONGEST_DELIBERATION: Duration = Duration::from_secs(1);
/// What is told again of the same cooldown differs by less.
const SAME_COOLDOWN: Duration = Duration::from_millis(250);

impl Topic {
    pub(in crate::fleet) fn hear(&mut self, message: &Message, step: &mut Step<'_>) {
        step.rules.figures.hear(message.kind);
        let replica = &*message.replica;
        match message.kind {
            Kind::Open => self.hear_open(replica, message.left(), message.is_cooldown(), &message.error, step),
            Kind::Alive => self.beliefs.hear_alive(replica, step.now),
            Kind::Closed => self.hear_closed(step),
            Kind::Failed => self.hear_failed(replica, message.left(), &message.error, step.now),
        }
    }

    /// What the store says that stands.
    pub(in crate::fleet) fn find_standing(&mut self, stands: &Stands, step: &mut Step<'_>) {
        self.hear_open(&stands.replica, stands.left, stands.is_cooldown, "", step);
    }

    fn hear_open(&mut self, replica: &str, left: Duration, is_cooldown: bool, error: &str, step: &mut Step<'_>) {
        if is_cooldown {
            if step.rules.config.share_account {
                self.hear_cooldown(replica, left, error, step);
            }
            return;
        }
        let open_for = self.open_for();
        let until = step.now + step.stands(left, open_for);
        // Once for each opener: those who object say so when it is news, and are forgotten long before it is.
        if self.beliefs.hear_open(replica, until, step.now) {
            self.suspect(step);
            self.deliberate(step);
        }
    }

    pub(super) fn suspect(&mut self, step: &Step<'_>) {
        if self.suspicion.is_some() || self.breaker.state() != CircuitState::Closed || !self.beliefs.has_unused() {
            return;
        }
        if self.immune_until.is_some_and(|until| until > step.now) {
            self.beliefs.use_all();
            return;
        }
        // `None` if the next call has yet to end a ramp that is over. Then the opening keeps until that has happened.
        let Some(generation) = self.breaker.suspect() else { return };
        self.beliefs.use_all();
        step.rules.figures.suspect();
        self.suspicion = Some(Suspected { generation, since: step.now, look_at: step.now + FIRST_LOOK });
    }

    fn hear_cooldown(&mut self, replica: &str, left: Duration, error: &str, step: &Step<'_>) {
        let until = step.now + left;
        if self.cooled_until.is_some_and(|cooled| until <= cooled + SAME_COOLDOWN) {
            return;
        }
        self.cooled_until = Some(until);
        if let Some(generation) = self
            .breaker
            .cool_down_on_hearsay(left, &error_of(error, &format!("replica {} was told to wait", plain(replica))))
        {
            step.rules.figures.open_on_hearsay();
            self.made(generation, Made::Opening);
            let (by, is_told) = self.opened.map_or((By::Hearsay, false), |opened| (opened.by, opened.is_told));
            self.opened = Some(Opened { generation, by, is_told, is_cooling: true });
            self.suspicion = None;
        }
    }

    fn hear_closed(&mut self, step: &mut Step<'_>) {
        self.beliefs.hear_closed();
        self.decide_at = None;
        self.cooled_until = None;
        if self.suspicion.take().is_some() {
            self.breaker.trust();
        }
        let probing = std::mem::replace(&mut self.probing, Probing::Nobody);
        let Some(opened) = self.opened else { return };
        if opened.by == By::Hearsay {
            let is_closed = match probing {
                Probing::Held(held) => self.breaker.held_probe_succeeded(held.permit),
                _ => self.breaker.close_on_hearsay(opened.generation),
            };
            if is_closed {
                self.made(opened.generation, Made::Closing);
                self.opened = None;
            }
            return;
        }
        self.opened = Some(Opened { is_told: false, is_cooling: false, ..opened });
        match probing {
            // It is handed back, and a call of this replica has it.
            Probing::Held(held) => drop(held),
            _ if opened.is_cooling || self.own_probe_at.is_some_and(|at| at > step.now) => {}
            _ => {
                self.own_probe_at = Some(step.now + self.open_for());
                self.probe_alone(step.now);
            }
        }
    }

    /// A sibling has closed. A cooldown of this circuit that is over, or nearly, is over for good.
    pub(in crate::fleet) fn end_cooldown(&mut self, step: &mut Step<'_>) {
        let Some(opened) = self.opened.filter(|opened| opened.is_cooling) else { return };
        let snapshot = self.breaker.snapshot();
        let is_due = snapshot.next_probe_in.is_none_or(|left| left.is_zero());
        let is_closed = match std::mem::replace(&mut self.probing, Probing::Nobody) {
            Probing::Held(held) => self.breaker.held_probe_succeeded(held.permit),
            other => {
                let is_closed = is_due && self.breaker.close_on_hearsay(opened.generation);
                if is_closed && matches!(other, Probing::Leased { .. }) {
                    step.actions.push(Action::GiveBack);
                } else if !is_closed {
                    // A call has the probe, which decides.
                    self.probing = other;
                }
                is_closed
            }
        };
        if is_closed {
            self.made(opened.generation, Made::Closing);
            (self.opened, self.cooled_until) = (None, None);
        }
    }

    fn hear_failed(&mut self, replica: &str, left: Duration, error: &str, now: Instant) {
        if self.opened.is_some() && self.is_agreed() && !matches!(self.probing, Probing::Leased { .. }) {
            self.wait_after_failure(
                left,
                &error_of(error, &format!("the probe of replica {} failed", plain(replica))),
                now,
            );
        }
    }

    /// Nobody is to probe for so long, and then not all at once.
    pub(super) fn wait_after_failure(&mut self, left: Duration, error: &Arc<LastError>, now: Instant) {
        let left = left.min(self.open_for() * 2);
        // To ask before would be in vain.
        self.ask_not_before = Some(now + left);
        let left = left + jitter(left.mul_f64(0.05));
        match std::mem::replace(&mut self.probing, Probing::Nobody) {
            Probing::Held(held) => {
                if let Some(generation) = self.breaker.held_probe_failed(held.permit, left, error) {
                    self.begun(generation);
                }
            }
            _ => {
                if let Some(generation) = self.breaker.postpone(left, true, error) {
                    self.begun(generation);
                }
            }
        }
    }

    /// The fleet has begun a generation of the same opening.
    pub(super) fn begun(&mut self, generation: u32) {
        self.made(generation, Made::Opening);
        if let Some(opened) = &mut self.opened {
            opened.generation = generation;
        }
    }

    // ---- opening on hearsay ----

    fn deliberate(&mut self, step: &Step<'_>) {
        let Rules { config, .. } = step.rules;
        let may = config.mode == Mode::Quorum && self.decide_at.is_none() && self.is_closed();
        if !may || !self.beliefs.is_majority(step.rules.quorum()) || self.immune_until.is_some_and(|at| at > step.now) {
            return;
        }
        let time = match (config.deliberate, step.rules.circle.median_latency(&self.name)) {
            (Deliberate::For(time), _) => time,
            (Deliberate::Auto, Some(median)) => (median * 3).max(SHORTEST_DELIBERATION),
            (Deliberate::Auto, None) => UNLEARNT_DELIBERATION,
        };
        if time <= LONGEST_DELIBERATION {
            self.decide_at = Some(step.now + time);
        }
    }

    pub(super) fn decide(&mut self, step: &mut Step<'_>) {
        self.decide_at = None;
        if !self.is_closed() || !self.beliefs.is_majority(step.rules.quorum()) {
            return;
        }
        let Some(until) = self.beliefs.stands_until() else { return };
        let left = until.saturating_duration_since(step.now).saturating_sub(step.rules.config.sync * 3);
        let left = left.max(self.open_for() / 2);
        let error = error_of("", &format!("{} replicas say that it fails", self.beliefs.openers()));
        if let Some(generation) = self.breaker.open_on_hearsay(left, &error) {
            step.rules.figures.open_on_hearsay();
            self.made(generation, Made::Opening);
            self.opened = Some(Opened { generation, by: By::Hearsay, is_told: false, is_cooling: false });
            self.suspicion = None;
            step.actions.push(Action::Opinion(self.open_for()));
        }
    }

    /// Whether this replica is to look whether what it has heard is so.
    pub(in crate::fleet) fn opinion(&mut self, is_asked: bool, now: Instant) {
        let is_hearsay = self.opened.is_some_and(|opened| opened.by == By::Hearsay);
        if is_asked && is_hearsay && matches!(self.probing, Probing::Nobody) {
            self.probe_alone(now);
        }
    }

    /// Lets the next call be the probe, which is dropped for it.
    fn probe_alone(&mut self, now: Instant) {
        if self.breaker.hold_probe(Duration::MAX).is_some() {
            self.probing = Probing::Alone { until: now + self.open_for() };
        }
    }
}
