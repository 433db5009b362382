//! One breaker of a replica, and what it and the others tell each other of it: the rules of a fleet.
//!
//! | rule | why |
//! |---|---|
//! | An opening makes the others suspect the upstream: all failures but the last one are there. | the next failure opens, and healthy replicas lose nothing |
//! | Once for each opener while it stands; the next good call forgets it, and for a second no other one counts. | a threshold that stays lower makes ordinary noise open circuits |
//! | Who finds a suspicion wrong objects, unless enough have. The fleet is of one mind if two openers at least outnumber those who object. | a few that are wrong decide nothing |
//! | While it is, one replica probes. After a failed probe everybody waits; the one that probed waits longer. | a replica that is wrong does not probe for all again |
//! | A good probe elsewhere closes what hearsay has opened. What has failed here takes a probe of its own. | what fails from here may work from there |
//! | Who closes for others to follow says so, and nobody else. | no storm of messages after each outage |
//!
//! Not here: sending and receiving: `member`; who says what: `beliefs`.

use std::sync::Arc;
use std::time::Duration;

use super::beliefs::{ALIVE_FOR, Beliefs};
use super::circle::Circle;
use super::config::{Deliberate, FleetConfig, Mode};
use super::figures::{CircuitFigures, Figures, LeaseResult};
use super::message::{COOLDOWN, Kind, Message};
use super::store::{Lease, Said, Stands};
use crate::breaker::{CircuitBreaker, Suspicion};
use crate::error::LastError;
use crate::feed::Transition;
use crate::permit::OwnedPermit;
use crate::sync::{Instant, random};
use crate::transition::{Cause, CircuitState};

/// A lease ends so long after a replica has died, which renews it in between.
pub(super) const LEASE_TTL: Duration = Duration::from_secs(2);
const RENEW_LEASE: Duration = Duration::from_millis(500);
/// So long does a replica that nobody calls keep the lease, before another one may have it.
const UNUSED_FOR: Duration = Duration::from_secs(1);
/// Objections are spread over so long, so that most of them need not be said.
const ALIVE_JITTER: Duration = Duration::from_millis(5);
/// A suspicion is looked at so soon, and then less and less often.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const RAREST_LOOK: Duration = Duration::from_millis(250);
/// Between the medians of a deliberation, and where no median is known.
const SHORTEST_DELIBERATION: Duration = Duration::from_millis(50);
const UNLEARNT_DELIBERATION: Duration = Duration::from_millis(150);
const LONGEST_DELIBERATION: Duration = Duration::from_secs(1);
/// What is told again of the same cooldown differs by less.
const SAME_COOLDOWN: Duration = Duration::from_millis(250);
/// The longest type of an error that is taken over from others.
const MAX_ERROR_TYPE: usize = 64;

/// What there is to do.
#[derive(Debug)]
pub(super) enum Action {
    Say(Said),
    /// To ask for the lease, or to renew it.
    Lease,
    GiveBack,
    Opinion(Duration),
}

/// What all topics of a replica know.
pub(super) struct Rules {
    pub(super) replica: String,
    pub(super) config: FleetConfig,
    pub(super) figures: Arc<Figures>,
    pub(super) circle: Arc<dyn Circle>,
}

/// What a topic is given for one step.
pub(super) struct Step<'a> {
    pub(super) rules: &'a Rules,
    pub(super) now: Instant,
    pub(super) actions: &'a mut Vec<Action>,
}

pub(super) struct Topic {
    pub(super) name: Arc<str>,
    pub(super) breaker: Arc<CircuitBreaker>,
    beliefs: Beliefs,
    opened: Option<Opened>,
    suspicion: Option<Suspected>,
    immune_until: Option<Instant>,
    object_at: Option<Instant>,
    decide_at: Option<Instant>,
    probing: Probing,
    /// When the fleet lets the breaker alone, since the store did not answer.
    alone_until: Option<Instant>,
    /// The next probe of its own after a good one elsewhere.
    own_probe_at: Option<Instant>,
    cooled_until: Option<Instant>,
    /// Transitions that the fleet has made, and that are yet to be told.
    made: Vec<(u32, CircuitState)>,
    shown: Option<CircuitFigures>,
}

/// Why the circuit is open, or half-open.
#[derive(Clone, Copy)]
struct Opened {
    generation: u32,
    by: By,
    /// Whether the others have been told, and stand by it.
    is_told: bool,
    is_cooling: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// Calls have failed here.
    Calls,
    Hearsay,
}

