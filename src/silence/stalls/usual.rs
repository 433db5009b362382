//! How many streams usually pause for how long at one time.
//!
//! Not here: which streams pause now: `stalls` and `watcher`.
//!
//! There are two parts. Streams pause each for itself, as when a model thinks: of that the mean over time is learnt.
//! And they pause all at once, as when a provider schedules its work anew: that shows in pauses that end together, more
//! of them than the mean explains.

use crate::sync::Ordering;
use crate::sync::unseen::{AtomicU32, AtomicU64, Mutex};

/// Lengths of pauses, each twice as long as the one before: from 8 ms to four minutes and a half.
pub(super) const LEVELS: usize = 16;
const FIRST_EDGE_BITS: usize = 13;

/// The shortest pause that belongs to a level, in microseconds.
pub(super) const fn edge(level: usize) -> u64 {
    1 << (FIRST_EDGE_BITS + level)
}

/// The level of a pause. `None`: it is too short to count.
#[inline]
pub(super) fn level(micros: u64) -> Option<usize> {
    let bits = micros.checked_ilog2()? as usize;
    Some(bits.checked_sub(FIRST_EDGE_BITS)?.min(LEVELS - 1))
}

/// Before any alarm so many pieces must have come.
const ENOUGH: u64 = 100;
/// Before so many have come, and for so long, only a long pause raises an alarm.
const PLENTY: u64 = 500;
const PLENTY_OF_TIME: u64 = 2_000_000;
/// The same of pauses of all streams at once, which are rare.
const PLENTY_OF_TIME_TOGETHER: u64 = 60_000_000;
pub(super) const LONG: u64 = 1_000_000;
/// All streams pause at once if no piece comes for so long.
const QUIET: u64 = 16_000;

/// What was usual is forgotten after one to two periods.
const PERIOD: u64 = 600_000_000;

/// A share of all streams is taken of so many more than there are: of one or two streams it would say nothing.
const MORE: f32 = 8.0;

/// What one core counts, or all of them, since the detector was made.
#[derive(Default)]
pub(super) struct Ended {
    /// Pauses that have ended with a piece, by level.
    pub(super) counts: [AtomicU32; LEVELS],
    pieces: AtomicU64,
}

/// Sums of what the cores have counted for each level and all longer ones.
pub(super) fn or_longer<'a>(cores: impl Iterator<Item = &'a [AtomicU32; LEVELS]>) -> [u32; LEVELS] {
    let mut sums = [0_u32; LEVELS];
    for counts in cores {
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum = sum.wrapping_add(count.load(Ordering::Relaxed));
        }
    }
    for level in (1..LEVELS).rev() {
        sums[level - 1] = sums[level - 1].wrapping_add(sums[level]);
    }
    sums
}

impl Ended {
    /// A piece has come after a pause of this length.
    #[inline]
    pub(super) fn add(&self, micros: u64) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        if let Some(level) = level(micros) {
            self.counts[level].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn pieces(&self) -> u64 {
        self.pieces.load(Ordering::Relaxed)
    }
}

/// What all cores see at one time.
pub(super) struct Seen {
    pub(super) streams: u32,
    /// How many of them pause for each level or longer.
    pub(super) paused: [u32; LEVELS],
    /// When the oldest pause began that has not ended.
    pub(super) oldest: u64,
    /// Whether the circuit is closed. While it is open, there are no new streams, which pause less.
    pub(super) is_closed: bool,
    pub(super) now: u64,
}

/// Sums over time, by level and all longer ones. A stream of a second counts a million.
#[derive(Clone, Copy, Default)]
struct Sums {
    streams: [f64; LEVELS],
    paused: [f64; LEVELS],
    /// Pauses that ended.
    ended: [f64; LEVELS],
}

impl Sums {
    fn and(&self, other: &Self) -> Self {
        let plus = |one: &[f64; LEVELS], other: &[f64; LEVELS]| std::array::from_fn(|at| one[at] + other[at]);
        Self {
            streams: plus(&self.streams, &other.streams),
            paused: plus(&self.paused, &other.paused),
            ended: plus(&self.ended, &other.ended),
        }
    }
}

/// What is usual, for all cores.
#[derive(Default)]
pub(super) struct Usual {
    /// For each level the share of the streams that pauses, on average. All shares are the bits of an `f32`.
    alone: [AtomicU32; LEVELS],
    /// For each level the greatest share of all streams that ended such a pause together.
    together: [AtomicU32; LEVELS],
    /// The most streams that were under way since the oldest pauses began that still go on.
    most: AtomicU32,
    /// Three levels above the longest pause that has ended lately.
    unseen: AtomicU32,
    has_learnt: AtomicU32,
    /// Whether the means have been learnt for 80 times as long as the longest pause.
    is_settled: AtomicU32,
    /// For how long not all streams have paused at once.
    flowing: AtomicU64,
    /// The longest pauses of which enough is known, but for short ones. Times are in microseconds.
    known: AtomicU64,
    learner: Mutex<Learner>,
}

#[derive(Default)]
struct Learner {
    /// When the first piece was known. Times are in microseconds.
    begun: u64,
    looked: u64,
    /// How many streams there were while the circuit was closed.
    streams: u32,
    /// When the present period began.
    period: u64,
    /// Of the present period and the last one.
    sums: [Sums; 2],
    together: [[f32; LEVELS]; 2],
    /// Pauses that have ended, as of the last look.
    ended: [u32; LEVELS],
    windows: [Window; LEVELS],
    most: Most,
    flow: Flow,
}

/// Pauses of a level that have ended within its length.
#[derive(Clone, Copy, Default)]
struct Window {
    begun: u64,
    ended: u32,
}

/// The most streams that were under way at one time, within the length of the longest pause or twice that.
#[derive(Default)]
struct Most {
    begun: u64,
    now: u32,
    before: u32,
}

impl Most {
    fn see(&mut self, streams: u32, longest: u64, now: u64) -> u32 {
        if now.saturating_sub(self.begun) >= longest {
            *self = Self { begun: now, now: streams, before: self.now };
        }
        self.now = self.now.max(streams);
        self.now.max(self.before)
    }
}

/// Whether pieces come at all.
#[derive(Default)]
struct Flow {
    pieces: u64,
    newest: u64,
    /// When all streams last paused at once.
    quiet: u64,
}

impl Usual {
    /// Whether enough is learnt to raise an alarm.
    pub(super) fn has_learnt(&self) -> bool {
        self.has_learnt.load(Ordering::Relaxed) != 0
    }

