//! What a layer costs a call of a tower service that answers at once: `ready`, `call` and the future, on a closed
//! circuit and on an open one.
//!
//! `cargo bench -p fusebox-benches --bench tower`.

use std::future::{Ready, ready};
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use fusebox::CircuitBreaker;
use fusebox::tower::CircuitBreakerLayer;
use fusebox_benches::contenders::{CALLS, block_on, runtime};
use fusebox_benches::{Options, Suite, exit};
use tower::load_shed::LoadShed;
use tower::util::ServiceFn;
use tower::{Layer, Service, ServiceExt};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

const CLOSED: &str = "closed circuit: ready + call + answer";
const OPEN: &str = "open circuit: ready + call + rejection";
const HOUR: Duration = Duration::from_hours(1);

#[derive(Debug)]
struct Failed;

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("failed")
    }
}

impl std::error::Error for Failed {}

type Upstream = ServiceFn<fn(bool) -> Ready<Result<u32, Failed>>>;

fn upstream() -> Upstream {
    tower::service_fn(|fails| ready(if fails { Err(Failed) } else { Ok(7) }))
}

/// Each thread has a clone of its own.
fn add<S>(suite: &mut Suite, table: &'static str, name: &'static str, service: S)
where
    S: Service<bool, Future: Send> + Clone + Sync + Send + 'static,
{
    suite.add(table, name, service, S::clone, |_, service| {
        // tower-resilience makes a timer where its circuit is open.
        let _entered = runtime().enter();
        block_on(async {
            for _ in 0..CALLS {
                if let Ok(service) = service.ready().await {
                    let _ = black_box(service.call(black_box(false)).await);
                }
            }
        });
        CALLS
    });
}

/// The same, after one call that failed.
fn opened<S: Service<bool> + Clone>(service: S) -> S {
    let _ = block_on(service.clone().oneshot(true));
    service
}

fn ours() -> fusebox::tower::CircuitBreaker<Upstream, fusebox::tower::classify::Errors, fusebox::tower::One> {
    let settings = CircuitBreaker::builder("upstream").failure_threshold(1).open_for(HOUR);
    CircuitBreakerLayer::new(Arc::new(settings.build().expect("valid settings"))).layer(upstream())
}

fn peer()
-> tower_resilience_circuitbreaker::CircuitBreaker<Upstream, tower_resilience_circuitbreaker::DefaultClassifier> {
    let builder = tower_resilience_circuitbreaker::CircuitBreakerLayer::builder();
    builder.consecutive_failures(1).wait_duration_in_open(HOUR).build().expect("a valid layer").layer_fn(upstream())
}

fn main() -> ExitCode {
    exit(measure(&Arguments::parse().options))
}

fn measure(options: &Options) -> Result<(), String> {
    let mut suite = Suite::new("tower");
    add(&mut suite, CLOSED, "**fusebox**", ours());
    add(&mut suite, CLOSED, "floor: no layer", upstream());
    add(&mut suite, CLOSED, "`tower::load_shed`", LoadShed::new(upstream()));
    add(&mut suite, CLOSED, "tower-resilience 0.14", peer());
    add(&mut suite, OPEN, "**fusebox**", opened(ours()));
    add(&mut suite, OPEN, "tower-resilience 0.14", opened(peer()));
    suite.run(options)?.report(options)
}
