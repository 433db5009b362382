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
//! Not here: sending and receiving: `member`; who says what: `beliefs`; what others say (`topic::heard`); one probe for
//! all (`topic::probing`).

mod heard;
mod probing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use self::heard::FIRST_LOOK;
use super::beliefs::{ALIVE_FOR, Beliefs};
use super::circle::Circle;
use super::config::FleetConfig;
use super::figures::{CircuitFigures, Figures};
use super::message::{COOLDOWN, Kind, Message};
use super::store::Said;
use crate::breaker::{CircuitBreaker, Suspicion};
use crate::error::LastError;
use crate::feed::Transition;
use crate::permit::OwnedPermit;
use crate::sync::{Instant, random};
use crate::transition::{Cause, CircuitState};

/// A lease ends so long after a replica has died, which renews it in between.
pub(super) const LEASE_TTL: Duration = Duration::from_secs(1);
/// Objections are spread over so long, so that most of them need not be said.
const ALIVE_JITTER: Duration = Duration::from_millis(5);
/// A suspicion is looked at less and less often, but so often at least.
const RAREST_LOOK: Duration = Duration::from_millis(250);
/// The longest name, of an error or of a replica, that is taken over from others.
const MAX_TEXT: usize = 64;

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
    /// The lease is not asked for before: a probe has just failed, the store did not answer, or nobody calls.
    ask_not_before: Option<Instant>,
    /// How often in a row this replica had the lease and nobody called.
    unused: u32,
    /// The next probe of its own after a good one elsewhere.
    own_probe_at: Option<Instant>,
    cooled_until: Option<Instant>,
    /// Transitions that the fleet has made, and that are yet to be told: the generation, and whether it opened or
    /// closed.
    made: Vec<(u32, Made)>,
    shown: Option<CircuitFigures>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    Opening,
    Closing,
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
    /// The fleet holds the probe of this replica.
    Held(Held),
    /// A call of this replica probes for it alone.
    Alone {
        until: Instant,
    },
    /// This replica probes for all.
    Leased {
        since: Instant,
        look_at: Instant,
    },
}

/// A probe that the fleet holds back from the calls.
struct Held {
    permit: OwnedPermit,
    /// When the circuit's open time is over. No call is the probe before.
    due: Instant,
    /// When to ask for the lease, if it has not been asked for.
    ask_at: Option<Instant>,
    /// What the store has answered, if that is to be done when it is due.
    then: Option<Then>,
}

#[derive(Clone, Copy)]
enum Then {
    /// To probe for all.
    Lead,
    /// To probe alone, since the store has not answered.
    Alone,
}

impl Rules {
    fn quorum(&self) -> usize {
        usize::try_from(self.config.quorum).unwrap_or(usize::MAX)
    }
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
fn plain(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(MAX_TEXT).collect()
}

fn error_of(error_type: &str, message: &str) -> Arc<LastError> {
    let error_type = plain(error_type);
    let error_type = if error_type.is_empty() { "fleet" } else { &error_type };
    Arc::new(LastError::new(error_type, &message))
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
            ask_not_before: None,
            unused: 0,
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

    fn made(&mut self, generation: u32, made: Made) {
        self.made.push((generation, made));
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
        let made = match told.to {
            CircuitState::Open => Some(Made::Opening),
            CircuitState::Closed | CircuitState::Recovering => Some(Made::Closing),
            CircuitState::HalfOpen | CircuitState::Disabled => None,
        };
        let of_the_fleet =
            self.made.iter().position(|(generation, it)| *generation == told.generation && Some(*it) == made);
        if let Some(at) = of_the_fleet {
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
        self.unused = 0;
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
            let longer = left.mul_f64(1.1);
            self.ask_not_before = Some(step.now + longer);
            if let Some(generation) = error.and_then(|error| self.breaker.postpone(longer, false, error)) {
                self.begun(generation);
            }
            return;
        }
        self.probing = Probing::Nobody;
        self.beliefs.open_here(step.now);
        if !is_told && self.beliefs.others() < step.rules.quorum() + 2 && !self.beliefs.is_outvoted() {
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
        self.unused = 0;
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
        for time in [&mut self.immune_until, &mut self.ask_not_before, &mut self.own_probe_at, &mut self.cooled_until] {
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
            Probing::Held(held) => {
                let over = held.due + self.breaker.config().probe_lease();
                let due = held.then.map(|_| held.due);
                [Some(over), held.ask_at, due].into_iter().flatten().min()
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
