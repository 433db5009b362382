//! Any sequence of calls, outcomes (late ones too) and passing time, against a plain model of the state machine that
//! shares nothing with the word: no bits, no generations, no wrapping ticks.

mod model;

use std::time::Duration;

use fusebox::{
    Abandoned, CircuitBreakerRegistry, Config, OwnedPermit, PermitType, ProbeGuard, Rejection, RejectionReason, Window,
};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::time::advance;

use model::{Circuit, Held, Model};

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
    /// Of the permit that was granted last, if there is one.
    ResolveLast(Outcome),
    /// By name, by a caller that may be mistaken about what it holds.
    Record(Outcome),
    RecordProbe(Outcome),
    TripFor(u64),
    Order(Order),
    Replace(Settings),
    Wait(u64),
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Isolate,
    Disable,
    Reset,
}

/// Settings, which a script may replace. Times are in milliseconds, rates in percent.
#[derive(Clone, Copy, Debug)]
struct Settings {
    failure_threshold: Option<u32>,
    failure_memory: Option<u64>,
    failure_rate: Option<u32>,
    slow_rate: Option<u32>,
    window: Window,
    min_calls: u32,
    abandoned: Abandoned,
    open_growth: u32,
    good_probes: u32,
    ramp: u64,
    ramp_from: u32,
}

const SLOW_AFTER: u64 = 20_000;

impl Settings {
    fn counts(&self) -> bool {
        self.failure_rate.is_some() || self.slow_rate.is_some()
    }

    fn notes_the_start(&self) -> bool {
        self.failure_memory.is_some() || self.slow_rate.is_some()
    }

    fn config(&self) -> Config {
        let millis = Duration::from_millis;
        Config::builder()
            .failure_threshold(self.failure_threshold)
            .failure_memory(self.failure_memory.map(millis))
            .failure_rate(self.failure_rate)
            .slow_rate(self.slow_rate)
            .slow_after(millis(SLOW_AFTER))
            .window(self.window)
            .min_calls(self.min_calls)
            .abandoned(self.abandoned)
            .open_growth(self.open_growth)
            .good_probes(self.good_probes)
            .ramp(millis(self.ramp))
            .ramp_from(self.ramp_from)
            .build()
            .expect("valid settings")
    }
}

fn settings() -> impl Strategy<Value = Settings> {
    let time = |millis| Window::Time(Duration::from_millis(millis));
    let window = prop_oneof![Just(time(10_000)), Just(time(90_000)), Just(Window::Calls(4)), Just(Window::Calls(7))];
    let rate = || prop_oneof![2 => Just(None), 1 => prop_oneof![Just(100), Just(50), Just(34)].prop_map(Some)];
    let row = prop_oneof![6 => (1..4_u32).prop_map(Some), 1 => Just(None)];
    let memory = prop_oneof![2 => Just(None), 1 => prop_oneof![Just(1), Just(25_000), Just(86_400_000)].prop_map(Some)];
    let abandoned = prop_oneof![Just(Abandoned::Ignored), Just(Abandoned::Failure)];
    let growth = prop_oneof![Just(100_u32), Just(150), Just(300)];
    let ramp =
        prop_oneof![2 => Just((0, 10)), 1 => Just((40_000, 1)), 1 => Just((40_000, 100)), 1 => Just((200_000, 50))];
    (row, memory, (rate(), rate(), window, 1..5_u32), abandoned, growth, 1..4_u32, ramp).prop_map(
        |(row, memory, (failure_rate, slow_rate, window, min_calls), abandoned, open_growth, good_probes, ramp)| {
            Settings {
                failure_threshold: row,
                failure_memory: memory,
                failure_rate,
                slow_rate,
                window,
                min_calls,
                abandoned,
                open_growth,
                good_probes,
                ramp: ramp.0,
                ramp_from: ramp.1,
            }
        },
    )
}

/// Rates alone, so that no row of failures comes first.
fn rates() -> impl Strategy<Value = Settings> {
    let time = |millis| Window::Time(Duration::from_millis(millis));
    let window = prop_oneof![Just(time(10_000)), Just(time(90_005)), (5..30_u32).prop_map(Window::Calls)];
    let rate = || prop_oneof![1 => Just(None), 4 => (20..=100_u32).prop_map(Some)];
    (settings(), rate(), rate(), window, 1..20_u32).prop_map(
        |(settings, failure_rate, slow_rate, window, min_calls)| {
            let min_calls = if let Window::Calls(calls) = window { min_calls.min(calls) } else { min_calls };
            Settings { failure_threshold: None, failure_rate, slow_rate, window, min_calls, ..settings }
        },
    )
}

/// A whole call, or time that passes.
fn call_or_time() -> impl Strategy<Value = Vec<Step>> {
    let call = |outcome| vec![Step::Acquire, Step::ResolveLast(outcome)];
    let slow = |outcome| vec![Step::Acquire, Step::Wait(SLOW_AFTER), Step::ResolveLast(outcome)];
    prop_oneof![
        20 => Just(call(Outcome::Success)),
        12 => Just(call(Outcome::Failure)),
        3 => Just(slow(Outcome::Success)),
        2 => Just(slow(Outcome::Failure)),
        1 => Just(vec![Step::Order(Order::Reset)]),
        5 => prop_oneof![Just(100), Just(1000), Just(9000), Just(OPEN_FOR)].prop_map(|millis| vec![Step::Wait(millis)]),
    ]
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
        Just(1000),
        Just(SLOW_AFTER),
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
        1 => settings().prop_map(Step::Replace),
        1 => prop_oneof![1 => Just(Order::Isolate), 1 => Just(Order::Disable), 3 => Just(Order::Reset)]
            .prop_map(Step::Order),
        3 => time.prop_map(Step::Wait),
    ]
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

/// On a ramp, chance decides.
fn check_turn(model: &Model, rejected: Rejection) -> Result<(), TestCaseError> {
    let Circuit::Recovering { until } = model.circuit else {
        return Err(TestCaseError::fail("there is no ramp"));
    };
    let left = u64::try_from(rejected.retry_after().expect("a turn has a time").as_millis()).unwrap();
    prop_assert!(!model.is_ramp_over() && model.settings.ramp_from < 100 && 0 < left && left < until - model.now + 1);
    Ok(())
}

async fn follow(settings: Settings, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let config = settings.config();
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
                    Err(rejected) if rejected.reason() == RejectionReason::Recovering => {
                        check_turn(&model, rejected)?;
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
            Step::ResolveLast(outcome) => {
                if let Some((permit, claimed)) = held.pop() {
                    resolve(permit, outcome);
                    model.resolve(claimed, outcome);
                }
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
            Step::Replace(settings) => {
                breakers.get(NAME).unwrap().set_config(settings.config());
                model.replace(settings);
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
    fn whatever_the_window_and_the_order_of_outcomes_a_rate_opens_it_when_the_plain_model_says(
        settings in rates(),
        steps in vec(call_or_time(), 1..200),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(follow(settings, steps.concat()))?;
    }

    #[test]
    fn whatever_happens_the_breaker_is_where_the_plain_model_is(settings in settings(), steps in vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(follow(settings, steps))?;
    }
}
