//! Notices that streams stop in the middle, while others begin.
//!
//! Not here: requests that are not answered at all: `watcher`.

mod usual;
mod watcher;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use self::usual::{Ended, LEVELS, LONG, Seen, Usual, edge, level, or_longer};
pub use self::watcher::{StallWatcher, WatchedStream};
use super::config::{Bounds, Config};
use super::epoch::{Epoch, micros};
use super::looks::Looks;
use super::silent;
use crate::breaker::CircuitBreaker;
use crate::error::LastError;
use crate::sync::unseen::{AtomicU32, AtomicU64 as Unseen, AtomicUsize};
use crate::sync::{AtomicU64, Ordering};
use crate::transition::Cause;
use crate::word::{GENERATION_BITS, Word, next_generation};

/// Fewer streams cannot be compared with each other.
const FEW: u32 = 3;

/// Notices that streams stop in the middle, while others begin. This is the part that all watchers of one kind of
/// stream share.
///
/// A stream *pauses* while it is awaited and no piece of its content comes. How many streams usually pause for how long
/// at one time is learnt: the mean over ten to twenty minutes, for what each does for itself (a model that thinks, a
/// tool that works); and the most that ended a pause together, for what all do at once (a provider that schedules its
/// work anew). The alarm is raised when `failure_threshold` more streams pause than that explains, and three at least.
/// A stream counts only if it pauses for twice as long as it ever has.
///
/// Where fewer than three streams are under way, nothing can be compared. There one stream suffices, if it has paused
/// for a second, for eight times as long as it ever has, and for four times as long as any other one lately.
///
/// The circuit closes when half as many streams as raised the alarm have gone on and no more than usual pause, or when
/// a probe succeeds.
///
/// At first little is known: until two seconds have passed only pauses of a second raise an alarm, and in the first
/// minute the same holds for pauses of all streams at once.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use std::time::{Duration, Instant};
///
/// use fusebox::silence::{Config, StallDetector, TICK};
/// use fusebox::{CircuitBreaker, CircuitState};
///
/// let breaker = Arc::new(CircuitBreaker::builder("openai").build()?);
/// let detector = Arc::new(StallDetector::new(Arc::clone(&breaker), Config::default(), 1));
/// let mut watcher = detector.watcher().expect("nobody watches yet");
///
/// let permits: Vec<_> = (0..10).map(|_| breaker.try_acquire()).collect::<Result<_, _>>()?;
/// let mut now = Instant::now();
/// let streams: Vec<_> = permits.iter().map(|permit| watcher.open(Some(permit), now)).collect();
/// // For a good minute a piece of each stream comes every 5 ms.
/// for _ in 0..13_000 {
///     streams.iter().for_each(|stream| stream.wait(now));
///     now += TICK;
///     assert!(watcher.look(now).is_none());
///     streams.iter().for_each(|stream| stream.piece(now));
/// }
/// // From now on there are no pieces.
/// streams.iter().for_each(|stream| stream.wait(now));
/// let stall = loop {
///     now += TICK;
///     if let Some(stall) = watcher.look(now) {
///         break stall;
///     }
/// };
/// assert_eq!((stall.paused, stall.streams), (10, 10));
/// assert!(stall.length < Duration::from_millis(40));
/// assert!(breaker.snapshot().silent);
///
/// // They go on after all.
/// streams.iter().for_each(|stream| stream.piece(now));
/// watcher.look(now);
/// assert_eq!(breaker.state(), CircuitState::Closed);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct StallDetector {
    breaker: Arc<CircuitBreaker>,
    label: Box<str>,
    epoch: Epoch,
    cores: Box<[CachePadded<Core>]>,
    bounds: Bounds,
    usual: Usual,
    /// The last [`Alarm`].
    alarm: AtomicU64,
    alarms: Unseen,
}

/// What one core publishes for the others.
struct Core {
    taken: AtomicUsize,
    streams: AtomicU32,
    /// How many streams pause, by level; and how many of them have begun to since the circuit last changed.
    paused: [AtomicU32; LEVELS],
    fresh: [AtomicU32; LEVELS],
    /// How many of these have paused for the ceiling or longer.
    beyond_the_ceiling: AtomicU32,
    /// When the oldest pause began. `u64::MAX` if there is none.
    oldest: Unseen,
    /// The generation of the word for which this was counted.
    generation: AtomicU32,
    ended: Ended,
    /// The counts of `ended` when the pauses were counted.
    ended_then: [AtomicU32; LEVELS],
    last_look: Unseen,
    held_up: Unseen,
}

