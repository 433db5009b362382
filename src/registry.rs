//! Breakers by name: how they are found, added and removed.
//!
//! Not here: the map (`registry::table`), and the protocol for callers that have nothing but a name
//! (`registry::by_name`).

mod by_name;
mod probe_guard;
mod table;

use std::collections::HashSet;
use std::error::Error;
use std::fmt;
use std::ptr;
use std::sync::Arc;

use crate::breaker::{BreakerSnapshot, CircuitBreaker};
use crate::config::Config;
use crate::feed::Transition;
use crate::sync::broadcast::{self, Receiver, Sender};
use crate::sync::{ArcSwap, Mutex};
use crate::transition::CircuitState;
pub use probe_guard::ProbeGuard;
use table::{Slot, Table};

/// The breakers of all upstreams, by name.
///
/// Readers use a snapshot of the map, without a lock. Writers go one at a time: they fill a free place in it, or
/// replace it by another one. A name that is not in the registry has no breaker: its calls are allowed, its records are
/// ignored, and it is not added by being asked for, unless by [`get_or_insert`](Self::get_or_insert).
///
/// # By name
///
/// A framework that calls back with nothing but a name uses [`acquire_permit`](Self::acquire_permit) and then exactly
/// one of the `record_` methods; for a [`PermitType::Probe`], a [`ProbeGuard`] cannot be forgotten.
/// A name knows less than a permit: an outcome counts for the circuit as it is when it is recorded. So `record_success`
/// and `record_failure` change nothing unless the circuit is closed, and the `record_probe_` methods change nothing
/// unless a probe is in flight. Each returns whether it counted, which a permit need not: its outcome belongs to one
/// call. If a permit can be carried, [`get`](Self::get) the breaker and use a permit.
///
/// [`PermitType::Probe`]: crate::PermitType::Probe
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
    breakers: ArcSwap<Table>,
    writer: Mutex<Writer>,
    config: Config,
    cap: Option<usize>,
}

#[derive(Default)]
struct Writer {
    /// Nothing could be evicted, and so many names are refused before another look is worth its while.
    in_vain: usize,
    /// Where breakers tell of their transitions, once somebody has subscribed.
    feed: Option<Sender<Transition>>,
}

/// How many transitions of all breakers are kept for a subscriber that is slow.
const TRANSITIONS: usize = 1024;

impl Writer {
    /// A breaker that tells the registry's subscribers of its transitions, if there are any.
    fn attached(&self, breaker: Arc<CircuitBreaker>) -> Arc<CircuitBreaker> {
        if let Some(feed) = &self.feed {
            breaker.attach(feed);
        }
        breaker
    }
}

impl CircuitBreakerRegistry {
    /// One breaker with the default [`Config`] for each name.
    pub fn new(names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        Self::with_config(names, Config::default())
    }

    /// One breaker with `config` for each name. Names inserted later get it too.
    pub fn with_config(names: impl IntoIterator<Item = impl AsRef<str>>, config: Config) -> Self {
        let breakers = ArcSwap::from_pointee(Table::with_room(0));
        let registry = Self { breakers, writer: Mutex::new(Writer::default()), config, cap: None };
        registry.insert_all(names);
        registry
    }

    /// The same, where [`get_or_insert`](Self::get_or_insert) adds no name if there are `max` already; see there for
    /// what happens then. Other ways to insert are not limited.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::CircuitBreakerRegistry;
    ///
    /// let hosts = CircuitBreakerRegistry::default().with_cap(10_000);
    /// assert_eq!(hosts.cap(), Some(10_000));
    /// ```
    #[must_use]
    pub fn with_cap(mut self, max: usize) -> Self {
        self.cap = Some(max);
        self
    }

    /// Up to how many names [`get_or_insert`](Self::get_or_insert) adds another one. `None`: any number.
    pub fn cap(&self) -> Option<usize> {
        self.cap
    }

    /// The settings of what is inserted by name.
    pub fn config(&self) -> Config {
        self.config
    }

    // ---- writing ----

