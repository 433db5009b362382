//! Watching providers for silence. Detectors are shared by all cores; each core has a watcher for each of them. There
//! is one detector for each provider, model and kind of answer: what is learnt of one kind of answer says nothing about
//! another.
//!
//! Not here: when a provider is silent: `fusebox::silence`; what a request does then: `route::failover`.

pub(crate) mod allowance;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use strum::{EnumCount, IntoStaticStr, VariantArray};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::circuits::{AnswerKind, Circuit};
use super::timers::{Group, Timers};
use crate::silence::{self, Config, Detector, DetectorSnapshot, TICK, Watcher};
use crate::{CircuitBreaker, Permit};

/// A stream that pauses cannot be moved to another provider, so there is no hurry. And all streams of a provider pause
/// together whenever it reschedules its work.
const MIN_PIECE_FLOOR: Duration = Duration::from_secs(1);

/// A silent request that another provider has answered is kept open until its own time limits, to learn from a late
/// answer that the silence was short, and how long such an answer takes. A core keeps at most this many of one
/// provider's requests.
const MAX_LISTENING: usize = 16;

/// What a request waits for. Its text is a label in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, EnumCount, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "snake_case")]
pub(crate) enum Awaited {
    /// A whole answer.
    Answer,
    /// The first content of a stream.
    Stream,
    /// The next piece of a stream.
    Chunk,
}

impl Awaited {
    pub(crate) fn as_str(self) -> &'static str {
        self.into_str()
    }

    /// Whose circuit its silence opens.
    fn kind(self) -> AnswerKind {
        match self {
            Self::Answer => AnswerKind::Whole,
            Self::Stream | Self::Chunk => AnswerKind::Stream,
        }
    }
}

/// The detectors of one provider, for all cores.
pub(crate) struct Detectors {
    provider: String,
    cores: usize,
    config: Config,
    by_kind: Mutex<ByKind>,
}

/// By model and kind of answer.
type ByKind = BTreeMap<(Box<str>, Awaited), Arc<Detector>>;

impl Detectors {
    pub(crate) fn new(provider: &str, config: Config, cores: usize) -> Self {
        Self { provider: provider.to_owned(), cores, config, by_kind: Mutex::default() }
    }

    /// The same detectors with other settings, without those of models that the provider does not serve any more. What
    /// they have learnt is kept. Requests that began before keep using the old ones, which go when the last of them
    /// ends.
    pub(crate) fn reconfigured(&self, config: Config, is_served: impl Fn(&str) -> bool) -> Self {
        let mut by_kind = self.by_kind.lock().clone();
        // A request without a model belongs to no model that could be removed.
        by_kind.retain(|(model, _), _| model.is_empty() || is_served(model));
        for ((_, awaited), detector) in &by_kind {
            detector.set_config(config_of(config, *awaited));
        }
        Self { provider: self.provider.clone(), cores: self.cores, config, by_kind: Mutex::new(by_kind) }
    }

    /// The detector that opens this circuit.
    fn of(&self, model: &str, awaited: Awaited, breaker: &Arc<CircuitBreaker>) -> Arc<Detector> {
        let new = || {
            let detector = Detector::new(Arc::clone(breaker), config_of(self.config, awaited), self.cores);
            Arc::new(detector.with_label(format!("{model}, {}", awaited.as_str())))
        };
        Arc::clone(self.by_kind.lock().entry((model.into(), awaited)).or_insert_with(new))
    }

    /// When the newest of a model's answered requests was sent.
    pub(crate) fn newest_answer(&self, model: &str) -> Option<std::time::Instant> {
        let by_kind = self.by_kind.lock();
        let of_model = Awaited::VARIANTS.iter().filter_map(|awaited| by_kind.get(&(model.into(), *awaited)));
        of_model.filter_map(|detector| detector.newest_answer()).max()
    }

    /// What each detector knows, by model and kind of answer.
    pub(crate) fn snapshots(&self) -> Vec<(Box<str>, Awaited, DetectorSnapshot)> {
        let now = Instant::now().into_std();
        let by_kind = self.by_kind.lock();
        by_kind.iter().map(|((model, awaited), it)| (model.clone(), *awaited, it.snapshot(now))).collect()
    }
}

impl fmt::Debug for Detectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detectors").field("provider", &self.provider).finish_non_exhaustive()
    }
}

fn config_of(config: Config, awaited: Awaited) -> Config {
    match awaited {
        Awaited::Answer | Awaited::Stream => config,
        Awaited::Chunk => {
            let floor = config.floor().max(MIN_PIECE_FLOOR);
            config.to_builder().floor(floor).build().expect("both floors are valid")
        }
    }
}

