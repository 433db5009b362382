//! A store in this process, for tests and simulations: it does what the scripts for Redis do, by tokio's clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::{Lease, Said, Standing, Stands, Trouble};
use crate::fleet::message::{Kind, Message};
use crate::sync::Instant;

/// A place where the replicas of a fleet meet within one process, in place of Redis: for tests of a program that uses a
/// fleet, and for simulations. It goes by tokio's clock, which may be paused.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use fusebox::CircuitBreakerRegistry;
/// use fusebox::fleet::{FleetConfig, Hub};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let hub = Hub::new(Duration::from_millis(1));
/// let replicas = [(); 2].map(|()| Arc::new(CircuitBreakerRegistry::new(["openai"])));
/// let join = |breakers: &Arc<CircuitBreakerRegistry>| FleetConfig::hub(&hub).join(Arc::clone(breakers));
/// let fleets = replicas.each_ref().map(join);
/// tokio::time::sleep(Duration::from_millis(100)).await;
///
/// for _ in 0..3 {
///     replicas[0].record_failure("openai", "5xx", 503);
/// }
/// tokio::time::sleep(Duration::from_millis(100)).await;
/// assert_eq!(replicas[1].failure_count("openai"), Some(2), "the next failure opens it");
/// # drop(fleets);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Hub {
    state: Arc<Mutex<State>>,
    /// How long it takes to tell it something, and to be told something.
    delay: Duration,
}

#[derive(Default)]
struct State {
    /// By group and replica.
    listeners: BTreeMap<(String, String), mpsc::Sender<Message>>,
    /// By group, provider and replica.
    openings: BTreeMap<(String, String, String), Instant>,
    cooldowns: BTreeMap<(String, String), (String, Instant)>,
    leases: BTreeMap<(String, String), (String, Instant)>,
    failed: BTreeMap<(String, String), Instant>,
    opinions: BTreeMap<(String, String, String), Instant>,
    there: BTreeMap<(String, String), Instant>,
    is_stopped: bool,
    is_full: bool,
    said: u64,
}

impl State {
    fn forget(&mut self, now: Instant) {
        self.openings.retain(|_, until| *until > now);
        self.cooldowns.retain(|_, (_, until)| *until > now);
        self.leases.retain(|_, (_, until)| *until > now);
        self.failed.retain(|_, until| *until > now);
        self.opinions.retain(|_, until| *until > now);
        self.there.retain(|_, until| *until > now);
    }

    fn write(&self) -> Result<(), Trouble> {
        if self.is_full { Err(Trouble::Refused("OOM: the hub is full".to_owned())) } else { Ok(()) }
    }
}

impl PartialEq for Hub {
    /// Whether they are the same place.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

impl Hub {
    /// `delay`: how long a message takes to the hub, and again to each replica.
    pub fn new(delay: Duration) -> Self {
        Self { state: Arc::default(), delay }
    }

    /// From now on nobody reaches it, until it is [started](Self::start) again, empty.
    pub fn stop(&self) {
        *self.state.lock() = State { is_stopped: true, ..State::default() };
    }

    /// It is reached again.
    pub fn start(&self) {
        self.state.lock().is_stopped = false;
    }

    /// Whether it takes nothing new, as a Redis that has reached its `maxmemory`.
    pub fn set_full(&self, is_full: bool) {
        self.state.lock().is_full = is_full;
    }

    /// How many messages it has passed on.
    pub fn messages(&self) -> u64 {
        self.state.lock().said
    }

    pub(super) fn connect(
        &self,
        group: &str,
        replica: &str,
        listener: mpsc::Sender<Message>,
    ) -> Result<HubLink, Trouble> {
        let mut state = self.state.lock();
        if state.is_stopped {
            return Err(Trouble::Lost("the hub has stopped".to_owned()));
        }
        state.listeners.insert((group.to_owned(), replica.to_owned()), listener);
        Ok(HubLink { hub: self.clone(), group: group.to_owned() })
    }
}

#[derive(Clone)]
pub(in crate::fleet) struct HubLink {
    hub: Hub,
    group: String,
}

impl HubLink {
    /// Does something in the hub, and waits for its answer.
    async fn within<T>(&self, f: impl FnOnce(&mut State, Instant) -> Result<T, Trouble>) -> Result<T, Trouble> {
        sleep(self.hub.delay).await;
        let done = {
            let mut state = self.hub.state.lock();
            if state.is_stopped {
                return Err(Trouble::Lost("the hub has stopped".to_owned()));
            }
            let now = Instant::now();
            state.forget(now);
            f(&mut state, now)
        };
        sleep(self.hub.delay).await;
        done
    }

    fn of(&self, provider: &str) -> (String, String) {
        (self.group.clone(), provider.to_owned())
    }

