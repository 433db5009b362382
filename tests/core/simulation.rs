//! A world in which requests come and answers take their time: fusebox's own detector and breaker, everything else made
//! up.
//!
//! The time is tokio's paused one, which the breaker reads too. It has to be run by a paused current-thread runtime.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use fusebox::silence::{Config, Detector, TICK, Ticket, Watcher};
use fusebox::{CircuitBreaker, CircuitState, OwnedPermit};

/// How long answers take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Latency {
    /// 20 ms, log-normal, sigma 0.25.
    Fast,
    /// 0.6 s, log-normal, sigma 0.8; one in a hundred Pareto from 1 s, alpha 1.5, up to 20 s.
    Heavy,
    /// 80% of 0.3 s, sigma 0.4, and 20% of 6 s, sigma 0.9.
    Reasoning,
}

impl Latency {
    fn seconds(self, rng: &mut Rng) -> f64 {
        match self {
            Self::Fast => log_normal(rng, 0.02, 0.25),
            Self::Heavy if rng.f64() < 0.01 => (1.0 - rng.f64()).powf(-1.0 / 1.5).min(20.0),
            Self::Heavy => log_normal(rng, 0.6, 0.8).min(20.0),
            Self::Reasoning if rng.f64() < 0.8 => log_normal(rng, 0.3, 0.4),
            Self::Reasoning => log_normal(rng, 6.0, 0.9),
        }
    }
}

/// By Box and Muller.
pub(crate) fn log_normal(rng: &mut Rng, median: f64, sigma: f64) -> f64 {
    let normal = (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos();
    median * (sigma * normal).exp()
}

/// How the upstream behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    None,
    /// It does not answer requests that are sent from now on.
    Running,
    /// It answers no request at all, not even those under way.
    Frozen,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Answer(u64),
    Look(usize),
}

struct Request {
    core: usize,
    ticket: Ticket,
    permit: OwnedPermit,
}

/// The settings of a [`World`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) latency: Latency,
    /// Requests a second, by Poisson.
    pub(crate) rate: f64,
    pub(crate) cores: usize,
    pub(crate) floor: Duration,
    pub(crate) open_for: Duration,
    pub(crate) seed: u64,
}

impl Settings {
    pub(crate) const USUAL: Self = Self {
        latency: Latency::Heavy,
        rate: 500.0,
        cores: 1,
        floor: Duration::ZERO,
        open_for: Duration::from_secs(5),
        seed: 1,
    };
}

pub(crate) struct World {
    pub(crate) settings: Settings,
    /// Answers take so many times as long as they used to.
    pub(crate) slowness: f64,
    pub(crate) breaker: Arc<CircuitBreaker>,
    /// Requests that were let through.
    pub(crate) sent: u64,
    rng: Rng,
    watchers: Vec<Watcher>,
    looking: Vec<bool>,
    start: Instant,
    /// Microseconds since.
    now: u64,
    /// Where tokio's clock stands.
    clock: u64,
    held_up_until: u64,
    fault: Fault,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    ids: u64,
    under_way: HashMap<u64, Request>,
    unanswered: Vec<u64>,
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hours at the most")]
pub(crate) fn micros(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}

impl World {
    pub(crate) fn new(settings: Settings) -> Self {
        let breaker = CircuitBreaker::builder("upstream").open_for(settings.open_for).build().expect("in range");
        let breaker = Arc::new(breaker);
        let config = Config::builder().floor(settings.floor).build().expect("in range");
        let detector = Arc::new(Detector::new(Arc::clone(&breaker), config, settings.cores));
        let mut world = Self {
            settings,
            slowness: 1.0,
            breaker,
            sent: 0,
            rng: Rng::with_seed(settings.seed),
            watchers: (0..settings.cores).map(|_| detector.watcher().expect("one for each core")).collect(),
            looking: vec![false; settings.cores],
            start: tokio::time::Instant::now().into_std(),
            now: 0,
            clock: 0,
            held_up_until: 0,
            fault: Fault::None,
            events: BinaryHeap::new(),
            ids: 0,
            under_way: HashMap::new(),
            unanswered: Vec::new(),
        };
        world.after(0, Event::Arrival);
        world
    }

    pub(crate) fn now(&self) -> Instant {
        self.start + Duration::from_micros(self.now)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.breaker.state() == CircuitState::Closed
    }

