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
use strum::{EnumCount, VariantArray};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::circuits::{AnswerKind, Circuit};
use super::timers::{Group, Timers};
use crate::silence::{
    self, Config, Detector, DetectorSnapshot, StallDetector, StallSnapshot, StallWatcher, TICK, WatchedStream, Watcher,
};
use crate::{CircuitBreaker, Permit};

/// A silent request that another provider has answered is kept open until its own time limits, to learn from a late
/// answer that the silence was short, and how long such an answer takes. A core keeps at most this many of one
/// provider's requests.
const MAX_LISTENING: usize = 16;

/// What a request waits for, as a label in the metrics.
pub(crate) fn awaited(kind: AnswerKind) -> &'static str {
    if kind == AnswerKind::Whole { "answer" } else { kind.as_str() }
}

/// How many answers took how long.
pub(crate) type Latencies = Vec<(Duration, u32)>;

/// The detectors of one provider, for all cores.
pub(crate) struct Detectors {
    provider: String,
    cores: usize,
    config: Config,
    by_kind: Mutex<ByKind>,
}

#[derive(Clone, Default)]
struct ByKind {
    /// By model and kind of answer.
    answers: BTreeMap<(Box<str>, AnswerKind), Arc<Detector>>,
    /// Of streams that have begun, by model.
    stalls: BTreeMap<Box<str>, Arc<StallDetector>>,
}

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
        let is_kept = |model: &str| model.is_empty() || is_served(model);
        by_kind.answers.retain(|(model, _), _| is_kept(model));
        by_kind.stalls.retain(|model, _| is_kept(model));
        by_kind.answers.values().for_each(|detector| detector.set_config(config));
        by_kind.stalls.values().for_each(|detector| detector.set_config(config));
        Self { provider: self.provider.clone(), cores: self.cores, config, by_kind: Mutex::new(by_kind) }
    }

    /// The detector that opens this circuit.
    fn of(&self, model: &str, kind: AnswerKind, breaker: &Arc<CircuitBreaker>) -> Arc<Detector> {
        let new = || {
            let detector = Detector::new(Arc::clone(breaker), self.config, self.cores);
            Arc::new(detector.with_label(format!("{model}, {}", awaited(kind))))
        };
        Arc::clone(self.by_kind.lock().answers.entry((model.into(), kind)).or_insert_with(new))
    }

    /// The same of streams that stop in the middle.
    fn of_stalls(&self, model: &str, breaker: &Arc<CircuitBreaker>) -> Arc<StallDetector> {
        let new = || {
            let detector = StallDetector::new(Arc::clone(breaker), self.config, self.cores);
            Arc::new(detector.with_label(format!("{model}, pieces")))
        };
        Arc::clone(self.by_kind.lock().stalls.entry(model.into()).or_insert_with(new))
    }

    /// What each detector has learnt, by model and kind of answer.
    pub(crate) fn learnt_latencies(&self) -> Vec<(Box<str>, AnswerKind, Latencies)> {
        let by_kind = self.by_kind.lock();
        let learnt = by_kind.answers.iter().map(|((model, kind), it)| (model.clone(), *kind, it.learnt_latencies()));
        learnt.filter(|(.., latencies)| !latencies.is_empty()).collect()
    }

    /// How long half of the answers of a model take at most, if enough are known.
    pub(crate) fn median(&self, model: &str, kind: AnswerKind) -> Option<Duration> {
        let detector = self.by_kind.lock().answers.get(&(model.into(), kind)).cloned()?;
        let seen = detector.snapshot(Instant::now().into_std());
        seen.learnt.then_some(seen.median)
    }

    /// Adds what another process has learnt, before any request is watched.
    pub(crate) fn learn_from(
        &self,
        model: &str,
        kind: AnswerKind,
        breaker: &Arc<CircuitBreaker>,
        latencies: &[(Duration, u32)],
    ) {
        self.of(model, kind, breaker).learn_from(latencies);
    }

    /// When the newest of a model's answered requests was sent.
    pub(crate) fn newest_answer(&self, model: &str) -> Option<std::time::Instant> {
        let by_kind = self.by_kind.lock();
        let of_model = AnswerKind::VARIANTS.iter().filter_map(|kind| by_kind.answers.get(&(model.into(), *kind)));
        of_model.filter_map(|detector| detector.newest_answer()).max()
    }

    /// What each detector knows, by model and kind of answer. Few clients ask for counts or sessions.
    pub(crate) fn snapshots(&self) -> Vec<(Box<str>, AnswerKind, DetectorSnapshot)> {
        let now = Instant::now().into_std();
        let by_kind = self.by_kind.lock();
        let known = by_kind.answers.iter().map(|((model, kind), it)| (model.clone(), *kind, it.snapshot(now)));
        let is_used = |it: &DetectorSnapshot| it.answers > 0 || it.unanswered > 0;
        known.filter(|(_, kind, it)| matches!(kind, AnswerKind::Whole | AnswerKind::Stream) || is_used(it)).collect()
    }

    /// The same of streams that have begun, by model.
    pub(crate) fn stalls(&self) -> Vec<(Box<str>, StallSnapshot)> {
        let now = Instant::now().into_std();
        self.by_kind.lock().stalls.iter().map(|(model, it)| (model.clone(), it.snapshot(now))).collect()
    }
}

