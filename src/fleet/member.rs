//! A replica's task: it carries what happens here to the others, and what they say to its breakers.
//!
//! Everything that the fleet remembers belongs to this task alone. No call ever waits for it, but for a probe that it
//! holds.
//!
//! Not here: what follows from what is said: `topic`.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::circle::Circle;
use super::config::{FleetConfig, FleetError};
use super::figures::{Figures, FleetSnapshot};
use super::message::{Kind, Message};
use super::store::{Lease, Link, News, Said, Standing, Store, Trouble};
use super::topic::{Action, LEASE_TTL, Rules, Step, Topic};
use crate::feed::Transition;
use crate::sync::{Instant, random};
use crate::transition::CircuitState;

/// For what nobody waits for.
const PATIENCE: Duration = Duration::from_secs(1);
/// So many messages wait to be sent. A fleet says little; more wait only if the store is stuck.
const MAX_SAID: usize = 1024;
/// Between attempts to connect, growing up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A replica's part in a fleet. Dropping it leaves the fleet: its breakers go on as they are.
pub struct Fleet {
    replica: Arc<str>,
    figures: Arc<Figures>,
    task: JoinHandle<()>,
}

impl Fleet {
    pub(super) fn start(config: FleetConfig, circle: Arc<dyn Circle>) -> Self {
        let figures = Arc::new(Figures::default());
        let replica: Arc<str> = format!("{:08x}{:08x}", random_bits(), random_bits()).into();
        let store = config.store();
        let rules = Rules { replica: replica.to_string(), config, figures: Arc::clone(&figures), circle };
        let task = tokio::spawn(Member { rules, topics: HashMap::new() }.run(store));
        Self { replica, figures, task }
    }

    /// By which the others know this replica. It is drawn by chance when it joins.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    #[cfg(feature = "proxy")]
    pub(crate) fn figures(&self) -> Arc<Figures> {
        Arc::clone(&self.figures)
    }

    /// What it sees and has done until now.
    pub fn snapshot(&self) -> FleetSnapshot {
        self.figures.snapshot()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("replica", &self.replica).field("seen", &self.snapshot()).finish_non_exhaustive()
    }
}

/// Not `sync::random`, whose numbers follow from the thread: two processes would draw the same name.
fn random_bits() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    let bits = RandomState::new().hash_one(std::process::id());
    u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default()
}

struct Member {
    rules: Rules,
    topics: HashMap<Arc<str>, Topic>,
}

/// What the store has done.
enum Done {
    Said(Result<(), Trouble>),
    Lease(Arc<str>, Option<Lease>),
    Opinion(Arc<str>, bool),
    GaveBack,
    Synced(Result<Standing, Trouble>),
}

/// What is under way while the store is reached.
struct Session {
    link: Link,
    work: JoinSet<Done>,
    said: VecDeque<Said>,
    is_saying: bool,
    sync_at: Instant,
    is_syncing: bool,
}

