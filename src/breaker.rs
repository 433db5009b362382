//! One circuit breaker, as its users see it: asking for permits, and looking at it.
//!
//! Not here: every load and every swap of its word (`breaker::protocol`), which word follows from which (`word::step`),
//! waiting (`breaker::wait`), and time (`clock`).

#[cfg(feature = "tower")]
mod at_once;
mod blocking;
mod call;
mod early;
#[cfg(feature = "fleet")]
mod heard;
mod history;
mod measure;
mod owned;
mod protocol;
#[cfg(feature = "serde")]
mod restore;
mod snapshot;
mod totals;
mod wait;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::clock::Clock;
use crate::config::{Config, ConfigBuilder, ConfigError};
use crate::error::{CircuitOpenError, LastError, Number, Rejection};
use crate::feed::{Feed, Transition};
use crate::permit::{OwnedPermit, Permit};
use crate::settings::{Settings, cooldown_ticks};
use crate::sync::broadcast::{Receiver, Sender};
use crate::sync::unseen::AtomicU32;
use crate::sync::{AtomicU64, Ordering};
use crate::transition::CircuitState;
use crate::word::Word;
use crate::word::step::Kind;
pub use call::{CancelOnDrop, Outcome};
#[cfg(feature = "fleet")]
pub(crate) use heard::Suspicion;
use history::History;
pub(crate) use history::Past;
pub use owned::AcquireOwned;
pub use snapshot::BreakerSnapshot;
pub(crate) use totals::Told;
#[cfg(feature = "metrics")]
pub use totals::Totals;
use wait::{Acquire, Waiting};

/// A circuit breaker for one upstream.
///
/// While the circuit is closed, asking for a permit is one atomic load, and reporting a success writes nothing. After
/// `failure_threshold` failures in a row it opens and rejects calls. The first call after `open_for` is the one probe;
/// calls that come meanwhile wait for its result ([`acquire`](Self::acquire)) or are rejected
/// ([`try_acquire`](Self::try_acquire)). It has no background task and no timer of its own. Calls that change its state
/// take a lock, to tell [subscribers](Self::subscribe) in order; so do calls that wait for a probe, and the probe's
/// result, inside tokio's `Notify`. Other calls take none.
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
    feed: Feed,
    #[cfg(feature = "metrics")]
    totals: totals::Stripes,
    /// When the call began that failed and began last, in milliseconds since the breaker was made. It is noted if
    /// failures have a memory.
    newest_failed: AtomicU64,
    /// By which a rejection is known to be its own.
    number: Number,
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