impl Core {
    fn new() -> Self {
        Self {
            taken: AtomicUsize::new(0),
            streams: AtomicU32::new(0),
            paused: Default::default(),
            fresh: Default::default(),
            beyond_the_ceiling: AtomicU32::new(0),
            oldest: Unseen::new(u64::MAX),
            generation: AtomicU32::new(0),
            ended: Ended::default(),
            ended_then: Default::default(),
            last_look: Unseen::new(0),
            held_up: Unseen::new(0),
        }
    }

    fn looks(&self) -> Looks {
        Looks::of(self.last_look.load(Ordering::Relaxed), self.held_up.load(Ordering::Relaxed))
    }
}

/// Streams that stopped in the middle.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Stall {
    /// How many streams have paused for `length` or longer.
    pub paused: u32,
    /// How many are under way.
    pub streams: u32,
    /// How long they have paused at least.
    pub length: Duration,
    /// How many may pause for so long at one time while all is well.
    pub usual: f32,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { paused, streams, length, usual } = self;
        let length = length.as_millis();
        write!(f, "{paused} of {streams} streams have paused for {length} ms (usually at most {usual:.1})")
    }
}

/// A [`StallDetector`] as [`StallDetector::snapshot`] saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StallSnapshot {
    /// Whether enough is learnt to raise an alarm.
    pub learnt: bool,
    /// How many pieces have come.
    pub pieces: u64,
    /// How many streams are under way.
    pub streams: u32,
    /// How long the longest pause has lasted that is not over, as of the last look.
    pub oldest: Duration,
    /// All pauses that have ended lately were shorter than a quarter of this.
    pub unseen: Duration,
}

impl StallDetector {
    /// A detector for this breaker, with watchers for this many cores. It has learnt nothing yet. Phi does not
    /// matter here.
    pub fn new(breaker: Arc<CircuitBreaker>, config: Config, cores: usize) -> Self {
        Self {
            breaker,
            label: Box::default(),
            epoch: Epoch::now(),
            cores: (0..cores).map(|_| CachePadded::new(Core::new())).collect(),
            bounds: Bounds::new(config),
            usual: Usual::default(),
            alarm: AtomicU64::new(0),
            alarms: Unseen::new(0),
        }
    }

    /// The name of what stalls, for the circuit's last error.
    #[must_use]
    pub fn with_label(self, label: impl Into<Box<str>>) -> Self {
        Self { label: label.into(), ..self }
    }

    /// Replaces the settings. What was learnt is kept.
    pub fn set_config(&self, config: Config) {
        self.bounds.set(config);
    }

    /// A watcher for another core. `None` if each core has one. Dropping a watcher makes room for another one.
    pub fn watcher(self: &Arc<Self>) -> Option<StallWatcher> {
        let core = self.cores.iter().position(|core| core.taken.swap(1, Ordering::Acquire) == 0)?;
        Some(StallWatcher::new(Arc::clone(self), core))
    }

    /// How many alarms there were. Requests that wait for a stream to begin should ask another upstream when it
    /// changes.
    pub fn alarms(&self) -> u64 {
        self.alarms.load(Ordering::Relaxed)
    }

    /// A stream that sends nothing whole for so long is slower than any has been lately: at least a second, and four
    /// times the longest pause that has ended. `None` while too little is known to say so.
    pub fn unseen(&self) -> Option<Duration> {
        let unseen = self.usual.unseen().max(LONG);
        self.usual.knows_single_streams().then(|| Duration::from_micros(unseen))
    }

    /// The detector's state at `now`, for health pages and metrics.
    pub fn snapshot(&self, now: Instant) -> StallSnapshot {
        let now = self.epoch.micros(now);
        let oldest = self.oldest();
        StallSnapshot {
            learnt: self.usual.has_learnt(),
            pieces: self.cores.iter().map(|core| core.ended.pieces()).sum(),
            streams: self.streams(),
            oldest: Duration::from_micros(if oldest == u64::MAX { 0 } else { now.saturating_sub(oldest) }),
            unseen: Duration::from_micros(self.usual.unseen()),
        }
    }

    fn streams(&self) -> u32 {
        self.cores.iter().map(|core| core.streams.load(Ordering::Relaxed)).sum()
    }

    fn oldest(&self) -> u64 {
        self.cores.iter().map(|core| core.oldest.load(Ordering::Relaxed)).min().unwrap_or(u64::MAX)
    }

    /// How many streams have begun to pause since the circuit changed to this generation, by level and all longer ones.
    fn fresh(&self, generation: u32) -> [u32; LEVELS] {
        let knowing = self.cores.iter().filter(|core| core.generation.load(Ordering::Acquire) == generation);
        or_longer(knowing.map(|core| &core.fresh))
    }

