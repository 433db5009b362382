//! What depends on latencies, on what strangers send, and on the order in which things are told.

use super::*;
use crate::config::Config;
use crate::fleet::Hub;
use crate::fleet::config::Mode;
use crate::registry::CircuitBreakerRegistry;
use crate::sync::broadcast::Receiver;

const SECOND: Duration = Duration::from_secs(1);

/// Breakers whose calls take so long.
struct Slow(CircuitBreakerRegistry, Duration);

impl Circle for Slow {
    fn find(&self, name: &str) -> Option<Arc<CircuitBreaker>> {
        self.0.get(name)
    }

    fn shared_name(&self, breaker: &str) -> Option<Arc<str>> {
        Some(breaker.into())
    }

    fn not_closed(&self) -> Vec<Arc<str>> {
        Vec::new()
    }

    fn siblings(&self, _: &str) -> Vec<Arc<str>> {
        Vec::new()
    }

    fn subscribe(&self) -> Receiver<Transition> {
        self.0.subscribe()
    }

    fn median_latency(&self, _: &str) -> Option<Duration> {
        Some(self.1)
    }
}

fn config() -> FleetConfig {
    FleetConfig::hub(&Hub::new(Duration::ZERO)).mode(Mode::Quorum)
}

/// A replica with one breaker, whose calls take so long.
struct Here {
    topic: Topic,
    rules: Rules,
}

impl Here {
    fn new(breaker: Config, median: Duration) -> Self {
        let circle = Arc::new(Slow(CircuitBreakerRegistry::with_config(["p"], breaker), median));
        let topic = Topic::new("p".into(), circle.find("p").expect("it was inserted"));
        Self { topic, rules: Rules { replica: "here".to_owned(), config: config(), figures: Arc::default(), circle } }
    }

    fn step(&mut self, now: Instant, f: impl FnOnce(&mut Topic, &mut Step<'_>)) {
        f(&mut self.topic, &mut Step { rules: &self.rules, now, actions: &mut Vec::new() });
    }

    fn hears(&mut self, message: &Message, now: Instant) {
        self.step(now, |topic, step| topic.hear(message, step));
    }

    fn hears_two_openings(&mut self, left: Duration, now: Instant) {
        for replica in ["a", "b"] {
            self.hears(&Message::new(Kind::Open, "p", replica, left), now);
        }
    }
}

#[test]
fn a_deliberation_takes_three_medians_and_there_is_none_above_a_second() {
    let now = Instant::now();
    let decides_after = |median| {
        let mut here = Here::new(Config::default(), median);
        here.hears_two_openings(SECOND, now);
        here.topic.decide_at.map(|at| at - now)
    };
    assert_eq!(decides_after(Duration::from_millis(1)), Some(Duration::from_millis(50)));
    assert_eq!(decides_after(SECOND / 4), Some(SECOND * 3 / 4));
    assert_eq!(decides_after(SECOND / 2), None);
}

#[test]
fn what_others_say_stands_for_twice_the_own_open_time_and_three_looks_at_most() {
    let now = Instant::now();
    let mut here = Here::new(Config::default(), SECOND);
    here.hears_two_openings(Duration::from_millis(u64::MAX), now);
    let longest = here.topic.open_for() * 2 + config().sync * 3;
    assert_eq!(here.topic.beliefs.stands_until(), Some(now + longest));
}

#[test]
fn a_closing_that_the_fleet_has_made_undoes_nothing_that_was_heard_after_it() {
    let now = Instant::now();
    for ramp in [Duration::ZERO, SECOND] {
        let mut here = Here::new(Config::builder().ramp(ramp).build().expect("a valid one"), SECOND / 10);
        let mut transitions = here.rules.circle.subscribe();
        here.hears(&Message::new(Kind::Open, "p", "a", SECOND).because(COOLDOWN, "429"), now);
        here.hears(&Message::new(Kind::Closed, "p", "a", Duration::ZERO), now);
        here.hears_two_openings(SECOND, now);
        assert!(here.topic.decide_at.is_some());
        let mut told = 0;
        while let Ok(transition) = transitions.try_recv() {
            here.step(now, |topic, step| topic.transition(&transition, step));
            told += 1;
        }
        assert_eq!(told, 2, "it opened and closed");
        assert!(here.topic.decide_at.is_some() && here.topic.made.is_empty(), "with a ramp of {ramp:?}");
    }
}
