//! The gateway, from the outside: real sockets on loopback, providers that fail on demand.
#![cfg(feature = "proxy")]

mod anthropic;
mod blame;
mod clients;
mod command_line;
mod compose;
mod config;
mod connections;
mod failover;
mod health;
mod heartbeat;
mod hostile;
mod http2;
mod ids;
mod inbound;
mod inside;
mod keys;
mod limits;
mod machine;
mod marks;
mod passing;
mod peers;
mod program;
mod raw;
mod reload;
mod secrets;
mod sessions;
mod silence;
mod streams;
mod support;
mod telling;
mod tls;
mod uploads;
mod whole;
mod wire;