/// The watchers of one model, by what is awaited. `None` if there are more cores than were configured.
type OfModel = [Option<Arc<CoreWatcher>>; Awaited::COUNT];

/// One core's watchers of one provider.
pub(crate) struct Watchers {
    pub(crate) detectors: Arc<Detectors>,
    ticker: Arc<Ticker>,
    by_model: Mutex<HashMap<Box<str>, OfModel, foldhash::fast::RandomState>>,
    listening: Arc<AtomicUsize>,
}

impl Watchers {
    /// `before`: the core's watchers of the same provider before a reload. Those whose detectors are still there are
    /// kept.
    pub(crate) fn new(detectors: Arc<Detectors>, ticker: Arc<Ticker>, before: Option<&Self>) -> Self {
        let mut by_model = HashMap::default();
        if let Some(before) = before {
            let known = detectors.by_kind.lock();
            by_model.clone_from(&before.by_model.lock());
            by_model.retain(|model, of_model: &mut OfModel| {
                Awaited::VARIANTS.iter().zip(of_model).all(|(awaited, watcher)| {
                    let is_of = |detector| watcher.as_ref().is_none_or(|it| Arc::ptr_eq(detector, &it.detector));
                    known.get(&(model.clone(), *awaited)).is_some_and(is_of)
                })
            });
        }
        Self { detectors, ticker, by_model: Mutex::new(by_model), listening: Arc::default() }
    }

    /// Watches a request that is sent with this permit of its circuit, or through silence without one.
    pub(crate) fn start<B: Deref<Target = CircuitBreaker>>(
        &self,
        model: &str,
        awaited: Awaited,
        circuit: &dyn Fn(AnswerKind) -> Arc<Circuit>,
        permit: Option<&Permit<B>>,
        now: Instant,
    ) -> Option<Ticket> {
        let watcher = self.watcher(model, awaited, circuit)?;
        Some(watcher.start(&self.ticker, |watcher| match permit {
            Some(permit) => watcher.start(permit, now.into_std()),
            None => watcher.start_piece(now.into_std()),
        }))
    }

    /// What watches the pieces of a stream.
    pub(crate) fn pieces(&self, model: &str, circuit: &dyn Fn(AnswerKind) -> Arc<Circuit>) -> Option<PieceWatch> {
        let watcher = self.watcher(model, Awaited::Chunk, circuit)?;
        Some(PieceWatch { watcher, ticker: Arc::clone(&self.ticker), awaited: None })
    }

    /// `circuit` finds the model's circuit that is to be opened, when there is no watcher yet.
    fn watcher(
        &self,
        model: &str,
        awaited: Awaited,
        circuit: &dyn Fn(AnswerKind) -> Arc<Circuit>,
    ) -> Option<Arc<CoreWatcher>> {
        let mut by_model = self.by_model.lock();
        if let Some(watchers) = by_model.get(model) {
            return watchers[awaited as usize].clone();
        }
        let mut watchers = OfModel::default();
        for (watcher, awaited) in watchers.iter_mut().zip(Awaited::VARIANTS) {
            let circuit = circuit(awaited.kind());
            *watcher = CoreWatcher::new(self.detectors.of(model, *awaited, &circuit.breaker));
        }
        let found = watchers[awaited as usize].clone();
        by_model.insert(model.into(), watchers);
        found
    }

