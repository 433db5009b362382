//! A world in which streams come, and their pieces take their time: fusebox's own stall detector and breaker,
//! everything else made up.
//!
//! The time is tokio's paused one, which the breaker reads too. It has to be run by a paused current-thread runtime.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use fusebox::silence::{Config, StallDetector, StallWatcher, WatchedStream};
use fusebox::{CircuitBreaker, CircuitState, OwnedPermit};

use crate::simulation::{log_normal, micros, tick};

/// What healthy streams do besides sending a piece every now and then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Habits {
    /// The median time between two pieces, in seconds. It is log-normal, sigma 0.5.
    pub(crate) gap: f64,
    /// How many pieces a stream has on average: a geometric distribution.
    pub(crate) pieces: f64,
    /// How likely a piece is to come after a long pause: Pareto from 2 s, alpha 1.5, up to 60 s.
    pub(crate) long_pauses: f64,
    /// How often the upstream schedules its work anew: a pause of 50 to 300 ms for all streams at once.
    pub(crate) schedules: Option<f64>,
    /// How many of a hundred clients read slowly: a second for each piece.
    pub(crate) slow_clients: u32,
}

impl Habits {
    /// A piece every 20 ms.
    pub(crate) const PLAIN: Self = Self { gap: 0.02, pieces: 40.0, long_pauses: 0.0, schedules: None, slow_clients: 0 };
    /// All that is known of good providers and their clients.
    pub(crate) const ALL: Self = Self { long_pauses: 0.01, schedules: Some(3.0), slow_clients: 5, ..Self::PLAIN };
}

/// How the upstream behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    None,
    /// Streams that begin from now on stop after four pieces.
    New,
    /// All streams stop, and no new one begins.
    Frozen,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Piece(u64),
    Ready(u64),
    Look(usize),
    Schedule,
}

struct Stream {
    watched: WatchedStream,
    permit: OwnedPermit,
    left: u32,
    sent: u32,
    stops_after: u32,
    is_read_slowly: bool,
}

pub(crate) struct World {
    pub(crate) habits: Habits,
    /// Streams a second, by Poisson.
    pub(crate) rate: f64,
    pub(crate) breaker: Arc<CircuitBreaker>,
    /// Streams that were let through.
    pub(crate) sent: u64,
    rng: Rng,
    watchers: Vec<StallWatcher>,
    looking: Vec<bool>,
    start: Instant,
    /// Microseconds since.
    now: u64,
    /// Where tokio's clock stands.
    clock: u64,
    held_up_until: u64,
    /// While the upstream schedules.
    scheduling_until: u64,
    fault: Fault,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    ids: u64,
    under_way: HashMap<u64, Stream>,
    stopped: Vec<u64>,
}

impl World {
    pub(crate) fn new(habits: Habits, rate: f64, cores: usize, seed: u64) -> Self {
        let breaker = Arc::new(CircuitBreaker::builder("upstream").build().expect("the defaults"));
        let detector = Arc::new(StallDetector::new(Arc::clone(&breaker), Config::default(), cores));
        let mut world = Self {
            habits,
            rate,
            breaker,
            sent: 0,
            rng: Rng::with_seed(seed),
            watchers: (0..cores).map(|_| detector.watcher().expect("one for each core")).collect(),
            looking: vec![false; cores],
            start: tokio::time::Instant::now().into_std(),
            now: 0,
            clock: 0,
            held_up_until: 0,
            scheduling_until: 0,
            fault: Fault::None,
            events: BinaryHeap::new(),
            ids: 0,
            under_way: HashMap::new(),
            stopped: Vec::new(),
        };
        world.after(0, Event::Arrival);
        if let Some(seconds) = habits.schedules {
            world.after(micros(seconds), Event::Schedule);
        }
        world
    }

    pub(crate) fn now(&self) -> Instant {
        self.start + Duration::from_micros(self.now)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.breaker.state() == CircuitState::Closed
    }

    pub(crate) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Streams that have stopped.
    pub(crate) fn stopped(&self) -> usize {
        self.stopped.len()
    }

    pub(crate) async fn run_for(&mut self, duration: Duration) {
        let end = self.now() + duration;
        self.run_while(|world| world.now() < end).await;
    }

