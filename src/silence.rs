//! Notices an upstream that takes requests and does not answer, within about one latency instead of after a timeout.
//!
//! # How
//!
//! Requests that are answered teach how long an answer takes. Those that wait are the *silent* ones if they were started after
//! the most recently started request that has been answered: one slow answer is nobody's alarm, and neither are the old
//! ones that are still under way when newer ones come back. Each silent request is as surprising as few answers have taken
//! as long: `-log10` of their share. The sum of that over the silent requests is *phi*. At 9 the odds that an upstream that
//! works lets all of them wait for so long are one to a thousand million, if answers are independent of each other; they are
//! not, which is what the rules below are for. This is the phi accrual failure detector of Hayashibara, Défago, Yared and
//! Katayama (2004), which Akka and Cassandra use on heartbeats; here the requests themselves are the heartbeats.
//!
//! At phi the circuit opens: it is *silent*, and rejects like any open circuit. It closes when a probe succeeds, or at once when
//! an answer comes after all to a request that was silent.
//!
//! # Using it
//!
//! One [`Detector`] for each kind of answer that takes its own time: for an LLM provider one per model, and for streams one
//! more over the gaps between chunks. Any answer of a quick model would clear one that hangs.
//! One [`Watcher`] for each core or thread, which owns it; none of its methods waits for another one's. The caller passes the
//! time, and calls [`look`](Watcher::look) every [`TICK`] while anything is [in flight](Watcher::in_flight).
//!
//! ```
//! use std::sync::Arc;
//! use std::time::{Duration, Instant};
//!
//! use fusebox::{CircuitBreaker, CircuitState};
//! use fusebox::silence::{Config, Detector, TICK};
//!
//! let breaker = Arc::new(CircuitBreaker::builder("openai").build()?);
//! let detector = Arc::new(Detector::new(Arc::clone(&breaker), &Config::default(), 1));
//! let mut watcher = detector.watcher().expect("nobody watches yet");
//!
//! // A thousand answers that take 20 ms each.
//! let mut now = Instant::now();
//! for _ in 0..1000 {
//!     let permit = breaker.try_acquire()?;
//!     let ticket = watcher.start(&permit, now);
//!     for _ in 0..4 {
//!         now += TICK;
//!         assert!(watcher.look(now).is_none());
//!     }
//!     watcher.answered(ticket, now);
//!     permit.success();
//! }
//! // From now on there is none.
//! let permits: Vec<_> = (0..10).map(|_| breaker.try_acquire()).collect::<Result<_, _>>()?;
//! let mut tickets: Vec<_> = permits.iter().map(|permit| watcher.start(permit, now)).collect();
//! let alarm = loop {
//!     now += TICK;
//!     if let Some(alarm) = watcher.look(now) {
//!         break alarm;
//!     }
//! };
//! assert_eq!((alarm.members, alarm.oldest), (10, Duration::from_millis(25)));
//! assert!(breaker.snapshot().silent);
//!
//! // Now ask somebody else, and keep listening.
//! watcher.answered(tickets.pop().expect("there are ten"), now);
//! assert_eq!(breaker.state(), CircuitState::Closed);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Rules
//!
//! - Only an answer clears. Whatever fails, or is called off, is [withdrawn](Watcher::withdrawn): it neither clears nor
//!   counts, so that a front end's 401s do not hide a back end that hangs.
//! - Nothing is believed before enough is learnt: the first answers at a high rate are the fastest ones. That takes 100
//!   answers, and twice as many as there are requests in flight.
//! - If a look comes late, its caller was held up, and everything seems silent. What it is late by, beyond two ticks, is taken
//!   off every age.
//! - A probe that waits for longer than 99% of answers do (and 50 ms) is silent, too: one request alone never reaches phi 9.
//! - If an answer to a silent request shows that the upstream is not silent but slow, how long answers take is learnt again: from
//!   requests that are sent then, and not from those that waited.
//!
//! # Its limits
//!
//! - A part of an upstream that hangs is not seen while other parts answer.
//! - With few requests it takes its time: `failure_threshold` of them have to go unanswered. Below one request per latency
//!   a timeout notices as soon.
//! - Requests have to wait for longer than it takes to notice: a timeout that is shorter withdraws them.
//! - Requests that take much longer than those that were learnt, several of them at once, look like silence until one is answered.
//! - Each answer, and each piece of a stream, clears those that were started before: streams that begin well and then all stop are
//!   not silent as long as new ones begin. That is for an idle timeout to notice.
//! - A request that is sent to somebody else as well is, if the first one answers after all, answered and billed twice.
//!
//! # Choosing phi
//!
//! Each step up makes a false alarm ten times less likely, and costs about a third of a request more, or its time. Nine has
//! raised none in millions of heavy-tailed requests; `docs/BENCHMARKS.md` has the figures, and `benches/silence` makes them.

