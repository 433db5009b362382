//! Follows a script with real threads, and records what happened when.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::breaker::CircuitBreaker;
use crate::call::{Answer, Call, Kind, Order, Outcome, Policies, Time, Value};
use crate::config::{Abandoned, Config};
use crate::error::Rejection;
use crate::permit::{OwnedPermit, PermitType};
use crate::registry::CircuitBreakerRegistry;
use crate::spec::{LEASE, OPEN_FOR};
use crate::sync::CLOCK;
use crate::sync::time::advance;

pub(crate) const FAILURE_THRESHOLD: u32 = 2;
const THREADS: usize = 3;
/// It is not over before the history is.
const RAMP: Duration = Duration::from_secs(24 * 60 * 60);
const NAME: &str = "a";

/// A thread that waits longer than this waits for ever: nothing here sleeps.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
enum Step {
    TryAcquire,
    /// As `TryAcquire` for a thread that holds a probe, or it might wait for itself.
    Acquire,
    /// The permit of that place among those that the thread holds, if it holds one.
    Resolve(prop::sample::Index, Outcome),
    Record(PermitType, Outcome),
    TripFor(Time),
    Order(Order),
    Replace(bool),
    Look,
    WouldAllow,
    /// Not a call: the clock goes on.
    Advance(Time),
}

/// How a history begins, and what each thread does then.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) policies: Policies,
    before: Before,
    threads: Vec<Vec<Step>>,
}

#[derive(Clone, Copy, Debug)]
enum Before {
    Closed,
    OneFailure,
    Open,
    Due,
    /// The first thread holds the probe.
    Probing,
    /// The same, and its lease is over.
    Hung,
    /// It has been open meanwhile: the first thread holds a permit from before that, and a new row of failures has
    /// begun.
    ClosedAgain,
}