#[derive(Clone, Copy)]
struct Suspected {
    generation: u32,
    since: Instant,
    look_at: Instant,
}

/// Who probes, as far as this replica knows.
enum Probing {
    Nobody,
    /// The fleet holds the probe of this replica, and has asked for the lease or waits to ask again.
    Held {
        permit: OwnedPermit,
        since: Instant,
        ask_at: Option<Instant>,
        unused: u32,
    },
    /// A call of this replica probes for it alone.
    Alone {
        until: Instant,
    },
    /// This replica probes for all.
    Leased {
        since: Instant,
        look_at: Instant,
        unused: u32,
    },
}

impl Step<'_> {
    fn say(&mut self, message: Message, stands: Duration) {
        self.rules.figures.publish(message.kind);
        self.actions.push(Action::Say(Said { message, stands }));
    }

    fn message(&self, topic: &Topic, kind: Kind, left: Duration) -> Message {
        Message::new(kind, &topic.name, &self.rules.replica, left)
    }

    /// For how long an opening stands that lasts for so long yet: until it should have been told again.
    fn stands(&self, left: Duration, open_for: Duration) -> Duration {
        left.min(open_for * 2) + self.rules.config.sync * 3
    }
}

/// Up to `most`, by chance.
fn jitter(most: Duration) -> Duration {
    most.mul_f64(f64::from(random()) / f64::from(u32::MAX))
}

/// What others send goes into logs and pages.
fn error_of(error_type: &str, replica: &str, what: &str) -> Arc<LastError> {
    let plain = |text: &str| text.chars().filter(|char| !char.is_control()).take(MAX_ERROR_TYPE).collect::<String>();
    let error_type = plain(error_type);
    let error_type = if error_type.is_empty() { "fleet" } else { &error_type };
    Arc::new(LastError::new(error_type, &format_args!("{what} replica {}", plain(replica))))
}

impl Topic {
    pub(super) fn new(name: Arc<str>, breaker: Arc<CircuitBreaker>) -> Self {
        Self {
            name,
            breaker,
            beliefs: Beliefs::default(),
            opened: None,
            suspicion: None,
            immune_until: None,
            object_at: None,
            decide_at: None,
            probing: Probing::Nobody,
            alone_until: None,
            own_probe_at: None,
            cooled_until: None,
            made: Vec::new(),
            shown: None,
        }
    }

    fn open_for(&self) -> Duration {
        self.breaker.config().open_for()
    }

    fn open_left(&self) -> Duration {
        self.breaker.snapshot().next_probe_in.unwrap_or_default()
    }

    fn is_closed(&self) -> bool {
        matches!(self.breaker.state(), CircuitState::Closed | CircuitState::Recovering)
    }

    /// Whether one replica probes for all.
    fn is_agreed(&self) -> bool {
        self.beliefs.is_agreed() || self.opened.is_some_and(|opened| opened.is_cooling)
    }

    fn made(&mut self, generation: u32, state: CircuitState) {
        self.made.push((generation, state));
    }

    // ---- what happens here ----

    /// The breaker as it is when the fleet is joined, or when transitions were missed.
    pub(super) fn find_open(&mut self, step: &mut Step<'_>) {
        let snapshot = self.breaker.snapshot();
        if let (CircuitState::Open, Some(cause), None) = (snapshot.state, snapshot.cause, self.opened) {
            self.open(self.breaker.generation(), cause, snapshot.last_error.as_ref(), false, step);
        }
    }

    /// A transition of the breaker.
    pub(super) fn transition(&mut self, told: &Transition, step: &mut Step<'_>) {
        if let Some(at) = self.made.iter().position(|made| *made == (told.generation, told.to)) {
            self.made.remove(at);
            return;
        }
        match told.to {
            CircuitState::Open => {
                let was_probe = told.from == CircuitState::HalfOpen;
                if let Some(cause) = told.cause {
                    self.open(told.generation, cause, told.last_error.as_ref(), was_probe, step);
                }
            }
            CircuitState::Closed | CircuitState::Recovering | CircuitState::Disabled => {
                let is_order = self.opened.is_none_or(|opened| opened.generation != told.generation);
                if is_order && told.from != CircuitState::Recovering {
                    self.withdraw(step);
                } else if told.from != CircuitState::Recovering {
                    self.close(step);
                }
            }
            CircuitState::HalfOpen => {}
        }
    }

