//! One stream, and one core's streams.
//!
//! Not here: when their pauses are an alarm: `stalls`.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::usual::{LEVELS, LONG, edge, level};
use super::{Core, FEW, Stall, StallDetector};
use crate::breaker::CircuitBreaker;
use crate::permit::Permit;
use crate::silence::epoch::micros;
use crate::silence::looks::Looks;
use crate::sync::Ordering;
use crate::sync::unseen::{AtomicU32, AtomicU64};
use crate::word::Word;

/// Only a stream of so many pieces is judged alone.
const OWN_PIECES: u32 = 16;
/// The shortest pause that fails a probe.
const PROBE_PATIENCE: u64 = 50_000;

/// One stream of a [`StallWatcher`], which watches it until this is dropped. Its methods never wait.
pub struct WatchedStream {
    pauses: Arc<Pauses>,
    detector: Arc<StallDetector>,
    core: usize,
}

/// What is known of one stream. Times are in microseconds.
struct Pauses {
    /// When the pause began. 0 while there is none.
    since: AtomicU64,
    /// How long the watcher had been held up until then.
    held_up: AtomicU64,
    /// How long an interrupted pause had lasted.
    lasted: AtomicU64,
    /// The longest one that has ended.
    longest: AtomicU64,
    pieces: AtomicU32,
    /// The word that the stream's probe claimed. 0 if it is none, or if the probe was given up.
    claimed: AtomicU64,
}

impl Pauses {
    fn age(&self, since: u64, looks: Looks, now: u64) -> u64 {
        let held_up = looks.held_up_by(now).saturating_sub(self.held_up.load(Ordering::Relaxed));
        now.saturating_sub(since).saturating_sub(held_up)
    }

    /// Whether this stream has stopped by its own standards.
    fn is_stalled_alone(&self, age: u64, unseen: u64) -> bool {
        age >= unseen.max(LONG)
            && self.pieces.load(Ordering::Relaxed) >= OWN_PIECES
            && age >= 8 * self.longest.load(Ordering::Relaxed)
    }
}

impl WatchedStream {
    /// A pause begins, or goes on if it was interrupted: call it when the next piece is awaited, and its receiver could
    /// take it.
    #[inline]
    pub fn wait(&self, now: Instant) {
        if self.is_paused() {
            return;
        }
        let now = self.detector.epoch.micros(now);
        let looks = self.detector.cores[self.core].looks();
        self.pauses.held_up.store(looks.held_up_by(now), Ordering::Relaxed);
        self.pauses.since.store(now - self.pauses.lasted.load(Ordering::Relaxed), Ordering::Release);
    }

    /// Whether a pause has begun that no piece has ended.
    #[inline]
    pub fn has_pause(&self) -> bool {
        self.is_paused() || self.pauses.lasted.load(Ordering::Relaxed) != 0
    }

    /// Whether the next piece is awaited.
    #[inline]
    pub fn is_paused(&self) -> bool {
        self.pauses.since.load(Ordering::Relaxed) != 0
    }

    /// Something has come that is no content. The pause does not end, but it counts again only from the next
    /// [`wait`](Self::wait): meanwhile the receiver may not be able to take more.
    #[inline]
    pub fn interrupt(&self, now: Instant) {
        if let Some(age) = self.take_pause(now) {
            self.pauses.lasted.store(age, Ordering::Relaxed);
        }
    }

    /// The length of the pause, which ends.
    fn take_pause(&self, now: Instant) -> Option<u64> {
        let since = self.pauses.since.swap(0, Ordering::Relaxed);
        let core = &self.detector.cores[self.core];
        (since != 0).then(|| self.pauses.age(since, core.looks(), self.detector.epoch.micros(now)))
    }

    /// A piece of the content has come, which ends a pause.
    #[inline]
    pub fn piece(&self, now: Instant) {
        let (detector, pauses) = (&*self.detector, &*self.pauses);
        let lasted = pauses.lasted.load(Ordering::Relaxed);
        if lasted != 0 {
            pauses.lasted.store(0, Ordering::Relaxed);
        }
        let Some(age) = self.take_pause(now).or((lasted > 0).then_some(lasted)) else { return };
        let core = &detector.cores[self.core];
        pauses.pieces.store(pauses.pieces.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
        if age > pauses.longest.load(Ordering::Relaxed) {
            pauses.longest.store(age, Ordering::Relaxed);
        }
        core.ended.add(age);
    }
}

impl fmt::Debug for WatchedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedStream").field("is_paused", &self.is_paused()).finish_non_exhaustive()
    }
}

/// One core's part of a [`StallDetector`].
pub struct StallWatcher {
    detector: Arc<StallDetector>,
    core: usize,
    streams: Vec<Arc<Pauses>>,
    looks: Looks,
    generation: u32,
    /// Pauses that began before say nothing about the circuit's present state.
    from: u64,
}

impl StallWatcher {
    pub(super) fn new(detector: Arc<StallDetector>, core: usize) -> Self {
        let generation = Word::unpack(detector.breaker.load()).generation;
        Self { detector, core, streams: Vec::new(), looks: Looks::default(), generation, from: 0 }
    }

    /// Streams that were watched at the last look or since. While there are any, [`look`](Self::look) has to be called.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Watches a stream. If its permit is a probe's that is not resolved, a stall fails the probe.
    pub fn open<B>(&mut self, permit: Option<&Permit<B>>, now: Instant) -> WatchedStream
    where
        B: Deref<Target = CircuitBreaker>,
    {
        let claimed = permit.and_then(Permit::claim).unwrap_or(0);
        let pauses = Arc::new(Pauses {
            since: AtomicU64::new(0),
            held_up: AtomicU64::new(0),
            lasted: AtomicU64::new(0),
            longest: AtomicU64::new(0),
            pieces: AtomicU32::new(0),
            claimed: AtomicU64::new(claimed),
        });
        if self.streams.is_empty() {
            self.looks.resume(self.detector.epoch.micros(now));
            self.tell_looks();
        }
        self.streams.push(Arc::clone(&pauses));
        WatchedStream { pauses, detector: Arc::clone(&self.detector), core: self.core }
    }

