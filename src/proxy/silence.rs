//! Watching providers for silence. Each core watches what it has sent itself, by provider, by model and by what is awaited; what
//! is learnt of one kind of answer says nothing about another one.
//!
//! Not here: what silence is: `fusebox::silence`; what is done about it: `failover`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout};

use super::timers::Timers;
use crate::silence::{Config, Detector, DetectorSnapshot, TICK, Ticket, Watcher};
use crate::{CircuitBreaker, Permit};

/// A stream that pauses cannot be moved to another provider, so there is no hurry; and streams of one provider pause together,
/// whenever that schedules its work anew.
const MIN_CHUNK_FLOOR: Duration = Duration::from_secs(1);

/// How many requests of one core, that another provider has answered, are listened to for the answer of the one that was
/// silent, and for how long: by them a short silence is known to be over.
const MAX_LISTENING: usize = 16;
const LISTEN_FOR: Duration = Duration::from_secs(30);

/// What is awaited of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Awaited {
    /// All of an answer.
    Answer,
    /// The first content of a stream.
    Stream,
    /// The next piece of one.
    Chunk,
}

impl Awaited {
    const ALL: [Self; 3] = [Self::Answer, Self::Stream, Self::Chunk];

    /// In metrics.
    pub(crate) fn as_str(self) -> &'static str {
        ["answer", "stream", "chunk"][self as usize]
    }
}

/// One provider's detectors, for all cores.
pub(crate) struct Detectors {
    breaker: Arc<CircuitBreaker>,
    cores: usize,
    state: Mutex<State>,
}

struct State {
    config: Config,
    by_kind: BTreeMap<(Box<str>, Awaited), Arc<Detector>>,
}

impl Detectors {
    pub(crate) fn new(breaker: Arc<CircuitBreaker>, config: Config, cores: usize) -> Self {
        Self { breaker, cores, state: Mutex::new(State { config, by_kind: BTreeMap::new() }) }
    }

    /// What was learnt is kept.
    pub(crate) fn set_config(&self, config: Config) {
        let mut state = self.state.lock();
        state.config = config;
        for ((_, awaited), detector) in &state.by_kind {
            detector.set_config(&config_of(config, *awaited));
        }
    }

    fn of(&self, model: &str, awaited: Awaited) -> Arc<Detector> {
        let mut state = self.state.lock();
        let config = config_of(state.config, awaited);
        let new = || {
            let detector = Detector::new(Arc::clone(&self.breaker), &config, self.cores);
            Arc::new(detector.with_label(format!("{model}, {}", awaited.as_str())))
        };
        Arc::clone(state.by_kind.entry((model.into(), awaited)).or_insert_with(new))
    }

    /// What is known of each kind of answer.
    pub(crate) fn snapshots(&self) -> Vec<(Box<str>, Awaited, DetectorSnapshot)> {
        let now = Instant::now().into_std();
        let state = self.state.lock();
        state.by_kind.iter().map(|((model, awaited), it)| (model.clone(), *awaited, it.snapshot(now))).collect()
    }
}

impl fmt::Debug for Detectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detectors").field("breaker", &self.breaker.name()).finish_non_exhaustive()
    }
}

fn config_of(config: Config, awaited: Awaited) -> Config {
    match awaited {
        Awaited::Answer | Awaited::Stream => config,
        Awaited::Chunk => {
            let floor = config.floor().max(MIN_CHUNK_FLOOR);
            config.to_builder().floor(floor).build().expect("one of two that are right")
        }
    }
}

/// By what is awaited. `None`: there are more cores than were configured.
type Kinds = [Option<Arc<Watched>>; 3];

/// What one core watches of one provider.
pub(crate) struct Watchers {
    pub(crate) detectors: Arc<Detectors>,
    looks: Arc<Looks>,
    by_model: Mutex<HashMap<Box<str>, Kinds, foldhash::fast::RandomState>>,
    listening: Arc<AtomicUsize>,
}

impl Watchers {
    pub(crate) fn new(detectors: Arc<Detectors>, looks: Arc<Looks>) -> Self {
        Self { detectors, looks, by_model: Mutex::default(), listening: Arc::default() }
    }

    /// Watches a request that is sent with this permit.
    pub(crate) fn start<B: Deref<Target = CircuitBreaker>>(
        &self,
        model: &str,
        awaited: Awaited,
        permit: &Permit<B>,
        now: Instant,
    ) -> Option<Watch> {
        self.watched(model, awaited)
            .map(|watched| watched.start(&self.looks, |watcher| watcher.start(permit, now.into_std())))
    }

    /// What waits for the pieces of a stream.
    pub(crate) fn chunks(&self, model: &str) -> Option<Chunks> {
        let watched = self.watched(model, Awaited::Chunk)?;
        Some(Chunks { watched, looks: Arc::clone(&self.looks), awaited: None })
    }

    fn watched(&self, model: &str, awaited: Awaited) -> Option<Arc<Watched>> {
        let mut by_model = self.by_model.lock();
        if let Some(kinds) = by_model.get(model) {
            return kinds[awaited as usize].clone();
        }
        let kinds = Awaited::ALL.map(|awaited| {
            let watcher = self.detectors.of(model, awaited).watcher()?;
            Some(Arc::new(Watched { state: Mutex::new((watcher, false)), alarms: AtomicU64::new(0) }))
        });
        let found = kinds[awaited as usize].clone();
        by_model.insert(model.into(), kinds);
        found
    }