mod latencies;
mod published;

use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use crate::breaker::CircuitBreaker;
use crate::breaker::history::LastError;
use crate::clock::ticks;
use crate::config::{ConfigError, MAX_DURATION, MIN_DURATION};
use crate::permit::Permit;
use crate::sync::unseen::{AtomicU32, AtomicUsize};
use crate::sync::{AtomicU64, Ordering, fence};
use crate::word::{self, CircuitState, GENERATION_BITS, Snapshot, next_generation};
use latencies::Surprise;
use published::{Published, Silent};

/// How often a [`Watcher`] wants to look: a coarser tick is noticed where answers take a few milliseconds.
pub const TICK: Duration = Duration::from_millis(5);

const TICK_MICROS: u64 = 5_000;
/// A look that comes later than that was held up.
const LATE_MICROS: u64 = 3 * TICK_MICROS;
/// Answers before anything is believed.
const ENOUGH: usize = 100;
/// No probe is given up before.
const MIN_PATIENCE: Duration = Duration::from_millis(50);

/// When silence is an alarm, checked when it was made.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use fusebox::silence::Config;
///
/// let config = Config::builder().phi(12.0).ceiling(Duration::from_secs(10)).build()?;
/// assert_eq!(config.floor(), Duration::from_millis(20));
///
/// let error = Config::builder().phi(0.0).build().unwrap_err();
/// assert_eq!(error.to_string(), "phi is 0, expected 1 to 100");
/// # Ok::<(), fusebox::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    phi: f32,
    floor: Duration,
    ceiling: Option<Duration>,
}

impl Default for Config {
    /// Phi 9, a floor of 20 ms, no ceiling.
    fn default() -> Self {
        Self { phi: 9.0, floor: Duration::from_millis(20), ceiling: None }
    }
}

impl Config {
    /// Starts from the defaults.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder(Self::default())
    }

    /// Starts from these settings.
    pub fn to_builder(&self) -> ConfigBuilder {
        ConfigBuilder(*self)
    }

    /// How surprising silence has to be.
    pub fn phi(&self) -> f32 {
        self.phi
    }

    /// How long the oldest silent request has to wait, at least.
    pub fn floor(&self) -> Duration {
        self.floor
    }

    /// How long it may wait at the most, however long answers take.
    pub fn ceiling(&self) -> Option<Duration> {
        self.ceiling
    }
}

/// Sets what differs from the defaults.
#[derive(Clone, Copy, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct ConfigBuilder(Config);

impl ConfigBuilder {
    /// How surprising silence has to be: 1 to 100, default 9.
    pub fn phi(mut self, phi: f32) -> Self {
        self.0.phi = phi;
        self
    }

    /// How long the oldest silent request has to wait before it is an alarm: 0 to 24 h, default 20 ms. It keeps an upstream
    /// that answers within a millisecond from being given up for its next hiccup.
    pub fn floor(mut self, floor: Duration) -> Self {
        self.0.floor = floor;
        self
    }

