//! Permits: what a call holds from being let through until it is known how it went.
//!
//! Not here: the compare-and-swaps that resolve it: `breaker`.

use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::breaker::{CircuitBreaker, Outcome, Told};
use crate::error::LastError;
use crate::settings::cooldown_ticks;
use crate::word::{self, PROBE_BIT, Word};

/// Whether a call is a normal one or the probe. There is no third kind, and none will be added: a call that a
/// recovering circuit lets pass is a normal one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PermitType {
    /// The circuit is closed or disabled, or it recovers and the call has its turn.
    Normal,
    /// The circuit is half-open, and this call decides what becomes of it.
    Probe,
}

impl PermitType {
    /// Of a permit made of `word`.
    #[inline]
    pub(crate) const fn of(word: u64) -> Self {
        if word::passes(word) { Self::Normal } else { Self::Probe }
    }
}

/// The right to make one call, to be resolved with how it went.
///
/// It belongs to the generation in which it was granted, and its outcome counts only there: a call from before the
/// circuit opened cannot close it, open it again or keep it open longer. Neither can a probe that another call has
/// taken over after its lease.
///
/// # Dropping
///
/// A permit may be dropped unresolved, by a panic or because its task was cancelled. A [`Normal`](PermitType::Normal)
/// one then changes nothing, unless [`Abandoned::Failure`](crate::Abandoned::Failure) was chosen. A
/// [`Probe`](PermitType::Probe) counts as a failure of type `dropped`, unless
/// [`cancel_on_drop`](Self::cancel_on_drop) was called.
///
/// # Examples
///
/// ```
/// use fusebox::CircuitBreaker;
///
/// # fn ask() -> Result<u16, std::io::Error> { Ok(200) }
/// let breaker = CircuitBreaker::builder("openai").build()?;
/// let permit = breaker.try_acquire()?;
/// match ask() {
///     Ok(status) if status >= 500 => permit.failure("5xx", status),
///     Ok(status) if status >= 400 => permit.cancel(), // the caller's mistake, not the upstream's
///     Ok(_) => permit.success(),
///     Err(error) => permit.failure("connection", error),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a permit says nothing about the call until it is resolved"]
pub struct Permit<B: Deref<Target = CircuitBreaker>> {
    breaker: B,
    /// The word that granted it: one that lets calls pass for a normal permit, the claim for a probe. If a probe
    /// cancels on drop, its `PROBE_BIT` is cleared here. If calls are measured, a normal one is
    /// [`word::measured_permit`]. A resolved permit has [`RESOLVED`].
    word: u64,
}

/// A permit that shares ownership of its breaker, to be moved to another task.
pub type OwnedPermit = Permit<Arc<CircuitBreaker>>;

/// A normal permit's word, for which `drop` does nothing.
const RESOLVED: u64 = Word::INITIAL.pack();

impl<B: Deref<Target = CircuitBreaker>> Permit<B> {
    #[inline]
    pub(crate) fn new(breaker: B, word: u64) -> Self {
        Self { breaker, word }
    }

    /// The word that granted it. From now on the caller has to resolve it.
    pub(crate) fn into_word(mut self) -> u64 {
        self.take_word()
    }

    fn take_word(&mut self) -> u64 {
        std::mem::replace(&mut self.word, RESOLVED)
    }

    /// The word that the probe claimed. From now on the caller has to resolve it.
    pub(crate) fn into_claim(mut self) -> u64 {
        self.take_claim()
    }

    /// A permit for a caller that has none, made from the current word if that grants this kind.
    pub(crate) fn standing_in(breaker: B, kind: PermitType) -> Option<Self> {
        let word = breaker.load();
        let granted = match kind {
            PermitType::Normal => word::is_normal(word).then(|| word::normal_permit(word)),
            PermitType::Probe => word::has_probe_in_flight(word).then_some(word),
        };
        granted.map(|granted| Self::new(breaker, granted))
    }

    /// Whether this is the probe.
    #[inline]
    pub fn kind(&self) -> PermitType {
        PermitType::of(self.word)
    }

    /// The breaker that granted it.
    pub fn breaker(&self) -> &CircuitBreaker {
        &self.breaker
    }