    /// Goes on listening for the answer to a request that another provider has answered. `answer`: whether there is one.
    pub(crate) fn listen(&self, answer: impl Future<Output = bool> + Send + 'static, mut watch: Watch) {
        let listening = Arc::clone(&self.listening);
        if listening.load(Ordering::Relaxed) >= MAX_LISTENING {
            return;
        }
        listening.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            if timeout(LISTEN_FOR, answer).await == Ok(true) {
                watch.answered(Instant::now());
            }
            listening.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// One kind of answer, on one core.
struct Watched {
    /// Locked by this core alone. The flag: whether somebody looks.
    state: Mutex<(Watcher, bool)>,
    alarms: AtomicU64,
}

impl Watched {
    fn start(self: Arc<Self>, looks: &Arc<Looks>, start: impl FnOnce(&mut Watcher) -> Ticket) -> Watch {
        let mut state = self.state.lock();
        let ticket = start(&mut state.0);
        let is_looked_at = std::mem::replace(&mut state.1, true);
        drop(state);
        if !is_looked_at {
            looks.begin(&self);
        }
        Watch { alarms: self.alarms.load(Ordering::Relaxed), watched: self, ticket: Some(ticket) }
    }
}

/// A request that is watched until it is answered. Dropped before, it says nothing.
pub(crate) struct Watch {
    watched: Arc<Watched>,
    ticket: Option<Ticket>,
    alarms: u64,
}

impl Watch {
    /// Whether it is one of those that had better ask somebody else.
    pub(crate) fn is_silent(&self) -> bool {
        self.watched.alarms.load(Ordering::Relaxed) != self.alarms
    }

    pub(crate) fn answered(&mut self, now: Instant) {
        if let Some(ticket) = self.ticket.take() {
            self.watched.state.lock().0.answered(ticket, now.into_std());
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.watched.state.lock().0.withdrawn(ticket, Instant::now().into_std());
        }
    }
}

/// The pieces of one stream.
pub(crate) struct Chunks {
    watched: Arc<Watched>,
    looks: Arc<Looks>,
    awaited: Option<Watch>,
}

impl Chunks {
    /// The next piece is waited for, if it was not already.
    pub(crate) fn wait(&mut self) {
        if self.awaited.is_none() {
            let now = Instant::now().into_std();
            let watch = Arc::clone(&self.watched).start(&self.looks, |watcher| watcher.start_piece(now));
            self.awaited = Some(watch);
        }
    }

    /// Something has come, which may be the next piece. Nobody looks at it unless that was waited for.
    pub(crate) fn come(&mut self, is_a_piece: impl FnOnce() -> bool) {
        if let Some(mut watch) = self.awaited.take_if(|_| is_a_piece()) {
            watch.answered(Instant::now());
        }
    }
}

/// What is read in the first one may take another one to be seen, as where it is decrypted.
const ROUNDS: usize = 2;

/// Looks at everything that a core watches, every tick while there is something under way.
pub(crate) struct Looks {
    timers: Arc<Timers>,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    watched: Vec<Arc<Watched>>,
    is_running: bool,
}

impl Looks {
    pub(crate) fn new(timers: Arc<Timers>) -> Self {
        Self { timers, list: Mutex::default() }
    }

    fn begin(self: &Arc<Self>, watched: &Arc<Watched>) {
        let mut list = self.list.lock();
        list.watched.push(Arc::clone(watched));
        if !std::mem::replace(&mut list.is_running, true) {
            let looks = Arc::clone(self);
            tokio::spawn(async move {
                let mut next = Some(Instant::now());
                while let Some(at) = next {
                    sleep_until(at).await;
                    next = looks.look_at(Instant::now()).await;
                }
            });
        }
    }

    /// Looks at how things stood at `now`, after everything that had come by then was read: a core that was held up, or that has
    /// more to do than it can, has answers lying about, and their provider is not silent. When to look again.
    async fn look_at(&self, now: Instant) -> Option<Instant> {
        for _ in 0..ROUNDS {
            // The runtime lets those go first that can run, and asks the system who can, before it comes back here.
            yield_now().await;
        }
        self.look(now)
    }

    fn look(&self, now: Instant) -> Option<Instant> {
        let mut is_alarm = false;
        let mut list = self.list.lock();
        list.watched.retain(|watched| {
            let mut state = watched.state.lock();
            let (watcher, is_looked_at) = &mut *state;
            if watcher.look(now.into_std()).is_some() {
                watched.alarms.fetch_add(1, Ordering::Relaxed);
                is_alarm = true;
            }
            *is_looked_at = watcher.in_flight() > 0;
            *is_looked_at
        });
        list.is_running = !list.watched.is_empty();
        let is_running = list.is_running;
        drop(list);
        if is_alarm {
            // Whoever waits for a provider has set a timeout.
            self.timers.wake_all();
        }
        is_running.then(|| now + TICK)
    }
}