impl fmt::Debug for Detectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detectors").field("provider", &self.provider).finish_non_exhaustive()
    }
}

/// The watchers of one model.
#[derive(Clone)]
struct OfModel {
    /// By kind. `None` if there are more cores than were configured.
    answers: [Option<Arc<CoreWatcher>>; AnswerKind::COUNT],
    stalls: Option<Arc<CoreStalls>>,
}

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
                let stalls = known.stalls.get(model);
                let is_of = |it: &Arc<CoreStalls>| stalls.is_some_and(|known| Arc::ptr_eq(known, &it.detector));
                of_model.stalls.as_ref().is_none_or(is_of)
                    && AnswerKind::VARIANTS.iter().zip(&of_model.answers).all(|(kind, watcher)| {
                        let is_of = |detector| watcher.as_ref().is_none_or(|it| Arc::ptr_eq(detector, &it.detector));
                        known.answers.get(&(model.clone(), *kind)).is_some_and(is_of)
                    })
            });
        }
        Self { detectors, ticker, by_model: Mutex::new(by_model), listening: Arc::default() }
    }

    /// Watches a request that is sent with this permit of its circuit, or through silence without one.
    pub(crate) fn start<B: Deref<Target = CircuitBreaker>>(
        &self,
        model: &str,
        kind: AnswerKind,
        circuit: &dyn Fn(AnswerKind) -> Arc<Circuit>,
        permit: Option<&Permit<B>>,
        now: Instant,
    ) -> Option<Ticket> {
        let watcher = self.of_model(model, circuit, |it| it.answers[kind as usize].clone())?;
        Some(watcher.start(&self.ticker, |watcher| match permit {
            Some(permit) => watcher.start(permit, now.into_std()),
            None => watcher.start_piece(now.into_std()),
        }))
    }

    /// Watches the pieces of a stream. `permit` is a probe's that is not resolved yet.
    pub(crate) fn pieces<B: Deref<Target = CircuitBreaker>>(
        &self,
        model: &str,
        circuit: &dyn Fn(AnswerKind) -> Arc<Circuit>,
        permit: Option<&Permit<B>>,
    ) -> Option<WatchedStream> {
        let stalls = self.of_model(model, circuit, |it| it.stalls.clone())?;
        Some(stalls.open(&self.ticker, permit))
    }

    /// `circuit` finds the model's circuit that is to be opened, when there is no watcher yet.
    fn of_model<T>(
        &self,
        model: &str,
        circuit: &dyn Fn(AnswerKind) -> Arc<Circuit>,
        find: impl FnOnce(&OfModel) -> T,
    ) -> T {
        let mut by_model = self.by_model.lock();
        if let Some(watchers) = by_model.get(model) {
            return find(watchers);
        }
        let streams = circuit(AnswerKind::Stream);
        let stalls = self.detectors.of_stalls(model, &streams.breaker);
        let answers = std::array::from_fn(|at| {
            let kind = AnswerKind::VARIANTS[at];
            let stalls = (kind == AnswerKind::Stream).then(|| Arc::clone(&stalls));
            CoreWatcher::new(self.detectors.of(model, kind, &circuit(kind).breaker), stalls)
        });
        let of_model = OfModel { answers, stalls: CoreStalls::new(stalls, streams) };
        find(by_model.entry(model.into()).or_insert(of_model))
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
    /// A stream that has not begun should move on, too, if those that have begun stall.
    stalls: Option<Arc<StallDetector>>,
    /// The timers of its requests.
    group: Group,
}

