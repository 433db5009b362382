//! One replica: a process with a breaker, which calls the provider so many times a second, and says what it has seen.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use fusebox::fleet::FleetConfig;
use fusebox::{CircuitBreakerRegistry, Config, OwnedPermit, PermitType};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use crate::world::until_next;

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    number: usize,
    #[arg(long)]
    provider: SocketAddr,
    /// The port of a Redis. Without it the replica is alone.
    #[arg(long)]
    redis: Option<u16>,
    /// Calls a second.
    #[arg(long)]
    rate: f64,
    #[arg(long)]
    open_ms: u64,
}

pub(crate) fn run(options: &Options) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(call(options));
}

/// Ends when the provider closes the connection.
async fn call(options: &Options) {
    fastrand::seed(options.number as u64);
    let config = Config::builder().open_for(Duration::from_millis(options.open_ms)).build().expect("a valid one");
    let breakers = Arc::new(CircuitBreakerRegistry::with_config(["p"], config));
    let join = |port| {
        let url = format!("redis://127.0.0.1:{port}");
        FleetConfig::redis(&url).expect("a valid URL").join(Arc::clone(&breakers))
    };
    let fleet = options.redis.map(join);
    let breaker = breakers.get("p").expect("it was inserted");
    let provider = TcpStream::connect(options.provider).await.expect("the provider is there");
    provider.set_nodelay(true).expect("a socket");
    let (answers, mut requests) = provider.into_split();
    let mut answers = BufReader::new(answers).lines();
    let mut calls: HashMap<u64, OwnedPermit> = HashMap::new();
    let mut number = 0;
    let mut next = Instant::now() + until_next(options.rate);
    loop {
        tokio::select! {
            answer = answers.next_line() => {
                let Ok(Some(answer)) = answer else { break };
                let Some((call, result)) = answer.split_once(' ') else { continue };
                if let Some(permit) = call.parse().ok().and_then(|call: u64| calls.remove(&call)) {
                    if result == "ok" { permit.success() } else { permit.failure("5xx", 503) }
                }
            }
            () = sleep_until(next) => {
                next += until_next(options.rate);
                number += 1;
                let line = match Arc::clone(&breaker).try_acquire_owned() {
                    Ok(permit) => {
                        let kind = if permit.kind() == PermitType::Probe { "probe" } else { "call" };
                        calls.insert(number, permit);
                        format!("{} {number} {kind}\n", options.number)
                    }
                    Err(_) => format!("{} {number} refused\n", options.number),
                };
                if requests.write_all(line.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    }
    drop(fleet);
}
