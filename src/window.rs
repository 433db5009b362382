//! The last calls: how many there were, how many failed and how many were slow. And whether that is enough to open the
//! circuit.
//!
//! Not here: what a call is, and the circuit: `breaker::measure`.
//!
//! # A window of time
//!
//! Time is cut into tenths of the window. Each thread counts in tenths of its own, which no other thread writes to; so
//! that a success costs no more than a load and a store, and threads do not compete. A tenth has a tag, by which a
//! reader knows the tenth of which generation it is. So nothing has to be cleared when the circuit opens, and nobody
//! counts twice.
//!
//! # A window of calls
//!
//! All threads write to one ring. Each outcome has the tag of its generation.
//!
//! # When to look
//!
//! Summing up costs about a hundred nanoseconds for each thread. A sum says how many more calls have to fail before a
//! rate can be reached, and until then a failure only counts down. So the sum is made by exactly those failures that
//! may reach the rate. The count ends with the tenth, since then old successes are forgotten.

use std::sync::Arc;

use crate::clock::ticks;
use crate::config::{Config, Window};
use crate::sync::unseen::{self, AtomicU32};
use crate::sync::{ArcSwap, AtomicU64, OnceLock, Ordering, PerThread, fence};
use crate::transition::Cause;

const TENTHS: usize = 10;

/// How a call went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// In which it was admitted.
    pub(crate) generation: u32,
    /// When it ended, in milliseconds since the breaker was made.
    pub(crate) at: u64,
    pub(crate) failed: bool,
    pub(crate) slow: bool,
}

/// The calls in a breaker's [window](crate::ConfigBuilder::window).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastCalls {
    /// How many there were.
    pub calls: u64,
    /// How many of them failed.
    pub failures: u64,
    /// How many of them were slow.
    pub slow: u64,
}

/// In place of a rate that is off, since no rate is above 100 percent.
const OFF: u32 = 101;

/// When the counts open a circuit.
#[derive(Clone, Copy, Debug)]
struct Limits {
    failure_rate: u64,
    slow_rate: u64,
    min_calls: u64,
}

impl Limits {
    /// In one word: a rate with the minimum of other settings could open a circuit that neither would open.
    fn pack(config: Config) -> u32 {
        let rate = |percent: Option<u32>| percent.unwrap_or(OFF);
        config.min_calls << 14 | rate(config.slow_rate) << 7 | rate(config.failure_rate)
    }

    fn unpack(limits: u32) -> Self {
        let (failure_rate, slow_rate) = (limits & 0x7f, limits >> 7 & 0x7f);
        Self { failure_rate: failure_rate.into(), slow_rate: slow_rate.into(), min_calls: (limits >> 14).into() }
    }

    fn reached(self, counts: LastCalls) -> Option<Cause> {
        let over = |count: u64, rate: u64| count * 100 >= rate * counts.calls;
        if counts.calls < self.min_calls {
            None
        } else if over(counts.failures, self.failure_rate) {
            Some(Cause::Rate)
        } else if over(counts.slow, self.slow_rate) {
            Some(Cause::Slow)
        } else {
            None
        }
    }

    /// After how many more calls that fail or are slow a rate may be reached, whatever the other calls do, as long as
    /// none of these counts is forgotten.
    fn to_go(self, counts: LastCalls) -> u32 {
        let to_go = |count: u64, rate: u64| {
            if rate > 100 {
                return u64::MAX;
            }
            // Others may bring the calls up to the minimum, and each new call may take the place of a good one.
            (rate * counts.calls.max(self.min_calls)).div_ceil(100).saturating_sub(count).max(1)
        };
        let (failures, slow) = (to_go(counts.failures, self.failure_rate), to_go(counts.slow, self.slow_rate));
        u32::try_from(failures.min(slow)).unwrap_or(u32::MAX)
    }
}

pub(crate) struct Tally {
    /// See [`Kind`].
    kind: AtomicU64,
    /// See [`Limits`].
    limits: AtomicU32,
    /// Allocated when it is needed for the first time, and then kept: a call must not have to ask who frees it.
    tenths: OnceLock<Box<PerThread<Tenths>>>,
    ring: ArcSwap<Option<Ring>>,
    /// See [`Countdown`].
    countdown: AtomicU64,
}

const MAX_VERSION: u64 = (1 << VERSION_BITS) - 1;
const VERSION_BITS: u32 = 14;