    /// Whether pauses of this level can raise an alarm.
    pub(super) fn knows(&self, level: usize) -> bool {
        let length = edge(level);
        let [known, flowing] = [&self.known, &self.flowing].map(|time| time.load(Ordering::Relaxed));
        let is_known = if length < LONG { length <= known / 8 && length <= flowing } else { length <= known };
        self.has_learnt() && is_known
    }

    /// Whether single streams can be judged.
    pub(super) fn knows_single_streams(&self) -> bool {
        self.has_learnt() && self.flowing.load(Ordering::Relaxed) == u64::MAX
    }

    /// No stream has paused for as long lately, in microseconds.
    pub(super) fn unseen(&self) -> u64 {
        edge((self.unseen.load(Ordering::Relaxed) as usize).min(LEVELS - 1))
    }

    /// How many of so many streams are paused for this level or longer, at the most, while all is well. When fewer
    /// streams begin than before, those that are left are mostly the ones that pause. So the share is taken of as many
    /// as there were.
    pub(super) fn at_most(&self, level: usize, streams: u32) -> f32 {
        let share = |shares: &[AtomicU32; LEVELS], level: usize| f32::from_bits(shares[level].load(Ordering::Relaxed));
        let streams = streams.max(self.most.load(Ordering::Relaxed));
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let streams = streams as f32;
        let alone = share(&self.alone, level);
        let mean = alone * streams;
        // Of a binomial distribution. The mean itself may be half as much again, and three times as much while it is
        // new and grows.
        let spread = mean * (1.0 - alone).max(0.0);
        let drift = if self.is_settled.load(Ordering::Relaxed) == 0 { 2.0 * mean } else { spread / 2.0 };
        // A pause of all streams at once may always be twice as long as those before. Nothing is known of pauses that
        // are shorter than the shortest level.
        let together = level.checked_sub(1).map_or(streams, |half| share(&self.together, half) * (streams + MORE));
        mean + drift + 4.0 * spread.sqrt() + 2.0 * together
    }

    /// Learns from what all cores have counted, unless another core does so now.
    pub(super) fn learn<'a>(&self, cores: impl Iterator<Item = &'a Ended> + Clone, seen: &Seen) {
        let Some(mut learner) = self.learner.try_lock() else { return };
        let pieces = cores.clone().map(Ended::pieces).sum();
        let ended = or_longer(cores.map(|core| &core.counts));
        learner.begin(pieces, seen.now);
        learner.add(ended, seen, self.unseen.load(Ordering::Relaxed) as usize);
        let sums = learner.sums[0].and(&learner.sums[1]);
        learner.see_what_ended_together(&sums, seen);
        let mut together = 0.0_f32;
        for level in (0..LEVELS).rev() {
            self.alone[level].store(ratio(sums.paused[level], sums.streams[level]).to_bits(), Ordering::Relaxed);
            // What has ended a longer pause together has ended a shorter one.
            together = together.max(learner.together[0][level]).max(learner.together[1][level]);
            self.together[level].store(together.to_bits(), Ordering::Relaxed);
        }
        let longest = (0..LEVELS).rev().find(|level| sums.ended[*level] > 0.0);
        let unseen = longest.map_or(0, |level| level + 3);
        self.unseen.store(u32::try_from(unseen).unwrap_or(u32::MAX), Ordering::Relaxed);
        let longest = edge(longest.map_or(0, |level| level + 1));
        self.most.store(learner.most.see(seen.streams, longest, seen.now), Ordering::Relaxed);
        self.known.store(seen.now.saturating_sub(learner.begun) / 4, Ordering::Relaxed);
        let is_settled = seen.now.saturating_sub(learner.begun) >= 10 * edge(unseen);
        self.is_settled.store(is_settled.into(), Ordering::Relaxed);
        self.flowing.store(learner.flowing(pieces, seen.now), Ordering::Relaxed);
        if learner.has_enough(pieces, seen) {
            self.has_learnt.store(1, Ordering::Relaxed);
        }
    }
}

