#![doc = include_str!("../README.md")]

// Nothing but its tests calls the protocol yet.
#[cfg_attr(not(test), allow(dead_code))]
mod word;

pub use word::CircuitState;
