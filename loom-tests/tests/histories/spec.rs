//! The breaker for one call at a time, without a word, a generation or a tick.

use std::collections::BTreeMap;

use stateright::semantics::SequentialSpec;

use crate::call::{Answer, Call, Holder, Kind, Order, Outcome, Policies, Time, Value};
use crate::error::RejectionReason;
use crate::permit::PermitType;
use crate::transition::CircuitState;

pub(crate) const OPEN_FOR: Time = 10;
pub(crate) const LEASE: Time = 20;

/// When a time limit that some call set may end: the call read the clock once, between its beginning and its end.
#[derive(Clone, Copy, Debug)]
struct Limit {
    earliest: Time,
    latest: Time,
}

impl Limit {
    fn set(call: &Call, answer: &Answer, length: Time) -> Self {
        Self { earliest: call.at + length, latest: answer.at + length }
    }

    /// Whether the call may have found it over.
    fn may_be_over(self, answer: &Answer) -> bool {
        answer.at >= self.earliest
    }

    /// Whether the call may have found it running.
    fn may_be_running(self, call: &Call) -> bool {
        call.at < self.latest
    }
}

#[derive(Clone, Copy, Debug)]
enum Circuit {
    Closed,
    /// A ramp that does not end before the history does, and on which every call has its turn at once.
    Recovering,
    Open(Limit),
    /// The lease of the probe that is in flight, or of the last one that was; and the good probes until now.
    HalfOpen {
        probe: Option<u64>,
        lease: Limit,
        good: u32,
    },
    Isolated,
    Disabled,
}

/// What a caller was given.
#[derive(Clone, Copy, Debug)]
enum Held {
    Normal { openings: u64 },
    Probe { number: u64 },
}

#[derive(Clone, Debug)]
pub(crate) struct Spec {
    failure_threshold: u32,
    policies: Policies,
    circuit: Circuit,
    failure_count: u32,
    /// Whether an order by hand was the last thing that began a generation.
    by_order: bool,
    openings: u64,
    trips: u64,
    failed_probes: u64,
    probes: u64,
    held: BTreeMap<Holder, Held>,
    last_error: Option<String>,
}

impl Spec {
    pub(crate) fn new(failure_threshold: u32, policies: Policies) -> Self {
        Self {
            failure_threshold,
            policies,
            circuit: Circuit::Closed,
            failure_count: 0,
            by_order: false,
            openings: 0,
            trips: 0,
            failed_probes: 0,
            probes: 0,
            held: BTreeMap::new(),
            last_error: None,
        }
    }

    fn grant(&mut self, holder: Holder, kind: PermitType, call: &Call, answer: &Answer) -> bool {
        let held = match (self.circuit, kind) {
            (Circuit::Closed | Circuit::Recovering | Circuit::Disabled, PermitType::Normal) => {
                Held::Normal { openings: self.openings }
            }
            (Circuit::Open(limit), PermitType::Probe) if limit.may_be_over(answer) => {
                self.claim(Limit::set(call, answer, LEASE), 0)
            }
            (Circuit::HalfOpen { probe, lease, good }, PermitType::Probe)
                if probe.is_none() || lease.may_be_over(answer) =>
            {
                // No two probes of one opening have the same lease.
                let new = Limit::set(call, answer, LEASE);
                self.claim(Limit { latest: new.latest.max(lease.latest + 1), ..new }, good)
            }
            _ => return false,
        };
        self.held.insert(holder, held);
        true
    }

    fn claim(&mut self, lease: Limit, good: u32) -> Held {
        self.probes += 1;
        self.circuit = Circuit::HalfOpen { probe: Some(self.probes), lease, good };
        Held::Probe { number: self.probes }
    }

    fn reject(&self, waited: bool, reason: RejectionReason, call: &Call) -> bool {
        match (self.circuit, reason) {
            (Circuit::Open(limit), RejectionReason::Open) => limit.may_be_running(call),
            (Circuit::Isolated, RejectionReason::Open) => true,
            (Circuit::Open(_) | Circuit::Isolated, RejectionReason::Reopened) => waited,
            (Circuit::HalfOpen { probe: Some(_), lease, .. }, RejectionReason::ProbeInFlight) => {
                !waited && lease.may_be_running(call)
            }
            _ => false,
        }
    }