    /// The circuit has opened, or opened again, because of calls of this replica.
    fn open(
        &mut self,
        generation: u32,
        cause: Cause,
        error: Option<&Arc<LastError>>,
        was_probe: bool,
        step: &mut Step<'_>,
    ) {
        let error_type = error.map_or("", |error| error.error_type());
        self.suspicion = None;
        self.decide_at = None;
        if cause == Cause::Isolated {
            return self.withdraw(step);
        }
        let before = self.opened;
        let is_cooling = cause == Cause::Cooldown && step.rules.config.share_account;
        let is_told = before.is_some_and(|opened| opened.by == By::Calls && opened.is_told);
        self.opened = Some(Opened { generation, by: By::Calls, is_told, is_cooling });
        let left = self.open_left();
        if cause == Cause::Cooldown {
            if let Probing::Leased { .. } = std::mem::replace(&mut self.probing, Probing::Nobody) {
                step.actions.push(Action::GiveBack);
            }
            if is_cooling {
                self.cooled_until = Some(step.now + left);
                let message = step.message(self, Kind::Open, left).because(COOLDOWN, error_type);
                step.say(message, left);
            }
            return;
        }
        if was_probe && matches!(self.probing, Probing::Leased { .. }) {
            self.probing = Probing::Nobody;
            self.beliefs.own = true;
            let message = step.message(self, Kind::Failed, left).because(cause.as_str(), error_type);
            step.say(message, left);
            // Another one is to probe next: this one may be the one that is wrong.
            if let Some(generation) = error.and_then(|error| self.breaker.postpone(left.mul_f64(1.1), false, error)) {
                self.begun(generation);
            }
            return;
        }
        self.probing = Probing::Nobody;
        self.beliefs.open_here(step.now);
        if !is_told && self.beliefs.others() < step.rules.config.quorum + 2 && !self.beliefs.is_outvoted() {
            let stands = step.stands(left, self.open_for());
            let message = step.message(self, Kind::Open, left).because(cause.as_str(), error_type);
            step.say(message, stands);
            self.opened = Some(Opened { generation, by: By::Calls, is_told: true, is_cooling });
        }
    }

    /// A probe of this replica has succeeded, or an answer came after all.
    fn close(&mut self, step: &mut Step<'_>) {
        let opened = self.opened.take();
        let is_leased = matches!(self.probing, Probing::Leased { .. });
        let concerns_others = opened.is_some_and(|it| it.is_told || it.is_cooling || it.by == By::Hearsay);
        if concerns_others || is_leased || self.beliefs.others() > 0 {
            let message = step.message(self, Kind::Closed, Duration::ZERO);
            step.say(message, Duration::ZERO);
        }
        self.beliefs.hear_closed();
        self.probing = Probing::Nobody;
    }

    /// An order by hand is about this replica alone, and takes back what it has said.
    fn withdraw(&mut self, step: &mut Step<'_>) {
        if matches!(self.probing, Probing::Leased { .. }) {
            step.actions.push(Action::GiveBack);
        }
        self.probing = Probing::Nobody;
        self.opened = None;
        self.suspicion = None;
        self.decide_at = None;
        self.beliefs.own = false;
    }

    // ---- what others say ----

    pub(super) fn hear(&mut self, message: &Message, step: &mut Step<'_>) {
        step.rules.figures.hear(message.kind);
        let replica = &*message.replica;
        match message.kind {
            Kind::Open => self.hear_open(replica, message.left(), message.is_cooldown(), &message.error, step),
            Kind::Alive => self.beliefs.hear_alive(replica, step.now),
            Kind::Closed => self.hear_closed(step),
            Kind::Failed => self.hear_failed(replica, message.left(), &message.error),
        }
    }

