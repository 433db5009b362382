//! A plain model of a breaker: no bits, no generations, no wrapping ticks, and every call that was ever counted.

use std::time::Duration;

use fusebox::{Abandoned, BreakerSnapshot, Cause, CircuitBreakerRegistry, CircuitState, RejectionReason, Window};
use proptest::prelude::*;

use super::{LEASE, NAME, OPEN_CAP, OPEN_FOR, Order, Outcome, SLOW_AFTER, Settings};

pub(super) enum Circuit {
    Closed,
    Open { until: u64, cause: Cause },
    HalfOpen { probe: Option<Probe>, last_lease_end: u64, good: u32 },
    Recovering { until: u64 },
    Isolated,
    Disabled,
}

#[derive(Clone, Copy)]
pub(super) struct Probe {
    number: u64,
    lease_end: u64,
}

/// What a caller was given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Held {
    /// When it began, if that was noted; and what dropping it counts as.
    Normal {
        openings: u64,
        began: Option<u64>,
        abandoned: Abandoned,
    },
    Probe {
        number: u64,
    },
}

/// A call that was counted for the rates.
#[derive(Clone, Copy)]
struct Call {
    openings: u64,
    at: u64,
    failed: bool,
    slow: bool,
}

pub(super) struct Model {
    pub(super) settings: Settings,
    pub(super) now: u64,
    pub(super) circuit: Circuit,
    failures: u32,
    /// When the newest failure of the row was told, if failures had a memory then.
    told: Option<u64>,
    /// When the call began that failed and began last.
    newest_failed: u64,
    /// All calls that were counted in the window as it is.
    calls: Vec<Call>,
    /// The window that calls were last counted in.
    window: Option<Window>,
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
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            now: 0,
            circuit: Circuit::Closed,
            failures: 0,
            told: None,
            newest_failed: 0,
            calls: Vec::new(),
            window: settings.counts().then_some(settings.window),
            trips: 0,
            failed_probe_count: 0,
            failed_recoveries: 0,
            openings: 0,
            probes: 0,
            last_error: None,
        }
    }

    pub(super) fn replace(&mut self, settings: Settings) {
        if settings.counts() && self.window != Some(settings.window) {
            self.window = Some(settings.window);
            self.calls.clear();
        }
        self.settings = settings;
    }

    /// A ramp that a shorter one replaced is over if more than that and a minute is left.
    pub(super) fn is_ramp_over(&self) -> bool {
        let Circuit::Recovering { until } = self.circuit else { return false };
        until <= self.now || until - self.now > self.settings.ramp + 65_536
    }

    fn end_ramp_if_over(&mut self) {
        if self.is_ramp_over() {
            self.close();
        }
    }

    /// An opening that is no matter of a row of failures shows the row of the ramp that is over: no call has ended it.
    fn end_ramp_if_over_and_keep_the_row(&mut self) {
        let row = (self.failures, self.told);
        self.end_ramp_if_over();
        (self.failures, self.told) = row;
    }

    /// An open time that a shorter one replaced is over if more than that and a minute is left.
    fn open_left(&self, until: u64, cause: Cause) -> u64 {
        let longest = if self.settings.open_growth > 100 { OPEN_CAP } else { OPEN_FOR };
        let left = until.saturating_sub(self.now);
        if cause == Cause::Cooldown || left <= longest + 65_536 { left } else { 0 }
    }

    /// Why a call would be rejected now, and for how long.
    pub(super) fn rejection(&self) -> Option<(RejectionReason, Option<Cause>, Option<u64>)> {
        match self.circuit {
            Circuit::Isolated => Some((RejectionReason::Open, Some(Cause::Isolated), None)),
            Circuit::Open { until, cause } if self.open_left(until, cause) > 0 => {
                Some((RejectionReason::Open, Some(cause), Some(self.open_left(until, cause))))
            }
            Circuit::HalfOpen { probe: Some(probe), .. } if self.now < probe.lease_end => {
                Some((RejectionReason::ProbeInFlight, None, Some(probe.lease_end - self.now)))
            }
            _ => None,
        }
    }

    /// What a call that passes is given.
    pub(super) fn acquire(&mut self) -> Held {
        self.end_ramp_if_over();
        if matches!(self.circuit, Circuit::Closed | Circuit::Disabled | Circuit::Recovering { .. }) {
            let began = self.settings.notes_the_start().then_some(self.now);
            return Held::Normal { openings: self.openings, began, abandoned: self.settings.abandoned };
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

    pub(super) fn resolve(&mut self, held: Held, outcome: Outcome) {
        match held {
            Held::Normal { openings, began, abandoned } if openings == self.openings => {
                let fails = matches!(outcome, Outcome::Drop) && abandoned == Abandoned::Failure;
                self.record_call(if fails { Outcome::Failure } else { outcome }, began, fails);
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
    pub(super) fn cool_down(&mut self, millis: u64) -> bool {
        match self.circuit {
            Circuit::Closed | Circuit::Recovering { .. } => {
                self.end_ramp_if_over_and_keep_the_row();
                self.trips += 1;
            }
            Circuit::Open { until, cause } if self.open_left(until, cause) < millis => {}
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

    pub(super) fn order(&mut self, order: Order) {
        self.openings += 1;
        self.failures = 0;
        self.told = None;
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

    /// By name. Whether it counts.
    pub(super) fn record(&mut self, outcome: Outcome) -> bool {
        self.record_call(outcome, None, false)
    }

    /// Whether it counts.
    fn record_call(&mut self, outcome: Outcome, began: Option<u64>, dropped: bool) -> bool {
        if !matches!(self.circuit, Circuit::Closed | Circuit::Recovering { .. } | Circuit::Disabled) {
            return false;
        }
        let failed = match outcome {
            Outcome::Success => false,
            Outcome::Failure => true,
            Outcome::CoolDown(millis) => {
                self.cool_down(millis);
                return true;
            }
            Outcome::Cancel | Outcome::Drop | Outcome::CancelOnDrop => return true,
        };
        let slow = self.settings.slow_rate.is_some() && began.is_some_and(|began| self.now - began >= SLOW_AFTER);
        if self.settings.counts() {
            self.calls.push(Call { openings: self.openings, at: self.now, failed, slow });
        }
        let began = began.unwrap_or(self.now);
        let outdated = self.settings.failure_memory.is_some() && began < self.newest_failed;
        if failed && self.settings.failure_memory.is_some() {
            self.newest_failed = self.newest_failed.max(began);
        }
        if matches!(self.circuit, Circuit::Disabled) {
            return false;
        }
        let error = if dropped { "dropped" } else { "5xx" };
        if failed {
            self.count_failure(error);
        } else if !outdated {
            self.failures = 0;
            self.told = None;
        }
        if failed || slow {
            self.trip_by_rate(failed.then_some(error));
        }
        true
    }

    fn count_failure(&mut self, error: &'static str) {
        self.end_ramp_if_over();
        let memory = self.settings.failure_memory;
        let (threshold, goes_on) = match self.circuit {
            Circuit::Recovering { .. } => (self.settings.failure_threshold, true),
            _ => (
                self.settings.failure_threshold,
                self.told.zip(memory).is_none_or(|(told, memory)| self.now.saturating_sub(told) <= memory),
            ),
        };
        let Some(threshold) = threshold else { return };
        let failures = if goes_on { self.failures + 1 } else { 1 };
        if failures >= threshold {
            // What the word counts.
            self.failures += 1;
            self.trip(error, Cause::Failures);
        } else {
            self.failures = failures;
            if matches!(self.circuit, Circuit::Closed) {
                self.told = memory.map(|_| self.now.max(1));
            }
        }
    }

    /// The calls of the window, as of now.
    fn window(&self) -> Vec<Call> {
        let counted: Vec<_> = match self.settings.window {
            Window::Calls(calls) => {
                let skipped = self.calls.len().saturating_sub(calls as usize);
                self.calls[skipped..].to_vec()
            }
            Window::Time(time) => {
                let tenth = |at: u64| at / u64::try_from(time.as_millis()).unwrap().div_ceil(10);
                let now = tenth(self.now);
                self.calls.iter().copied().filter(|call| tenth(call.at) + 10 > now).collect()
            }
        };
        counted.into_iter().filter(|call| call.openings == self.openings).collect()
    }

    /// `error` is that of the call, if it failed.
    fn trip_by_rate(&mut self, error: Option<&'static str>) {
        if !matches!(self.circuit, Circuit::Closed | Circuit::Recovering { .. }) {
            return;
        }
        let window = self.window();
        let reached = |rate: Option<u32>, count: usize| {
            rate.is_some_and(|rate| {
                window.len() >= self.settings.min_calls as usize && count * 100 >= rate as usize * window.len()
            })
        };
        if reached(self.settings.failure_rate, window.iter().filter(|call| call.failed).count()) {
            self.end_ramp_if_over_and_keep_the_row();
            self.trip(error.unwrap_or("rate"), Cause::Rate);
        } else if reached(self.settings.slow_rate, window.iter().filter(|call| call.slow).count()) {
            self.end_ramp_if_over_and_keep_the_row();
            self.trip("slow", Cause::Slow);
        }
    }

    fn trip(&mut self, error: &'static str, cause: Cause) {
        self.trips += 1;
        if matches!(self.circuit, Circuit::Recovering { .. }) {
            self.failed_recoveries += 1;
        }
        self.open(error, cause, self.open_time());
    }

    pub(super) fn record_probe(&mut self, outcome: Outcome) -> bool {
        let Circuit::HalfOpen { probe: Some(Probe { lease_end, .. }), good, .. } = self.circuit else {
            return false;
        };
        match outcome {
            Outcome::Success if good + 1 >= self.settings.good_probes && self.settings.ramp > 0 => {
                self.failures = 0;
                self.told = None;
                self.circuit = Circuit::Recovering { until: self.now + self.settings.ramp };
            }
            Outcome::Success if good + 1 >= self.settings.good_probes => self.close(),
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
        self.told = None;
        self.failed_recoveries = 0;
        self.circuit = Circuit::Closed;
    }

    pub(super) fn check(&self, breakers: &CircuitBreakerRegistry) -> Result<(), TestCaseError> {
        let breaker = breakers.get(NAME).unwrap();
        let seen = breaker.snapshot();
        let (state, open_left) = match self.circuit {
            Circuit::Closed => (CircuitState::Closed, None),
            Circuit::Recovering { .. } if self.is_ramp_over() => (CircuitState::Closed, None),
            Circuit::Recovering { .. } => (CircuitState::Recovering, None),
            Circuit::Open { until, cause } => {
                (CircuitState::Open, Some(Duration::from_millis(self.open_left(until, cause))))
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
        let seen = seen.last_calls.map(|seen| [seen.calls, seen.failures, seen.slow]);
        let window = self.window();
        let count = |counted: fn(&Call) -> bool| window.iter().filter(|call| counted(call)).count() as u64;
        let expected = [count(|_| true), count(|call| call.failed), count(|call| call.slow)];
        prop_assert_eq!(seen, self.settings.counts().then_some(expected));
        Ok(())
    }
}