    /// One event after the other, for as long as `go_on`.
    pub(crate) async fn run_while(&mut self, go_on: impl Fn(&Self) -> bool) {
        while go_on(self) {
            let Reverse((at, _, event)) = self.events.pop().expect("another arrival, at least");
            self.now = self.now.max(at).max(self.held_up_until);
            match event {
                Event::Arrival => self.arrival().await,
                Event::Piece(id) => self.piece(id),
                Event::Ready(id) => self.ready(id),
                Event::Look(core) => self.look(core).await,
                Event::Schedule => self.schedule(),
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

    /// The streams that have stopped go on.
    pub(crate) fn heal(&mut self) {
        self.fault = Fault::None;
        for id in std::mem::take(&mut self.stopped) {
            if let Some(stream) = self.under_way.get_mut(&id) {
                stream.stops_after = u32::MAX;
                let soon = self.rng.u64(..20_000);
                self.after(soon, Event::Piece(id));
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

    fn schedule(&mut self) {
        let (Some(every), length) = (self.habits.schedules, self.rng.u64(50_000..300_000)) else { return };
        self.scheduling_until = self.now + length;
        let next = -(1.0 - self.rng.f64()).ln() * every;
        self.after(length + micros(next), Event::Schedule);
    }

    fn gap(&mut self) -> u64 {
        if self.rng.f64() < self.habits.long_pauses {
            return micros((2.0 * (1.0 - self.rng.f64()).powf(-1.0 / 1.5)).min(60.0));
        }
        micros(log_normal(&mut self.rng, self.habits.gap, 0.5))
    }

    async fn arrival(&mut self) {
        let pause = -(1.0 - self.rng.f64()).ln() / self.rate;
        self.after(micros(pause), Event::Arrival);
        if !self.is_closed() {
            self.set_clock().await;
        }
        if self.fault == Fault::Frozen {
            return;
        }
        let Ok(permit) = Arc::clone(&self.breaker).try_acquire_owned() else { return };
        self.sent += 1;
        let core = self.rng.usize(..self.watchers.len());
        let now = self.now();
        let watched = self.watchers[core].open(Some(&permit), now);
        if !self.looking[core] {
            self.looking[core] = true;
            self.after(tick(), Event::Look(core));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred")]
        let left = (-(1.0 - self.rng.f64()).ln() * self.habits.pieces) as u32 + 1;
        let stops_after = if self.fault == Fault::New { 4 } else { u32::MAX };
        let is_read_slowly = self.rng.u32(..100) < self.habits.slow_clients;
        let id = self.ids;
        watched.wait(now);
        self.under_way.insert(id, Stream { watched, permit, left, sent: 0, stops_after, is_read_slowly });
        let gap = self.gap();
        self.after(gap, Event::Piece(id));
    }

    fn piece(&mut self, id: u64) {
        if self.scheduling_until > self.now {
            let rest = self.scheduling_until - self.now;
            return self.after(rest, Event::Piece(id));
        }
        let now = self.now();
        let Some(stream) = self.under_way.get_mut(&id) else { return };
        if self.fault == Fault::Frozen || stream.sent >= stream.stops_after {
            self.stopped.push(id);
            return;
        }
        stream.watched.piece(now);
        stream.sent += 1;
        stream.left -= 1;
        if stream.left == 0 {
            let stream = self.under_way.remove(&id).expect("it is there");
            stream.permit.success();
            return;
        }
        if stream.is_read_slowly {
            self.after(1_000_000, Event::Ready(id));
        } else {
            stream.watched.wait(now);
        }
        let gap = self.gap();
        self.after(gap, Event::Piece(id));
    }

    /// The client has read what came.
    fn ready(&mut self, id: u64) {
        let now = self.now();
        if let Some(stream) = self.under_way.get(&id) {
            stream.watched.wait(now);
        }
    }

    async fn look(&mut self, core: usize) {
        self.set_clock().await;
        let now = self.now();
        self.watchers[core].look(now);
        self.looking[core] = self.watchers[core].streams() > 0;
        if self.looking[core] {
            self.after(tick(), Event::Look(core));
        }
    }
}
