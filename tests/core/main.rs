//! The library from the outside, under paused time.

mod blocking;
mod breaker;
mod by_name;
mod config;
mod edges;
mod events;
#[cfg(feature = "serde")]
mod exported;
// What reads sources runs nothing.
#[cfg(not(miri))]
mod layout;
mod log;
mod many_waiters;
#[cfg(feature = "metrics")]
mod metrics;
mod names;
#[cfg(not(miri))]
mod operations;
mod orders;
mod pauses;
mod pitfalls;
mod policies;
mod property;
mod public;
mod ramp;
mod rates;
mod silence;
mod simulated;
mod simulation;
#[cfg(not(miri))]
mod sources;
mod stalls;
mod streaming;
mod subscribing;
mod support;
mod threads;
#[cfg(feature = "metrics")]
mod totals;
mod waiting;
mod watched;