    fn by(&self, provider: &str, replica: &str) -> (String, String, String) {
        (self.group.clone(), provider.to_owned(), replica.to_owned())
    }

    pub(super) async fn say(&self, said: &Said) -> Result<(), Trouble> {
        let Said { message, stands } = said;
        self.within(|state, now| {
            state.said += 1;
            let of_group = state.listeners.iter().filter(|((group, _), _)| *group == self.group);
            let listeners: Vec<_> = of_group.map(|(_, listener)| listener.clone()).collect();
            let (news, delay) = (message.clone(), self.hub.delay);
            tokio::spawn(async move {
                sleep(delay).await;
                for listener in listeners {
                    let _ = listener.try_send(news.clone());
                }
            });
            if message.kind != Kind::Alive {
                state.write()?;
            }
            let Message { provider, replica, .. } = message;
            match message.kind {
                Kind::Alive => {}
                Kind::Open if message.is_cooldown() => {
                    let until = now + *stands;
                    let cooldown = state.cooldowns.entry(self.of(provider)).or_insert((replica.clone(), until));
                    if cooldown.1 < until {
                        *cooldown = (replica.clone(), until);
                    }
                }
                Kind::Open => {
                    state.openings.insert(self.by(provider, replica), now + *stands);
                }
                Kind::Closed => {
                    state.openings.retain(|(group, of, _), _| (group, of) != (&self.group, provider));
                    state.opinions.retain(|(group, of, _), _| (group, of) != (&self.group, provider));
                    state.cooldowns.remove(&self.of(provider));
                    state.leases.remove(&self.of(provider));
                    state.failed.remove(&self.of(provider));
                }
                Kind::Failed => {
                    state.failed.insert(self.of(provider), now + message.left());
                    if state.leases.get(&self.of(provider)).is_some_and(|(holder, _)| holder == replica) {
                        state.leases.remove(&self.of(provider));
                    }
                }
            }
            Ok(())
        })
        .await
    }

    pub(super) async fn lease(&self, provider: &str, replica: &str, length: Duration) -> Result<Lease, Trouble> {
        self.within(|state, now| {
            if let Some(until) = state.failed.get(&self.of(provider)) {
                return Ok(Lease::Failed(*until - now));
            }
            state.write()?;
            let until = now + length;
            let (holder, held) = state.leases.entry(self.of(provider)).or_insert((replica.to_owned(), until));
            if holder != replica {
                return Ok(Lease::Held(*held - now));
            }
            *held = until;
            Ok(Lease::Granted)
        })
        .await
    }

    pub(super) async fn give_back(&self, provider: &str, replica: &str) -> Result<(), Trouble> {
        self.within(|state, _| {
            if state.leases.get(&self.of(provider)).is_some_and(|(holder, _)| holder == replica) {
                state.leases.remove(&self.of(provider));
            }
            Ok(())
        })
        .await
    }

    pub(super) async fn opinion(&self, provider: &str, replica: &str, length: Duration) -> Result<bool, Trouble> {
        self.within(|state, now| {
            let of_this = |(group, of, _): &&(String, String, String)| *group == self.group && of == provider;
            if state.opinions.keys().filter(of_this).count() >= 2 {
                return Ok(false);
            }
            state.write()?;
            Ok(state.opinions.insert(self.by(provider, replica), now + length).is_none())
        })
        .await
    }

    pub(super) async fn sync(
        &self,
        replica: &str,
        there_for: Duration,
        renewed: &[(Arc<str>, Duration)],
    ) -> Result<Standing, Trouble> {
        self.within(|state, now| {
            let refused = state.write().err().map(|trouble| trouble.to_string());
            if refused.is_none() {
                state.there.insert((self.group.clone(), replica.to_owned()), now + there_for);
                for (provider, stands) in renewed {
                    state.openings.insert(self.by(provider, replica), now + *stands);
                }
            }
            let openings = state.openings.iter().filter(|((group, ..), _)| *group == self.group);
            let openings = openings.map(|((_, provider, replica), until)| Stands {
                provider: provider.clone(),
                replica: replica.clone(),
                left: *until - now,
                is_cooldown: false,
            });
            let cooldowns = state.cooldowns.iter().filter(|((group, _), _)| *group == self.group);
            let cooldowns = cooldowns.map(|((_, provider), (replica, until))| Stands {
                provider: provider.clone(),
                replica: replica.clone(),
                left: *until - now,
                is_cooldown: true,
            });
            let replicas = state.there.keys().filter(|(group, _)| *group == self.group).count();
            Ok(Standing { replicas, openings: openings.chain(cooldowns).collect(), refused })
        })
        .await
    }
}