    fn learn(&self, word: Word, now: u64) {
        let seen = Seen {
            streams: self.streams(),
            paused: or_longer(self.cores.iter().map(|core| &core.paused)),
            oldest: self.oldest(),
            is_closed: word.can_trip(),
            now,
        };
        self.usual.learn(self.cores.iter().map(|core| &core.ended), &seen);
    }

    /// How many pause usually, if more than that and `failure_threshold` pause for a level or longer.
    fn excess(&self, level: usize, paused: u32, streams: u32) -> Option<f32> {
        let usual = self.usual.at_most(level, streams);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let (paused, threshold) = (paused as f32, self.breaker.silent_threshold().max(FEW) as f32);
        (paused >= usual + threshold).then_some(usual)
    }

    /// The shortest level at which more streams pause than usual.
    fn unusual(&self, generation: u32) -> Option<Stall> {
        let (fresh, streams, floor) = (self.fresh(generation), self.streams(), self.bounds.floor());
        (0..LEVELS).find_map(|level| {
            let paused = fresh[level];
            let usual = self.excess(level, paused, streams)?;
            let counts = Duration::from_micros(edge(level)) >= floor && self.usual.knows(level);
            counts.then(|| Stall { paused, streams, length: Duration::from_micros(edge(level)), usual })
        })
    }

    /// Streams that have paused for as long as no stream may, whatever was learnt.
    fn beyond_the_ceiling(&self) -> Option<Stall> {
        let length = self.bounds.ceiling()?;
        let paused = self.cores.iter().map(|core| core.beyond_the_ceiling.load(Ordering::Relaxed)).sum();
        let streams = self.streams();
        (paused >= self.breaker.silent_threshold()).then_some(Stall { paused, streams, length, usual: 0.0 })
    }

    fn error(&self, stall: &dyn fmt::Display) -> Arc<LastError> {
        silent(&self.label, stall)
    }

    fn raise(&self, stall: Stall, generation: u32) -> bool {
        let level = level(micros(stall.length)).unwrap_or(0);
        // As of when each core counted: a stream that has gone on since then is not missed.
        let ended = or_longer(self.cores.iter().map(|core| &core.ended_then))[level];
        let over_at = ended.wrapping_add(stall.paused.div_ceil(2));
        let alarm = Alarm { generation: next_generation(generation), level, over_at };
        // Before the circuit opens: a look at the open circuit finds it. One that is overwritten by a core that was
        // held up leaves the circuit to its probe.
        self.alarm.store(alarm.pack(), Ordering::Release);
        let opened = self.breaker.fall_silent(generation, &self.error(&stall));
        if opened {
            self.alarms.fetch_add(1, Ordering::Relaxed);
        }
        opened
    }

    /// Closes the circuit if half of the streams that raised the alarm have gone on, and no more than usual pause.
    fn end(&self, silent: u64) {
        let (word, alarm) = (Word::unpack(silent), Alarm::unpack(self.alarm.load(Ordering::Acquire)));
        if word.cause() != Some(Cause::Silence) || word.generation != alarm.generation {
            return;
        }
        let ended = or_longer(self.cores.iter().map(|core| &core.ended.counts))[alarm.level];
        let paused = or_longer(self.cores.iter().map(|core| &core.paused))[alarm.level];
        let have_gone_on = ended.wrapping_sub(alarm.over_at) < u32::MAX / 2;
        if have_gone_on && self.excess(alarm.level, paused, self.streams()).is_none() {
            self.breaker.end_silence(silent);
        }
    }
}

impl fmt::Debug for StallDetector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StallDetector")
            .field("breaker", &self.breaker.name())
            .field("learnt", &self.usual.has_learnt())
            .field("cores", &self.cores.len())
            .finish_non_exhaustive()
    }
}

/// An alarm in one word.
#[derive(Clone, Copy)]
struct Alarm {
    /// Of the opening that followed.
    generation: u32,
    level: usize,
    /// How many pauses of this level will have ended when enough streams have gone on. It wraps.
    over_at: u32,
}

const LEVEL_BITS: u32 = 4;

impl Alarm {
    fn pack(self) -> u64 {
        u64::from(self.over_at) << (GENERATION_BITS + LEVEL_BITS)
            | (self.level as u64) << GENERATION_BITS
            | u64::from(self.generation)
    }

    #[expect(clippy::cast_possible_truncation, reason = "each field is as wide as it was")]
    fn unpack(alarm: u64) -> Self {
        Self {
            generation: (alarm & ((1 << GENERATION_BITS) - 1)) as u32,
            level: (alarm >> GENERATION_BITS) as usize % LEVELS,
            over_at: (alarm >> (GENERATION_BITS + LEVEL_BITS)) as u32,
        }
    }
}