    fn resolve(&mut self, holder: Holder, outcome: Outcome, call: &Call, answer: &Answer) {
        match self.held.remove(&holder) {
            Some(Held::Normal { openings }) if openings == self.openings => {
                self.record(outcome, holder, call, answer);
            }
            Some(Held::Probe { number }) if self.probe() == Some(number) => {
                self.record_probe(outcome, holder, call, answer);
            }
            _ => {}
        }
    }

    fn probe(&self) -> Option<u64> {
        match self.circuit {
            Circuit::HalfOpen { probe, .. } => probe,
            _ => None,
        }
    }

    /// Whether it counts.
    fn record(&mut self, outcome: Outcome, number: usize, call: &Call, answer: &Answer) -> bool {
        if !matches!(self.circuit, Circuit::Closed | Circuit::Recovering) {
            return false;
        }
        let error = match outcome {
            Outcome::Success => {
                self.failure_count = 0;
                return true;
            }
            Outcome::Failure => number.to_string(),
            Outcome::Drop if self.policies.abandoned_fails => "dropped".to_owned(),
            Outcome::Cancel | Outcome::Drop => return true,
        };
        self.failure_count += 1;
        if self.failure_count == self.failure_threshold {
            self.trips += 1;
            self.open(error, Limit::set(call, answer, OPEN_FOR));
        }
        true
    }

    fn record_probe(&mut self, outcome: Outcome, number: usize, call: &Call, answer: &Answer) -> bool {
        let Circuit::HalfOpen { probe: Some(_), lease, good } = self.circuit else {
            return false;
        };
        match outcome {
            Outcome::Success if good + 1 < self.policies.good_probes => {
                self.circuit = Circuit::HalfOpen { probe: None, lease, good: good + 1 };
            }
            Outcome::Success => {
                self.failure_count = 0;
                self.circuit = if self.policies.ramp { Circuit::Recovering } else { Circuit::Closed };
            }
            Outcome::Failure | Outcome::Drop => {
                self.failed_probes += 1;
                let dropped = outcome == Outcome::Drop;
                let error = if dropped { "dropped".to_owned() } else { number.to_string() };
                self.open(error, Limit::set(call, answer, OPEN_FOR));
            }
            Outcome::Cancel => self.circuit = Circuit::HalfOpen { probe: None, lease, good },
        }
        true
    }

    /// Whether a cooldown may have counted, or may have not.
    fn trip_for(&mut self, millis: Time, number: usize, counted: bool, call: &Call, answer: &Answer) -> bool {
        match self.circuit {
            Circuit::Closed | Circuit::Recovering if counted => self.trips += 1,
            // So much was left of the open time at the least, and at the most.
            Circuit::Open(limit) if counted && limit.earliest < answer.at + millis => {}
            Circuit::Open(limit) => return !counted && limit.latest >= call.at + millis,
            Circuit::HalfOpen { probe: None, .. } if counted => self.failed_probes += 1,
            Circuit::HalfOpen { probe: Some(_), .. } | Circuit::Isolated | Circuit::Disabled => return !counted,
            Circuit::Closed | Circuit::Recovering | Circuit::HalfOpen { probe: None, .. } => return false,
        }
        self.open(number.to_string(), Limit::set(call, answer, millis));
        true
    }

    fn order(&mut self, order: Order) {
        self.openings += 1;
        self.failure_count = 0;
        self.by_order = true;
        self.circuit = match order {
            Order::Isolate => Circuit::Isolated,
            Order::Disable => Circuit::Disabled,
            Order::Reset => Circuit::Closed,
        };
        if order == Order::Isolate {
            self.last_error = Some("by hand".to_owned());
        }
    }