impl CircuitBreaker {
    /// A closed breaker. `name` is what logs and errors call the upstream.
    pub fn new(name: impl Into<Arc<str>>, config: Config) -> Self {
        let settings = Settings::new(config);
        let word = Word { measured: settings.measures().any(), ..Word::INITIAL };
        Self {
            word: CachePadded::new(AtomicU64::new(word.pack())),
            settings,
            newest_failed: AtomicU64::new(0),
            clock: Clock::new(),
            waiting: Waiting::new(),
            history: History::new(),
            feed: Feed::new(),
            #[cfg(feature = "metrics")]
            totals: totals::Stripes::new(),
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
    /// [`Rejection`] while the circuit is open, half-open with a probe in flight, or recovering and the call has its
    /// turn later.
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

    /// Asks for a permit, and waits for the result of a probe in flight, or for its turn while the circuit recovers.
    ///
    /// # Errors
    ///
    /// [`Rejection`] while the circuit is open, when it has opened again after a wait, when the wait limit has passed,
    /// and at once when `max_waiters` calls are waiting already, when its turn comes after the wait limit, or when it
    /// would have to wait outside a tokio runtime ([`NoRuntime`](crate::RejectionReason::NoRuntime)).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the wait and changes nothing: a probe is claimed only in the poll that returns it.
    ///
    /// A probe that is handed back wakes the call that has waited longest. If that future is neither polled nor dropped
    /// then, the others wait until the lease would have ended; a new call takes the probe at once.
    ///
    /// # Panics
    ///
    /// If it has to wait in a tokio runtime whose timer is not enabled.
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
        let word = self.acquire_word_through_silence().await.inspect_err(|_| self.count(Told::Rejection))?;
        Ok(Permit::new(self, word))
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
    pub fn acquire_owned(self: Arc<Self>) -> AcquireOwned {
        AcquireOwned::new(self)
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
    /// candidate never uses up its probe. While the circuit recovers, chance decides, and the answer is yes.
    pub fn would_allow(&self) -> bool {
        self.would_admit(self.load())
    }

    // ---- telling ----

    /// Opens the circuit for `duration`, whatever the failures in a row: for a caller without a permit that knows when
    /// the upstream will be back. A caller with a permit uses [`Permit::cool_down`]. Returns whether that counted.
    ///
    /// If the circuit is open already, the later end counts, so a cooldown never shortens another one. While a probe is
    /// in flight, it changes nothing: the probe decides. More than 24 hours count as 24 hours, the longest that a
    /// circuit is open without a probe.
    ///
    /// # Panics
    ///
    /// If formatting `message` does.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use fusebox::{Cause, CircuitBreaker};
    ///
    /// let breaker = CircuitBreaker::builder("openai").build()?;
    /// assert!(breaker.trip_for(Duration::from_secs(600), "maintenance", "announced until 12:00"));
    /// assert_eq!(breaker.try_acquire().unwrap_err().cause(), Some(Cause::Cooldown));
    /// assert!(!breaker.trip_for(Duration::from_secs(60), "maintenance", "ends earlier"));
    /// # Ok::<(), fusebox::ConfigError>(())
    /// ```
    pub fn trip_for(&self, duration: Duration, error_type: &str, message: impl fmt::Display) -> bool {
        self.cool_down(cooldown_ticks(duration), &Arc::new(LastError::new(error_type, &message)))
    }

    // ---- by hand ----
    // An order wins against everything that happens at the same time. It begins a generation: a permit, a probe or an
    // unanswered call from before it says nothing after it.

    /// Opens the circuit until [`reset`](Self::reset) or [`disable`](Self::disable): it rejects every call and takes no
    /// probe, and calls that wait for one are rejected. It is no trip. `reason` is told as the last error, of type
    /// `isolated`.
    ///
    /// # Panics
    ///
    /// If formatting `reason` does.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::{Cause, CircuitBreaker};
    ///
    /// let breaker = CircuitBreaker::builder("openai").build()?;
    /// breaker.isolate("the key is being replaced");
    /// let rejection = breaker.try_acquire().unwrap_err();
    /// assert_eq!((rejection.cause(), rejection.retry_after()), (Some(Cause::Isolated), None));
    /// breaker.reset();
    /// assert!(breaker.try_acquire().is_ok());
    /// # Ok::<(), fusebox::ConfigError>(())
    /// ```
    pub fn isolate(&self, reason: impl fmt::Display) {
        self.order(Kind::Isolate, Some(&Arc::new(LastError::new("isolated", &reason))));
    }

    /// Lets all calls pass until [`reset`](Self::reset) or [`isolate`](Self::isolate), whatever their outcomes, and
    /// counts none of them.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::{CircuitBreaker, CircuitState};
    ///
    /// let breaker = CircuitBreaker::builder("openai").failure_threshold(1).build()?;
    /// breaker.disable();
    /// breaker.try_acquire()?.failure("5xx", 503);
    /// assert_eq!(breaker.state(), CircuitState::Disabled);
    /// assert!(breaker.try_acquire().is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn disable(&self) {
        self.order(Kind::Disable, None);
    }

    /// Closes the circuit, whatever its state, and forgets the failures in a row and the failed recoveries. Calls that
    /// wait for a probe pass. It ends what [`isolate`](Self::isolate) and [`disable`](Self::disable) began.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::{CircuitBreaker, CircuitState};
    ///
    /// let breaker = CircuitBreaker::builder("openai").failure_threshold(1).build()?;
    /// let old = breaker.try_acquire()?;
    /// breaker.try_acquire()?.failure("5xx", 503);
    /// breaker.reset();
    /// assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 0));
    /// old.failure("5xx", "from before the reset, so it does not count");
    /// assert_eq!(breaker.state(), CircuitState::Closed);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reset(&self) {
        self.order(Kind::Reset, None);
    }

    /// As [`reset`](Self::reset), since nobody will report outcomes any more: calls that wait for them pass.
    pub(crate) fn retire(&self) {
        self.order(Kind::Remove, None);
    }

    // ---- seeing ----

    /// The transitions from now on, as they happen, in the order of their generations. Nothing is allocated until
    /// somebody subscribes, and calls that change no state never notice.
    ///
    /// The receiver keeps the last 64 transitions for a subscriber that is slow. One that falls further behind is told
    /// how many it has missed, by [`RecvError::Lagged`](tokio::sync::broadcast::error::RecvError::Lagged); no caller
    /// ever waits for a subscriber. A probe that is taken over is left out if that is told after its generation has
    /// ended, by an order for example.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::{CircuitBreaker, CircuitState};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let breaker = CircuitBreaker::builder("openai").failure_threshold(1).build()?;
    /// let mut transitions = breaker.subscribe();
    /// breaker.try_acquire()?.failure("timeout", "no answer within 2 s");
    /// let opened = transitions.recv().await?;
    /// assert_eq!((opened.from, opened.to), (CircuitState::Closed, CircuitState::Open));
    /// assert_eq!(opened.last_error.unwrap().error_type(), "timeout");
    /// # Ok(())
    /// # }
    /// ```
    pub fn subscribe(&self) -> Receiver<Transition> {
        self.feed.subscribe(|| self.decoded())
    }

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
    /// the circuit with the next failure. The calls in the window are kept, unless the window is another one.
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
        self.settings.set(config, |measures| self.set_measured(measures.any()));
    }

