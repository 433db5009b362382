//! What all cores together know of one kind of answer, from what each has published; and when that is an alarm.
//!
//! Not here: single requests: `watcher`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use super::ENOUGH;
use super::config::{Bounds, Config};
use super::epoch::Epoch;
use super::latencies::{Latencies, Surprise};
use super::pauses::Pauses;
use super::published::{Published, Silent};
use super::watcher::Watcher;
use crate::breaker::CircuitBreaker;
use crate::sync::unseen::{AtomicU32, AtomicUsize};
use crate::sync::{AtomicU64, Ordering};
use crate::transition::Cause;
use crate::word::{GENERATION_BITS, Word};

/// The part that all watchers of one kind of answer share. See the [module](crate::silence).
pub struct Detector {
    pub(super) breaker: Arc<CircuitBreaker>,
    pub(super) label: Box<str>,
    epoch: Epoch,
    pub(super) cores: Box<[CachePadded<Published>]>,
    /// The newest answer that was known when the last alarm was raised; in the lower bits the generation of the opening
    /// that followed. A newer answer ends that silence.
    alarm: AtomicU64,
    learning: Learning,
    pub(super) pauses: Pauses,
    phi: AtomicU32,
    pub(super) bounds: Bounds,
}

/// Whether enough is learnt to raise an alarm.
struct Learning {
    enough: AtomicU32,
    /// How many answers were counted when learning began.
    from: AtomicUsize,
}

impl Detector {
    /// A detector for this breaker, with watchers for this many cores. It has learnt nothing yet.
    pub fn new(breaker: Arc<CircuitBreaker>, config: Config, cores: usize) -> Self {
        Self {
            breaker,
            label: Box::default(),
            epoch: Epoch::now(),
            cores: (0..cores).map(|_| CachePadded::new(Published::new())).collect(),
            alarm: AtomicU64::new(0),
            learning: Learning { enough: AtomicU32::new(0), from: AtomicUsize::new(0) },
            pauses: Pauses::default(),
            phi: AtomicU32::new(config.phi.to_bits()),
            bounds: Bounds::new(config),
        }
    }

    /// The name of what is silent, for the circuit's last error. It tells the detectors of one breaker apart.
    #[must_use]
    pub fn with_label(self, label: impl Into<Box<str>>) -> Self {
        Self { label: label.into(), ..self }
    }

    /// Replaces the settings. What was learnt is kept.
    pub fn set_config(&self, config: Config) {
        self.phi.store(config.phi.to_bits(), Ordering::Relaxed);
        self.bounds.set(config);
    }

    /// How many answers took how long, of those that still count, rounded down: for another process to
    /// [`learn_from`](Self::learn_from).
    pub fn learnt_latencies(&self) -> Vec<(Duration, u32)> {
        let cores: Vec<_> = self.cores.iter().map(|core| &core.latencies).collect();
        let counted = Latencies::counted(&cores).into_iter();
        counted.map(|(micros, count)| (Duration::from_micros(micros), count)).collect()
    }

