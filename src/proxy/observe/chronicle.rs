//! What has happened lately: the transitions of every circuit, and the failures of every provider, for operators who
//! look at them.
//!
//! Not here: how both are shown: `admin::view`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast};

use crate::proxy::answer::start_of;
use crate::proxy::outcome::Outcome;
use crate::proxy::place::Place;
use crate::proxy::wall_clock;
use crate::{CircuitBreaker, Transition};

/// How many transitions and how many failures of a provider are kept.
const KEPT: usize = 20;

/// How many transitions wait for [`Chronicle::follow`]. If more come at once, the oldest of them are missing.
const WAITING: usize = 1024;

/// A provider may send an error of any length.
const MAX_MESSAGE: usize = 300;

pub(crate) struct Chronicle {
    told: broadcast::Sender<Arc<Transition>>,
    transitions: broadcast::Sender<Transition>,
    /// Those that nobody has followed yet.
    unread: Mutex<Option<broadcast::Receiver<Transition>>>,
    /// By provider.
    recent: Mutex<HashMap<String, Recent>>,
    /// Wakes whoever keeps the state on a disk.
    pub(crate) changed: Notify,
}

#[derive(Default)]
struct Recent {
    transitions: VecDeque<Arc<Transition>>,
    failures: VecDeque<Failure>,
    /// When each circuit entered its state, by the breaker's name.
    since: HashMap<Arc<str>, SystemTime>,
    /// The same of circuits that are restored, until their transitions are noted.
    restored: HashMap<String, SystemTime>,
}

/// A request that a provider has failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) at: SystemTime,
    pub(crate) model: String,
    pub(crate) outcome: Outcome,
    pub(crate) message: String,
}

impl Chronicle {
    pub(crate) fn new() -> Self {
        let (transitions, unread) = broadcast::channel(WAITING);
        Self {
            told: broadcast::channel(WAITING).0,
            transitions,
            unread: Mutex::new(Some(unread)),
            recent: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Whom a new circuit tells of its transitions.
    pub(crate) fn listener(&self) -> &broadcast::Sender<Transition> {
        &self.transitions
    }

    /// Notes transitions, until it is dropped.
    pub(crate) async fn follow(&self) {
        let unread = self.unread.lock().take();
        let mut transitions = unread.unwrap_or_else(|| self.transitions.subscribe());
        loop {
            match transitions.recv().await {
                Ok(transition) => self.note(transition),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
            self.changed.notify_one();
        }
    }

    fn note(&self, transition: Transition) {
        let transition = Arc::new(transition);
        let Transition { breaker, from, to, at, .. } = &*transition;
        {
            let mut recent = self.recent.lock();
            let recent = recent.entry(Place::of(breaker).provider.to_owned()).or_default();
            if from != to {
                let before = recent.restored.remove(&**breaker);
                recent.since.insert(Arc::clone(breaker), before.unwrap_or(*at));
            }
            push(&mut recent.transitions, Arc::clone(&transition));
        }
        // Nobody may be looking.
        let _ = self.told.send(transition);
    }

    /// Notes that a provider has failed a request.
    pub(crate) fn note_failure(&self, provider: &str, model: &str, outcome: Outcome, message: &dyn fmt::Display) {
        let message = start_of(&message.to_string(), MAX_MESSAGE).to_owned();
        let failure = Failure { at: wall_clock::now(), model: model.to_owned(), outcome, message };
        let mut recent = self.recent.lock();
        match recent.get_mut(provider) {
            Some(recent) => push(&mut recent.failures, failure),
            None => push(&mut recent.entry(provider.to_owned()).or_default().failures, failure),
        }
    }

    /// Transitions from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<Transition>> {
        self.told.subscribe()
    }

    /// The last transitions and failures of a provider, the newest first.
    pub(crate) fn of(&self, provider: &str) -> (Vec<Arc<Transition>>, Vec<Failure>) {
        let recent = self.recent.lock();
        let Some(recent) = recent.get(provider) else { return (Vec::new(), Vec::new()) };
        (recent.transitions.iter().rev().cloned().collect(), recent.failures.iter().rev().cloned().collect())
    }

    /// When a circuit entered its state. `None` if it has always been in it, or if nobody follows.
    pub(crate) fn since(&self, breaker: &CircuitBreaker) -> Option<SystemTime> {
        let name = breaker.shared_name();
        let recent = self.recent.lock();
        let recent = recent.get(Place::of(name).provider)?;
        recent.restored.get(&**name).or_else(|| recent.since.get(name)).copied()
    }

    /// When circuits entered their states, by the names of their breakers.
    pub(crate) fn all_since(&self) -> BTreeMap<String, SystemTime> {
        let recent = self.recent.lock();
        recent.values().flat_map(|recent| &recent.since).map(|(name, at)| (name.to_string(), *at)).collect()
    }

    /// A circuit that is about to be restored was in its state before this process.
    pub(crate) fn restore_since(&self, breaker: &str, at: SystemTime) {
        let provider = Place::of(breaker).provider.to_owned();
        self.recent.lock().entry(provider).or_default().restored.insert(breaker.to_owned(), at);
    }

    pub(crate) fn keep_only(&self, is_kept: impl Fn(&str) -> bool) {
        self.recent.lock().retain(|provider, _| is_kept(provider));
    }
}

impl fmt::Debug for Chronicle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chronicle").finish_non_exhaustive()
    }
}

fn push<T>(kept: &mut VecDeque<T>, new: T) {
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(new);
}