impl Learner {
    fn begin(&mut self, pieces: u64, now: u64) {
        if self.begun == 0 && pieces > 0 {
            self.begun = now;
        }
        if now.saturating_sub(self.period) >= PERIOD {
            self.period = now;
            self.sums = [Sums::default(), self.sums[0]];
            self.together = [[0.0; LEVELS], self.together[0]];
        }
        let flow = &mut self.flow;
        if pieces != flow.pieces {
            (flow.pieces, flow.newest) = (pieces, now);
        } else if now.saturating_sub(flow.newest) >= QUIET {
            flow.quiet = now;
        }
    }

    /// Pauses that are as long as none that has ended lately may never end, and do not count.
    fn add(&mut self, ended: [u32; LEVELS], seen: &Seen, unseen: usize) {
        let since = std::mem::replace(&mut self.looked, seen.now);
        // Not if nobody has looked for long: there was nothing to see.
        let time = seen.now.saturating_sub(since);
        if seen.is_closed && time < LONG {
            self.streams = seen.streams;
            let sums = &mut self.sums[0];
            #[expect(clippy::cast_precision_loss, reason = "less than a second")]
            let time = time as f64;
            let too_long = seen.paused.get(unseen).copied().unwrap_or(0);
            let since = seen.now.saturating_sub(self.begun);
            // At first no stream can have paused for long.
            for level in (0..LEVELS).filter(|level| since >= 2 * edge(*level)) {
                sums.streams[level] += time * f64::from(seen.streams);
                sums.paused[level] += time * f64::from(seen.paused[level].saturating_sub(too_long));
            }
        }
        for ((sum, now), before) in self.sums[0].ended.iter_mut().zip(ended).zip(self.ended) {
            *sum += f64::from(now.wrapping_sub(before));
        }
        self.ended = ended;
    }

    /// At first only short pauses have ended. So learning takes twice as long as the longest pause under way.
    fn has_enough(&self, pieces: u64, seen: &Seen) -> bool {
        let since = seen.now.saturating_sub(self.begun);
        pieces >= ENOUGH && seen.now.saturating_sub(seen.oldest) <= since / 2
    }

    /// For how long not all streams have paused at once, as far as it matters.
    fn flowing(&self, pieces: u64, now: u64) -> u64 {
        let since = now.saturating_sub(self.begun);
        if since < PLENTY_OF_TIME || pieces < PLENTY {
            return 0;
        }
        if since >= PLENTY_OF_TIME_TOGETHER { u64::MAX } else { now.saturating_sub(self.flow.quiet) }
    }

    /// Those of a level that ended within its length.
    fn see_what_ended_together(&mut self, sums: &Sums, seen: &Seen) {
        let since = seen.now.saturating_sub(self.begun);
        let streams = f64::from(seen.streams.max(self.streams));
        for level in 0..LEVELS {
            let window = self.windows[level];
            let ended = f64::from(self.ended[level].wrapping_sub(window.ended));
            let length = seen.now.saturating_sub(window.begun);
            // Not if nobody has looked meanwhile.
            let is_known = since >= PLENTY_OF_TIME.max(16 * edge(level));
            if ended > 0.0 && is_known && length < 4 * edge(level) {
                #[expect(clippy::cast_precision_loss, reason = "minutes")]
                let time = edge(level) as f64;
                let mean = (sums.ended[level] - ended) / sums.streams[level].max(1.0) * streams * time;
                if ended > mean + 4.0 * mean.max(0.0).sqrt() + 1.0 {
                    let share = ratio(ended - mean, streams + f64::from(MORE));
                    self.together[0][level] = self.together[0][level].max(share);
                }
            }
            if length >= edge(level) {
                self.windows[level] = Window { begun: seen.now, ended: self.ended[level] };
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a share")]
fn ratio(part: f64, whole: f64) -> f32 {
    if whole > 0.0 { (part / whole) as f32 } else { 0.0 }
}