    fn open(&mut self, error: String, until: Limit) {
        self.by_order = false;
        self.openings += 1;
        self.last_error = Some(error);
        self.circuit = Circuit::Open(until);
    }

    fn state(&self) -> CircuitState {
        match self.circuit {
            Circuit::Closed => CircuitState::Closed,
            Circuit::Recovering => CircuitState::Recovering,
            Circuit::Open(_) | Circuit::Isolated => CircuitState::Open,
            Circuit::HalfOpen { .. } => CircuitState::HalfOpen,
            Circuit::Disabled => CircuitState::Disabled,
        }
    }

    fn would_allow(&self, allowed: bool, call: &Call, answer: &Answer) -> bool {
        match self.circuit {
            Circuit::Closed | Circuit::Recovering | Circuit::Disabled | Circuit::HalfOpen { probe: None, .. } => {
                allowed
            }
            Circuit::Isolated => !allowed,
            Circuit::Open(limit) | Circuit::HalfOpen { lease: limit, .. } if allowed => limit.may_be_over(answer),
            Circuit::Open(limit) | Circuit::HalfOpen { lease: limit, .. } => limit.may_be_running(call),
        }
    }

    /// The one looseness that is allowed: a record by name stands for the permit that it would have been given when it
    /// was made. So it is lost if in the same moment another call takes over the probe that it stands for, whose lease
    /// is over, or an order closes the circuit anew. It says so.
    fn may_be_lost(&self, kind: PermitType, answer: &Answer) -> bool {
        match self.circuit {
            Circuit::HalfOpen { probe: Some(_), lease, .. } => kind == PermitType::Probe && lease.may_be_over(answer),
            Circuit::Closed => kind == PermitType::Normal && self.by_order,
            _ => false,
        }
    }
}

impl SequentialSpec for Spec {
    type Op = Call;
    type Ret = Answer;

    fn invoke(&mut self, call: &Call) -> Answer {
        unreachable!("every call of a history has returned: {call:?}")
    }

    fn is_valid_step(&mut self, call: &Call, answer: &Answer) -> bool {
        match (&call.kind, &answer.value) {
            (Kind::TryAcquire(holder) | Kind::Acquire(holder), Value::Granted(kind)) => {
                self.grant(*holder, *kind, call, answer)
            }
            (Kind::TryAcquire(_), Value::Rejected(reason)) => self.reject(false, *reason, call),
            (Kind::Acquire(_), Value::Rejected(reason)) => self.reject(true, *reason, call),
            (Kind::Resolve(holder, outcome), Value::Done) => {
                self.resolve(*holder, *outcome, call, answer);
                true
            }
            (Kind::Record(kind, ..), Value::Counted(false)) if self.may_be_lost(*kind, answer) => true,
            (Kind::Record(PermitType::Normal, outcome, number), Value::Counted(counted)) => {
                self.record(*outcome, *number, call, answer) == *counted
            }
            (Kind::Record(PermitType::Probe, outcome, number), Value::Counted(counted)) => {
                self.record_probe(*outcome, *number, call, answer) == *counted
            }
            (Kind::TripFor(millis, number), Value::Counted(counted)) => {
                self.trip_for(*millis, *number, *counted, call, answer)
            }
            (Kind::Replace, Value::Done) => true,
            (Kind::Order(order), Value::Done) => {
                self.order(*order);
                true
            }
            // While the circuit is open or half-open, the failures are those of its last trip, or of one that lost to
            // that.
            (Kind::Look, Value::Seen { state, failure_count, probe_in_flight }) => {
                (*state, *probe_in_flight) == (self.state(), self.probe().is_some())
                    && (!matches!(*state, CircuitState::Closed | CircuitState::Recovering)
                        || *failure_count == self.failure_count)
            }
            (Kind::WouldAllow, Value::Allowed(allowed)) => self.would_allow(*allowed, call, answer),
            (Kind::Final, Value::Final { trip_count, failed_probe_count, last_error }) => {
                (*trip_count, *failed_probe_count, last_error) == (self.trips, self.failed_probes, &self.last_error)
            }
            _ => false,
        }
    }
}