    /// How long the oldest of at least `failure_threshold` silent requests may wait, whatever was learnt: 1 ms to 24 h, by
    /// default for ever.
    pub fn ceiling(mut self, ceiling: Duration) -> Self {
        self.0.ceiling = Some(ceiling);
        self
    }

    /// The settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a value out of its range.
    pub fn build(self) -> Result<Config, ConfigError> {
        let Config { phi, floor, ceiling } = self.0;
        if !(1.0..=100.0).contains(&phi) {
            return Err(ConfigError::new("phi", phi.to_string(), "1 to 100"));
        }
        if floor > MAX_DURATION {
            return Err(ConfigError::new("floor", format!("{floor:?}"), "0 to 24 h"));
        }
        match ceiling {
            Some(ceiling) if !(MIN_DURATION..=MAX_DURATION).contains(&ceiling) => {
                Err(ConfigError::new("ceiling", format!("{ceiling:?}"), "1 ms to 24 h"))
            }
            _ => Ok(self.0),
        }
    }
}

/// What the watchers of one kind of answer have in common: see the [module](self).
pub struct Detector {
    breaker: Arc<CircuitBreaker>,
    label: Box<str>,
    epoch: Instant,
    cores: Box<[CachePadded<Published>]>,
    /// The newest answer that was known when the last alarm was raised, and the generation of the opening that it was
    /// raised for, in the lower bits. Answers that are newer end that silence.
    alarm: AtomicU64,
    learning: Learning,
    phi: AtomicU32,
    floor_ms: AtomicU32,
    /// 0 is for ever.
    ceiling_ms: AtomicU32,
}

/// Whether enough is learnt to raise an alarm.
struct Learning {
    enough: AtomicU32,
    /// How many answers there were when it began.
    from: AtomicUsize,
}

/// A detector is made at this time of its own.
const EPOCH_MICROS: u64 = 1 << 40;

fn micros(duration: Duration) -> u64 {
    duration.as_secs() * 1_000_000 + u64::from(duration.subsec_micros())
}

impl Detector {
    /// For this breaker and so many cores. It knows nothing yet.
    pub fn new(breaker: Arc<CircuitBreaker>, config: &Config, cores: usize) -> Self {
        let detector = Self {
            breaker,
            label: Box::default(),
            epoch: Instant::now(),
            cores: (0..cores).map(|_| CachePadded::new(Published::new())).collect(),
            alarm: AtomicU64::new(0),
            learning: Learning { enough: AtomicU32::new(0), from: AtomicUsize::new(0) },
            phi: AtomicU32::new(0),
            floor_ms: AtomicU32::new(0),
            ceiling_ms: AtomicU32::new(0),
        };
        detector.set_config(config);
        detector
    }

    /// What the circuit's last error calls that which is silent, where a breaker has several detectors.
    #[must_use]
    pub fn with_label(self, label: impl Into<Box<str>>) -> Self {
        Self { label: label.into(), ..self }
    }

    /// Replaces the settings, and keeps what was learnt.
    pub fn set_config(&self, config: &Config) {
        self.phi.store(config.phi.to_bits(), Ordering::Relaxed);
        self.floor_ms.store(ticks(config.floor), Ordering::Relaxed);
        self.ceiling_ms.store(config.ceiling.map_or(0, ticks), Ordering::Relaxed);
    }

    /// A watcher for one more core; `None` if each has one. A watcher that is dropped makes room for another.
    pub fn watcher(self: &Arc<Self>) -> Option<Watcher> {
        let core = self.cores.iter().position(|core| core.taken.swap(1, Ordering::Acquire) == 0)?;
        Some(Watcher::new(Arc::clone(self), core))
    }

    /// What there is to say about it now, for health pages and metrics.
    pub fn snapshot(&self, now: Instant) -> SilenceSnapshot {
        let mut surprise = Surprise::new();
        surprise.learn(self.cores.iter().map(|core| &core.latencies));
        let silent = self.silent(self.newest_answered());
        SilenceSnapshot {
            learnt: self.has_learnt(),
            answers: self.answers(),
            median: surprise.median(),
            p99: surprise.p99(),
            phi: silent.phi,
            members: silent.members,
            oldest: silent.age(self.micros(now)),
        }
    }