impl Member {
    async fn run(mut self, store: Result<Store, FleetError>) {
        // It was read when it was set.
        let Ok(store) = store else { return };
        let place = store.shown();
        let (group, replica) = (self.rules.config.group.clone(), self.rules.replica.clone());
        let (mut pause, mut is_told) = (FIRST_PAUSE, false);
        loop {
            let trouble = match store.connect(&group, &replica).await {
                Ok((link, news)) => {
                    let joined = || {
                        info!(group, replica, store = place, "the fleet is joined");
                        (pause, is_told) = (FIRST_PAUSE, false);
                    };
                    self.meet(&mut Session::new(link), news, joined).await
                }
                Err(trouble) => trouble,
            };
            self.part();
            if !is_told {
                is_told = true;
                warn!(group, store = place, error = %trouble, "the fleet is not reached, each breaker is on its own");
            }
            sleep(pause + pause.mul_f64(f64::from(random()) / f64::from(u32::MAX))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// As long as the store is reached. `joined` is called when it has answered first.
    async fn meet(&mut self, session: &mut Session, mut news: News, mut joined: impl FnMut()) -> Trouble {
        // The news are listened to already: what is said from now on is heard, and what was said before stands.
        let mut transitions = self.rules.circle.subscribe();
        let standing = match timeout(PATIENCE, session.sync(&self.rules, Vec::new())).await {
            Ok(Ok(standing)) => standing,
            Ok(Err(trouble)) => return trouble,
            Err(_) => return Trouble::Lost("it does not answer".to_owned()),
        };
        joined();
        self.rules.figures.up.store(true, Ordering::Relaxed);
        self.stand(&standing, session);
        self.find_open(session);
        loop {
            let next = self.look(session);
            let until = next.map_or(session.sync_at, |next| next.min(session.sync_at));
            tokio::select! {
                told = transitions.recv() => {
                    if let Err(gone) = self.told(told, session) {
                        return gone;
                    }
                    // Those that have come meanwhile, too.
                    while let Ok(told) = transitions.try_recv() {
                        let _ = self.told(Ok(told), session);
                    }
                }
                message = news.recv() => match message {
                    Some(message) => {
                        self.hear(&message, session);
                        while let Ok(message) = news.try_recv() {
                            self.hear(&message, session);
                        }
                    }
                    None => return Trouble::Lost("the connection was closed".to_owned()),
                },
                Some(done) = session.work.join_next() => {
                    if let Some(trouble) = done.ok().and_then(|done| self.done(done, session)) {
                        return trouble;
                    }
                }
                () = sleep_until(until) => {
                    if Instant::now() >= session.sync_at {
                        if session.is_syncing {
                            return Trouble::Lost("it does not answer".to_owned());
                        }
                        self.begin_sync(session);
                    }
                }
            }
        }
    }

    /// What was heard is forgotten.
    fn part(&mut self) {
        for topic in self.topics.values_mut() {
            topic.leave(&self.rules.figures);
        }
        self.topics.clear();
        for flag in [&self.rules.figures.up, &self.rules.figures.refused] {
            flag.store(false, Ordering::Relaxed);
        }
        self.rules.figures.replicas.store(0, Ordering::Relaxed);
    }

    /// Does something with the topic of this name, which is made if there is such a breaker.
    fn with(&mut self, name: &str, session: &mut Session, f: impl FnOnce(&mut Topic, &mut Step<'_>)) {
        let Some(breaker) = self.rules.circle.find(name) else { return };
        if self.topics.get(name).is_none_or(|topic| !Arc::ptr_eq(&topic.breaker, &breaker)) {
            let name: Arc<str> = name.into();
            self.topics.insert(Arc::clone(&name), Topic::new(name, breaker));
        }
        let Some(topic) = self.topics.get_mut(name) else { return };
        let mut actions = Vec::new();
        f(topic, &mut Step { rules: &self.rules, now: Instant::now(), actions: &mut actions });
        let name = Arc::clone(&topic.name);
        session.carry_out(&name, actions, &self.rules);
    }

    fn find_open(&mut self, session: &mut Session) {
        for name in self.rules.circle.not_closed() {
            self.with(&name, session, Topic::find_open);
        }
    }

    fn told(&mut self, told: Result<Transition, RecvError>, session: &mut Session) -> Result<(), Trouble> {
        match told {
            Ok(told) => {
                if let Some(name) = self.rules.circle.shared_name(&told.breaker) {
                    self.with(&name, session, |topic, step| topic.transition(&told, step));
                    let was_shut = matches!(told.from, CircuitState::Open | CircuitState::HalfOpen);
                    if was_shut && matches!(told.to, CircuitState::Closed | CircuitState::Recovering) {
                        self.end_cooldowns(&name, session);
                    }
                }
                Ok(())
            }
            Err(RecvError::Lagged(_)) => {
                self.find_open(session);
                Ok(())
            }
            Err(RecvError::Closed) => Err(Trouble::Lost("the breakers are gone".to_owned())),
        }
    }

    fn hear(&mut self, message: &Message, session: &mut Session) {
        if message.replica != self.rules.replica {
            self.with(&message.provider, session, |topic, step| topic.hear(message, step));
            if message.kind == Kind::Closed {
                self.end_cooldowns(&message.provider, session);
            }
        }
    }

    /// A circuit has closed, here or elsewhere, and what it was told to wait for is over for its siblings as well.
    fn end_cooldowns(&mut self, name: &str, session: &mut Session) {
        for sibling in self.rules.circle.siblings(name) {
            if self.topics.contains_key(&sibling) {
                self.with(&sibling, session, Topic::end_cooldown);
            }
        }
    }

    fn stand(&mut self, standing: &Standing, session: &mut Session) {
        let figures = Arc::clone(&self.rules.figures);
        figures.replicas.store(standing.replicas, Ordering::Relaxed);
        let was_refused = figures.refused.swap(standing.refused.is_some(), Ordering::Relaxed);
        let group = &*self.rules.config.group;
        match &standing.refused {
            Some(error) if !was_refused => {
                warn!(group, error, "the fleet's store takes nothing new: each replica probes by itself");
            }
            None if was_refused => info!(group, "the fleet's store takes news again"),
            _ => {}
        }
        for stands in &standing.openings {
            if stands.replica != self.rules.replica {
                self.with(&stands.provider, session, |topic, step| topic.find_standing(stands, step));
            }
        }
    }

    fn begin_sync(&mut self, session: &mut Session) {
        let now = Instant::now();
        let mut renewed = Vec::new();
        let Self { rules, topics } = self;
        // A breaker may have been removed, or replaced by another one of its name.
        topics.retain(|name, topic| {
            let is_there = rules.circle.find(name).is_some_and(|breaker| Arc::ptr_eq(&topic.breaker, &breaker));
            if !is_there {
                topic.leave(&rules.figures);
            }
            is_there
        });
        for topic in self.topics.values() {
            let step = Step { rules: &self.rules, now, actions: &mut Vec::new() };
            renewed.extend(topic.renewed(&step).map(|stands| (Arc::clone(&topic.name), stands)));
        }
        session.is_syncing = true;
        session.sync_at = now + self.rules.config.sync.max(PATIENCE);
        let sync = session.sync(&self.rules, renewed);
        session.work.spawn(async move { Done::Synced(sync.await) });
    }

    /// Something is done, which may be that the store is lost.
    fn done(&mut self, done: Done, session: &mut Session) -> Option<Trouble> {
        match done {
            Done::Said(said) => {
                session.is_saying = false;
                if let Err(lost @ Trouble::Lost(_)) = said {
                    return Some(lost);
                }
                session.say_next();
            }
            Done::Lease(name, answer) => self.with(&name, session, |topic, step| topic.leased(answer, step)),
            Done::Opinion(name, is_asked) => self.with(&name, session, |topic, step| topic.opinion(is_asked, step.now)),
            Done::GaveBack => {}
            Done::Synced(Ok(standing)) => {
                session.is_syncing = false;
                session.sync_at = Instant::now() + self.rules.config.sync;
                self.stand(&standing, session);
            }
            Done::Synced(Err(trouble)) => return Some(trouble),
        }
        None
    }

    /// Does what is due. Returns when something is due next.
    fn look(&mut self, session: &mut Session) -> Option<Instant> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        let Self { rules, topics } = self;
        topics.retain(|name, topic| {
            let mut actions = Vec::new();
            let mut step = Step { rules, now, actions: &mut actions };
            topic.look(&mut step);
            let due = topic.next(&step);
            session.carry_out(name, actions, rules);
            next = next.into_iter().chain(due).min();
            !topic.is_idle()
        });
        next
    }
}

impl Session {
    fn new(link: Link) -> Self {
        let now = Instant::now();
        let (work, said) = (JoinSet::new(), VecDeque::new());
        Self { link, work, said, is_saying: false, sync_at: now, is_syncing: false }
    }

    fn sync(
        &self,
        rules: &Rules,
        renewed: Vec<(Arc<str>, Duration)>,
    ) -> impl Future<Output = Result<Standing, Trouble>> + Send + use<> {
        let (link, replica, there_for) = (self.link.clone(), rules.replica.clone(), rules.config.sync * 3);
        async move { link.sync(&replica, there_for, &renewed).await }
    }

    fn carry_out(&mut self, name: &Arc<str>, actions: Vec<Action>, rules: &Rules) {
        for action in actions {
            let (link, name, replica) = (self.link.clone(), Arc::clone(name), rules.replica.clone());
            match action {
                Action::Say(said) if self.said.len() < MAX_SAID => {
                    self.said.push_back(said);
                    self.say_next();
                }
                Action::Say(_) => rules.figures.drop_one(),
                Action::Lease => {
                    let patience = rules.config.timeout;
                    self.work.spawn(async move {
                        let answer = timeout(patience, link.lease(&name, &replica, LEASE_TTL)).await;
                        Done::Lease(name, answer.ok().and_then(Result::ok))
                    });
                }
                Action::GiveBack => {
                    self.work.spawn(async move {
                        let _ = timeout(PATIENCE, link.give_back(&name, &replica)).await;
                        Done::GaveBack
                    });
                }
                Action::Opinion(length) => {
                    self.work.spawn(async move {
                        let asked = timeout(PATIENCE, link.opinion(&name, &replica, length)).await;
                        Done::Opinion(name, matches!(asked, Ok(Ok(true))))
                    });
                }
            }
        }
    }

    /// One after the other, so that none overtakes another one.
    fn say_next(&mut self) {
        if self.is_saying {
            return;
        }
        let Some(said) = self.said.pop_front() else { return };
        self.is_saying = true;
        let link = self.link.clone();
        self.work.spawn(async move {
            let said = timeout(PATIENCE, link.say(&said)).await;
            Done::Said(said.unwrap_or_else(|_| Err(Trouble::Lost("it does not answer".to_owned()))))
        });
    }
}