    /// Adds what another process has learnt, so that [`FEW`](Self::FEW) answers are enough to raise an alarm. It does
    /// nothing once there is a watcher.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::time::{Duration, Instant};
    ///
    /// use fusebox::CircuitBreaker;
    /// use fusebox::silence::{Config, Detector};
    ///
    /// let breaker = Arc::new(CircuitBreaker::builder("openai").build()?);
    /// let detector = Arc::new(Detector::new(breaker, Config::default(), 1));
    /// detector.learn_from(&[(Duration::from_millis(20), 950), (Duration::from_millis(400), 50)]);
    /// let snapshot = detector.snapshot(Instant::now());
    /// assert!(snapshot.median < Duration::from_millis(25) && snapshot.p99 > Duration::from_millis(390));
    /// assert!(!snapshot.learnt, "not before a few answers");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn learn_from(&self, latencies: &[(Duration, u32)]) {
        let Some(first) =
            self.cores.first().filter(|_| self.cores.iter().all(|core| core.taken.load(Ordering::Relaxed) == 0))
        else {
            return;
        };
        let micros = |time: &Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let counted: Vec<_> = latencies.iter().map(|(time, count)| (micros(time), *count)).collect();
        first.latencies.add_counted(&counted);
        // The first answers may be slower than those of a process that has connections.
        let known = self.answers().min(ENOUGH - Self::FEW);
        self.learning.from.store(self.answers() - known, Ordering::Relaxed);
    }

    /// So many answers are enough for a detector that has [learnt](Self::learn_from) from another one.
    pub const FEW: usize = 5;

    /// A watcher for another core. `None` if each core has one. Dropping a watcher makes room for another one.
    pub fn watcher(self: &Arc<Self>) -> Option<Watcher> {
        let core = self.cores.iter().position(|core| core.taken.swap(1, Ordering::Acquire) == 0)?;
        Some(Watcher::new(Arc::clone(self), core))
    }

    /// The detector's state at `now`, for health pages and metrics.
    pub fn snapshot(&self, now: Instant) -> DetectorSnapshot {
        let mut surprise = Surprise::new();
        surprise.learn(self.cores.iter().map(|core| &core.latencies));
        let silent = self.silent(self.newest_answered());
        DetectorSnapshot {
            learnt: self.has_learnt(),
            answers: self.answers(),
            median: surprise.median(),
            p99: surprise.p99(),
            phi: silent.phi,
            unanswered: silent.members,
            oldest: silent.age(self.micros(now)),
        }
    }

    /// When the newest of the answered requests was started. `None` if no request has been answered yet.
    pub fn newest_answer(&self) -> Option<Instant> {
        self.epoch.instant(self.newest_answered())
    }

    #[inline]
    pub(super) fn micros(&self, now: Instant) -> u64 {
        self.epoch.micros(now)
    }

    pub(super) fn newest_answered(&self) -> u64 {
        self.cores.iter().map(|core| core.answered()).max().unwrap_or(0)
    }

    pub(super) fn answers(&self) -> usize {
        self.cores.iter().fold(0, |sum, core| sum.wrapping_add(core.latencies.answers()))
    }

    /// The silent requests of all cores that know of this answer. The other cores will know of it within a tick.
    pub(super) fn silent(&self, as_of: u64) -> Silent {
        self.cores.iter().filter_map(|core| core.silent(as_of)).fold(Silent::default(), Silent::and)
    }

    /// As [`silent`](Self::silent), or `None` if not all cores know of this answer.
    pub(super) fn silent_on_all(&self, as_of: u64) -> Option<Silent> {
        self.cores.iter().try_fold(Silent::default(), |sum, core| Some(sum.and(core.silent(as_of)?)))
    }

    fn has_learnt(&self) -> bool {
        self.learning.enough.load(Ordering::Relaxed) != 0
    }

    /// At a high rate the first answers are the fastest ones. So learning takes until the requests that were under way
    /// with them are answered as well.
    pub(super) fn see_whether_enough(&self, answers: usize) {
        if !self.has_learnt() {
            let in_flight: usize = self.cores.iter().map(|core| core.in_flight.load(Ordering::Relaxed)).sum();
            if answers.wrapping_sub(self.learning.from.load(Ordering::Relaxed)) >= ENOUGH.max(2 * in_flight) {
                self.learning.enough.store(1, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn learn_again(&self) {
        self.learning.from.store(self.answers(), Ordering::Relaxed);
        self.learning.enough.store(0, Ordering::Relaxed);
    }

    /// Whether this much silence keeps a circuit open.
    pub(super) fn stands(&self, silent: Silent, now: u64) -> bool {
        silent.members >= self.breaker.silent_threshold()
            && (self.is_surprising(silent) || self.is_too_long(silent, now))
    }

    /// Whether this much silence opens a circuit. `is_calm` is whether the caller was not held up lately.
    pub(super) fn alarms(&self, silent: Silent, is_calm: bool, now: u64) -> bool {
        let floor = self.bounds.floor().max(Duration::from_micros(self.pauses.usual(now)));
        let believed = is_calm && self.has_learnt() && self.is_surprising(silent) && silent.age(now) >= floor;
        silent.members >= self.breaker.silent_threshold() && (believed || self.is_too_long(silent, now))
    }

    pub(super) fn is_surprising(&self, silent: Silent) -> bool {
        silent.phi >= f32::from_bits(self.phi.load(Ordering::Relaxed))
    }

    fn is_too_long(&self, silent: Silent, now: u64) -> bool {
        self.bounds.ceiling().is_some_and(|ceiling| silent.age(now) >= ceiling)
    }

    pub(super) fn note_alarm(&self, as_of: u64, generation: u32) {
        // Of two alarms after the same answer, the one of the later opening counts. If the generation wraps between
        // them, a late answer does not close the circuit, which happens once in 131,072 openings.
        self.alarm.fetch_max(as_of << GENERATION_BITS | u64::from(generation), Ordering::Relaxed);
    }

    /// The newest answer that was known when this detector opened the circuit. `None` if the circuit is not silent, or
    /// was opened by another detector.
    pub(super) fn silent_as_of(&self, word: Word) -> Option<u64> {
        if word.cause() != Some(Cause::Silence) {
            return None;
        }
        let alarm = self.alarm.load(Ordering::Relaxed);
        let own = alarm & ((1 << GENERATION_BITS) - 1) == u64::from(word.generation);
        own.then_some(alarm >> GENERATION_BITS)
    }
}

impl fmt::Debug for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detector")
            .field("breaker", &self.breaker.name())
            .field("learnt", &self.has_learnt())
            .field("cores", &self.cores.len())
            .finish_non_exhaustive()
    }
}

/// A [`Detector`] as [`Detector::snapshot`] saw it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct DetectorSnapshot {
    /// Whether enough is learnt to raise an alarm.
    pub learnt: bool,
    /// How many answers were counted.
    pub answers: usize,
    /// Half of the answers take at most this long, to an eighth.
    pub median: Duration,
    /// 99% of the answers take at most this long, to an eighth.
    pub p99: Duration,
    /// How surprising the silence is, as of the last look.
    pub phi: f32,
    /// How many requests are silent: unanswered, and newer than all answered ones.
    pub unanswered: u32,
    /// How long the oldest silent request has waited.
    pub oldest: Duration,
}