    /// Never 0. The caller's clock may be a paused one that lags behind.
    #[inline]
    fn micros(&self, now: Instant) -> u64 {
        match now.checked_duration_since(self.epoch) {
            Some(since) => EPOCH_MICROS + micros(since),
            None => EPOCH_MICROS.saturating_sub(micros(self.epoch.saturating_duration_since(now))).max(1),
        }
    }

    fn newest_answered(&self) -> u64 {
        self.cores.iter().map(|core| core.answered()).max().unwrap_or(0)
    }

    fn answers(&self) -> usize {
        self.cores.iter().fold(0, |sum, core| sum.wrapping_add(core.latencies.answers()))
    }

    /// The silent requests of all cores that know of this answer; the others will, within a tick.
    fn silent(&self, as_of: u64) -> Silent {
        self.cores.iter().filter_map(|core| core.silent(as_of)).fold(Silent::default(), Silent::and)
    }

    /// The same, if all cores know of it.
    fn silent_on_all(&self, as_of: u64) -> Option<Silent> {
        self.cores.iter().try_fold(Silent::default(), |sum, core| Some(sum.and(core.silent(as_of)?)))
    }

    fn has_learnt(&self) -> bool {
        self.learning.enough.load(Ordering::Relaxed) != 0
    }

    /// The first answers at a high rate are the fastest ones: not before those that were under way with them are in, too.
    fn see_whether_enough(&self, answers: usize) {
        if !self.has_learnt() {
            let in_flight: usize = self.cores.iter().map(|core| core.in_flight.load(Ordering::Relaxed)).sum();
            if answers.wrapping_sub(self.learning.from.load(Ordering::Relaxed)) >= ENOUGH.max(2 * in_flight) {
                self.learning.enough.store(1, Ordering::Relaxed);
            }
        }
    }

    fn learn_again(&self) {
        self.learning.from.store(self.answers(), Ordering::Relaxed);
        self.learning.enough.store(0, Ordering::Relaxed);
    }

    /// Whether as much silence as this keeps a circuit open.
    fn stands(&self, silent: Silent, now: u64) -> bool {
        silent.members >= self.breaker.failure_threshold()
            && (self.is_surprising(silent) || self.is_too_long(silent, now))
    }

    /// Whether it opens one.
    fn alarms(&self, silent: Silent, now: u64) -> bool {
        let floor = Duration::from_millis(self.floor_ms.load(Ordering::Relaxed).into());
        let believed = self.has_learnt() && self.is_surprising(silent) && silent.age(now) >= floor;
        silent.members >= self.breaker.failure_threshold() && (believed || self.is_too_long(silent, now))
    }

    fn is_surprising(&self, silent: Silent) -> bool {
        silent.phi >= f32::from_bits(self.phi.load(Ordering::Relaxed))
    }

    fn is_too_long(&self, silent: Silent, now: u64) -> bool {
        self.ceiling().is_some_and(|ceiling| silent.age(now) >= ceiling)
    }

    fn ceiling(&self) -> Option<Duration> {
        let ceiling = self.ceiling_ms.load(Ordering::Relaxed);
        (ceiling > 0).then(|| Duration::from_millis(ceiling.into()))
    }

    fn note_alarm(&self, as_of: u64, generation: u32) {
        // Of two alarms as of one answer the one of the later opening counts. That its generation may wrap in between costs a
        // closing, once in a quarter of a million openings.
        self.alarm.fetch_max(as_of << GENERATION_BITS | u64::from(generation), Ordering::Relaxed);
    }

