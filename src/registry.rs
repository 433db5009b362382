//! Breakers by name, and the protocol for callers that cannot carry a permit from one callback to the next.
//!
//! Not here: the state of a breaker, which the registry never changes.

mod probe_guard;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::breaker::{BreakerSnapshot, CircuitBreaker};
use crate::config::Config;
use crate::error::{CircuitOpenError, RejectionReason};
use crate::permit::{Permit, PermitType};
use crate::sync::{ArcSwap, Mutex};
use crate::transition::CircuitState;
use crate::word;
pub use probe_guard::ProbeGuard;

/// With the default hasher a lookup takes twice as long. `foldhash` is seeded at random, but an attacker who sees its
/// results could construct names that collide. That matters only for names that are inserted: looking up a name inserts
/// nothing, and meets no more collisions than there are among the names that the application chose.
type Breakers = HashMap<Arc<str>, Arc<CircuitBreaker>, foldhash::fast::RandomState>;

/// The breakers of all upstreams, by name.
///
/// Readers use an immutable snapshot of the map, without a lock. Writers replace it, one at a time. A name that is not
/// in the registry has no breaker: its calls are allowed, its records are ignored, and it is not added by being asked
/// for.
///
/// # By name
///
/// A framework that calls back with nothing but a name uses [`acquire_permit`](Self::acquire_permit) and then exactly
/// one of the `record_` methods; for a [`PermitType::Probe`], a [`ProbeGuard`](crate::ProbeGuard) cannot be forgotten.
/// A name knows less than a permit: an outcome counts for the circuit as it is when it is recorded. So `record_success`
/// and `record_failure` change nothing unless the circuit is closed, and the `record_probe_` methods change nothing
/// unless a probe is in flight. Each returns whether it counted, which a permit need not: its outcome belongs to one
/// call. If a permit can be carried, [`get`](Self::get) the breaker and use a permit.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use fusebox::{CircuitBreakerRegistry, CircuitState, PermitType};
///
/// let breakers = CircuitBreakerRegistry::new(["openai", "anthropic"]);
/// assert_eq!(breakers.acquire_permit("openai").await?, PermitType::Normal);
/// for _ in 0..3 {
///     breakers.record_failure("openai", "timeout", "no answer within 2 s");
/// }
/// assert_eq!(breakers.state("openai"), Some(CircuitState::Open));
/// let error = breakers.acquire_permit("openai").await.unwrap_err();
/// assert_eq!((error.provider(), error.trip_count()), ("openai", 1));
/// # Ok(())
/// # }
/// ```
pub struct CircuitBreakerRegistry {
    breakers: ArcSwap<Breakers>,
    writer: Mutex<()>,
    config: Config,
}

impl CircuitBreakerRegistry {
    /// One breaker with the default [`Config`] for each name.
    pub fn new(names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        Self::with_config(names, Config::default())
    }

    /// One breaker with `config` for each name. Names inserted later get it too.
    pub fn with_config(names: impl IntoIterator<Item = impl AsRef<str>>, config: Config) -> Self {
        let registry = Self { breakers: ArcSwap::from_pointee(Breakers::default()), writer: Mutex::new(()), config };
        registry.insert_all(names);
        registry
    }

    // ---- writing ----

    /// Adds a breaker with the registry's configuration, and returns it. A name that is there already keeps its
    /// breaker, and costs no more than [`get`](Self::get).
    pub fn insert(&self, name: impl AsRef<str>) -> Arc<CircuitBreaker> {
        let name = name.as_ref();
        self.get(name).unwrap_or_else(|| self.insert_breaker(CircuitBreaker::new(name, self.config)))
    }

    /// Adds breakers with the registry's configuration, and copies the map only once. A name that is there already
    /// keeps its breaker.
    pub fn insert_all(&self, names: impl IntoIterator<Item = impl AsRef<str>>) {
        // The caller's iterator runs before the lock is taken, since it may use this registry.
        let new = names.into_iter().filter(|name| self.get(name.as_ref()).is_none());
        let new: Vec<_> = new.map(|name| Arc::new(CircuitBreaker::new(name.as_ref(), self.config))).collect();
        if new.is_empty() {
            return;
        }
        self.update(|breakers| {
            for breaker in new {
                breakers.entry(Arc::clone(breaker.shared_name())).or_insert(breaker);
            }
        });
    }