    /// Keeps waiting for the answer to a silent request that another provider has answered. `answer` returns whether
    /// there is one.
    pub(crate) fn listen(&self, answer: impl Future<Output = bool> + Send + 'static, mut ticket: Ticket) {
        let listening = Arc::clone(&self.listening);
        if listening.load(Ordering::Relaxed) >= MAX_LISTENING {
            return;
        }
        listening.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            if answer.await {
                ticket.answered(Instant::now());
            }
            listening.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// One core's watcher of one detector.
struct CoreWatcher {
    detector: Arc<Detector>,
    /// No other core locks it.
    state: Mutex<State>,
    /// How often it has found silence.
    alarms: AtomicU64,
    /// The timers of its requests.
    group: Group,
}

struct State {
    watcher: Watcher,
    /// Whether the ticker has it in its list.
    is_ticking: bool,
}

impl CoreWatcher {
    fn new(detector: Arc<Detector>) -> Option<Arc<Self>> {
        let state = Mutex::new(State { watcher: detector.watcher()?, is_ticking: false });
        Some(Arc::new(Self { detector, state, alarms: AtomicU64::new(0), group: Group::new() }))
    }

    fn start(self: Arc<Self>, ticker: &Arc<Ticker>, start: impl FnOnce(&mut Watcher) -> silence::Ticket) -> Ticket {
        let mut state = self.state.lock();
        let inner = start(&mut state.watcher);
        let is_ticking = std::mem::replace(&mut state.is_ticking, true);
        drop(state);
        if !is_ticking {
            ticker.add(&self);
        }
        Ticket { alarms: self.alarms.load(Ordering::Relaxed), watcher: self, inner: Some(inner) }
    }
}

/// A request that is watched until it is answered. Dropped before that, it is withdrawn and says nothing about the
/// provider.
pub(crate) struct Ticket {
    watcher: Arc<CoreWatcher>,
    /// `None` once it is answered.
    inner: Option<silence::Ticket>,
    /// The watcher's alarms when the request began.
    alarms: u64,
}

impl Ticket {
    /// Whether silence was found since the request began: another provider should be asked.
    pub(crate) fn is_silent(&self) -> bool {
        self.watcher.alarms.load(Ordering::Relaxed) != self.alarms
    }

    /// The timers to be woken when [`is_silent`](Self::is_silent) becomes true.
    pub(crate) fn group(&self) -> Group {
        self.watcher.group
    }

    pub(crate) fn answered(&mut self, now: Instant) {
        if let Some(inner) = self.inner.take() {
            self.watcher.state.lock().watcher.answered(inner, now.into_std());
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            self.watcher.state.lock().watcher.withdrawn(inner, Instant::now().into_std());
        }
    }
}

/// Watches the pieces of one stream.
pub(crate) struct PieceWatch {
    watcher: Arc<CoreWatcher>,
    ticker: Arc<Ticker>,
    /// `None` while no piece is awaited.
    awaited: Option<Ticket>,
}

impl PieceWatch {
    /// Begins to wait for the next piece, unless it is awaited already.
    pub(crate) fn wait(&mut self) {
        if self.awaited.is_none() {
            let now = Instant::now().into_std();
            let ticket = Arc::clone(&self.watcher).start(&self.ticker, |watcher| watcher.start_piece(now));
            self.awaited = Some(ticket);
        }
    }

    /// Something has come. `is_a_piece` is called only if a piece was awaited.
    pub(crate) fn come(&mut self, is_a_piece: impl FnOnce() -> bool) {
        if let Some(mut ticket) = self.awaited.take_if(|_| is_a_piece()) {
            ticket.answered(Instant::now());
        }
    }
}

/// What is read in the first round may need another one to become an answer, as when it has to be decrypted.
const ROUNDS: usize = 2;

/// Lets all watchers of a core look for silence, at every tick while a request is under way.
pub(crate) struct Ticker {
    timers: Arc<Timers>,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    watchers: Vec<Arc<CoreWatcher>>,
    is_running: bool,
}

impl Ticker {
    pub(crate) fn new(timers: Arc<Timers>) -> Self {
        Self { timers, list: Mutex::default() }
    }

    fn add(self: &Arc<Self>, watcher: &Arc<CoreWatcher>) {
        let mut list = self.list.lock();
        list.watchers.push(Arc::clone(watcher));
        if !std::mem::replace(&mut list.is_running, true) {
            let ticker = Arc::clone(self);
            tokio::spawn(async move {
                let mut next = Some(Instant::now());
                while let Some(at) = next {
                    sleep_until(at).await;
                    next = ticker.tick(Instant::now()).await;
                }
            });
        }
    }

    /// Looks at the state as of `now`, after everything that had arrived by then was read. A core that was held up, or
    /// is overloaded, has unread answers; their provider is not silent. Returns the time of the next tick.
    async fn tick(&self, now: Instant) -> Option<Instant> {
        for _ in 0..ROUNDS {
            // The runtime polls every ready task, and asks the system which sockets are ready, before it resumes this
            // one.
            yield_now().await;
        }
        self.look(now)
    }

    fn look(&self, now: Instant) -> Option<Instant> {
        let mut silent = Vec::new();
        let mut list = self.list.lock();
        list.watchers.retain(|it| {
            let mut state = it.state.lock();
            if state.watcher.look(now.into_std()).is_some() {
                it.alarms.fetch_add(1, Ordering::Relaxed);
                silent.push(it.group);
            }
            state.is_ticking = state.watcher.in_flight() > 0;
            state.is_ticking
        });
        list.is_running = !list.watchers.is_empty();
        let is_running = list.is_running;
        drop(list);
        for group in silent {
            // A request that waits for a provider has set a timeout.
            self.timers.wake(group);
        }
        is_running.then(|| now + TICK)
    }
}
