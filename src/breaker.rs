//! One circuit breaker: a word changed only by compare-and-swap, the calls that wait for its probe, and the history of
//! why it opened.
//!
//! Not here: what a state may become (`word`), how one waits (`breaker::wait`), and time (`clock`).
//!
//! Longer than 500 lines: half of it documents methods that users call. The protocol, from "admitting" on, is to be
//! read in one go.
//!
//! # Orderings
//!
//! `docs/PROOF.md` names the model that fails without each of them, and how to run it.
//!
//! - The load that admits, a waiter's second look and the look after a failed swap are Acquire. They pair with the
//!   Release of the swaps to Open and to Closed: who sees an opening finds the error published before it; who sees a
//!   closing sees what the probe's caller did before it.
//! - There is one swap with one pair of orderings. A claim, a count and a reset publish nothing and would do with
//!   Relaxed. Every write is a read-modify-write and so continues the release sequence of the last opening; a plain
//!   store would cut it.
//! - `record_success` loads Relaxed: it reads nothing but the word, and usually writes nothing.
//! - No lost wakeup: a waiter subscribes to `notify` first and reads the word second; a resolver changes the word first
//!   and notifies second. However they interleave one sees the other, without `SeqCst` and without a flag for "somebody
//!   waits".

mod call;
mod history;
mod wait;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::clock::{Clock, duration};
use crate::config::{Config, ConfigBuilder, ConfigError};
use crate::error::{CircuitOpenError, LastError, Rejection, RejectionReason};
use crate::event;
use crate::permit::{OwnedPermit, Permit};
use crate::settings::Settings;
use crate::sync::unseen::AtomicU32;
use crate::sync::{AtomicU64, Ordering};
use crate::word::{self, Admit, CircuitState, Failure, ProbeEnd, Snapshot, Success};
pub use call::{CancelOnDrop, Outcome};
pub(crate) use history::Past;
use history::{Cause, History};
use wait::{Acquire, Waiting};

/// A circuit breaker for one upstream.
///
/// While the circuit is closed, asking for a permit is one atomic load, and reporting a success writes nothing. After
/// `failure_threshold` failures in a row it opens and refuses calls. The first call after `open_for` is the one probe;
/// calls that come meanwhile wait for its result ([`acquire`](Self::acquire)) or are refused
/// ([`try_acquire`](Self::try_acquire)). It has no background task, no timer of its own, and no lock but the one inside
/// tokio's `Notify`, for calls that wait for a probe and for the probe's result.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use fusebox::CircuitBreaker;
///
/// let breaker = CircuitBreaker::builder("openai").failure_threshold(3).build()?;
/// let permit = breaker.acquire().await?;
/// // ... talk to the upstream, then say how it went:
/// permit.success();
/// # Ok(())
/// # }
/// ```
pub struct CircuitBreaker {
    word: CachePadded<AtomicU64>,
    settings: Settings,
    clock: Clock,
    waiting: Waiting,
    history: History,
    /// By which a rejection is known to be its own.
    number: u16,
    name: Arc<str>,
}

impl ConfigBuilder<Arc<str>> {
    /// A closed breaker with these settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a value out of its range.
    pub fn build(self) -> Result<CircuitBreaker, ConfigError> {
        self.into_parts().map(|(name, config)| CircuitBreaker::new(name, config))
    }
}

/// A call that may not pass now.
enum Blocked {
    Refused(Rejection),
    /// A probe of `generation` is in flight.
    ByProbe {
        generation: u32,
        lease_left: u32,
    },
}

impl CircuitBreaker {
    /// A closed breaker. `name` is what logs and errors call the upstream.
    pub fn new(name: impl Into<Arc<str>>, config: Config) -> Self {
        Self {
            word: CachePadded::new(AtomicU64::new(Snapshot::INITIAL.pack())),
            settings: Settings::new(config),
            clock: Clock::new(),
            waiting: Waiting::new(),
            history: History::new(),
            number: next_number(),
            name: name.into(),
        }
    }

    /// Starts from the default [`Config`].
    pub fn builder(name: impl Into<Arc<str>>) -> ConfigBuilder<Arc<str>> {
        ConfigBuilder::for_target(name.into())
    }

    // ---- asking ----