    /// Opens the circuit if more streams pause than usual. To be called every [`TICK`](crate::silence::TICK) while a
    /// stream is under way. A delay of the call counts as time in which no piece could be read.
    ///
    /// Returns what has stalled if this call opened the circuit.
    pub fn look(&mut self, now: Instant) -> Option<Stall> {
        let detector = Arc::clone(&self.detector);
        let now = detector.epoch.micros(now);
        self.looks.look(now);
        self.tell_looks();
        // Read before everything else that the look decides by: an alarm applies to the circuit as it was then.
        let loaded = detector.breaker.load();
        let word = Word::unpack(loaded);
        if word.generation != self.generation {
            (self.generation, self.from) = (word.generation, now);
        }
        let alone = self.tell_pauses(word, now);
        detector.learn(word, now);
        if !word.can_trip() {
            detector.end(loaded);
            return None;
        }
        let learnt = || detector.unusual(word.generation).or(alone).filter(|_| self.looks.is_calm(now));
        let stall = detector.beyond_the_ceiling().or_else(learnt)?;
        detector.raise(stall, word.generation).then_some(stall)
    }

    fn core(&self) -> &Core {
        &self.detector.cores[self.core]
    }

    fn tell_looks(&self) {
        let core = self.core();
        core.held_up.store(self.looks.held_up, Ordering::Relaxed);
        core.last_look.store(self.looks.last, Ordering::Relaxed);
    }

    /// Publishes how many streams pause for how long. Returns one that has stopped by its own standards, where there
    /// are too few to compare.
    fn tell_pauses(&mut self, word: Word, now: u64) -> Option<Stall> {
        self.streams.retain(is_under_way);
        let detector = &*self.detector;
        let unseen = detector.usual.unseen().max(micros(detector.bounds.floor()));
        let can_judge = detector.usual.has_learnt() && self.looks.is_calm(now);
        let (mut paused, mut fresh) = ([0_u32; LEVELS], [0_u32; LEVELS]);
        let (mut oldest, mut alone, mut beyond_the_ceiling) = (u64::MAX, None, 0);
        let ceiling = detector.bounds.ceiling().map_or(u64::MAX, micros);
        // Before the pauses: one that ends meanwhile is counted as paused, and then as one that goes on.
        for (then, count) in self.core().ended_then.iter().zip(&self.core().ended.counts) {
            then.store(count.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        for stream in &self.streams {
            let since = stream.since.load(Ordering::Acquire);
            if since == 0 {
                continue;
            }
            oldest = oldest.min(since);
            let age = stream.age(since, self.looks, now);
            let Some(level) = level(age) else { continue };
            paused[level] += 1;
            if since > self.from && age >= 2 * stream.longest.load(Ordering::Relaxed) {
                fresh[level] += 1;
                beyond_the_ceiling += u32::from(age >= ceiling);
                if can_judge && detector.usual.knows_single_streams() && stream.is_stalled_alone(age, unseen) {
                    alone = Some(level);
                }
            }
            if can_judge && age >= unseen.max(PROBE_PATIENCE) {
                self.give_up_probe(stream, word, age);
            }
        }
        let core = self.core();
        core.streams.store(u32::try_from(self.streams.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
        core.oldest.store(oldest, Ordering::Relaxed);
        core.beyond_the_ceiling.store(beyond_the_ceiling, Ordering::Relaxed);
        for (told, count) in core.paused.iter().chain(&core.fresh).zip(paused.into_iter().chain(fresh)) {
            told.store(count, Ordering::Relaxed);
        }
        core.generation.store(word.generation, Ordering::Release);
        let streams = detector.streams();
        alone.filter(|_| streams < FEW).map(|level| Stall {
            paused: 1,
            streams,
            length: Duration::from_micros(edge(level)),
            usual: 0.0,
        })
    }

    /// A probe whose stream has stopped has failed.
    fn give_up_probe(&self, stream: &Pauses, word: Word, age: u64) {
        if !word.has_probe_in_flight() || stream.claimed.load(Ordering::Relaxed) == 0 {
            return;
        }
        let claimed = stream.claimed.swap(0, Ordering::Relaxed);
        let stalled = format!("a probe's stream paused for {} ms", age / 1000);
        self.detector.breaker.probe_fell_silent(claimed, &self.detector.error(&stalled));
    }
}

/// Its [`WatchedStream`] is still there.
fn is_under_way(stream: &Arc<Pauses>) -> bool {
    Arc::strong_count(stream) > 1
}

impl Drop for StallWatcher {
    fn drop(&mut self) {
        let core = self.core();
        core.streams.store(0, Ordering::Relaxed);
        core.oldest.store(u64::MAX, Ordering::Relaxed);
        core.beyond_the_ceiling.store(0, Ordering::Relaxed);
        core.paused.iter().chain(&core.fresh).for_each(|count| count.store(0, Ordering::Relaxed));
        core.taken.store(0, Ordering::Release);
    }
}

impl fmt::Debug for StallWatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StallWatcher")
            .field("detector", &self.detector)
            .field("core", &self.core)
            .field("streams", &self.streams())
            .finish_non_exhaustive()
    }
}
