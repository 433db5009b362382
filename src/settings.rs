//! A breaker's settings, which may be replaced while calls are under way.
//!
//! Not here: ranges and defaults: `config`.

use std::time::Duration;

use crate::clock::{duration, ticks};
use crate::config::{Abandoned, Config, DEFAULT_THRESHOLD, MAX_DURATION, Window, open_time_varies};
use crate::sync::unseen::{AtomicU32, AtomicUsize};
use crate::sync::{Mutex, Ordering, random};
use crate::window::{Tally, is_on};
use crate::word::step::{Limits, Row};
use crate::word::{MAX_FAILURES, MAX_SMALL_COUNT};

/// What is not set. No such number is a valid setting.
const NONE: u32 = u32::MAX;

/// Each value is independent: a call that sees some old and some new values sees valid settings, even if they were
/// never set together. Nothing else is published with them, so that Relaxed is enough, and no model needs to see them.
pub(crate) struct Settings {
    /// Held by whoever replaces or reads all of them, so that none is lost between two writers. No call takes it.
    all: Mutex<Config>,
    /// If none is set, the highest that the word can count to: a call may not know yet that it need not count.
    failure_threshold: AtomicU32,
    /// `NONE` here, and in the others: it is not set.
    memory_ticks: AtomicU32,
    slow_after_ticks: AtomicU32,
    /// What there is to do for a call that is measured: [`COUNT`] and so on.
    measures: AtomicU32,
    pub(crate) tally: Tally,
    open_ticks: AtomicU32,
    open_growth: AtomicU32,
    open_cap_ticks: AtomicU32,
    open_jitter: AtomicU32,
    /// What follows from those four, for each call that is rejected.
    longest_open_ticks: AtomicU32,
    good_probes: AtomicU32,
    ramp_ticks: AtomicU32,
    ramp_from: AtomicU32,
    ramp_threshold: AtomicU32,
    lease_ticks: AtomicU32,
    wait_limit_ticks: AtomicU32,
    /// `usize::MAX` stands for any number.
    max_waiters: AtomicUsize,
}

/// What there is to do for a call that is measured.
#[derive(Clone, Copy)]
pub(crate) struct Measures(u32);

/// To count it among the last calls.
const COUNT: u32 = 1;
/// To find out whether it is slow.
const SLOW: u32 = 1 << 1;
/// To count it as a failure if its permit is dropped.
const DROP_FAILS: u32 = 1 << 2;
/// To remember when it failed.
const MEMORY: u32 = 1 << 3;
/// To count no failures in a row.
const NO_ROW: u32 = 1 << 4;
/// To count calls of each kind.
#[cfg(feature = "metrics")]
const TOTALS: u32 = 1 << 5;

impl Measures {
    fn of(config: Config) -> Self {
        let of = |is_on, measure| if is_on { measure } else { 0 };
        #[cfg(feature = "metrics")]
        let totals = of(config.totals, TOTALS);
        #[cfg(not(feature = "metrics"))]
        let totals = 0;
        Self(
            of(is_on(config), COUNT)
                | of(config.slow_rate.is_some(), SLOW)
                | of(config.abandoned == Abandoned::Failure, DROP_FAILS)
                | of(config.failure_memory.is_some(), MEMORY)
                | of(config.failure_threshold.is_none(), NO_ROW)
                | totals,
        )
    }

    /// Whether there are any: the word says so, and whoever does not find it there need not ask.
    pub(crate) fn any(self) -> bool {
        self.0 != 0
    }

    /// Whether it matters when the call begins.
    pub(crate) fn start(self) -> bool {
        self.0 & (SLOW | MEMORY) != 0
    }

    pub(crate) fn count(self) -> bool {
        self.0 & COUNT != 0
    }

    pub(crate) fn slow(self) -> bool {
        self.0 & SLOW != 0
    }

    pub(crate) fn drop_fails(self) -> bool {
        self.0 & DROP_FAILS != 0
    }

    pub(crate) fn memory(self) -> bool {
        self.0 & MEMORY != 0
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn totals(self) -> bool {
        self.0 & TOTALS != 0
    }

    fn counts_a_row(self) -> bool {
        self.0 & NO_ROW == 0
    }
}

impl Settings {
    pub(crate) fn new(config: Config) -> Self {
        let settings = Self {
            all: Mutex::new(config),
            failure_threshold: AtomicU32::new(0),
            memory_ticks: AtomicU32::new(0),
            slow_after_ticks: AtomicU32::new(0),
            measures: AtomicU32::new(0),
            tally: Tally::new(),
            open_ticks: AtomicU32::new(0),
            open_growth: AtomicU32::new(0),
            open_cap_ticks: AtomicU32::new(0),
            open_jitter: AtomicU32::new(0),
            longest_open_ticks: AtomicU32::new(0),
            good_probes: AtomicU32::new(0),
            ramp_ticks: AtomicU32::new(0),
            ramp_from: AtomicU32::new(0),
            ramp_threshold: AtomicU32::new(0),
            lease_ticks: AtomicU32::new(0),
            wait_limit_ticks: AtomicU32::new(0),
            max_waiters: AtomicUsize::new(0),
        };
        settings.set(config, |_| {});
        settings
    }