    /// Adds a breaker with settings of its own under its name, and returns the one that is registered under it: a name
    /// that is there already keeps its breaker.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::{CircuitBreaker, CircuitBreakerRegistry};
    ///
    /// let breakers = CircuitBreakerRegistry::default();
    /// breakers.insert_breaker(CircuitBreaker::builder("openai").failure_threshold(5).build()?);
    /// assert_eq!(breakers.get("openai").unwrap().config().failure_threshold(), Some(5));
    /// # Ok::<(), fusebox::ConfigError>(())
    /// ```
    pub fn insert_breaker(&self, breaker: impl Into<Arc<CircuitBreaker>>) -> Arc<CircuitBreaker> {
        let breaker = breaker.into();
        // Copying the map in vain takes long, and delays other writers.
        if let Some(known) = self.get(breaker.name()) {
            return known;
        }
        self.update(|breakers| Arc::clone(breakers.entry(Arc::clone(breaker.shared_name())).or_insert(breaker)))
    }

    /// Removes a breaker, and returns it [reset](CircuitBreaker::reset): no record by name can reach it any more, and
    /// calls that wait for its probe pass, as calls of an unknown name do. Permits from before say nothing any more.
    pub fn remove(&self, name: &str) -> Option<Arc<CircuitBreaker>> {
        self.get(name)?;
        let removed = self.update(|breakers| breakers.remove(name))?;
        removed.retire();
        Some(removed)
    }

    fn update<T>(&self, change: impl FnOnce(&mut Breakers) -> T) -> T {
        let _writer = self.writer.lock();
        let mut breakers = Breakers::clone(&self.breakers.load());
        let result = change(&mut breakers);
        self.breakers.store(Arc::new(breakers));
        result
    }

    // ---- reading ----

    /// The breaker of this name.
    pub fn get(&self, name: &str) -> Option<Arc<CircuitBreaker>> {
        self.with(name, Arc::clone)
    }

    /// The state of all breakers, sorted by name.
    pub fn snapshots(&self) -> Vec<BreakerSnapshot> {
        let mut snapshots: Vec<_> = self.breakers.load().values().map(|breaker| breaker.snapshot()).collect();
        snapshots.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        snapshots
    }

    /// See [`CircuitBreaker::state`]; `None` for an unknown name.
    pub fn state(&self, name: &str) -> Option<CircuitState> {
        self.with(name, |breaker| breaker.state())
    }

    /// See [`CircuitBreaker::failure_count`]; `None` for an unknown name.
    pub fn failure_count(&self, name: &str) -> Option<u32> {
        self.with(name, |breaker| breaker.failure_count())
    }

    /// See [`CircuitBreaker::trip_count`]; `None` for an unknown name.
    pub fn trip_count(&self, name: &str) -> Option<u64> {
        self.with(name, |breaker| breaker.trip_count())
    }

    /// Every lookup comes through here. It releases the snapshot of the map before it returns, so that none is held
    /// across an await: a thread has 8 fast slots for snapshots, and beyond those every load costs 2 to 6 times as
    /// much.
    fn with<T>(&self, name: &str, f: impl FnOnce(&Arc<CircuitBreaker>) -> T) -> Option<T> {
        self.breakers.load().get(name).map(f)
    }

    // ---- by name ----