    /// The newest answer that was known when this detector opened the circuit; `None` if it is not silent, or by another's
    /// alarm.
    fn silent_as_of(&self, word: Snapshot) -> Option<u64> {
        if !word.silent {
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
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SilenceSnapshot {
    /// Whether enough is learnt to raise an alarm.
    pub learnt: bool,
    /// How many answers there were.
    pub answers: usize,
    /// Half of them are at least as fast, to an eighth.
    pub median: Duration,
    /// 99% of them are.
    pub p99: Duration,
    /// How surprising the silence is, as of the last look.
    pub phi: f32,
    /// Requests that are silent.
    pub members: u32,
    /// How long the oldest of them has waited.
    pub oldest: Duration,
}

/// So many requests go unanswered that those who wait had better ask somebody else.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Alarm {
    /// How surprising it is.
    pub phi: f32,
    /// The silent requests.
    pub members: u32,
    /// How long the oldest of them has waited.
    pub oldest: Duration,
    /// Half of the answers were at least as fast, to an eighth.
    pub median: Duration,
    /// 99% of them were.
    pub p99: Duration,
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { phi, members, oldest, median, p99 } = self;
        let ms = Duration::as_millis;
        write!(
            f,
            "{members} unanswered for {} ms (phi {phi:.1}, median {} ms, p99 {} ms)",
            ms(oldest),
            ms(median),
            ms(p99)
        )
    }
}

/// A request under way, to be handed back once. One that is lost counts as silent until a newer one is answered.
#[derive(Debug)]
#[must_use = "it counts as silent until it is handed back"]
pub struct Ticket {
    number: u64,
    request: Request,
}

/// Times are in microseconds since the detector was made.
#[derive(Clone, Copy, Debug)]
struct Request {
    started: u64,
    /// How long the watcher had been held up by then.
    held_up: u64,
    withdrawn: bool,
}

/// A probe under way.
struct Probe {
    number: u64,
    request: Request,
    /// The word that it claimed.
    claimed: u64,
}

/// One core's part of a [`Detector`].
pub struct Watcher {
    detector: Arc<Detector>,
    core: usize,
    /// Those after the newest that has been answered, in the order of their start.
    silent: VecDeque<Request>,
    /// The number of the first of them.
    first: u64,
    /// Those before have been told to ask somebody else.
    told: u64,
    in_flight: usize,
    /// Whether the others are told of silent requests.
    tells: bool,
    probe: Option<Probe>,
    last_look: u64,
    held_up: u64,
    surprise: Surprise,
}

impl Watcher {
    fn new(detector: Arc<Detector>, core: usize) -> Self {
        Self {
            detector,
            core,
            silent: VecDeque::new(),
            first: 0,
            told: 0,
            in_flight: 0,
            tells: false,
            probe: None,
            last_look: 0,
            held_up: 0,
            surprise: Surprise::new(),
        }
    }

    /// Requests that are neither answered nor withdrawn. While there are any, somebody has to [`look`](Self::look).
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// A request is sent that holds this permit, of the detector's breaker.
    pub fn start<B: Deref<Target = CircuitBreaker>>(&mut self, permit: &Permit<B>, now: Instant) -> Ticket {
        debug_assert!(std::ptr::eq(permit.breaker(), &raw const *self.detector.breaker), "another breaker's permit");
        let ticket = self.start_piece(now);
        if let Some(claimed) = permit.claim() {
            self.probe = Some(Probe { number: ticket.number, request: ticket.request, claimed });
        }
        ticket
    }

    /// As [`start`](Self::start), for what no permit is taken for: the next piece of a stream.
    pub fn start_piece(&mut self, now: Instant) -> Ticket {
        let now = self.detector.micros(now);
        if self.in_flight == 0 {
            self.last_look = now;
        }
        let request = Request { started: now, held_up: self.held_up_by(now), withdrawn: false };
        let number = self.next();
        self.silent.push_back(request);
        self.set_in_flight(self.in_flight + 1);
        Ticket { number, request }
    }