/// Which kind of window it is. It is one word, so that no call counts in tenths of one window as if they were those of
/// another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    /// Counts the windows that were set, 1 to [`MAX_VERSION`]. What was counted in another one is out of date.
    version: u64,
    /// By how many ticks a tenth is long. 0: the window is one of so many calls.
    tenth_ticks: u64,
}

impl Kind {
    fn pack(self) -> u64 {
        self.version << 32 | self.tenth_ticks
    }

    fn unpack(kind: u64) -> Self {
        Self { version: kind >> 32, tenth_ticks: kind & u64::from(u32::MAX) }
    }

    /// The tenth that a time belongs to.
    fn tenth(self, at: u64) -> u64 {
        at.checked_div(self.tenth_ticks).unwrap_or(0)
    }

    /// What counts belong to: a generation (17 bits), a version (14 bits) and a tenth (32 bits). Never 0.
    fn tag(self, generation: u32, tenth: u64) -> u64 {
        self.owner(generation) << 32 | tenth & u64::from(u32::MAX)
    }

    /// The same without the tenth. Never 0, either.
    fn owner(self, generation: u32) -> u64 {
        u64::from(generation) << VERSION_BITS | self.version
    }
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            kind: AtomicU64::new(0),
            limits: AtomicU32::new(0),
            tenths: OnceLock::new(),
            ring: ArcSwap::from_pointee(None),
            countdown: AtomicU64::new(0),
        }
    }

    /// By one writer at a time. Counts are kept if the window stays as it was.
    pub(crate) fn set(&self, config: Config) {
        self.limits.store(Limits::pack(config), Ordering::Relaxed);
        if !is_on(config) {
            return;
        }
        let (tenth_ticks, calls) = match config.window {
            Window::Time(time) => (u64::from(ticks(time).div_ceil(10)), 0),
            Window::Calls(calls) => (0, calls),
        };
        let before = self.kind();
        let room = Option::as_ref(&**self.ring.load()).map_or(0, |ring| ring.slots.len());
        if before.version == 0 || before.tenth_ticks != tenth_ticks || room != calls as usize {
            self.ring.store(Arc::new((calls > 0).then(|| Ring::new(calls))));
            if tenth_ticks > 0 {
                self.tenths.get_or_init(|| Box::new(PerThread::new()));
            }
            let version = before.version % MAX_VERSION + 1;
            self.kind.store(Kind { version, tenth_ticks }.pack(), Ordering::Relaxed);
        }
    }

    fn kind(&self) -> Kind {
        Kind::unpack(self.kind.load(Ordering::Relaxed))
    }

    /// Counts a call.
    #[inline]
    pub(crate) fn add(&self, call: Call) {
        let kind = self.kind();
        if kind.tenth_ticks == 0 {
            self.add_to_ring(kind.tag(call.generation, 0), call);
        } else if let Some(tenths) = self.tenths.get() {
            tenths.with(|tenths| tenths.add(kind, call));
        }
    }

    #[inline(never)]
    fn add_to_ring(&self, tag: u64, call: Call) {
        if let Some(ring) = &**self.ring.load() {
            ring.add(tag, call);
        }
    }

    /// What was counted in a generation, as of a time.
    pub(crate) fn counts(&self, generation: u32, at: u64) -> LastCalls {
        let kind = self.kind();
        let mut counts = LastCalls::default();
        if kind.tenth_ticks == 0 {
            if let Some(ring) = &**self.ring.load() {
                ring.sum(kind.tag(generation, 0), &mut counts);
            }
        } else if let Some(tenths) = self.tenths.get() {
            let last = kind.tenth(at);
            // Another thread may have read the clock later than the caller did.
            let window = last.saturating_sub(TENTHS as u64 - 1)..=last + 1;
            tenths.for_each(|tenths| tenths.sum(window.clone(), |tenth| kind.tag(generation, tenth), &mut counts));
        }
        counts
    }

    /// Whether the counts open the circuit, after `call` was counted, which failed or was slow; and the counts. Of all
    /// calls that together reach a rate, the last one to ask is told so.
    pub(crate) fn reached(&self, call: Call) -> Option<(Cause, LastCalls)> {
        let kind = self.kind();
        let limits = self.limits.load(Ordering::Relaxed);
        let mark = Countdown::mark(kind.tag(call.generation, kind.tenth(call.at)), limits);
        let limits = Limits::unpack(limits);
        let mut seen = self.countdown.load(Ordering::Acquire);
        loop {
            let next = match Countdown::unpack(seen, mark) {
                Some(to_go) if to_go > 1 => Countdown::pack(to_go - 1, mark),
                _ => {
                    let counts = self.counts(call.generation, call.at);
                    if let Some(cause) = limits.reached(counts) {
                        return Some((cause, counts));
                    }
                    Countdown::pack(limits.to_go(counts), mark)
                }
            };
            // Each such call writes here after it has counted. So a sum has all calls before its write, and all after
            // it count down from it.
            match self.countdown.compare_exchange(seen, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return None,
                Err(now) => seen = now,
            }
        }
    }
}