pub(crate) fn script() -> impl Strategy<Value = Script> {
    let before = prop_oneof![
        1 => Just(Before::Closed),
        1 => Just(Before::OneFailure),
        1 => Just(Before::Open),
        3 => Just(Before::Due),
        4 => Just(Before::Probing),
        2 => Just(Before::Hung),
        2 => Just(Before::ClosedAgain),
    ];
    let policies = (1..3_u32, any::<bool>(), any::<bool>()).prop_map(|(good_probes, abandoned_fails, ramp)| Policies {
        good_probes,
        abandoned_fails,
        ramp,
    });
    (policies, before, vec(vec(step(), 2..8), THREADS)).prop_map(|(policies, before, threads)| Script {
        policies,
        before,
        threads,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = || {
        prop_oneof![
            3 => Just(Outcome::Success),
            4 => Just(Outcome::Failure),
            2 => Just(Outcome::Cancel),
            1 => Just(Outcome::Drop),
        ]
    };
    let recorded = || prop_oneof![Just(Outcome::Success), Just(Outcome::Failure)];
    let kind = prop_oneof![Just(PermitType::Normal), Just(PermitType::Probe)];
    prop_oneof![
        5 => Just(Step::TryAcquire),
        4 => Just(Step::Acquire),
        8 => (any::<prop::sample::Index>(), outcome()).prop_map(|(index, outcome)| Step::Resolve(index, outcome)),
        3 => (kind, recorded()).prop_map(|(kind, outcome)| Step::Record(kind, outcome)),
        1 => prop_oneof![Just(1), Just(OPEN_FOR), Just(LEASE)].prop_map(Step::TripFor),
        1 => prop_oneof![Just(Order::Isolate), Just(Order::Disable), Just(Order::Reset), Just(Order::Reset)]
            .prop_map(Step::Order),
        1 => any::<bool>().prop_map(Step::Replace),
        1 => Just(Step::Look),
        1 => Just(Step::WouldAllow),
        2 => prop_oneof![Just(1), Just(OPEN_FOR), Just(LEASE)].prop_map(Step::Advance),
    ]
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Invoke(usize, Call),
    Return(usize, Answer),
}

/// In the order in which it happened.
pub(crate) struct History {
    pub(crate) events: Vec<Event>,
    /// How many calls slept until they were woken.
    pub(crate) waits: usize,
}

impl History {
    /// Whether some call began before another had returned.
    pub(crate) fn overlaps(&self) -> bool {
        self.events.windows(2).any(|pair| matches!(pair, [Event::Invoke(..), Event::Invoke(..)]))
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in &self.events {
            match event {
                Event::Invoke(thread, call) => writeln!(f, "{:indent$}{thread}: {call:?}", "", indent = thread * 4)?,
                Event::Return(thread, answer) => {
                    writeln!(f, "{:indent$}{thread}: -> {answer:?}", "", indent = thread * 4)?;
                }
            }
        }
        Ok(())
    }
}

/// What the threads of one history share.
struct Shared {
    breakers: CircuitBreakerRegistry,
    breaker: Arc<CircuitBreaker>,
    /// Numbers events in their order.
    order: AtomicUsize,
    /// Numbers calls.
    calls: AtomicUsize,
    waits: AtomicUsize,
}

/// One thread's part.
struct Caller {
    thread: usize,
    shared: Arc<Shared>,
    held: Vec<(usize, OwnedPermit)>,
    events: Vec<(usize, Event)>,
}

impl Caller {
    fn new(thread: usize, shared: &Arc<Shared>) -> Self {
        Self { thread, shared: Arc::clone(shared), held: Vec::new(), events: Vec::new() }
    }

    fn record(&mut self, event: Event) {
        self.events.push((self.shared.order.fetch_add(1, Ordering::SeqCst), event));
    }

    fn call(&mut self, kind: Kind, make: impl FnOnce(&mut Self) -> Value) {
        let call = Call { kind, at: CLOCK.millis() };
        self.record(Event::Invoke(self.thread, call));
        let value = make(self);
        let answer = Answer { value, at: CLOCK.millis() };
        self.record(Event::Return(self.thread, answer));
    }

    fn number(&self) -> usize {
        self.shared.calls.fetch_add(1, Ordering::Relaxed)
    }

    fn step(&mut self, step: Step) {
        let breaker = Arc::clone(&self.shared.breaker);
        match step {
            Step::Acquire if self.held.iter().all(|(_, permit)| permit.kind() == PermitType::Normal) => {
                let number = self.number();
                self.call(Kind::Acquire(number), |caller| {
                    let (answer, slept) = block_on(breaker.acquire_owned());
                    caller.shared.waits.fetch_add(usize::from(slept), Ordering::Relaxed);
                    caller.hold(number, answer)
                });
            }
            Step::TryAcquire | Step::Acquire => {
                let number = self.number();
                self.call(Kind::TryAcquire(number), |caller| caller.hold(number, breaker.try_acquire_owned()));
            }
            Step::Resolve(..) if self.held.is_empty() => {}
            Step::Resolve(index, outcome) => {
                let (holder, permit) = self.held.swap_remove(index.index(self.held.len()));
                self.resolve(holder, permit, outcome);
            }
            Step::Record(kind, outcome) => {
                let number = self.number();
                self.call(Kind::Record(kind, outcome, number), |caller| {
                    let (breakers, message) = (&caller.shared.breakers, number.to_string());
                    Value::Counted(match (kind, outcome) {
                        (PermitType::Normal, Outcome::Success) => breakers.record_success(NAME),
                        (PermitType::Normal, _) => breakers.record_failure(NAME, "test", message),
                        (PermitType::Probe, Outcome::Success) => breakers.record_probe_success(NAME),
                        (PermitType::Probe, _) => breakers.record_probe_failure(NAME, "test", message),
                    })
                });
            }
            Step::TripFor(millis) => {
                let number = self.number();
                self.call(Kind::TripFor(millis, number), |_| {
                    Value::Counted(breaker.trip_for(Duration::from_millis(millis), "test", number))
                });
            }
            Step::Order(order) => self.call(Kind::Order(order), |_| {
                match order {
                    Order::Isolate => breaker.isolate("by hand"),
                    Order::Disable => breaker.disable(),
                    Order::Reset => breaker.reset(),
                }
                Value::Done
            }),
            Step::Replace(with_rate) => self.call(Kind::Replace, |_| {
                let rate = with_rate.then_some(100);
                let config = breaker.config().to_builder().failure_rate(rate).min_calls(10_000).build();
                breaker.set_config(config.expect("a sound configuration"));
                Value::Done
            }),
            Step::Look => self.look(),
            Step::WouldAllow => self.call(Kind::WouldAllow, |_| Value::Allowed(breaker.would_allow())),
            Step::Advance(by) => advance(Duration::from_millis(by)),
        }
    }

    fn hold(&mut self, number: usize, answer: Result<OwnedPermit, Rejection>) -> Value {
        match answer {
            Ok(permit) => {
                let kind = permit.kind();
                self.held.push((number, permit));
                Value::Granted(kind)
            }
            Err(rejection) => Value::Rejected(rejection.reason()),
        }
    }

    fn resolve(&mut self, holder: usize, permit: OwnedPermit, outcome: Outcome) {
        self.call(Kind::Resolve(holder, outcome), |_| {
            match outcome {
                Outcome::Success => permit.success(),
                Outcome::Failure => permit.failure("test", holder),
                Outcome::Cancel => permit.cancel(),
                Outcome::Drop => drop(permit),
            }
            Value::Done
        });
    }

    fn look(&mut self) {
        self.call(Kind::Look, |caller| {
            let seen = caller.shared.breaker.snapshot();
            Value::Seen { state: seen.state, failure_count: seen.failure_count, probe_in_flight: seen.probe_in_flight }
        });
    }

    /// Nothing stays behind that somebody might wait for.
    fn finish(mut self) -> Vec<(usize, Event)> {
        for (holder, permit) in std::mem::take(&mut self.held) {
            self.resolve(holder, permit, Outcome::Drop);
        }
        self.events
    }
}

/// The answer, and whether the thread had to be woken for it.
fn block_on<T>(call: impl Future<Output = T>) -> (T, bool) {
    struct Unpark(thread::Thread);

    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Arc::new(Unpark(thread::current())).into();
    let mut call = std::pin::pin!(call);
    let mut slept = false;
    loop {
        if let std::task::Poll::Ready(output) = call.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            return (output, slept);
        }
        slept = true;
        thread::park();
    }
}

pub(crate) fn follow(script: &Script, n: usize) -> History {
    let config = Config::builder()
        .failure_threshold(FAILURE_THRESHOLD)
        .open_for(Duration::from_millis(OPEN_FOR))
        .probe_lease(Duration::from_millis(LEASE))
        .good_probes(script.policies.good_probes)
        .abandoned(if script.policies.abandoned_fails { Abandoned::Failure } else { Abandoned::Ignored })
        .ramp(if script.policies.ramp { RAMP } else { Duration::ZERO })
        .build()
        .expect("a sound configuration");
    let breakers = CircuitBreakerRegistry::with_config([NAME], config);
    let breaker = breakers.get(NAME).expect("just inserted");
    let shared = Arc::new(Shared {
        breakers,
        breaker,
        order: AtomicUsize::new(0),
        calls: AtomicUsize::new(0),
        waits: AtomicUsize::new(0),
    });

    let mut callers: Vec<_> = (0..THREADS).map(|thread| Caller::new(thread, &shared)).collect();
    prepare(script, &mut callers[0]);
    let ready = Arc::new(AtomicUsize::new(0));
    let (sender, finished) = mpsc::channel();
    for (mut caller, steps) in callers.into_iter().zip(script.threads.clone()) {
        let (sender, ready) = (sender.clone(), Arc::clone(&ready));
        thread::spawn(move || {
            // Not a `Barrier`, which wakes them one by one.
            ready.fetch_add(1, Ordering::SeqCst);
            while ready.load(Ordering::SeqCst) < THREADS {
                thread::yield_now();
            }
            for step in steps {
                caller.step(step);
            }
            // The receiver is gone if another thread has been given up.
            let _ = sender.send(caller.finish());
        });
    }
    drop(sender);

    let mut events = Vec::new();
    for _ in 0..THREADS {
        let Ok(of_one) = finished.recv_timeout(DEADLINE) else {
            panic!("failed in execution {n}: a call never returned, or panicked\n{script:?}");
        };
        events.extend(of_one);
    }
    let mut last = Caller::new(0, &shared);
    last.look();
    last.call(Kind::Final, |caller| {
        let seen = caller.shared.breaker.snapshot();
        let last_error = seen.last_error.map(|error| {
            if error.error_type() == "dropped" { "dropped".to_owned() } else { error.message().to_owned() }
        });
        Value::Final { trip_count: seen.trip_count, failed_probe_count: seen.failed_probe_count, last_error }
    });
    events.extend(last.finish());
    events.sort_by_key(|(order, _)| *order);
    History {
        events: events.into_iter().map(|(_, event)| event).collect(),
        waits: shared.waits.load(Ordering::Relaxed),
    }
}

fn prepare(script: &Script, first: &mut Caller) {
    let fail = |first: &mut Caller| first.step(Step::Record(PermitType::Normal, Outcome::Failure));
    let trip = |first: &mut Caller| (0..FAILURE_THRESHOLD).for_each(|_| fail(first));
    match script.before {
        Before::Closed => {}
        Before::OneFailure => fail(first),
        Before::Open => trip(first),
        Before::Due | Before::Probing | Before::Hung => {
            trip(first);
            first.step(Step::Advance(OPEN_FOR));
            if !matches!(script.before, Before::Due) {
                first.step(Step::TryAcquire);
            }
            if matches!(script.before, Before::Hung) {
                first.step(Step::Advance(LEASE));
            }
        }
        Before::ClosedAgain => {
            first.step(Step::TryAcquire);
            trip(first);
            first.step(Step::Advance(OPEN_FOR));
            for _ in 0..script.policies.good_probes {
                first.step(Step::TryAcquire);
                let (probe, permit) = first.held.pop().expect("the circuit takes its probe");
                first.resolve(probe, permit, Outcome::Success);
            }
            fail(first);
        }
    }
}