    /// `then` is told what there is to measure, before another writer can replace it.
    pub(crate) fn set(&self, config: Config, then: impl FnOnce(Measures)) {
        let mut all = self.all.lock();
        *all = in_whole_ticks(config);
        let measures = Measures::of(config);
        let in_ticks = |duration: Option<Duration>| duration.map_or(NONE, ticks);
        let ramp_failures = config.ramp_failures.or(config.failure_threshold.map(|most| most.min(MAX_SMALL_COUNT)));
        for (setting, value) in [
            (&self.failure_threshold, config.failure_threshold.unwrap_or(MAX_FAILURES)),
            (&self.memory_ticks, in_ticks(config.failure_memory)),
            (&self.slow_after_ticks, in_ticks(config.slow_after)),
            (&self.measures, measures.0),
            (&self.open_ticks, ticks(config.open_for)),
            (&self.open_growth, config.open_growth),
            (&self.open_cap_ticks, ticks(config.open_cap)),
            (&self.open_jitter, config.open_jitter),
            (&self.longest_open_ticks, longest(config)),
            (&self.good_probes, config.good_probes),
            (&self.ramp_ticks, ticks(config.ramp)),
            (&self.ramp_from, config.ramp_from),
            (&self.ramp_threshold, ramp_failures.unwrap_or(NONE)),
            (&self.lease_ticks, ticks(config.probe_lease)),
            (&self.wait_limit_ticks, ticks(config.wait_limit)),
        ] {
            setting.store(value, Ordering::Relaxed);
        }
        self.max_waiters.store(config.max_waiters.unwrap_or(usize::MAX), Ordering::Relaxed);
        self.tally.set(config);
        then(measures);
    }

    pub(crate) fn get(&self) -> Config {
        *self.all.lock()
    }

    // Each has a getter of its own: the compiler does not remove an unused relaxed load.

    /// Where calls are not measured.
    #[inline]
    pub(crate) fn failure_threshold(&self) -> u32 {
        self.failure_threshold.load(Ordering::Relaxed)
    }

    /// How many calls have to go unanswered at least.
    pub(crate) fn silent_threshold(&self) -> u32 {
        if self.measures().counts_a_row() { self.failure_threshold() } else { DEFAULT_THRESHOLD }
    }

    pub(crate) fn row(&self) -> Row {
        Row {
            threshold: self.measures().counts_a_row().then(|| self.failure_threshold()),
            memory: set(&self.memory_ticks),
            ramp_threshold: set(&self.ramp_threshold),
        }
    }

    #[inline]
    pub(crate) fn measures(&self) -> Measures {
        Measures(self.measures.load(Ordering::Relaxed))
    }

    /// The duration in ticks from which on a call is slow. It is never reached if none is set.
    pub(crate) fn slow_after_ticks(&self) -> u32 {
        self.slow_after_ticks.load(Ordering::Relaxed)
    }

    pub(crate) fn ramp_ticks(&self) -> u32 {
        self.ramp_ticks.load(Ordering::Relaxed)
    }

    pub(crate) fn ramp_from(&self) -> u32 {
        self.ramp_from.load(Ordering::Relaxed)
    }

    /// How long the circuit is open after so many failed recoveries in a row.
    pub(crate) fn open_ticks_after(&self, failed_recoveries: u32) -> u32 {
        let base = self.open_ticks.load(Ordering::Relaxed);
        let (growth, jitter) = (self.open_growth.load(Ordering::Relaxed), self.open_jitter.load(Ordering::Relaxed));
        if !open_time_varies(growth, jitter) {
            return base;
        }
        let cap = self.open_cap_ticks.load(Ordering::Relaxed);
        lengthened(grown(base, growth, cap, failed_recoveries), jitter, cap, random)
    }

    /// How much of the open time is left at the earliest when a probe may be early, after so many failed recoveries in
    /// a row: the circuit has been open for `after` ticks then, or a little longer if there is jitter.
    pub(crate) fn early_ticks_after(&self, failed_recoveries: u32, after: u32) -> u32 {
        let (base, growth) = (self.open_ticks.load(Ordering::Relaxed), self.open_growth.load(Ordering::Relaxed));
        let cap = self.open_cap_ticks.load(Ordering::Relaxed);
        let least = if growth == 100 { base } else { grown(base, growth, cap, failed_recoveries) };
        least.saturating_sub(after)
    }

    #[inline]
    pub(crate) fn longest_open_ticks(&self) -> u32 {
        self.longest_open_ticks.load(Ordering::Relaxed)
    }

    pub(crate) fn good_probes(&self) -> u32 {
        self.good_probes.load(Ordering::Relaxed)
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            longest_open_ticks: self.longest_open_ticks(),
            lease_ticks: self.lease_ticks.load(Ordering::Relaxed),
            ramp_ticks: self.ramp_ticks(),
        }
    }

    pub(crate) fn wait_limit(&self) -> Duration {
        duration(self.wait_limit_ticks.load(Ordering::Relaxed))
    }