    /// Asks for a permit, and waits for the result of a probe in flight. An unknown name is allowed.
    ///
    /// # Errors
    ///
    /// As [`CircuitBreaker::acquire`], in full.
    ///
    /// # Cancel safety
    ///
    /// As [`CircuitBreaker::acquire`]. After it has returned [`PermitType::Probe`], the caller has to resolve the
    /// probe. If the caller forgets, the lease ends it.
    ///
    /// # Panics
    ///
    /// As [`CircuitBreaker::acquire`].
    #[inline]
    pub fn acquire_permit<'a>(
        &'a self,
        name: &'a str,
    ) -> impl Future<Output = Result<PermitType, CircuitOpenError>> + Send + 'a {
        AcquirePermit { registry: self, name, wait: None }
    }

    /// As [`acquire_permit`](Self::acquire_permit), but never waits: while a probe is in flight, the call is rejected.
    ///
    /// # Errors
    ///
    /// As [`CircuitBreaker::try_acquire`], in full.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::{CircuitBreakerRegistry, PermitType};
    ///
    /// let breakers = CircuitBreakerRegistry::new(["openai"]);
    /// assert_eq!(breakers.try_acquire_permit("openai")?, PermitType::Normal);
    /// for _ in 0..3 {
    ///     breakers.record_failure("openai", "timeout", "no answer within 2 s");
    /// }
    /// assert_eq!(breakers.try_acquire_permit("openai").unwrap_err().provider(), "openai");
    /// # Ok::<(), fusebox::CircuitOpenError>(())
    /// ```
    pub fn try_acquire_permit(&self, name: &str) -> Result<PermitType, CircuitOpenError> {
        let answer = self.with(name, |breaker| match breaker.try_acquire_word() {
            Ok(word) => Ok(PermitType::of(word)),
            Err(rejection) => Err(breaker.explain(rejection)),
        });
        answer.unwrap_or(Ok(PermitType::Normal))
    }

    /// A normal call succeeded. Returns whether that counted: not for an unknown name, and not unless the circuit is
    /// closed.
    pub fn record_success(&self, name: &str) -> bool {
        self.record(name, |breaker| resolve(breaker, PermitType::Normal, Permit::succeed))
    }

    /// A normal call failed; see [`Permit::failure`]. Returns whether that counted, as
    /// [`record_success`](Self::record_success) does.
    ///
    /// # Panics
    ///
    /// If formatting `message` does.
    pub fn record_failure(&self, name: &str, error_type: &str, message: impl fmt::Display) -> bool {
        self.record(name, |breaker| resolve(breaker, PermitType::Normal, |permit| permit.fail(error_type, &message)))
    }

    /// The probe succeeded: the circuit closes. Returns whether that counted: not for an unknown name, not unless a
    /// probe is in flight, and not if another caller resolves it or takes it over at the same time.
    pub fn record_probe_success(&self, name: &str) -> bool {
        self.record(name, |breaker| resolve(breaker, PermitType::Probe, Permit::succeed))
    }

    /// The probe failed: the circuit opens again. Returns whether that counted, as
    /// [`record_probe_success`](Self::record_probe_success) does.
    ///
    /// # Panics
    ///
    /// If formatting `message` does; the probe then counts as dropped.
    pub fn record_probe_failure(&self, name: &str, error_type: &str, message: impl fmt::Display) -> bool {
        self.record(name, |breaker| resolve(breaker, PermitType::Probe, |permit| permit.fail(error_type, &message)))
    }

    fn record(&self, name: &str, outcome: impl FnOnce(&CircuitBreaker) -> bool) -> bool {
        self.with(name, |breaker| outcome(breaker)).unwrap_or(false)
    }
}

type Admission = Result<PermitType, CircuitOpenError>;
type Wait = Pin<Box<dyn Future<Output = Admission> + Send>>;

/// Written by hand as `Acquire` is: an `async fn` took three times as long.
struct AcquirePermit<'a> {
    registry: &'a CircuitBreakerRegistry,
    name: &'a str,
    wait: Option<Wait>,
}

impl Future for AcquirePermit<'_> {
    type Output = Admission;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Admission> {
        if self.wait.is_none() && self.registry.with(self.name, |breaker| word::passes(breaker.load())) != Some(false) {
            return Poll::Ready(Ok(PermitType::Normal));
        }
        self.poll_blocked(cx)
    }
}

impl AcquirePermit<'_> {
    #[cold]
    fn poll_blocked(&mut self, cx: &mut Context<'_>) -> Poll<Admission> {
        if let Some(wait) = &mut self.wait {
            return wait.as_mut().poll(cx);
        }
        // A rejection does not touch the breaker's reference count, for which its callers would compete.
        match self.registry.with(self.name, ask) {
            None => Poll::Ready(Ok(PermitType::Normal)),
            Some(Ok(answer)) => Poll::Ready(answer),
            Some(Err(wait)) => self.wait.insert(wait).as_mut().poll(cx),
        }
    }
}

/// The result, or the wait for it.
#[cold]
fn ask(breaker: &Arc<CircuitBreaker>) -> Result<Admission, Wait> {
    // Not asked twice: on a ramp, a call has one chance.
    if word::open_until(breaker.load()).is_some() {
        match breaker.try_acquire_word() {
            Ok(word) => return Ok(Ok(PermitType::of(word))),
            Err(rejection) if rejection.reason() == RejectionReason::ProbeInFlight => {}
            Err(rejection) => return Ok(Err(breaker.explain(rejection))),
        }
    }
    let breaker = Arc::clone(breaker);
    Err(Box::pin(async move {
        let permit = breaker.acquire().await;
        permit.map(|permit| PermitType::of(permit.into_word())).map_err(|rejection| breaker.explain(rejection))
    }))
}

#[inline]
fn resolve<'a>(
    breaker: &'a CircuitBreaker,
    kind: PermitType,
    outcome: impl FnOnce(Permit<&'a CircuitBreaker>) -> bool,
) -> bool {
    Permit::standing_in(breaker, kind).is_some_and(outcome)
}

impl Default for CircuitBreakerRegistry {
    /// Empty, with the default [`Config`] for what is inserted.
    fn default() -> Self {
        Self::new(std::iter::empty::<&str>())
    }
}

impl fmt::Debug for CircuitBreakerRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.breakers.load().iter()).finish()
    }
}
