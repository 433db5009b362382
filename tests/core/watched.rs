//! A breaker that is watched for silence, and whose time goes on by hand, for `silence`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fusebox::silence::{Alarm, Config, ConfigBuilder, Detector, TICK, Ticket, Watcher};
use fusebox::{CircuitBreaker, CircuitState, OwnedPermit, PermitType};
use tokio::time::advance;

pub(crate) const MS: Duration = Duration::from_millis(1);

/// A breaker, and what watches it on each of its cores. The time goes on by hand; that of the breaker only where
/// that matters.
pub(crate) struct Watched {
    pub(crate) breaker: Arc<CircuitBreaker>,
    pub(crate) detector: Arc<Detector>,
    pub(crate) watchers: Vec<Watcher>,
    pub(crate) now: Instant,
}

pub(crate) struct Call {
    pub(crate) core: usize,
    pub(crate) permit: OwnedPermit,
    pub(crate) ticket: Ticket,
}

impl Watched {
    pub(crate) fn new(cores: usize, config: ConfigBuilder) -> Self {
        Self::of(Arc::new(CircuitBreaker::builder("openai").build().unwrap()), cores, config)
    }

    pub(crate) fn of(breaker: Arc<CircuitBreaker>, cores: usize, config: ConfigBuilder) -> Self {
        let detector = Arc::new(Detector::new(Arc::clone(&breaker), config.build().unwrap(), cores));
        let watchers = (0..cores).map(|_| detector.watcher().unwrap()).collect();
        Self { breaker, detector, watchers, now: tokio::time::Instant::now().into_std() }
    }

    /// One core that has learnt that answers take 20 ms. No more than it needs: miri takes its time.
    pub(crate) fn warm() -> Self {
        let mut watched = Self::new(1, Config::builder());
        watched.learn(150);
        watched
    }

    pub(crate) fn learn(&mut self, answers: usize) {
        for _ in 0..answers {
            self.answer_one();
        }
    }

    /// One request on each core, which are all answered.
    pub(crate) fn answer_one(&mut self) {
        let calls: Vec<_> = (0..self.watchers.len()).map(|core| self.call_on(core)).collect();
        for _ in 0..4 {
            assert!(self.tick().is_empty(), "all is well");
        }
        for call in calls {
            self.answer(call);
        }
    }

    pub(crate) fn call(&mut self) -> Call {
        self.call_on(0)
    }

    pub(crate) fn calls(&mut self, calls: usize) -> Vec<Call> {
        (0..calls).map(|_| self.call()).collect()
    }

    pub(crate) fn call_on(&mut self, core: usize) -> Call {
        let permit = Arc::clone(&self.breaker).try_acquire_owned().expect("let through");
        let ticket = self.watchers[core].start(&permit, self.now);
        Call { core, permit, ticket }
    }

    pub(crate) fn answer(&mut self, Call { core, permit, ticket }: Call) {
        self.watchers[core].answered(ticket, self.now);
        permit.success();
    }

    pub(crate) fn withdraw(&mut self, Call { core, permit, ticket }: Call) {
        self.watchers[core].withdrawn(ticket, self.now);
        permit.cancel();
    }

    /// A tick passes, and then every core looks.
    pub(crate) fn tick(&mut self) -> Vec<Alarm> {
        self.now += TICK;
        self.look()
    }

    pub(crate) fn look(&mut self) -> Vec<Alarm> {
        self.watchers.iter_mut().filter_map(|watcher| watcher.look(self.now)).collect()
    }

    /// The same until there is an alarm, or the time is over.
    pub(crate) fn look_for(&mut self, time: Duration) -> Option<(Duration, Alarm)> {
        let mut passed = Duration::ZERO;
        while passed < time {
            passed += TICK;
            if let Some(&alarm) = self.tick().first() {
                return Some((passed, alarm));
            }
        }
        None
    }

    /// Advances the time by the open time, for the breaker as well, without waking waiters.
    pub(crate) async fn probe(&mut self) -> Call {
        advance(Duration::from_secs(30)).await;
        let probe = self.call();
        assert_eq!(probe.permit.kind(), PermitType::Probe);
        probe
    }

    /// Requests that are not answered, until that is noticed.
    pub(crate) fn fall_silent(&mut self) -> Vec<Call> {
        let calls = self.calls(5);
        self.look_for(100 * MS).expect("noticed");
        assert!(self.breaker.snapshot().silent);
        calls
    }

    pub(crate) fn state(&self) -> CircuitState {
        self.breaker.state()
    }
}