    /// Asks for a permit, and never waits.
    ///
    /// # Errors
    ///
    /// [`Rejection`] while the circuit is open, or half-open with a probe in flight.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::{CircuitBreaker, PermitType};
    ///
    /// let breaker = CircuitBreaker::builder("openai").failure_threshold(1).build()?;
    /// let permit = breaker.try_acquire()?;
    /// assert_eq!(permit.kind(), PermitType::Normal);
    /// permit.failure("timeout", "no answer within 2 s");
    /// assert!(breaker.try_acquire().is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn try_acquire(&self) -> Result<Permit<&Self>, Rejection> {
        self.try_acquire_word().map(|word| Permit::new(self, word))
    }

    /// Asks for a permit, and waits for the result of a probe in flight.
    ///
    /// # Errors
    ///
    /// [`Rejection`] while the circuit is open, when it has opened again after a wait, when the wait limit has passed,
    /// and at once when `max_waiters` calls are waiting already.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the wait and changes nothing: a probe is claimed only in the poll that returns it.
    ///
    /// # Panics
    ///
    /// If it has to wait outside a tokio runtime with its timer enabled.
    #[inline]
    pub fn acquire(&self) -> impl Future<Output = Result<Permit<&Self>, Rejection>> + Send {
        Acquire::new(self)
    }

    /// As [`acquire`](Self::acquire), and waits while the circuit is silent, too, for an answer that ends the
    /// [`silence`](crate::silence) or for the open time to pass: for a call that has nobody else to ask, since silence
    /// is a suspicion, and mostly over before long. The limits are those of a wait for a probe.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Panics
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_through_silence(&self) -> Result<Permit<&Self>, Rejection> {
        match self.try_acquire() {
            Err(rejection)
                if matches!(rejection.reason(), RejectionReason::Silent | RejectionReason::ProbeInFlight) =>
            {
                self.wait_through_silence(rejection).await.map(|word| Permit::new(self, word))
            }
            answer => answer,
        }
    }

    /// As [`acquire`](Self::acquire), for a permit that outlives the borrow. It costs a reference count.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Panics
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::sync::Arc;
    /// use fusebox::CircuitBreaker;
    ///
    /// let breaker = Arc::new(CircuitBreaker::builder("openai").build()?);
    /// let permit = Arc::clone(&breaker).acquire_owned().await?;
    /// tokio::spawn(async move { permit.success() }).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn acquire_owned(self: Arc<Self>) -> Result<OwnedPermit, Rejection> {
        let word = self.acquire().await?.into_word();
        Ok(Permit::new(self, word))
    }

    /// As [`try_acquire`](Self::try_acquire), for a permit that outlives the borrow. It costs a reference count.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_owned(self: Arc<Self>) -> Result<OwnedPermit, Rejection> {
        self.try_acquire_word().map(|word| Permit::new(self, word))
    }

    /// Whether [`try_acquire`](Self::try_acquire) would give a permit now. It claims nothing, so that looking at a
    /// candidate never uses up its probe.
    pub fn would_allow(&self) -> bool {
        let word = self.load();
        if word::is_closed(word) {
            return true;
        }
        let word = Snapshot::unpack(word);
        word.open_left_for_sure(self.clock.about_now(), self.settings.open_ticks()).is_none()
            && matches!(word.admit(self.clock.now(), self.settings.limits()), Admit::Pass | Admit::Claim(_))
    }

    // ---- seeing ----

    /// The name given at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The settings. Durations are in whole milliseconds, rounded up.
    pub fn config(&self) -> Config {
        self.settings.get()
    }

    /// Replaces the settings, and keeps the state. An open circuit keeps the time at which it takes a probe, a probe
    /// its lease, unless what is left is longer than the new setting by more than a minute: then the circuit takes a
    /// probe at once, and the next call takes the probe over. A lower `failure_threshold` that has been reached opens
    /// the circuit with the next failure.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::{CircuitBreaker, CircuitState};
    ///
    /// let breaker = CircuitBreaker::builder("openai").failure_threshold(5).build()?;
    /// breaker.try_acquire()?.failure("timeout", "");
    /// breaker.set_config(breaker.config().to_builder().failure_threshold(2).build()?);
    /// breaker.try_acquire()?.failure("timeout", "");
    /// assert_eq!(breaker.state(), CircuitState::Open);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_config(&self, config: Config) {
        self.settings.set(config);
    }

    /// The state as the last call left it: an open circuit becomes half-open with the first call after its open time.
    pub fn state(&self) -> CircuitState {
        self.decoded().state
    }

    /// Failures in a row. While the circuit is open or half-open: those that opened it.
    pub fn failure_count(&self) -> u32 {
        self.decoded().failure_count
    }

    /// How often the circuit went from closed to open. Failed probes are counted apart, in
    /// [`BreakerSnapshot::failed_probe_count`].
    pub fn trip_count(&self) -> u64 {
        self.past(self.decoded()).trips
    }

    /// What there is to say about it now, for health pages and metrics.
    pub fn snapshot(&self) -> BreakerSnapshot {
        let word = self.decoded();
        let Past { trips, failed_probes, last_error } = self.past(word);
        BreakerSnapshot {
            name: Arc::clone(&self.name),
            state: word.state,
            silent: word.silent,
            failure_count: word.failure_count,
            probe_in_flight: word.probe_in_flight,
            waiters: self.waiting.count(),
            trip_count: trips,
            failed_probe_count: failed_probes,
            next_probe_in: (word.state == CircuitState::Open)
                .then(|| duration(word.open_left(self.clock.now(), self.settings.open_ticks()))),
            last_error,
        }
    }

    /// A rejection in full: with the provider's name, its last error and its trip count. Of a rejection by another
    /// breaker it knows none of them, and says so.
    #[cold]
    pub fn explain(&self, rejection: Rejection) -> CircuitOpenError {
        if !rejection.is_by(self.number) {
            return CircuitOpenError::new("another breaker".into(), rejection, 0, None);
        }
        let Past { trips, last_error, .. } = self.past(self.decoded());
        CircuitOpenError::new(Arc::clone(&self.name), rejection, trips, last_error)
    }

    pub(crate) fn failure_threshold(&self) -> u32 {
        self.settings.failure_threshold()
    }

    pub(crate) fn shared_name(&self) -> &Arc<str> {
        &self.name
    }

    fn past(&self, word: Snapshot) -> Past {
        self.history.as_of(word.generation)
    }

    // ---- the protocol: admitting ----

    #[inline]
    pub(crate) fn load(&self) -> u64 {
        self.word.load(Ordering::Acquire)
    }

    fn decoded(&self) -> Snapshot {
        Snapshot::unpack(self.load())
    }

    #[inline]
    fn swap(&self, from: u64, to: u64) -> bool {
        self.word.compare_exchange(from, to, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// After a swap that failed. It first leaves the word to whoever had it: cores that fight over a cache line get
    /// less done than one that has it to itself for a moment (Dice, Hendler, Mirsky: Lightweight Contention Management
    /// for Efficient Compare-and-Swap Operations, 2013).
    #[cold]
    fn look_again(&self) -> u64 {
        for _ in 0..32 {
            std::hint::spin_loop();
        }
        self.load()
    }

    /// The word that a permit is made of.
    #[inline]
    pub(crate) fn try_acquire_word(&self) -> Result<u64, Rejection> {
        let word = self.load();
        if word::is_closed(word) { Ok(word) } else { self.try_acquire_blocked(word) }
    }

    #[cold]
    fn try_acquire_blocked(&self, word: u64) -> Result<u64, Rejection> {
        self.admit_at_once(word).map_err(|blocked| match blocked {
            Blocked::Refused(rejection) => rejection,
            Blocked::ByProbe { lease_left, .. } => self.reject(RejectionReason::ProbeInFlight, lease_left),
        })
    }

    #[inline]
    pub(super) fn reject(&self, reason: RejectionReason, ticks_left: u32) -> Rejection {
        Rejection::new(self.number, reason, ticks_left)
    }

    #[inline]
    fn blocked_by_open(&self, word: Snapshot, open_left: u32) -> Blocked {
        let reason = if word.silent { RejectionReason::Silent } else { RejectionReason::Open };
        Blocked::Refused(self.reject(reason, open_left))
    }

    /// [`admit`](Self::admit), for a call that has not waited and finds `word` not closed.
    fn admit_at_once(&self, word: u64) -> Result<u64, Blocked> {
        let before = Snapshot::unpack(word);
        match before.open_left_for_sure(self.clock.about_now(), self.settings.open_ticks()) {
            Some(open_left) => Err(self.blocked_by_open(before, open_left)),
            None => self.admit(word, self.clock.now(), None),
        }
    }

    /// Passes, claims the probe, or says what is in the way. `waited_for` is the generation of the probe that the call
    /// has waited for: it is refused if the circuit is open again, even if the new open time has passed already, so
    /// that a failed probe does not turn its waiters into a row of probes.
    fn admit(&self, mut word: u64, now: u32, waited_for: Option<u32>) -> Result<u64, Blocked> {
        let limits = self.settings.limits();
        loop {
            let before = Snapshot::unpack(word);
            if waited_for.is_some_and(|generation| before.is_reopened_since(generation)) {
                let open_left = before.open_left(now, limits.open_ticks);
                return Err(Blocked::Refused(self.reject(RejectionReason::Reopened, open_left)));
            }
            let claim = match before.admit(now, limits) {
                Admit::Pass => return Ok(word),
                Admit::Claim(claim) => claim,
                Admit::Wait { lease_left } => {
                    return Err(Blocked::ByProbe { generation: before.generation, lease_left });
                }
                Admit::Refuse { open_left } => return Err(self.blocked_by_open(before, open_left)),
            };
            if self.claim(word, claim) {
                return Ok(claim.pack());
            }
            word = self.look_again();
        }
    }

    #[cold]
    #[inline(never)]
    fn claim(&self, word: u64, claim: Snapshot) -> bool {
        let before = Snapshot::unpack(word);
        let past = self.past(before);
        let claimed = claim.pack();
        if self.swap(word, claimed) {
            // A subscriber may panic: until it is over, the claim belongs to something that gives it back.
            let probe = Permit::new(self, claimed).cancel_on_drop();
            if before.state == CircuitState::Open {
                event::half_opened(self, claim, &past);
            } else if before.probe_in_flight {
                event::probe_taken_over(self, claim, &past);
            }
            probe.into_claim();
            return true;
        }
        false
    }

    // ---- the protocol: recording ----
    // Each says whether it counted, or came too late.

    /// A call that was admitted by the closed word `granted` succeeded.
    #[inline]
    pub(crate) fn record_success(&self, granted: u64) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        word::is_clean(word) || self.reset_failures(word, granted)
    }

    #[cold]
    fn reset_failures(&self, mut word: u64, granted: u64) -> bool {
        let generation = Snapshot::unpack(granted).generation;
        loop {
            match Snapshot::unpack(word).success(generation) {
                Success::Late => return false,
                Success::Clean => return true,
                Success::Reset(reset) if self.swap(word, reset.pack()) => return true,
                Success::Reset(_) => word = self.look_again(),
            }
        }
    }

    /// A call that was admitted by the closed word `granted` failed.
    #[inline]
    pub(crate) fn record_failure(&self, granted: u64, error_type: &str, message: &dyn fmt::Display) -> bool {
        let mut word = self.load();
        let failure_threshold = self.settings.failure_threshold();
        loop {
            let done = match word::failure(word, granted, failure_threshold) {
                Failure::Late => return false,
                Failure::Count(counted) => self.swap(word, counted),
                Failure::Trip => self.trip(word, error_type, message),
            };
            if done {
                return true;
            }
            word = self.look_again();
        }
    }

    #[cold]
    fn trip(&self, word: u64, error_type: &str, message: &dyn fmt::Display) -> bool {
        let open = Snapshot::unpack(word).tripped(self.clock.now(), self.settings.open_ticks());
        let error = Arc::new(LastError::new(error_type, message));
        let Some(past) = self.swap_to_open(word, open, Cause::Calls, &error) else { return false };
        event::failed(self, open, &past);
        true
    }

    /// The probe that holds `claimed` succeeded.
    #[cold]
    pub(crate) fn probe_succeeded(&self, claimed: u64) -> bool {
        self.probe_closes(claimed, event::probe_succeeded)
    }

    /// Nobody can tell any more how the probe that holds `claimed` goes: those that wait for it pass.
    #[cold]
    pub(crate) fn probe_let_go(&self, claimed: u64) -> bool {
        self.probe_closes(claimed, event::probe_let_go)
    }

    fn probe_closes(&self, claimed: u64, event: Event) -> bool {
        let before = Snapshot::unpack(claimed);
        let ProbeEnd::Resolve(closed) = before.probe_success() else { return false };
        let past = self.past(before);
        if !self.swap(claimed, closed.pack()) {
            return false;
        }
        self.waiting.notify();
        event(self, before, &past);
        true
    }

    /// The probe that holds `claimed` failed.
    #[cold]
    pub(crate) fn probe_failed(&self, claimed: u64, error: &Arc<LastError>) -> bool {
        let failed = Snapshot::unpack(claimed).probe_failure(self.clock.now(), self.settings.open_ticks());
        self.resolve_to_open(claimed, failed, error, event::probe_failed)
    }

    fn resolve_to_open(&self, claimed: u64, end: ProbeEnd, error: &Arc<LastError>, event: Event) -> bool {
        let ProbeEnd::Resolve(open) = end else { return false };
        let Some(past) = self.swap_to_open(claimed, open, Cause::Probe, error) else { return false };
        self.waiting.notify();
        event(self, open, &past);
        true
    }

    /// The probe that holds `claimed` was called off.
    #[cold]
    pub(crate) fn probe_cancelled(&self, claimed: u64) -> bool {
        let ProbeEnd::Resolve(free) = Snapshot::unpack(claimed).probe_cancel() else { return false };
        if !self.swap(claimed, free.pack()) {
            return false;
        }
        self.waiting.notify();
        true
    }

    /// The past that begins with this opening, if it is made.
    fn swap_to_open(&self, from: u64, open: Snapshot, cause: Cause, error: &Arc<LastError>) -> Option<Past> {
        let past = self.history.publish(open.generation, cause, error);
        let done = self.swap(from, open.pack());
        if done {
            self.history.confirm(open.generation, error);
        }
        done.then_some(past)
    }

    // ---- the protocol: silence ----

    /// What was asked while the circuit was closed in `generation` goes unanswered. Failures and successes in between
    /// do not matter, unless one of them ended that generation.
    #[cold]
    pub(crate) fn fall_silent(&self, generation: u32, error: &Arc<LastError>) -> bool {
        let mut word = self.load();
        loop {
            let before = Snapshot::unpack(word);
            if !before.is_closed_in(generation) {
                return false;
            }
            let silent = before.fallen_silent(self.clock.now(), self.settings.open_ticks());
            if let Some(past) = self.swap_to_open(word, silent, Cause::Calls, error) {
                event::fell_silent(self, silent, &past);
                return true;
            }
            word = self.look_again();
        }
    }

    /// The probe that holds `claimed` goes unanswered.
    #[cold]
    pub(crate) fn probe_fell_silent(&self, claimed: u64, error: &Arc<LastError>) -> bool {
        let silent = Snapshot::unpack(claimed).probe_fallen_silent(self.clock.now(), self.settings.open_ticks());
        self.resolve_to_open(claimed, silent, error, event::probe_fell_silent)
    }

    /// An answer came after all, by which this silence is over. Whoever changes the word meanwhile has claimed the
    /// probe, which decides then, or ended the same silence.
    #[cold]
    pub(crate) fn end_silence(&self, silent: u64) -> bool {
        let before = Snapshot::unpack(silent);
        let Some(closed) = before.silence_ended() else { return false };
        let past = self.past(before);
        let done = self.swap(silent, closed.pack());
        if done {
            self.waiting.notify();
            event::silence_ended(self, before, &past);
        }
        done
    }
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("name", &self.name)
            .field("word", &self.decoded())
            .field("waiters", &self.waiting.count())
            .field("config", &self.config())
            .finish_non_exhaustive()
    }
}