    /// The state as the last call left it: an open circuit becomes half-open with the first call after its open time. A
    /// circuit whose ramp is over is closed.
    pub fn state(&self) -> CircuitState {
        self.state_of(self.decoded())
    }

    fn state_of(&self, word: Word) -> CircuitState {
        match word.circuit_state() {
            CircuitState::Recovering if word.is_ramp_over(self.clock.now(), self.settings.ramp_ticks()) => {
                CircuitState::Closed
            }
            state => state,
        }
    }

    /// Failures in a row; 0 while isolated or disabled, and if there is no `failure_threshold`. While open or
    /// half-open: those at its last trip. If several callers tried to open it at the same moment, they may be those
    /// that another one saw.
    pub fn failure_count(&self) -> u32 {
        let word = self.decoded();
        word.failures().unwrap_or_else(|| self.past(word).counts.failures)
    }

    /// How often the circuit went from closed or recovering to open. Failed probes are counted apart, in
    /// [`BreakerSnapshot::failed_probe_count`].
    pub fn trip_count(&self) -> u64 {
        self.past(self.decoded()).counts.trips
    }

    /// A rejection in full: with the provider's name, its last error and its trip count. Of a rejection by another
    /// breaker it knows none of them, and says so.
    #[cold]
    pub fn explain(&self, rejection: Rejection) -> CircuitOpenError {
        if !rejection.is_by(self.number) {
            return CircuitOpenError::new("another breaker".into(), rejection, 0, None);
        }
        let Past { counts, last_error } = self.past(self.decoded());
        CircuitOpenError::new(Arc::clone(&self.name), rejection, counts.trips, last_error)
    }

    pub(crate) fn feed(&self) -> &Feed {
        &self.feed
    }

    /// Tells the subscribers of a registry of transitions, too.
    pub(crate) fn attach(&self, registry: &Sender<Transition>) {
        self.feed.attach(registry, || self.decoded());
    }

    pub(crate) fn shared_name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn silent_threshold(&self) -> u32 {
        self.settings.silent_threshold()
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

fn next_number() -> Number {
    static MADE: AtomicU32 = AtomicU32::new(0);
    Number::new(MADE.fetch_add(1, Ordering::Relaxed))
}