pub(crate) fn is_on(config: Config) -> bool {
    config.failure_rate.is_some() || config.slow_rate.is_some()
}

/// How many more calls have to fail or be slow before a sum can reach a rate, in 32 bits, and a mark of 32 bits by
/// which it is known what it was made for.
struct Countdown;

impl Countdown {
    fn pack(to_go: u32, mark: u64) -> u64 {
        mark << 32 | u64::from(to_go)
    }

    /// `None` if it was made for something else.
    fn unpack(countdown: u64, mark: u64) -> Option<u32> {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        let to_go = countdown as u32;
        (countdown >> 32 == mark).then_some(to_go)
    }

    /// Of a tenth of a generation and a window, and of the limits that hold. Marks of neighbours differ (multiplication
    /// by an odd number).
    fn mark(tag: u64, limits: u32) -> u64 {
        (tag ^ tag >> 32 ^ u64::from(limits) << 20).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32
    }
}

/// One thread's counts. It alone writes to them.
#[derive(Default)]
struct Tenths {
    all: [Tenth; TENTHS],
    // Which tenth the thread counts in, to spare it a division for each call. No other thread looks at these.
    place: unseen::AtomicUsize,
    owner: unseen::AtomicU64,
    /// When that tenth ends.
    until: unseen::AtomicU64,
}

#[derive(Default)]
struct Tenth {
    /// 0 while it is cleared, and before it is used.
    tag: AtomicU64,
    calls: AtomicU64,
    failures: AtomicU64,
    slow: AtomicU64,
}

fn place(tenth: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "below ten")]
    let place = (tenth % TENTHS as u64) as usize;
    place
}

impl Tenths {
    #[inline]
    fn add(&self, kind: Kind, call: Call) {
        let owner = kind.owner(call.generation);
        if call.at >= self.until.load(Ordering::Relaxed) || owner != self.owner.load(Ordering::Relaxed) {
            self.begin(kind, call);
        }
        let tenth = &self.all[self.place.load(Ordering::Relaxed) % TENTHS];
        // The calls first: nobody sees more failures than calls.
        bump(&tenth.calls, Ordering::Relaxed);
        if call.slow {
            bump(&tenth.slow, Ordering::Release);
        }
        if call.failed {
            bump(&tenth.failures, Ordering::Release);
        }
    }

    /// Begins to count in the tenth of a call.
    #[cold]
    #[inline(never)]
    fn begin(&self, kind: Kind, call: Call) {
        let tenth = kind.tenth(call.at);
        let tag = kind.tag(call.generation, tenth);
        let place = place(tenth);
        if self.all[place].tag.load(Ordering::Relaxed) != tag {
            self.all[place].clear(tag);
        }
        self.place.store(place, Ordering::Relaxed);
        self.owner.store(kind.owner(call.generation), Ordering::Relaxed);
        self.until.store((tenth + 1) * kind.tenth_ticks, Ordering::Relaxed);
    }

    fn sum(&self, tenths: impl Iterator<Item = u64>, tag: impl Fn(u64) -> u64, counts: &mut LastCalls) {
        for (tenth, tag) in tenths.map(|tenth| (&self.all[place(tenth)], tag(tenth))) {
            if tenth.tag.load(Ordering::Acquire) != tag {
                continue;
            }
            let failures = tenth.failures.load(Ordering::Acquire);
            let slow = tenth.slow.load(Ordering::Acquire);
            let calls = tenth.calls.load(Ordering::Relaxed);
            // Its thread may have cleared it meanwhile. Then the tag has changed, and it is out of date.
            fence(Ordering::Acquire);
            if tenth.tag.load(Ordering::Relaxed) == tag {
                counts.calls += calls;
                counts.failures += failures;
                counts.slow += slow;
            }
        }
    }
}

