//! Any sequence of calls, outcomes (late ones too) and passing time, against a plain model of the state machine that
//! shares nothing with the word: no bits, no generations, no wrapping ticks.

use std::time::Duration;

use fusebox::{
    BreakerSnapshot, Cause, CircuitBreakerRegistry, CircuitState, Config, OwnedPermit, PermitType, ProbeGuard,
    RejectionReason,
};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::time::advance;

const NAME: &str = "openai";
const OPEN_FOR: u64 = 30_000;
const OPEN_CAP: u64 = 300_000;
const LEASE: u64 = 60_000;

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Success,
    Failure,
    Cancel,
    Drop,
    CancelOnDrop,
    /// For so many milliseconds.
    CoolDown(u64),
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Acquire,
    /// Of any permit that is held, however old.
    Resolve(prop::sample::Index, Outcome),
    /// By name, by a caller that may be mistaken about what it holds.
    Record(Outcome),
    RecordProbe(Outcome),
    TripFor(u64),
    Order(Order),
    Wait(u64),
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Isolate,
    Disable,
    Reset,
}

/// The settings that a script runs with.
#[derive(Clone, Copy, Debug)]
struct Settings {
    failure_threshold: u32,
    open_growth: u32,
    good_probes: u32,
}

fn settings() -> impl Strategy<Value = Settings> {
    let growth = prop_oneof![Just(100_u32), Just(150), Just(300)];
    (1..4_u32, growth, 1..4_u32).prop_map(|(failure_threshold, open_growth, good_probes)| Settings {
        failure_threshold,
        open_growth,
        good_probes,
    })
}

fn step() -> impl Strategy<Value = Step> {
    use Outcome::{Cancel, CancelOnDrop, CoolDown, Drop, Failure, Success};
    let cooldown = || prop_oneof![Just(0), Just(1), Just(OPEN_FOR), 0..200_000_u64, Just(86_400_000)];
    let outcome = prop_oneof![
        3 => Just(Success),
        6 => Just(Failure),
        1 => Just(Cancel),
        1 => Just(Drop),
        1 => Just(CancelOnDrop),
        2 => cooldown().prop_map(CoolDown),
    ];
    let time = prop_oneof![
        Just(1),
        Just(OPEN_FOR - 1),
        Just(OPEN_FOR),
        Just(LEASE - 1),
        Just(LEASE),
        0..100_000_u64,
        Just(86_400_000)
    ];
    prop_oneof![
        8 => Just(Step::Acquire),
        10 => (any::<prop::sample::Index>(), outcome).prop_map(|(index, outcome)| Step::Resolve(index, outcome)),
        2 => prop_oneof![1 => Just(Success), 3 => Just(Failure)].prop_map(Step::Record),
        1 => prop_oneof![Just(Success), Just(Failure), Just(Drop), cooldown().prop_map(CoolDown)]
            .prop_map(Step::RecordProbe),
        1 => cooldown().prop_map(Step::TripFor),
        1 => prop_oneof![1 => Just(Order::Isolate), 1 => Just(Order::Disable), 3 => Just(Order::Reset)]
            .prop_map(Step::Order),
        3 => time.prop_map(Step::Wait),
    ]
}

enum Circuit {
    Closed,
    Open { until: u64, cause: Cause },
    HalfOpen { probe: Option<Probe>, last_lease_end: u64, good: u32 },
    Isolated,
    Disabled,
}

#[derive(Clone, Copy)]
struct Probe {
    number: u64,
    lease_end: u64,
}

/// What a caller was given.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    Normal { openings: u64 },
    Probe { number: u64 },
}

struct Model {
    settings: Settings,
    now: u64,
    circuit: Circuit,
    failures: u32,
    trips: u64,
    failed_probe_count: u64,
    /// Failed recoveries in a row.
    failed_recoveries: u32,
    /// Openings of every kind, ever.
    openings: u64,
    probes: u64,
    last_error: Option<&'static str>,
}

impl Model {
    fn new(settings: Settings) -> Self {
        Self {
            settings,
            now: 0,
            circuit: Circuit::Closed,
            failures: 0,
            trips: 0,
            failed_probe_count: 0,
            failed_recoveries: 0,
            openings: 0,
            probes: 0,
            last_error: None,
        }
    }

    /// Why a call would be rejected now, and for how long.
    fn rejection(&self) -> Option<(RejectionReason, Option<Cause>, Option<u64>)> {
        match self.circuit {
            Circuit::Isolated => Some((RejectionReason::Open, Some(Cause::Isolated), None)),
            Circuit::Open { until, cause } if self.now < until => {
                Some((RejectionReason::Open, Some(cause), Some(until - self.now)))
            }
            Circuit::HalfOpen { probe: Some(probe), .. } if self.now < probe.lease_end => {
                Some((RejectionReason::ProbeInFlight, None, Some(probe.lease_end - self.now)))
            }
            _ => None,
        }
    }

