//! The design that fusebox replaces, as it is often written: breakers in a `DashMap`, the state of each behind a lock, and a
//! `watch` channel that tells those who wait that the probe is over.

use std::time::{Duration, Instant};

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::us::is_ready;
use crate::{CALLS, Contender, each_async, upstream};

const NAME: &str = "anthropic";

pub(crate) struct Replaced {
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

struct Rejected;

impl Replaced {
    pub(crate) fn closed() -> Self {
        let names = (0..15).map(|n| format!("provider-{n}")).chain([NAME.to_owned()]);
        let breaker = || Breaker { state: Mutex::new(State::Closed { failures: 0 }), probes: watch::Sender::new(0) };
        Self {
            breakers: names.map(|name| (name, breaker())).collect(),
            failure_threshold: 1023,
            open_for: Duration::from_hours(1),
        }
    }

    pub(crate) fn open() -> Self {
        let this = Self::closed();
        for _ in 0..this.failure_threshold {
            this.record_failure(NAME);
        }
        this
    }

    async fn acquire(&self, name: &str) -> Result<(), Rejected> {
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

    fn record_success(&self, name: &str) {
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

impl Contender for Replaced {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool) -> u32 {
        each_async(fails, async |fails| {
            if self.acquire(NAME).await.is_err() {
                return false;
            }
            match upstream(fails) {
                Ok(()) => self.record_success(NAME),
                Err(_) => self.record_failure(NAME),
            }
            true
        })
    }
}

/// A probe is in flight.
pub(crate) struct Waiting(Replaced);

impl Waiting {
    pub(crate) fn new() -> Self {
        let replaced = Replaced::closed();
        *replaced.breakers.get(NAME).expect("it is there").state.lock() = State::HalfOpen;
        Self(replaced)
    }
}

impl Contender for Waiting {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), _: impl Fn(u32) -> bool) -> u32 {
        (0..CALLS).map(|_| u32::from(is_ready(self.0.acquire(NAME)))).sum()
    }
}