    pub(crate) fn max_waiters(&self) -> usize {
        self.max_waiters.load(Ordering::Relaxed)
    }
}

fn set(setting: &AtomicU32) -> Option<u32> {
    Some(setting.load(Ordering::Relaxed)).filter(|value| *value != NONE)
}

/// Durations as they are kept: rounded up.
fn in_whole_ticks(mut config: Config) -> Config {
    let rounded = |time: Duration| duration(ticks(time));
    for time in
        [&mut config.open_for, &mut config.open_cap, &mut config.ramp, &mut config.probe_lease, &mut config.wait_limit]
    {
        *time = rounded(*time);
    }
    for time in [&mut config.failure_memory, &mut config.slow_after] {
        *time = time.map(rounded);
    }
    if let Window::Time(time) = &mut config.window {
        *time = rounded(*time);
    }
    config
}

/// A cooldown in ticks. One that is too long for the word becomes the longest one: the probe asks again then.
pub(crate) fn cooldown_ticks(duration: Duration) -> u32 {
    ticks(duration.min(MAX_DURATION))
}

fn longest(config: Config) -> u32 {
    ticks(if open_time_varies(config.open_growth, config.open_jitter) { config.open_cap } else { config.open_for })
}

/// `base`, made longer by `growth` percent for each of the `steps`, up to `cap`.
fn grown(base: u32, growth: u32, cap: u32, steps: u32) -> u32 {
    let mut ticks = base;
    for _ in 0..steps {
        let next = (u64::from(ticks) * u64::from(growth)).div_ceil(100);
        ticks = u32::try_from(next).map_or(cap, |next| next.min(cap));
    }
    ticks
}

/// How long after the beginning of a ramp a call has its turn, whose number was drawn by chance out of all numbers: the
/// share that passes grows evenly from `from` percent to all.
pub(crate) const fn turn(ramp_ticks: u32, from: u32, drawn: u32) -> u32 {
    // 16 bits of the number are enough, and no product overflows.
    let drawn = (drawn >> 16) as u64 * 100;
    let from = (from as u64) << 16;
    if drawn < from {
        return 0;
    }
    #[expect(clippy::cast_possible_truncation, reason = "less than the ramp")]
    let turn = (ramp_ticks as u64 * (drawn - from) / ((100 << 16) - from)) as u32;
    turn
}

/// `ticks`, made longer by up to `jitter` percent, up to `cap`. Jitter never shortens: a probe that comes earlier than
/// configured would surprise, and breakers that opened together drift apart all the same.
fn lengthened(ticks: u32, jitter: u32, cap: u32, random: impl FnOnce() -> u32) -> u32 {
    if jitter == 0 {
        return ticks;
    }
    let most = u64::from(ticks) * u64::from(jitter) / 100;
    let more = (most * u64::from(random())) >> 32;
    u32::try_from(u64::from(ticks) + more).map_or(cap, |ticks| ticks.min(cap))
}

#[cfg(test)]
mod tests {
    use super::{grown, lengthened, turn};
    use crate::word::step::MAX_DEADLINE_TICKS;

    #[test]
    fn the_open_time_grows_with_each_failed_recovery_up_to_the_cap() {
        let times: Vec<_> = (0..6).map(|steps| grown(30_000, 200, 300_000, steps)).collect();
        assert_eq!(times, [30_000, 60_000, 120_000, 240_000, 300_000, 300_000]);
        assert_eq!(grown(1, 150, 10, 1), 2, "a growing time grows by a tick at least");
        assert_eq!(grown(86_400_000, 1000, 86_400_000, 15), 86_400_000);
    }

    #[test]
    fn jitter_only_lengthens_and_the_cap_comes_last() {
        assert_eq!(lengthened(1000, 50, 2000, || 0), 1000);
        assert_eq!(lengthened(1000, 50, 2000, || u32::MAX / 2), 1249);
        assert_eq!(lengthened(1000, 50, 2000, || u32::MAX), 1499);
        assert_eq!(lengthened(1000, 50, 1200, || u32::MAX), 1200);
        assert_eq!(lengthened(86_400_000, 100, 86_400_000, || u32::MAX), 86_400_000);
        assert_eq!(lengthened(1000, 0, 2000, || panic!("no chance is needed")), 1000);
    }

    #[test]
    fn the_share_of_calls_that_have_had_their_turn_grows_evenly() {
        const DRAWS: u32 = 1000;
        let turns: Vec<_> = (0..DRAWS).map(|n| turn(10_000, 20, n * (u32::MAX / DRAWS))).collect();
        for (after, percent) in [(0, 20_usize), (2_500, 40), (5_000, 60), (7_500, 80), (9_999, 100)] {
            let passed = turns.iter().filter(|turn| **turn <= after).count();
            assert!(passed.abs_diff(percent * 10) <= 1, "after {after} ticks {passed} of 1000");
        }
        for from in [1, 99, 100] {
            let turns = [0, u32::MAX].map(|drawn| turn(MAX_DEADLINE_TICKS, from, drawn));
            assert!(turns[0] == 0 && turns[1] < MAX_DEADLINE_TICKS, "{turns:?}");
        }
    }
}