    /// Adds a breaker with the registry's configuration, and returns it. A name that is there already keeps its
    /// breaker, and costs no more than [`get`](Self::get).
    ///
    /// This and the other ways to insert are for names that you choose: they are not limited by the
    /// [cap](Self::with_cap), and what they insert is never evicted. For names that come with requests, there is
    /// [`get_or_insert`](Self::get_or_insert).
    pub fn insert(&self, name: impl AsRef<str>) -> Arc<CircuitBreaker> {
        let name = name.as_ref();
        self.kept(name).unwrap_or_else(|| self.insert_breaker(CircuitBreaker::new(name, self.config)))
    }

    /// Adds breakers with the registry's configuration, in one step: a reader sees all of them or none. A name that is
    /// there already keeps its breaker.
    pub fn insert_all(&self, names: impl IntoIterator<Item = impl AsRef<str>>) {
        // The caller's iterator runs before the lock is taken, since it may use this registry.
        let new = names.into_iter().filter(|name| self.kept(name.as_ref()).is_none());
        self.insert_many(new.map(|name| CircuitBreaker::new(name.as_ref(), self.config)).collect::<Vec<_>>());
    }

    /// Adds breakers with settings of their own under their names, in one step: a reader sees all of them or none. A
    /// name that is there already keeps its breaker.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::{CircuitBreaker, CircuitBreakerRegistry};
    ///
    /// let breakers = CircuitBreakerRegistry::default();
    /// let shards = (0..3).map(|n| CircuitBreaker::builder(format!("shard-{n}")).failure_threshold(5).build());
    /// breakers.insert_many(shards.collect::<Result<Vec<_>, _>>()?);
    /// assert_eq!(breakers.len(), 3);
    /// # Ok::<(), fusebox::ConfigError>(())
    /// ```
    pub fn insert_many(&self, breakers: impl IntoIterator<Item = impl Into<Arc<CircuitBreaker>>>) {
        let new = breakers.into_iter().map(Into::into);
        let new: Vec<Arc<CircuitBreaker>> = new.filter(|breaker| self.kept(breaker.name()).is_none()).collect();
        if new.is_empty() {
            return;
        }
        let writer = self.writer.lock();
        let copy = self.breakers.load().copy(new.len(), |_| true);
        for breaker in new {
            match copy.find(breaker.name()) {
                Some(known) => known.keep(),
                None => copy.add(writer.attached(breaker), true),
            }
        }
        self.breakers.store(Arc::new(copy));
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
        if let Some(known) = self.kept(breaker.name()) {
            return known;
        }
        let writer = self.writer.lock();
        let known = self.breakers.load().find(breaker.name()).map(|slot| {
            slot.keep();
            Arc::clone(&slot.breaker)
        });
        known.unwrap_or_else(|| self.add(writer.attached(breaker), true))
    }

    /// The breaker of this name; if there is none, a new one with the registry's configuration: for names that come
    /// with requests, such as hosts. A name that is there costs no more than [`get`](Self::get), and a new one does not
    /// copy the map.
    ///
    /// # At the cap
    ///
    /// If there are as many names as the [cap](Self::with_cap) allows, idle ones that came in this way are evicted
    /// first: all that have not been looked up since the last eviction, and others if those are not a sixteenth of the
    /// cap. A breaker is evicted only if it is closed, and nobody holds it or a permit of it. One that is open,
    /// half-open, recovering or disabled stays, however long nobody has asked for it; [`retain`](Self::retain) can
    /// remove it.
    ///
    /// A call that looks its name up while that is evicted may be given the breaker that goes. It lets the call pass,
    /// and counts nothing.
    ///
    /// # Errors
    ///
    /// [`RegistryFull`] if none can be evicted.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::CircuitBreakerRegistry;
    ///
    /// let hosts = CircuitBreakerRegistry::default().with_cap(2);
    /// hosts.get_or_insert("a.example")?;
    /// let held = hosts.get_or_insert("b.example")?;
    /// hosts.get_or_insert("c.example")?;
    /// assert_eq!((hosts.len(), hosts.get("a.example").is_some()), (2, false));
    /// # Ok::<(), fusebox::RegistryFull>(())
    /// ```
    pub fn get_or_insert(&self, name: impl AsRef<str>) -> Result<Arc<CircuitBreaker>, RegistryFull> {
        self.get_or_insert_with(name, || self.config)
    }

