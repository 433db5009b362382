//! The calls of a history, and what they answered.

use crate::error::RejectionReason;
use crate::permit::PermitType;
use crate::transition::CircuitState;

/// Which permit of a history: the number of the call that was given it.
pub(crate) type Holder = usize;

/// Milliseconds.
pub(crate) type Time = u64;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Outcome {
    Success,
    Failure,
    Cancel,
    Drop,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Order {
    Isolate,
    Disable,
    Reset,
}

/// The settings that a history runs with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policies {
    pub(crate) good_probes: u32,
    /// Whether a permit for a normal call that is dropped counts as a failure.
    pub(crate) abandoned_fails: bool,
    pub(crate) ramp: bool,
}

/// A call as it was made, at a time.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    pub(crate) at: Time,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    TryAcquire(Holder),
    Acquire(Holder),
    Resolve(Holder, Outcome),
    /// A failure's number is its message.
    Record(PermitType, Outcome, usize),
    /// A cooldown of so long. The number is its message.
    TripFor(Time, usize),
    Order(Order),
    /// Replaces the settings, by some that measure calls or do not, and change nothing else.
    Replace,
    Look,
    WouldAllow,
    /// When all is over.
    Final,
}

/// What it answered, and when.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) value: Value,
    pub(crate) at: Time,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Granted(PermitType),
    Rejected(RejectionReason),
    Done,
    Counted(bool),
    Seen { state: CircuitState, failure_count: u32, probe_in_flight: bool },
    Allowed(bool),
    Final { trip_count: u64, failed_probe_count: u64, last_error: Option<String> },
}
