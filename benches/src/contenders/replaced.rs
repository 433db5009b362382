//! The design that fusebox replaces, as it is often written: breakers in a `DashMap`, the state of each behind a lock,
//! and a `watch` channel that tells those who wait that the probe is over.

use std::time::{Duration, Instant};

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Async, AsyncCall, Contender, HOUR, NAME, Plain, Start, names, poll_once, upstream};

pub fn replaced(start: Start) -> impl Contender {
    start.of(Async(Replaced::new(names(), start.threshold(1023, 1))))
}

/// A probe is in flight: a call begins to wait for it, and gives up.
pub fn waiting() -> impl Contender {
    let Waiting(replaced) = Waiting::new();
    Plain(move |_| poll_once(replaced.acquire(NAME)).is_ready())
}

pub struct Replaced {
    breakers: DashMap<String, Breaker>,
    failure_threshold: u32,
    open_for: Duration,
}

struct Breaker {
    state: Mutex<State>,
    probes: watch::Sender<u64>,
}

enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen,
}

/// The circuit is open.
pub struct Rejected;

impl Replaced {
    /// A closed breaker for each name.
    pub fn new(names: impl IntoIterator<Item = impl AsRef<str>>, failure_threshold: u32) -> Self {
        let breaker = || Breaker { state: Mutex::new(State::Closed { failures: 0 }), probes: watch::Sender::new(0) };
        let breakers = names.into_iter().map(|name| (name.as_ref().to_owned(), breaker())).collect();
        Self { breakers, failure_threshold, open_for: HOUR }
    }

    /// Waits for a probe in flight.
    pub async fn acquire(&self, name: &str) -> Result<(), Rejected> {
        loop {
            let mut probes = {
                let Some(breaker) = self.breakers.get(name) else { return Ok(()) };
                let mut state = breaker.state.lock();
                match *state {
                    State::Closed { .. } => return Ok(()),
                    State::Open { until } if Instant::now() < until => return Err(Rejected),
                    State::Open { .. } => {
                        *state = State::HalfOpen;
                        return Ok(());
                    }
                    State::HalfOpen => breaker.probes.subscribe(),
                }
            };
            let _ = probes.changed().await;
        }
    }

    /// A call, or the probe, went well.
    pub fn record_success(&self, name: &str) {
        let Some(breaker) = self.breakers.get(name) else { return };
        let mut state = breaker.state.lock();
        let was = std::mem::replace(&mut *state, State::Closed { failures: 0 });
        drop(state);
        if let State::HalfOpen = was {
            breaker.probes.send_modify(|probes| *probes += 1);
        }
    }

    fn record_failure(&self, name: &str) {
        let Some(breaker) = self.breakers.get(name) else { return };
        let mut state = breaker.state.lock();
        match &mut *state {
            State::Closed { failures } if *failures + 1 < self.failure_threshold => *failures += 1,
            State::Open { .. } => {}
            State::Closed { .. } => *state = State::Open { until: Instant::now() + self.open_for },
            State::HalfOpen => {
                *state = State::Open { until: Instant::now() + self.open_for };
                drop(state);
                breaker.probes.send_modify(|probes| *probes += 1);
            }
        }
    }
}

impl AsyncCall for Replaced {
    async fn call(&self, fails: bool) -> bool {
        if self.acquire(NAME).await.is_err() {
            return false;
        }
        match upstream(fails) {
            Ok(()) => self.record_success(NAME),
            Err(_) => self.record_failure(NAME),
        }
        true
    }
}

/// A probe is in flight.
pub struct Waiting(Replaced);

impl Waiting {
    pub fn new() -> Self {
        let replaced = Replaced::new([NAME], 1);
        *replaced.breakers.get(NAME).expect("it is there").state.lock() = State::HalfOpen;
        Self(replaced)
    }

    /// Reports the probe's success.
    pub fn succeed(&self) {
        self.0.record_success(NAME);
    }

    /// Waits for it, and makes a call.
    pub async fn wait_and_succeed(&self) {
        assert!(self.0.acquire(NAME).await.is_ok());
        self.0.record_success(NAME);
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.0.breakers.get(NAME).map_or(0, |breaker| breaker.probes.receiver_count())
    }
}