    fn acquire(&mut self) -> Held {
        if matches!(self.circuit, Circuit::Closed | Circuit::Disabled) {
            return Held::Normal { openings: self.openings };
        }
        self.probes += 1;
        // No two probes of one opening have the same lease.
        let (lease_end, good) = match self.circuit {
            Circuit::HalfOpen { last_lease_end, good, .. } => ((self.now + LEASE).max(last_lease_end + 1), good),
            _ => (self.now + LEASE, 0),
        };
        let probe = Some(Probe { number: self.probes, lease_end });
        self.circuit = Circuit::HalfOpen { probe, last_lease_end: lease_end, good };
        Held::Probe { number: self.probes }
    }

    fn resolve(&mut self, held: Held, outcome: Outcome) {
        match held {
            Held::Normal { openings } if openings == self.openings => {
                self.record(outcome);
            }
            Held::Probe { number } if self.probe() == Some(number) => {
                self.record_probe(outcome);
            }
            // A cooldown is news of the moment in which it is told.
            Held::Normal { .. } | Held::Probe { .. } => {
                if let Outcome::CoolDown(millis) = outcome {
                    self.cool_down(millis);
                }
            }
        }
    }

    /// Whether it counts.
    fn cool_down(&mut self, millis: u64) -> bool {
        match self.circuit {
            Circuit::Closed => self.trips += 1,
            Circuit::Open { until, .. } if until.saturating_sub(self.now) < millis => {}
            Circuit::HalfOpen { probe: None, .. } => self.failed_probe_count += 1,
            _ => return false,
        }
        self.open("429", Cause::Cooldown, millis);
        true
    }

    fn probe(&self) -> Option<u64> {
        match self.circuit {
            Circuit::HalfOpen { probe, .. } => probe.map(|probe| probe.number),
            _ => None,
        }
    }

    fn order(&mut self, order: Order) {
        self.openings += 1;
        self.failures = 0;
        self.circuit = match order {
            Order::Isolate => {
                self.last_error = Some("isolated");
                Circuit::Isolated
            }
            Order::Disable => Circuit::Disabled,
            Order::Reset => Circuit::Closed,
        };
        self.failed_recoveries = 0;
    }

    /// Whether it counts.
    fn record(&mut self, outcome: Outcome) -> bool {
        if !matches!(self.circuit, Circuit::Closed) {
            return false;
        }
        match outcome {
            Outcome::Success => self.failures = 0,
            Outcome::Failure => {
                self.failures += 1;
                if self.failures == self.settings.failure_threshold {
                    self.trips += 1;
                    self.open("5xx", Cause::Failures, OPEN_FOR);
                }
            }
            Outcome::CoolDown(millis) => {
                self.cool_down(millis);
            }
            Outcome::Cancel | Outcome::Drop | Outcome::CancelOnDrop => {}
        }
        true
    }

    fn record_probe(&mut self, outcome: Outcome) -> bool {
        let Circuit::HalfOpen { probe: Some(Probe { lease_end, .. }), good, .. } = self.circuit else {
            return false;
        };
        match outcome {
            Outcome::Success if good + 1 == self.settings.good_probes => self.close(),
            Outcome::Success => {
                self.circuit = Circuit::HalfOpen { probe: None, last_lease_end: lease_end, good: good + 1 };
            }
            Outcome::Failure | Outcome::Drop => {
                self.failed_probe_count += 1;
                self.failed_recoveries += 1;
                let error = if matches!(outcome, Outcome::Drop) { "dropped" } else { "5xx" };
                self.open(error, Cause::Failures, self.open_time());
            }
            Outcome::CoolDown(millis) => {
                self.failed_probe_count += 1;
                self.open("429", Cause::Cooldown, millis);
            }
            Outcome::Cancel | Outcome::CancelOnDrop => {
                self.circuit = Circuit::HalfOpen { probe: None, last_lease_end: lease_end, good };
            }
        }
        true
    }

    fn open_time(&self) -> u64 {
        (0..self.failed_recoveries).fold(OPEN_FOR, |time, _| {
            if self.settings.open_growth > 100 {
                (time * u64::from(self.settings.open_growth)).div_ceil(100).min(OPEN_CAP)
            } else {
                time
            }
        })
    }

    fn open(&mut self, error: &'static str, cause: Cause, time: u64) {
        self.openings += 1;
        self.last_error = Some(error);
        self.circuit = Circuit::Open { until: self.now + time, cause };
    }

    fn close(&mut self) {
        self.failures = 0;
        self.failed_recoveries = 0;
        self.circuit = Circuit::Closed;
    }