    /// The upstream answers it: for a response, when its first byte of content is there.
    #[expect(clippy::needless_pass_by_value, reason = "it is handed back once")]
    pub fn answered(&mut self, ticket: Ticket, now: Instant) {
        let Ticket { number, request } = ticket;
        let now = self.detector.micros(now);
        let own = self.own();
        // How long an outage lasted is not how long an answer takes.
        if number >= self.told {
            own.latencies.add(self.age(request, now));
        }
        if request.started > own.answered() {
            own.set_answered(request.started);
        }
        if number >= self.first {
            self.forget(|next, _| next <= number);
        }
        self.end(number, now);
    }

    /// It failed, or was called off: nothing follows from that.
    #[expect(clippy::needless_pass_by_value, reason = "it is handed back once")]
    pub fn withdrawn(&mut self, ticket: Ticket, now: Instant) {
        let now = self.detector.micros(now);
        let at = ticket.number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(request) = at.and_then(|at| self.silent.get_mut(at)) {
            request.withdrawn = true;
            // What the others were told counts it still: until the next look, they are told of none.
            self.tell(Silent::default(), 0);
        }
        self.end(ticket.number, now);
    }

    fn end(&mut self, number: u64, now: u64) {
        self.set_in_flight(self.in_flight.saturating_sub(1));
        self.probe.take_if(|probe| probe.number == number);
        if self.silent.is_empty() && self.tells {
            self.tell(Silent::default(), 0);
        }
        if !word::is_closed(self.detector.breaker.load()) {
            self.end_silence(now);
        }
    }

    /// Looks whether the silence is alarming, and opens the circuit if it is. Every [`TICK`] while anything is in flight; what
    /// a look is late by is taken for time in which no answer could be read.
    ///
    /// Returns an alarm if requests of this watcher that have not been told yet had better ask somebody else: all that have
    /// been started and not handed back. That may be the probe alone, and it may be that another core's watcher, or failures,
    /// have opened the circuit.
    pub fn look(&mut self, now: Instant) -> Option<Alarm> {
        let detector = Arc::clone(&self.detector);
        let now = detector.micros(now);
        self.held_up = self.held_up_by(now);
        self.last_look = now;
        // Before anything that the look decides by: an alarm is about the circuit as it was.
        let word = detector.breaker.load();
        let newest = detector.newest_answered();
        self.learn();
        self.tell_what_is_silent(newest, now);
        if !word::is_closed(word) {
            self.end_silence(now);
        }
        if self.silent.is_empty() {
            return None;
        }
        let silent = detector.silent(newest);
        let alarming = detector.alarms(silent, now);
        let before = Snapshot::unpack(word);
        if alarming && before.state == CircuitState::Closed {
            let error = self.error(silent, now);
            detector.note_alarm(newest, next_generation(before.generation));
            detector.breaker.fall_silent(before.generation, &error);
        }
        self.give_up_probe(newest, silent, now);

        let after = Snapshot::unpack(detector.breaker.load());
        let move_on = after.state == CircuitState::Open && (alarming || detector.silent_as_of(after).is_some());
        (move_on && self.tell_to_move_on()).then(|| self.alarm(silent, now))
    }

    fn own(&self) -> &Published {
        &self.detector.cores[self.core]
    }

    fn next(&self) -> u64 {
        self.first + self.silent.len() as u64
    }

    fn set_in_flight(&mut self, in_flight: usize) {
        self.in_flight = in_flight;
        self.own().in_flight.store(in_flight, Ordering::Relaxed);
    }

    /// How long the caller has been held up until now.
    fn held_up_by(&self, now: u64) -> u64 {
        let since = now.saturating_sub(self.last_look);
        if since > LATE_MICROS { self.held_up + since - TICK_MICROS } else { self.held_up }
    }

    /// For how long a request has waited, without the time in which no answer could be read.
    fn age(&self, request: Request, now: u64) -> u64 {
        now.saturating_sub(request.started).saturating_sub(self.held_up_by(now).saturating_sub(request.held_up))
    }

