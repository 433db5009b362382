//! What a fleet of replicas pays for an outage, and what it refuses without need.
//!
//! `cargo run --release -p fleet-bench -- simulate` runs the real breakers and the real fleet, with a hub in place of
//! Redis, in a simulated world whose time is tokio's. `-- processes` runs processes that share a real Redis, and lets
//! happen to it what happens to a Redis.

mod herd;
#[path = "../../../tests/fleet/port.rs"]
mod port;
mod processes;
mod provider;
mod replica;
mod server;
mod simulate;
mod table;
mod world;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "What a fleet of replicas pays for an outage, and what it refuses without need")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Simulated replicas, all in this process.
    Simulate(simulate::Options),
    /// Replicas that are processes, with a Redis. It takes redis-server and redis-cli.
    Processes(processes::Options),
    /// One of them, started by `processes`.
    #[command(hide = true)]
    Replica(replica::Options),
}

fn main() {
    match Arguments::parse().command {
        Command::Simulate(options) => simulate::run(&options),
        Command::Processes(options) => processes::run(&options),
        Command::Replica(options) => replica::run(&options),
    }
}