type Event = fn(&CircuitBreaker, Snapshot, &Past);

fn next_number() -> u16 {
    static MADE: AtomicU32 = AtomicU32::new(0);
    #[expect(clippy::cast_possible_truncation, reason = "of 65,536 breakers two may have the same")]
    let number = MADE.fetch_add(1, Ordering::Relaxed) as u16;
    number
}

impl BreakerSnapshot {
    /// The breaker's name, to be compared with a text.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A breaker as [`CircuitBreaker::snapshot`] saw it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BreakerSnapshot {
    /// The breaker's name.
    pub name: Arc<str>,
    /// See [`CircuitBreaker::state`].
    pub state: CircuitState,
    /// While open: whether it is so because calls went unanswered ([`silence`](crate::silence)), instead of failing.
    pub silent: bool,
    /// See [`CircuitBreaker::failure_count`].
    pub failure_count: u32,
    /// Whether a probe is in flight.
    pub probe_in_flight: bool,
    /// Calls that wait for the probe.
    pub waiters: usize,
    /// See [`CircuitBreaker::trip_count`].
    pub trip_count: u64,
    /// Probes that failed, ever.
    pub failed_probe_count: u64,
    /// While open: how long until a call becomes the next probe, zero if the next one does.
    pub next_probe_in: Option<Duration>,
    /// The failure that opened the circuit last.
    pub last_error: Option<Arc<LastError>>,
}