    fn forget(&mut self, is_silent_no_more: impl Fn(u64, Request) -> bool) {
        while let Some(&request) = self.silent.front()
            && (request.withdrawn || is_silent_no_more(self.first, request))
        {
            self.silent.pop_front();
            self.first += 1;
        }
    }

    fn learn(&mut self) {
        let detector = &*self.detector;
        let answers = detector.answers();
        detector.see_whether_enough(answers);
        let all = detector.cores.iter().map(|core| &core.latencies);
        self.surprise.refresh(answers, &detector.cores[self.core].latencies, all);
    }

    fn tell_what_is_silent(&mut self, newest: u64, now: u64) {
        self.forget(|_, request| request.started <= newest);
        let mut silent = Silent::default();
        for &request in self.silent.iter().filter(|request| !request.withdrawn) {
            let age = self.age(request, now);
            silent = silent.and(Silent { members: 1, phi: self.surprise.of(age), oldest: now - age });
        }
        self.tell(silent, newest);
    }

    fn tell(&mut self, silent: Silent, as_of: u64) {
        if self.tells || silent.members > 0 {
            self.own().set_silent(silent, as_of);
        }
        self.tells = silent.members > 0;
    }

    /// Closes the circuit if answers came that are newer than the alarm, and what is silent since is none.
    #[cold]
    fn end_silence(&mut self, now: u64) {
        let detector = Arc::clone(&self.detector);
        let word = detector.breaker.load();
        let Some(as_of) = detector.silent_as_of(Snapshot::unpack(word)) else { return };
        let newest = detector.newest_answered();
        if newest <= as_of {
            return;
        }
        self.tell_what_is_silent(newest, now);
        // Of two cores that tell their last, one has to see that the other one did: neither looks again.
        fence(Ordering::SeqCst);
        let rest = detector.silent_on_all(newest);
        if rest.is_some_and(|rest| !detector.stands(rest, now)) && detector.breaker.end_silence(word) {
            detector.learn_again();
        }
    }

    /// How long a probe may go unanswered.
    fn patience(&self) -> Duration {
        let learnt = self.surprise.samples() >= ENOUGH as u64;
        let patience = if learnt { self.surprise.p99().max(MIN_PATIENCE) } else { Duration::MAX };
        patience.min(self.detector.ceiling().unwrap_or(Duration::MAX))
    }

    fn give_up_probe(&mut self, newest: u64, silent: Silent, now: u64) {
        let patience = self.patience();
        let age = |probe: &Probe| Duration::from_micros(self.age(probe.request, now));
        if self.probe.as_ref().is_some_and(|probe| age(probe) >= patience)
            && let Some(Probe { claimed, .. }) = self.probe.take()
        {
            self.detector.note_alarm(newest, next_generation(Snapshot::unpack(claimed).generation));
            self.detector.breaker.probe_fell_silent(claimed, &self.error(silent, now));
        }
    }

    /// Whether there is somebody to be told that has not been.
    fn tell_to_move_on(&mut self) -> bool {
        let told = usize::try_from(self.told.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.told = self.next();
        self.silent.iter().skip(told).any(|request| !request.withdrawn)
    }

    fn alarm(&self, silent: Silent, now: u64) -> Alarm {
        let Silent { members, phi, .. } = silent;
        let (median, p99) = (self.surprise.median(), self.surprise.p99());
        Alarm { phi, members, oldest: silent.age(now), median, p99 }
    }

    #[cold]
    fn error(&self, silent: Silent, now: u64) -> Arc<LastError> {
        let alarm = self.alarm(silent, now);
        let label = &*self.detector.label;
        let separator = if label.is_empty() { "" } else { ": " };
        Arc::new(LastError::new("silent", &format_args!("{label}{separator}{alarm}")))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.tell(Silent::default(), 0);
        self.set_in_flight(0);
        self.own().taken.store(0, Ordering::Release);
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("detector", &self.detector)
            .field("core", &self.core)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}