    /// What the store says that stands.
    pub(super) fn find_standing(&mut self, stands: &Stands, step: &mut Step<'_>) {
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

    fn suspect(&mut self, step: &Step<'_>) {
        if self.suspicion.is_some() || self.breaker.state() != CircuitState::Closed || !self.beliefs.take_unused() {
            return;
        }
        if self.immune_until.is_some_and(|until| until > step.now) {
            return;
        }
        if let Some(generation) = self.breaker.suspect() {
            step.rules.figures.suspect();
            self.suspicion = Some(Suspected { generation, since: step.now, look_at: step.now + FIRST_LOOK });
        }
    }

    fn hear_cooldown(&mut self, replica: &str, left: Duration, error: &str, step: &Step<'_>) {
        let until = step.now + left;
        if self.cooled_until.is_some_and(|cooled| until <= cooled + SAME_COOLDOWN) {
            return;
        }
        self.cooled_until = Some(until);
        if let Some(generation) = self.breaker.cool_down_on_hearsay(left, &error_of(error, replica, "told to")) {
            step.rules.figures.open_on_hearsay();
            self.made(generation, CircuitState::Open);
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
                Probing::Held { permit, .. } => self.breaker.held_probe_succeeded(permit),
                _ => self.breaker.close_on_hearsay(opened.generation),
            };
            if is_closed {
                self.made(opened.generation, self.closed_state());
                self.opened = None;
            }
            return;
        }
        self.opened = Some(Opened { is_told: false, is_cooling: false, ..opened });
        match probing {
            // It is handed back, and a call of this replica has it.
            Probing::Held { permit, .. } => drop(permit),
            _ if opened.is_cooling || self.own_probe_at.is_some_and(|at| at > step.now) => {}
            _ => {
                self.own_probe_at = Some(step.now + self.open_for());
                self.probe_alone(step.now);
            }
        }
    }

    /// What a circuit that closes is said to become.
    fn closed_state(&self) -> CircuitState {
        if self.breaker.config().ramp().is_zero() { CircuitState::Closed } else { CircuitState::Recovering }
    }

    fn hear_failed(&mut self, replica: &str, left: Duration, error: &str) {
        if self.opened.is_some() && self.is_agreed() && !matches!(self.probing, Probing::Leased { .. }) {
            self.wait_after_failure(left, &error_of(error, replica, "the probe failed of"));
        }
    }

