//! The library from the outside, under paused time.

mod breaker;
mod by_name;
mod config;
mod events;
mod layout;
mod log;
mod many_waiters;
mod pitfalls;
mod property;
mod public;
mod silence;
mod simulated;
mod support;
mod threads;
mod waiting;
mod watched;