    /// The same, with other settings for a breaker that is new.
    ///
    /// # Errors
    ///
    /// As [`get_or_insert`](Self::get_or_insert).
    pub fn get_or_insert_with(
        &self,
        name: impl AsRef<str>,
        config: impl FnOnce() -> Config,
    ) -> Result<Arc<CircuitBreaker>, RegistryFull> {
        let name = name.as_ref();
        if let Some(known) = self.get(name) {
            return Ok(known);
        }
        // The caller's function runs before the lock is taken, since it may use this registry.
        let new = CircuitBreaker::new(name, config());
        let mut writer = self.writer.lock();
        if let Some(known) = self.get(name) {
            return Ok(known);
        }
        if let Some(cap) = self.cap {
            self.make_room(&mut writer, cap)?;
        }
        Ok(self.add(writer.attached(Arc::new(new)), false))
    }

    /// Removes a breaker, and returns it [reset](CircuitBreaker::reset): no record by name can reach it any more, and
    /// calls that wait for its probe pass, as calls of an unknown name do. Permits from before say nothing any more.
    pub fn remove(&self, name: &str) -> Option<Arc<CircuitBreaker>> {
        let known = self.get(name)?;
        self.retain(|breaker| !ptr::eq(breaker, &raw const *known)).pop()
    }

    /// Removes all breakers that `keep` is false for, in one step, and returns them as [`remove`](Self::remove) does.
    /// `keep` runs while other writers wait: it must not change this registry, which would wait for itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::{CircuitBreakerRegistry, CircuitState};
    ///
    /// let breakers = CircuitBreakerRegistry::new(["openai", "anthropic", "mistral"]);
    /// breakers.get("openai").unwrap().isolate("moved");
    /// let removed = breakers.retain(|breaker| breaker.state() == CircuitState::Closed);
    /// assert_eq!((removed.len(), breakers.len()), (1, 2));
    /// ```
    pub fn retain(&self, mut keep: impl FnMut(&CircuitBreaker) -> bool) -> Vec<Arc<CircuitBreaker>> {
        let mut removed = Vec::new();
        let feed = {
            let writer = self.writer.lock();
            let copy = self.breakers.load().copy(0, |slot| {
                let stays = keep(&slot.breaker);
                if !stays {
                    removed.push(Arc::clone(&slot.breaker));
                }
                stays
            });
            if removed.is_empty() {
                return removed;
            }
            self.breakers.store(Arc::new(copy));
            writer.feed.clone()
        };
        for breaker in &removed {
            breaker.retire();
            if let Some(feed) = &feed {
                breaker.feed().detach(feed);
            }
        }
        removed
    }

    /// The breaker of this name, if it is never evicted.
    fn kept(&self, name: &str) -> Option<Arc<CircuitBreaker>> {
        let table = self.breakers.load();
        table.find(name).filter(|slot| slot.is_kept()).map(|slot| Arc::clone(&slot.breaker))
    }

    // ---- of the writer, who holds the lock ----

    /// Adds a breaker whose name is not there.
    fn add(&self, breaker: Arc<CircuitBreaker>, is_kept: bool) -> Arc<CircuitBreaker> {
        let table = self.breakers.load();
        if table.has_room() {
            table.add(Arc::clone(&breaker), is_kept);
        } else {
            let larger = table.copy(1, |_| true);
            larger.add(Arc::clone(&breaker), is_kept);
            self.breakers.store(Arc::new(larger));
        }
        breaker
    }