    pub(crate) async fn run_for(&mut self, duration: Duration) {
        let end = self.now() + duration;
        self.run_while(|world| world.now() < end).await;
    }

    pub(crate) async fn send(&mut self, requests: u64) {
        let end = self.sent + requests;
        self.run_while(|world| world.sent < end).await;
    }

    /// One event after the other, for as long as `go_on`.
    pub(crate) async fn run_while(&mut self, go_on: impl Fn(&Self) -> bool) {
        while go_on(self) {
            let Reverse((at, _, event)) = self.events.pop().expect("another arrival, at least");
            self.now = self.now.max(at).max(self.held_up_until);
            match event {
                Event::Arrival => self.arrival().await,
                Event::Answer(id) => self.answer(id),
                Event::Look(core) => self.look(core).await,
            }
        }
    }

    /// The caller, not the upstream, does nothing for so long.
    pub(crate) fn hold_up(&mut self, duration: Duration) {
        self.held_up_until = self.now + u64::try_from(duration.as_micros()).expect("not that long");
    }

    pub(crate) fn begin(&mut self, fault: Fault) {
        self.fault = fault;
    }

    /// The upstream answers again: `late`, what it has not answered, too.
    pub(crate) fn heal(&mut self, late: bool) {
        self.fault = Fault::None;
        for id in std::mem::take(&mut self.unanswered) {
            if late {
                let soon = self.rng.u64(..50_000);
                self.after(soon, Event::Answer(id));
            } else if let Some(Request { core, ticket, permit }) = self.under_way.remove(&id) {
                permit.cancel();
                let now = self.now();
                self.watchers[core].withdrawn(ticket, now);
            }
        }
    }

    fn after(&mut self, micros: u64, event: Event) {
        self.ids += 1;
        self.events.push(Reverse((self.now + micros, self.ids, event)));
    }

    /// Sets the clock for the calls that follow.
    async fn set_clock(&mut self) {
        let ahead = self.now - self.clock;
        if ahead > 0 {
            tokio::time::advance(Duration::from_micros(ahead)).await;
            self.clock = self.now;
        }
    }

    async fn arrival(&mut self) {
        let pause = -(1.0 - self.rng.f64()).ln() / self.settings.rate;
        self.after(micros(pause), Event::Arrival);
        if !self.is_closed() {
            self.set_clock().await;
        }
        let Ok(permit) = Arc::clone(&self.breaker).try_acquire_owned() else { return };
        self.sent += 1;
        let core = self.rng.usize(..self.watchers.len());
        let now = self.now();
        let ticket = self.watchers[core].start(&permit, now);
        if !self.looking[core] {
            self.looking[core] = true;
            self.after(tick(), Event::Look(core));
        }
        let latency = micros(self.slowness * self.settings.latency.seconds(&mut self.rng));
        let id = self.ids;
        self.under_way.insert(id, Request { core, ticket, permit });
        if self.fault == Fault::None {
            self.after(latency, Event::Answer(id));
        } else {
            self.unanswered.push(id);
        }
    }

    fn answer(&mut self, id: u64) {
        if self.fault == Fault::Frozen {
            self.unanswered.push(id);
        } else if let Some(Request { core, ticket, permit }) = self.under_way.remove(&id) {
            let now = self.now();
            self.watchers[core].answered(ticket, now);
            permit.success();
        }
    }

    async fn look(&mut self, core: usize) {
        self.set_clock().await;
        let now = self.now();
        self.watchers[core].look(now);
        self.looking[core] = self.watchers[core].in_flight() > 0;
        if self.looking[core] {
            self.after(tick(), Event::Look(core));
        }
    }
}

/// How long it takes to notice a fault that begins after so many requests, and how many are sent into it.
pub(crate) async fn notice(settings: Settings, healthy: u64, fault: Fault) -> (Duration, u64) {
    let mut world = World::new(settings);
    world.send(healthy).await;
    assert!(world.is_closed(), "a false alarm");
    let (at, before) = (world.now(), world.sent);
    world.begin(fault);
    world.run_while(World::is_closed).await;
    (world.now().duration_since(at), world.sent - before)
}

pub(crate) fn tick() -> u64 {
    u64::try_from(TICK.as_micros()).expect("5 ms")
}