    /// Nobody is to probe for so long, and then not all at once.
    fn wait_after_failure(&mut self, left: Duration, error: &Arc<LastError>) {
        let left = left.min(self.open_for() * 2);
        let left = left + jitter(left.mul_f64(0.05));
        match std::mem::replace(&mut self.probing, Probing::Nobody) {
            Probing::Held { permit, .. } => {
                if let Some(generation) = self.breaker.held_probe_failed(permit, left, error) {
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
    fn begun(&mut self, generation: u32) {
        self.made(generation, CircuitState::Open);
        if let Some(opened) = &mut self.opened {
            opened.generation = generation;
        }
    }

    // ---- opening on hearsay ----

    fn deliberate(&mut self, step: &Step<'_>) {
        let Rules { config, .. } = step.rules;
        let may = config.mode == Mode::Quorum && self.decide_at.is_none() && self.is_closed();
        if !may || !self.beliefs.is_majority(config.quorum) || self.immune_until.is_some_and(|at| at > step.now) {
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

    fn decide(&mut self, step: &mut Step<'_>) {
        self.decide_at = None;
        if !self.is_closed() || !self.beliefs.is_majority(step.rules.config.quorum) {
            return;
        }
        let Some(until) = self.beliefs.stands_until() else { return };
        let left = until.saturating_duration_since(step.now).saturating_sub(step.rules.config.sync * 3);
        let left = left.max(self.open_for() / 2);
        let error = error_of("", "", &format!("{} replicas say so, and not this", self.beliefs.openers()));
        if let Some(generation) = self.breaker.open_on_hearsay(left, &error) {
            step.rules.figures.open_on_hearsay();
            self.made(generation, CircuitState::Open);
            self.opened = Some(Opened { generation, by: By::Hearsay, is_told: false, is_cooling: false });
            self.suspicion = None;
            step.actions.push(Action::Opinion(self.open_for()));
        }
    }

    /// Whether this replica is to look whether what it has heard is so.
    pub(super) fn opinion(&mut self, is_asked: bool, now: Instant) {
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

    // ---- one probe for all ----

    /// Holds the probe back from the calls when it is nearly due, and asks whether this replica is to make it.
    fn ask(&mut self, step: &mut Step<'_>) {
        if !matches!(self.probing, Probing::Nobody) || self.ask_at(step).is_none_or(|at| at > step.now) {
            return;
        }
        if let Some(permit) = self.breaker.hold_probe(step.rules.config.timeout) {
            self.probing = Probing::Held { permit, since: step.now, ask_at: None, unused: 0 };
            step.actions.push(Action::Lease);
        }
    }

    /// When to hold the probe back.
    fn ask_at(&self, step: &Step<'_>) -> Option<Instant> {
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
    pub(super) fn leased(&mut self, answer: Option<Lease>, step: &mut Step<'_>) {
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
                        let ask_at = step.now + left.min(LEASE_TTL) + jitter(SHORTEST_DELIBERATION);
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

    fn look_at_lease(&mut self, step: &mut Step<'_>) {
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

    fn look_at_held(&mut self, step: &mut Step<'_>) {
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

    // ---- time ----

    /// Does what is due.
    pub(super) fn look(&mut self, step: &mut Step<'_>) {
        let now = step.now;
        self.beliefs.forget(now);
        self.look_at_suspicion(step);
        if self.object_at.is_some_and(|at| at <= now) {
            self.object_at = None;
            if !self.beliefs.has_enough_objectors() {
                self.beliefs.hear_alive(&step.rules.replica, now);
                let message = step.message(self, Kind::Alive, ALIVE_FOR);
                step.say(message, Duration::ZERO);
            }
        }
        if self.decide_at.is_some_and(|at| at <= now) {
            self.decide(step);
        }
        if matches!(self.probing, Probing::Alone { until } if until <= now) {
            self.probing = Probing::Nobody;
        }
        self.look_at_lease(step);
        self.look_at_held(step);
        self.ask(step);
        for time in [&mut self.immune_until, &mut self.alone_until, &mut self.own_probe_at, &mut self.cooled_until] {
            *time = time.filter(|until| *until > now);
        }
        self.show(step);
    }

    fn look_at_suspicion(&mut self, step: &Step<'_>) {
        let Some(suspected) = &mut self.suspicion else { return self.suspect(step) };
        let now = step.now;
        if suspected.look_at > now && self.beliefs.others() > 0 {
            return;
        }
        match self.breaker.suspicion(suspected.generation) {
            Suspicion::Stands if self.beliefs.others() == 0 => {
                self.breaker.trust();
                self.suspicion = None;
            }
            Suspicion::Stands => {
                suspected.look_at = now + ((now - suspected.since) / 8).clamp(FIRST_LOOK, RAREST_LOOK);
            }
            Suspicion::Refuted => {
                step.rules.figures.refute();
                self.suspicion = None;
                self.decide_at = None;
                self.immune_until = Some(now + ALIVE_FOR);
                self.object_at = Some(now + jitter(ALIVE_JITTER));
            }
            Suspicion::Over => self.suspicion = None,
        }
    }

    /// When something is due next.
    pub(super) fn next(&self, step: &Step<'_>) -> Option<Instant> {
        let probing = match &self.probing {
            Probing::Nobody => self.ask_at(step),
            Probing::Held { since, ask_at, .. } => {
                let over = *since + self.breaker.config().probe_lease();
                Some(ask_at.map_or(over, |at| at.min(over)))
            }
            Probing::Leased { look_at, .. } => Some(*look_at),
            Probing::Alone { until } => Some(*until),
        };
        let suspicion = self.suspicion.map(|suspected| suspected.look_at);
        let times = [probing, suspicion, self.object_at, self.decide_at, self.immune_until, self.beliefs.next_end()];
        times.into_iter().flatten().min()
    }

    /// For how long an opening of this replica stands, if it does: for those who come later.
    pub(super) fn renewed(&self, step: &Step<'_>) -> Option<Duration> {
        self.opened.filter(|it| it.is_told && it.by == By::Calls && !it.is_cooling)?;
        Some(step.stands(self.open_left(), self.open_for()))
    }

    /// The store is gone. What was heard is forgotten, and the breaker does what it does alone.
    pub(super) fn leave(&mut self, figures: &Figures) {
        self.probing = Probing::Nobody;
        if self.suspicion.take().is_some() {
            self.breaker.trust();
        }
        figures.show(&self.name, None);
    }

    /// Whether there is nothing to remember.
    pub(super) fn is_idle(&self) -> bool {
        let times = [self.immune_until, self.object_at, self.decide_at, self.own_probe_at, self.cooled_until];
        self.opened.is_none()
            && self.suspicion.is_none()
            && self.made.is_empty()
            && self.beliefs.is_empty()
            && matches!(self.probing, Probing::Nobody)
            && times.iter().all(Option::is_none)
    }

    fn show(&mut self, step: &Step<'_>) {
        let (openers, objectors) = (self.beliefs.openers(), self.beliefs.objectors());
        let figures = CircuitFigures::new(openers, objectors, self.is_agreed(), self.suspicion.is_some());
        let figures = (figures != CircuitFigures::default()).then_some(figures);
        if figures != self.shown {
            self.shown = figures;
            step.rules.figures.show(&self.name, figures);
        }
    }
}