    /// Evicts idle breakers if there are as many as `cap`.
    fn make_room(&self, writer: &mut Writer, cap: usize) -> Result<(), RegistryFull> {
        let table = self.breakers.load();
        if table.len() < cap {
            return Ok(());
        }
        let full = RegistryFull { cap };
        if writer.in_vain > 0 {
            writer.in_vain -= 1;
            return Err(full);
        }
        let mut evicted = HashSet::new();
        let mut evict = |slot: &Slot| {
            // Whoever holds the breaker would go on with one that counts nothing.
            if !slot.is_kept() && Arc::strong_count(&slot.breaker) == 1 && slot.breaker.evict() {
                evicted.insert(Arc::as_ptr(&slot.breaker));
            }
            evicted.len()
        };
        let mut gone = 0;
        for slot in table.iter().filter(|slot| !slot.take_use()) {
            gone = evict(slot);
        }
        // So many at once that each new name pays for a few looks, and not for one at all the others.
        let mut others = table.iter();
        while gone <= cap / 16
            && let Some(slot) = others.next()
        {
            gone = evict(slot);
        }
        if gone == 0 {
            writer.in_vain = table.len() / 64;
            return Err(full);
        }
        self.breakers.store(Arc::new(table.copy(gone, |slot| !evicted.contains(&Arc::as_ptr(&slot.breaker)))));
        Ok(())
    }

    // ---- reading ----

    /// The breaker of this name.
    pub fn get(&self, name: &str) -> Option<Arc<CircuitBreaker>> {
        self.with(name, Arc::clone)
    }

    /// The transitions of all breakers from now on, and of those that are added later: see
    /// [`CircuitBreaker::subscribe`]. Those of one breaker come in the order of their generations. The receiver keeps
    /// the last 1024 of all breakers. An eviction is no transition; the removal of a breaker is one, unless it is
    /// closed.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use fusebox::{CircuitBreakerRegistry, CircuitState};
    ///
    /// let breakers = CircuitBreakerRegistry::default();
    /// let mut transitions = breakers.subscribe();
    /// breakers.insert("openai").isolate("the key is being replaced");
    /// let isolated = transitions.recv().await?;
    /// assert_eq!((&*isolated.breaker, isolated.to), ("openai", CircuitState::Open));
    /// # Ok(())
    /// # }
    /// ```
    pub fn subscribe(&self) -> Receiver<Transition> {
        let mut writer = self.writer.lock();
        if let Some(feed) = &writer.feed {
            return feed.subscribe();
        }
        let (feed, receiver) = broadcast::channel(TRANSITIONS);
        writer.feed = Some(feed);
        for slot in self.breakers.load().iter() {
            writer.attached(Arc::clone(&slot.breaker));
        }
        receiver
    }

    /// How many breakers there are.
    pub fn len(&self) -> usize {
        self.breakers.load().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The state of all breakers, sorted by name.
    pub fn snapshots(&self) -> Vec<BreakerSnapshot> {
        let mut snapshots: Vec<_> = self.breakers.load().iter().map(|slot| slot.breaker.snapshot()).collect();
        snapshots.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        snapshots
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn each(&self, f: impl FnMut(&Arc<CircuitBreaker>)) {
        self.breakers.load().iter().map(|slot| &slot.breaker).for_each(f);
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
    #[inline]
    fn with<T>(&self, name: &str, f: impl FnOnce(&Arc<CircuitBreaker>) -> T) -> Option<T> {
        let table = self.breakers.load();
        let slot = table.find(name)?;
        slot.use_it();
        Some(f(&slot.breaker))
    }
}

impl Default for CircuitBreakerRegistry {
    /// Empty, with the default [`Config`] for what is inserted.
    fn default() -> Self {
        Self::new(std::iter::empty::<&str>())
    }
}

impl fmt::Debug for CircuitBreakerRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.breakers.load();
        f.debug_map().entries(table.iter().map(|slot| (slot.breaker.name(), &slot.breaker))).finish()
    }
}

/// There is no room for another name: see [`CircuitBreakerRegistry::get_or_insert`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegistryFull {
    cap: usize,
}

impl RegistryFull {
    /// How many names the registry may have.
    pub fn cap(&self) -> usize {
        self.cap
    }
}

impl fmt::Display for RegistryFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the registry is full: its cap is {} names, and none of them is idle", self.cap)
    }
}

impl Error for RegistryFull {}