    fn check(&self, breakers: &CircuitBreakerRegistry) -> Result<(), TestCaseError> {
        let breaker = breakers.get(NAME).unwrap();
        let seen = breaker.snapshot();
        let (state, open_left) = match self.circuit {
            Circuit::Closed => (CircuitState::Closed, None),
            Circuit::Open { until, .. } => {
                (CircuitState::Open, Some(Duration::from_millis(until.saturating_sub(self.now))))
            }
            Circuit::HalfOpen { .. } => (CircuitState::HalfOpen, None),
            Circuit::Isolated => (CircuitState::Open, None),
            Circuit::Disabled => (CircuitState::Disabled, None),
        };
        let cause = match self.circuit {
            Circuit::Open { cause, .. } => Some(cause),
            Circuit::Isolated => Some(Cause::Isolated),
            _ => None,
        };
        prop_assert_eq!(seen.cause, cause);
        let BreakerSnapshot { failure_count, trip_count, failed_probe_count, probe_in_flight, next_probe_in, .. } =
            seen;
        prop_assert_eq!((seen.state, next_probe_in), (state, open_left));
        prop_assert_eq!(
            (failure_count, trip_count, failed_probe_count),
            (self.failures, self.trips, self.failed_probe_count)
        );
        prop_assert_eq!(probe_in_flight, self.probe().is_some());
        prop_assert_eq!(seen.last_error.as_deref().map(fusebox::LastError::error_type), self.last_error);
        prop_assert_eq!(breaker.would_allow(), self.rejection().is_none());
        prop_assert_eq!(breakers.state(NAME), Some(state));
        Ok(())
    }
}

fn resolve(permit: OwnedPermit, outcome: Outcome) {
    match outcome {
        Outcome::Success => permit.success(),
        Outcome::Failure => permit.failure("5xx", "test"),
        Outcome::Cancel => permit.cancel(),
        Outcome::Drop => drop(permit),
        Outcome::CancelOnDrop => drop(permit.cancel_on_drop()),
        Outcome::CoolDown(millis) => permit.cool_down(Duration::from_millis(millis), "429", "test"),
    }
}

fn record(breakers: &CircuitBreakerRegistry, outcome: Outcome) -> bool {
    match outcome {
        Outcome::Success => breakers.record_success(NAME),
        _ => breakers.record_failure(NAME, "5xx", "test"),
    }
}

/// Dropping a guard does not say whether it counted.
fn record_probe(breakers: &CircuitBreakerRegistry, outcome: Outcome) -> Option<bool> {
    match outcome {
        Outcome::Success => Some(breakers.record_probe_success(NAME)),
        Outcome::Drop => {
            drop(ProbeGuard::new(breakers, NAME));
            None
        }
        Outcome::CoolDown(millis) => {
            Some(ProbeGuard::new(breakers, NAME).cool_down(Duration::from_millis(millis), "429", "test"))
        }
        _ => Some(breakers.record_probe_failure(NAME, "5xx", "test")),
    }
}

async fn follow(settings: Settings, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let Settings { failure_threshold, open_growth, good_probes } = settings;
    let config = Config::builder().failure_threshold(failure_threshold).open_growth(open_growth);
    let config = config.good_probes(good_probes).build().unwrap();
    let breakers = CircuitBreakerRegistry::with_config([NAME], config);
    let mut model = Model::new(settings);
    let mut held: Vec<(OwnedPermit, Held)> = Vec::new();
    for step in steps {
        match step {
            Step::Acquire => {
                let expected = model.rejection();
                match breakers.get(NAME).unwrap().try_acquire_owned() {
                    Ok(permit) => {
                        prop_assert_eq!(expected, None, "should have been rejected");
                        let claimed = model.acquire();
                        let is_probe = matches!(claimed, Held::Probe { .. });
                        prop_assert_eq!(permit.kind() == PermitType::Probe, is_probe);
                        held.push((permit, claimed));
                    }
                    Err(rejected) => {
                        let left = rejected.retry_after().map(|left| u64::try_from(left.as_millis()).unwrap());
                        prop_assert_eq!(Some((rejected.reason(), rejected.cause(), left)), expected);
                    }
                }
            }
            Step::Resolve(_, _) if held.is_empty() => {}
            Step::Resolve(index, outcome) => {
                let (permit, claimed) = held.swap_remove(index.index(held.len()));
                resolve(permit, outcome);
                model.resolve(claimed, outcome);
            }
            Step::Record(outcome) => {
                prop_assert_eq!(record(&breakers, outcome), model.record(outcome));
            }
            Step::RecordProbe(outcome) => {
                let counted = record_probe(&breakers, outcome);
                let expected = model.record_probe(outcome);
                prop_assert!(counted.is_none_or(|counted| counted == expected));
            }
            Step::TripFor(millis) => {
                let counted = breakers.get(NAME).unwrap().trip_for(Duration::from_millis(millis), "429", "test");
                prop_assert_eq!(counted, model.cool_down(millis));
            }
            Step::Order(order) => {
                let breaker = breakers.get(NAME).unwrap();
                match order {
                    Order::Isolate => breaker.isolate("test"),
                    Order::Disable => breaker.disable(),
                    Order::Reset => breaker.reset(),
                }
                model.order(order);
            }
            Step::Wait(millis) => {
                advance(Duration::from_millis(millis)).await;
                model.now += millis;
            }
        }
        model.check(&breakers)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_breaker_is_where_the_plain_model_is(settings in settings(), steps in vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(follow(settings, steps))?;
    }
}