    /// The same permit with another handle to its breaker, such as one that belongs to a thread. An [`OwnedPermit`]
    /// counts a reference that all threads share, which costs more than all the rest of a call.
    ///
    /// # Panics
    ///
    /// If the handle is another breaker's. A probe then counts as dropped.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::rc::Rc;
    ///
    /// use fusebox::CircuitBreaker;
    ///
    /// let mine = Rc::new(CircuitBreaker::builder("openai").build()?);
    /// let permit = mine.try_acquire()?.held_by(Rc::clone(&mine));
    /// permit.success();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn held_by<C: Deref<Target = CircuitBreaker>>(self, breaker: C) -> Permit<C> {
        assert!(
            std::ptr::eq(&raw const *self.breaker, &raw const *breaker),
            "a permit is for the breaker that granted it"
        );
        Permit::new(breaker, self.into_word())
    }

    /// The call succeeded: a probe closes the circuit, a normal call ends a row of failures.
    #[inline]
    pub fn success(self) {
        self.succeed();
    }

    /// The upstream failed: a probe opens the circuit again, a normal call counts towards the threshold. `error_type`
    /// is a short name such as `timeout`. `message` is formatted only if the circuit may open because of it.
    ///
    /// # Panics
    ///
    /// If formatting `message` does; a probe then counts as dropped.
    #[inline]
    pub fn failure(self, error_type: &str, message: impl fmt::Display) {
        self.fail(error_type, &message);
    }

    /// The upstream said when to come back, as with `Retry-After`: the circuit opens at once for `duration`, whatever
    /// the failures in a row. `error_type` and `message` are as for [`failure`](Self::failure).
    ///
    /// It is news of the moment in which it is told. So it counts even if the circuit has opened and closed since the
    /// permit was granted. If the circuit is open already, the later end counts. While another call is the probe, it
    /// changes nothing: that call decides. A probe that is told to come back opens the circuit again and counts as
    /// failed, but does not make the open time [grow](crate::ConfigBuilder::open_growth), for the upstream lives.
    ///
    /// More than 24 hours count as 24 hours, the longest that a circuit is open without a probe.
    ///
    /// # Panics
    ///
    /// If formatting `message` does; a probe then counts as dropped.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use fusebox::{Cause, CircuitBreaker};
    ///
    /// let breaker = CircuitBreaker::builder("openai").build()?;
    /// breaker.try_acquire()?.cool_down(Duration::from_secs(7), "429", "rate limit reached");
    /// let rejection = breaker.try_acquire().unwrap_err();
    /// assert_eq!(rejection.cause(), Some(Cause::Cooldown));
    /// assert!(rejection.retry_after() > Some(Duration::from_secs(6)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cool_down(self, duration: Duration, error_type: &str, message: impl fmt::Display) {
        self.cool(duration, error_type, &message);
    }

    /// The call says nothing about the upstream: it was never made, or its caller ended it. A normal call changes
    /// nothing. A probe is handed back, to the next call or to one that waits.
    #[inline]
    pub fn cancel(mut self) {
        if !word::is_plain(self.word) {
            self.word = word::droppable(self.word);
        }
    }

    /// Resolves it with any outcome.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::{CircuitBreaker, CircuitState, Outcome};
    ///
    /// let breaker = CircuitBreaker::builder("openai").failure_threshold(1).build()?;
    /// breaker.try_acquire()?.resolve(Outcome::failure("5xx", 503));
    /// assert_eq!(breaker.state(), CircuitState::Open);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn resolve(self, outcome: Outcome) {
        match outcome {
            Outcome::Success => self.success(),
            Outcome::Failure { error_type, message } => self.failure(&error_type, message),
            Outcome::CoolDown { duration, error_type, message } => self.cool_down(duration, &error_type, message),
            Outcome::Neutral => self.cancel(),
        }
    }

    /// Makes dropping the permit the same as [`cancel`](Self::cancel). It is for a proxy, whose client may leave at any
    /// time: that is no failure of the upstream.
    #[inline]
    pub fn cancel_on_drop(mut self) -> Self {
        if !word::is_plain(self.word) {
            self.word = word::droppable(self.word);
        }
        self
    }

    /// As [`success`](Self::success). Returns whether it counted.
    #[inline]
    pub(crate) fn succeed(self) -> bool {
        if word::is_plain(self.word) { self.breaker.record_success(self.word) } else { self.succeed_otherwise() }
    }

    #[inline(never)]
    fn succeed_otherwise(mut self) -> bool {
        if word::passes(self.word) {
            let granted = self.take_word();
            self.breaker.record_success(granted)
        } else {
            let claimed = self.take_claim();
            self.breaker.probe_succeeded(claimed)
        }
    }

    /// As [`failure`](Self::failure). Returns whether it counted.
    #[inline]
    pub(crate) fn fail(self, error_type: &str, message: &dyn fmt::Display) -> bool {
        if word::is_plain(self.word) {
            self.breaker.record_failure(self.word, error_type, message)
        } else {
            self.fail_otherwise(error_type, message)
        }
    }

    #[cold]
    fn fail_otherwise(mut self, error_type: &str, message: &dyn fmt::Display) -> bool {
        if word::passes(self.word) {
            // Before the outcome is recorded: if formatting panics, the failure counts once.
            let granted = self.take_word();
            self.breaker.record_failure(granted, error_type, message)
        } else {
            self.probe_failure(error_type, message)
        }
    }

    /// As [`cool_down`](Self::cool_down). Returns whether it counted.
    pub(crate) fn cool(mut self, duration: Duration, error_type: &str, message: &dyn fmt::Display) -> bool {
        // Before the claim is given up: if formatting panics, the permit still drops as a probe.
        let error = Arc::new(LastError::new(error_type, message));
        let ticks = cooldown_ticks(duration);
        self.breaker.count(Told::Failure);
        if word::passes(self.word) {
            self.take_word();
            self.breaker.cool_down(ticks, &error)
        } else {
            let claimed = self.take_claim();
            self.breaker.probe_cooled_down(claimed, ticks, &error)
        }
    }

    /// The word that the probe claimed.
    pub(crate) fn claim(&self) -> Option<u64> {
        (!word::passes(self.word)).then_some(self.word | PROBE_BIT)
    }

    /// The word that the probe claimed. From now on this permit does not resolve it.
    fn take_claim(&mut self) -> u64 {
        self.take_word() | PROBE_BIT
    }

    #[cold]
    fn probe_failure(&mut self, error_type: &str, message: &dyn fmt::Display) -> bool {
        // Before the claim is given up: if formatting panics, the permit still drops as a probe.
        let error = Arc::new(LastError::new(error_type, message));
        let claimed = self.take_claim();
        self.breaker.probe_failed(claimed, &error)
    }

    /// It was dropped unresolved, and is a probe or measured.
    #[cold]
    fn drop_otherwise(&mut self) {
        if word::passes(self.word) && !word::drop_fails(self.word) {
            return;
        }
        if !word::passes(self.word) && self.word & PROBE_BIT == 0 {
            let claimed = self.take_claim();
            self.breaker.probe_cancelled(claimed);
        } else if std::thread::panicking() {
            // A subscriber may panic when the opening is logged. A second panic would abort the process.
            let _ = catch_unwind(AssertUnwindSafe(|| self.fail_dropped()));
        } else {
            self.fail_dropped();
        }
    }

    fn fail_dropped(&mut self) {
        if word::passes(self.word) {
            let granted = self.take_word();
            self.breaker.record_failure(granted, "dropped", &"the call was dropped unresolved");
        } else {
            self.probe_failure("dropped", &"the probe was dropped unresolved");
        }
    }
}

impl<B: Deref<Target = CircuitBreaker>> Drop for Permit<B> {
    #[inline]
    fn drop(&mut self) {
        if !word::is_plain(self.word) {
            self.drop_otherwise();
        }
    }
}

impl<B: Deref<Target = CircuitBreaker>> fmt::Debug for Permit<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut permit = f.debug_struct("Permit");
        permit.field("breaker", &self.breaker.name()).field("kind", &self.kind());
        match self.claim() {
            Some(claimed) => permit.field("claimed", &Word::unpack(claimed)),
            None => permit.field("generation", &word::generation(self.word)),
        };
        permit.finish()
    }
}