impl Tenth {
    #[cold]
    fn clear(&self, tag: u64) {
        self.tag.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        for count in [&self.calls, &self.failures, &self.slow] {
            count.store(0, Ordering::Relaxed);
        }
        self.tag.store(tag, Ordering::Release);
    }
}

/// Without a read-modify-write: no other thread writes to it.
#[inline]
fn bump(count: &AtomicU64, order: Ordering) {
    count.store(count.load(Ordering::Relaxed) + 1, order);
}

/// The last so many calls of all threads.
struct Ring {
    next: AtomicU64,
    slots: Box<[AtomicU64]>,
}

const CALL_BIT: u64 = 1;
const FAILED_BIT: u64 = 1 << 1;
const SLOW_BIT: u64 = 1 << 2;

impl Ring {
    fn new(calls: u32) -> Self {
        Self { next: AtomicU64::new(0), slots: (0..calls).map(|_| AtomicU64::new(0)).collect() }
    }

    fn add(&self, tag: u64, call: Call) {
        let place = self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len() as u64;
        let (failed, slow) = (if call.failed { FAILED_BIT } else { 0 }, if call.slow { SLOW_BIT } else { 0 });
        #[expect(clippy::cast_possible_truncation, reason = "below the length")]
        self.slots[place as usize].store(Self::mark(tag) | slow | failed | CALL_BIT, Ordering::Relaxed);
    }

    fn sum(&self, tag: u64, counts: &mut LastCalls) {
        for slot in &self.slots {
            let slot = slot.load(Ordering::Relaxed);
            if slot & !(FAILED_BIT | SLOW_BIT) == Self::mark(tag) | CALL_BIT {
                counts.calls += 1;
                counts.failures += u64::from(slot & FAILED_BIT != 0);
                counts.slow += u64::from(slot & SLOW_BIT != 0);
            }
        }
    }

    /// The generation and the version.
    fn mark(tag: u64) -> u64 {
        tag >> 32 << 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_fit_their_word() {
        for (failure_rate, slow_rate, min_calls) in
            [(None, Some(1), 1), (Some(100), None, 10_000), (Some(1), Some(100), 20)]
        {
            let config = Config { failure_rate, slow_rate, min_calls, ..Config::default() };
            let limits = Limits::unpack(Limits::pack(config));
            let rate = |percent: Option<u32>| u64::from(percent.unwrap_or(OFF));
            assert_eq!((limits.failure_rate, limits.slow_rate), (rate(failure_rate), rate(slow_rate)));
            assert_eq!(limits.min_calls, u64::from(min_calls));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "millions of sums")]
    fn no_fewer_calls_than_are_counted_down_can_reach_a_rate() {
        let limits = |failure_rate, slow_rate, min_calls| Limits { failure_rate, slow_rate, min_calls };
        let all = [limits(50, 101, 20), limits(100, 101, 3), limits(1, 60, 7), limits(101, 34, 1)];
        for limits in all {
            for calls in 0..40 {
                for failures in 0..=calls {
                    for slow in 0..=calls {
                        let counts = LastCalls { calls, failures, slow };
                        if limits.reached(counts).is_some() {
                            continue;
                        }
                        for more in 1..u64::from(limits.to_go(counts)).min(60) {
                            // Each in the place of a good call, or with others that bring the calls up to the minimum.
                            for calls in [calls.max(limits.min_calls), calls + more] {
                                let then = LastCalls { calls, failures: failures + more, slow: slow + more };
                                let known = then.failures <= calls && then.slow <= calls;
                                assert!(!known || limits.reached(then).is_none(), "{limits:?}: {counts:?}, {then:?}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn neighbours_and_other_limits_have_other_marks() {
        let kind = Kind { version: 1, tenth_ticks: 1000 };
        assert_eq!(Kind::unpack(kind.pack()), kind);
        let limits = |min_calls| Limits::pack(Config { failure_rate: Some(50), min_calls, ..Config::default() });
        let mut marks = std::collections::BTreeSet::new();
        for generation in 0..20 {
            for tenth in 0..100 {
                marks.extend([20, 21].map(|min_calls| Countdown::mark(kind.tag(generation, tenth), limits(min_calls))));
            }
        }
        assert_eq!(marks.len(), 4000);
        let mark = Countdown::mark(kind.tag(3, 7), limits(20));
        assert_eq!(Countdown::unpack(Countdown::pack(9, mark), mark), Some(9));
        assert_eq!(Countdown::unpack(Countdown::pack(9, mark), Countdown::mark(kind.tag(3, 8), limits(20))), None);
    }
}
