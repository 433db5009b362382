//! What a fleet of replicas pays for an outage, and what it refuses without need.
//!
//! `cargo run --release -p fleet-bench -- simulate` runs the real breakers and the real fleet, with a hub in place of
//! Redis, in a simulated world whose time is tokio's.

mod simulate;

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
}

fn main() {
    match Arguments::parse().command {
        Command::Simulate(options) => simulate::run(&options),
    }
}