struct State {
    watcher: Watcher,
    /// How often streams had stalled at the last look.
    stalled: u64,
    /// Whether the ticker has it in its list.
    is_ticking: bool,
}

impl CoreWatcher {
    fn new(detector: Arc<Detector>, stalls: Option<Arc<StallDetector>>) -> Option<Arc<Self>> {
        let state = Mutex::new(State { watcher: detector.watcher()?, stalled: 0, is_ticking: false });
        Some(Arc::new(Self { detector, state, alarms: AtomicU64::new(0), stalls, group: Group::new() }))
    }

    fn start(self: Arc<Self>, ticker: &Arc<Ticker>, start: impl FnOnce(&mut Watcher) -> silence::Ticket) -> Ticket {
        let mut state = self.state.lock();
        let inner = start(&mut state.watcher);
        let is_ticking = std::mem::replace(&mut state.is_ticking, true);
        if !is_ticking {
            state.stalled = self.stalled();
        }
        drop(state);
        if !is_ticking {
            ticker.add(|list| list.watchers.push(Arc::clone(&self)));
        }
        Ticket { alarms: self.alarms.load(Ordering::Relaxed), watcher: self, inner: Some(inner) }
    }
}

impl CoreWatcher {
    fn stalled(&self) -> u64 {
        self.stalls.as_ref().map_or(0, |stalls| stalls.alarms())
    }

    /// Returns whether requests should move on.
    fn look(&self, state: &mut State, now: Instant) -> bool {
        let stalled = self.stalled();
        let is_new = std::mem::replace(&mut state.stalled, stalled) != stalled;
        let is_silent = state.watcher.look(now.into_std()).is_some() || is_new;
        if is_silent {
            self.alarms.fetch_add(1, Ordering::Relaxed);
        }
        state.is_ticking = state.watcher.in_flight() > 0;
        is_silent
    }
}

/// One core's watcher of the streams of one model.
struct CoreStalls {
    detector: Arc<StallDetector>,
    circuit: Arc<Circuit>,
    /// No other core locks it.
    state: Mutex<StallState>,
}

struct StallState {
    watcher: StallWatcher,
    /// Whether the ticker has it in its list.
    is_ticking: bool,
}

impl CoreStalls {
    fn new(detector: Arc<StallDetector>, circuit: Arc<Circuit>) -> Option<Arc<Self>> {
        let state = Mutex::new(StallState { watcher: detector.watcher()?, is_ticking: false });
        Some(Arc::new(Self { detector, circuit, state }))
    }

    fn open<B>(self: Arc<Self>, ticker: &Arc<Ticker>, permit: Option<&Permit<B>>) -> WatchedStream
    where
        B: Deref<Target = CircuitBreaker>,
    {
        let mut state = self.state.lock();
        let stream = state.watcher.open(permit, Instant::now().into_std());
        let is_ticking = std::mem::replace(&mut state.is_ticking, true);
        drop(state);
        if !is_ticking {
            ticker.add(|list| list.stalls.push(self));
        }
        stream
    }

    /// Returns whether it has to be called again.
    fn look(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        if state.watcher.look(now.into_std()).is_some() {
            // Whoever looks first notes it for all cores.
            self.circuit.note_stall();
        }
        state.is_ticking = state.watcher.streams() > 0;
        state.is_ticking
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

    /// A stream that sends nothing whole for so long is slower than any has been lately.
    pub(crate) fn unseen(&self) -> Option<Duration> {
        self.watcher.stalls.as_ref()?.unseen()
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
    stalls: Vec<Arc<CoreStalls>>,
    is_running: bool,
}

impl Ticker {
    pub(crate) fn new(timers: Arc<Timers>) -> Self {
        Self { timers, list: Mutex::default() }
    }

    fn add(self: &Arc<Self>, add: impl FnOnce(&mut List)) {
        let mut list = self.list.lock();
        add(&mut list);
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
        // First: streams that have not begun move on at once if others stall.
        list.stalls.retain(|it| it.look(now));
        list.watchers.retain(|it| {
            let mut state = it.state.lock();
            if it.look(&mut state, now) {
                silent.push(it.group);
            }
            state.is_ticking
        });
        list.is_running = !(list.watchers.is_empty() && list.stalls.is_empty());
        let is_running = list.is_running;
        drop(list);
        for group in silent {
            // A request that waits for a provider has set a timeout.
            self.timers.wake(group);
        }
        is_running.then(|| now + TICK)
    }
}
