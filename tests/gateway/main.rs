//! The gateway, from the outside: real sockets on loopback, providers that fail on demand.
#![cfg(feature = "proxy")]

mod admin;
mod anthropic;
mod blame;
mod clients;
mod command_line;
mod compose;
mod config;
mod connections;
mod ctl;
mod failover;
mod fleet;
mod health;
mod heartbeat;
mod hostile;
mod http2;
mod ids;
mod inbound;
mod inside;
mod kept;
mod keys;
mod limits;
mod machine;
mod marks;
mod observing;
mod passing;
mod peers;
mod program;
mod ramp;
mod raw;
mod reload;
mod secrets;
mod sessions;
mod silence;
mod streams;
mod support;
mod telling;
mod tls;
#[cfg(feature = "otel")]
mod traces;
mod uploads;
mod who;
mod whole;
mod wire;
