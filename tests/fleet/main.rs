//! Replicas of one fleet: by a hub in this process under paused time, and by a real Redis.
#![cfg(feature = "fleet")]

mod hearsay;
mod port;
mod probing;
mod ramp;
mod redis;
mod settings;
mod support;
mod trouble;
