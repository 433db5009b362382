//! Instructions for one operation, counted by callgrind: what a busy machine does to a time, it does not do to a count.
//!
//! `cargo bench -p fusebox-benches --bench instructions` compares with the counts in `benches/instructions.json` and
//! fails where one has grown by more than 3%; with `-- --save` it moves them there. Another compiler counts otherwise,
//! so the file says whose counts they are. It needs valgrind. With `--features metrics` it counts what that feature
//! costs, and nothing else.
//!
//! Each operation runs twice, once with twice the rounds: the difference is free of what comes before and after.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs;
use std::future::{Future, Ready, ready};
use std::hint::black_box;
use std::path::PathBuf;
use std::pin::pin;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use clap::Parser;
use fusebox::silence::{self, Detector};
use fusebox::tower::CircuitBreakerLayer;
use fusebox::{Abandoned, CircuitBreaker, CircuitBreakerRegistry, Config, ConfigBuilder};
use fusebox_benches::exit;
use serde::{Deserialize, Serialize};
use tower::load_shed::LoadShed;
use tower::util::ServiceFn;
use tower::{Layer, Service};

const ROUNDS: u32 = 50_000;
/// By how much a count may grow.
const TOLERANCE: f64 = 0.03;

#[derive(Parser)]
struct Arguments {
    /// Makes the counts of this run the ones to compare with.
    #[arg(long)]
    save: bool,
    /// What callgrind runs: an operation, so many times.
    #[arg(long, num_args = 2, hide = true)]
    run: Option<Vec<String>>,
    /// cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Serialize, Deserialize)]
struct Baseline {
    compiler: String,
    instructions: BTreeMap<String, f64>,
}

type Operation = (&'static str, fn(u32));

/// The first is the empty loop, which is not counted with the others.
const OPERATIONS: [Operation; 26] = [
    ("loop", |rounds| repeat(rounds, |_| {})),
    ("permit + success", |rounds| {
        let breaker = closed();
        repeat(rounds, |_| black_box(&breaker).try_acquire().expect("closed").success());
    }),
    ("permit + success, owned", |rounds| {
        let breaker = Arc::new(closed());
        repeat(rounds, |_| Arc::clone(black_box(&breaker)).try_acquire_owned().expect("closed").success());
    }),
    ("acquire().await + success", |rounds| {
        let breaker = closed();
        repeat(rounds, |_| now(black_box(&breaker).acquire()).expect("closed").success());
    }),
    ("call(future).await", |rounds| {
        let breaker = closed();
        repeat(rounds, |_| {
            let answer = now(black_box(&breaker).call(ready(Ok::<_, fmt::Error>(1))));
            assert_eq!(answer, Ok(1));
        });
    }),
    ("permit + failure", |rounds| failures(rounds, config().to_builder())),
    ("rejected", |rounds| {
        let breaker = open();
        repeat(rounds, |_| assert!(black_box(&breaker).try_acquire().is_err()));
    }),
    ("acquire().await, rejected", |rounds| {
        let breaker = open();
        repeat(rounds, |_| assert!(now(black_box(&breaker).acquire()).is_err()));
    }),
    ("rejected, cooldown", |rounds| {
        let breaker = closed();
        assert!(breaker.trip_for(Duration::from_hours(1), "429", "later"));
        repeat(rounds, |_| assert!(black_box(&breaker).try_acquire().is_err()));
    }),
    ("rejected, isolated", |rounds| {
        let breaker = closed();
        breaker.isolate("maintenance");
        repeat(rounds, |_| assert!(black_box(&breaker).try_acquire().is_err()));
    }),
    ("permit + success, failure_rate", |rounds| successes(rounds, rate())),
    ("permit + success, failure_rate and slow_rate", |rounds| {
        successes(rounds, rate().slow_rate(99).slow_after(Duration::from_hours(1)));
    }),
    ("permit + success, failure_rate of 1000 calls", |rounds| successes(rounds, rate().window(1000))),
    ("permit + success, failure_memory", |rounds| {
        successes(rounds, config().to_builder().failure_memory(Duration::from_mins(1)));
    }),
    ("permit + success, abandoned", |rounds| {
        successes(rounds, config().to_builder().abandoned(Abandoned::Failure));
    }),
    ("permit + success, on a ramp", |rounds| {
        let ramp = config().to_builder().ramp(Duration::from_hours(24)).ramp_from(100);
        let breaker = CircuitBreaker::new("openai", ramp.build().expect("a valid configuration"));
        assert!(breaker.trip_for(Duration::ZERO, "429", "now"));
        breaker.try_acquire().expect("the probe").success();
        repeat(rounds, |_| black_box(&breaker).try_acquire().expect("every call has its turn").success());
    }),
    ("permit + failure, failure_rate", |rounds| failures(rounds, rate())),
    ("silence: start + answered", |rounds| {
        let breaker = Arc::new(closed());
        let detector = Arc::new(Detector::new(Arc::clone(&breaker), silence::Config::default(), 1));
        let mut watcher = detector.watcher().expect("nobody watches yet");
        let permit = breaker.try_acquire().expect("closed");
        let mut now = Instant::now();
        repeat(rounds, |round| {
            let ticket = watcher.start(black_box(&permit), now);
            now += Duration::from_micros(200 + u64::from(round % 16) * 100);
            black_box(&mut watcher).answered(ticket, now);
        });
    }),
    ("get", |rounds| {
        let (maps, names) = registries();
        repeat(rounds, |round| {
            let found = map(&maps, round).get(black_box(name(&names, round)));
            drop(black_box(found.expect("it is there")));
        });
    }),
    ("get, an unknown name", |rounds| {
        let (maps, _) = registries();
        let names: Vec<_> = (1000..5096).map(|n| format!("provider-{n:03}")).collect();
        repeat(rounds, |round| assert!(map(&maps, round).get(black_box(name(&names, round))).is_none()));
    }),
    ("acquire_permit + record_success", |rounds| {
        let (maps, names) = registries();
        repeat(rounds, |round| {
            let (registry, name) = (map(&maps, round), black_box(name(&names, round)));
            now(registry.acquire_permit(name)).expect("closed");
            assert!(registry.record_success(name));
        });
    }),
    ("acquire_permit + record_failure", |rounds| {
        let (maps, names) = registries();
        repeat(rounds, |round| {
            let (registry, name) = (map(&maps, round), black_box(name(&names, round)));
            now(registry.acquire_permit(name)).expect("closed");
            assert!(registry.record_failure(name, "timeout", "no answer within 2 s"));
        });
    }),
    ("tower layer, closed", |rounds| layered(rounds, layer(closed()), true)),
    ("tower layer, open", |rounds| layered(rounds, layer(open()), false)),
    ("tower's load_shed, for comparison", |rounds| layered(rounds, LoadShed::new(upstream()), true)),
    ("tower-resilience's layer, closed, for comparison", |rounds| {
        let layer = tower_resilience_circuitbreaker::CircuitBreakerLayer::builder().consecutive_failures(3).build();
        layered(rounds, layer.expect("a valid layer").layer_fn(upstream()), true);
    }),
];

/// What an operation's name ends with in the file of counts.
const FEATURES: &str = if cfg!(feature = "metrics") { " (feature metrics)" } else { "" };

/// With the feature: what it could make dearer, and what only it has.
#[cfg(feature = "metrics")]
fn operations() -> impl Iterator<Item = Operation> {
    let may_grow = ["loop", "permit + success", "permit + failure", "rejected", "acquire().await, rejected"];
    let totals: [Operation; 3] = [
        ("permit + success, totals", |rounds| successes(rounds, config().to_builder().totals(true))),
        ("permit + failure, totals", |rounds| failures(rounds, config().to_builder().totals(true))),
        ("rejected, totals", |rounds| {
            let breaker = open();
            breaker.set_config(config().to_builder().totals(true).build().expect("a valid configuration"));
            repeat(rounds, |_| assert!(black_box(&breaker).try_acquire().is_err()));
        }),
    ];
    OPERATIONS.into_iter().filter(move |(name, _)| may_grow.contains(name)).chain(totals)
}

#[cfg(not(feature = "metrics"))]
fn operations() -> impl Iterator<Item = Operation> {
    OPERATIONS.into_iter()
}

type Upstream = ServiceFn<fn(u32) -> Ready<Result<u32, fmt::Error>>>;

fn upstream() -> Upstream {
    tower::service_fn(|call| ready(Ok(call)))
}

fn layer(breaker: CircuitBreaker) -> impl Service<u32> {
    CircuitBreakerLayer::new(Arc::new(breaker)).layer(upstream())
}

/// `ready`, `call` and the answer, which `passes`, or is an error.
fn layered(rounds: u32, mut service: impl Service<u32>, passes: bool) {
    let mut context = Context::from_waker(Waker::noop());
    repeat(rounds, |round| {
        assert!(black_box(&mut service).poll_ready(&mut context).is_ready());
        assert_eq!(now(black_box(&mut service).call(round)).is_ok(), passes);
    });
}

#[inline]
fn repeat(rounds: u32, mut operation: impl FnMut(u32)) {
    for round in 0..rounds {
        operation(black_box(round));
    }
}

fn config() -> Config {
    // The highest threshold: neither 128 failures in a row nor 100,000 on 256 names may open a circuit.
    Config::builder().failure_threshold(1023).open_for(Duration::from_hours(1)).build().expect("a valid configuration")
}

/// A rate that is never reached: no more than 127 in 128 calls fail.
fn rate() -> ConfigBuilder {
    config().to_builder().failure_rate(100)
}

fn successes(rounds: u32, policy: ConfigBuilder) {
    let breaker = CircuitBreaker::new("openai", policy.build().expect("a valid configuration"));
    repeat(rounds, |_| black_box(&breaker).try_acquire().expect("closed").success());
}

/// With a success in between, or they would open the circuit.
fn failures(rounds: u32, policy: ConfigBuilder) {
    let breaker = CircuitBreaker::new("openai", policy.build().expect("a valid configuration"));
    repeat(rounds, |round| {
        let permit = black_box(&breaker).try_acquire().expect("closed");
        if round % 128 == 0 { permit.success() } else { permit.failure("timeout", "no answer within 2 s") }
    });
}

fn closed() -> CircuitBreaker {
    CircuitBreaker::new("openai", config())
}

fn open() -> CircuitBreaker {
    let breaker = closed();
    while let Ok(permit) = breaker.try_acquire() {
        permit.failure("timeout", "no answer within 2 s");
    }
    breaker
}

/// So many maps, each hashing in another way, and so many names that the accidents of hash tables come out even.
fn registries() -> (Vec<CircuitBreakerRegistry>, Vec<String>) {
    let names: Vec<_> = (0..256).map(|n| format!("provider-{n:03}")).collect();
    ((0..32).map(|_| CircuitBreakerRegistry::with_config(&names, config())).collect(), names)
}

fn map(maps: &[CircuitBreakerRegistry], round: u32) -> &CircuitBreakerRegistry {
    // Every name in every map.
    &maps[round as usize / 256 % maps.len()]
}

fn name(names: &[String], round: u32) -> &str {
    &names[round as usize % names.len()]
}

/// What a future is ready with at once.
fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("nothing waits here"),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    exit(match arguments.run.as_deref() {
        Some([operation, rounds]) => run(operation, rounds),
        _ => compare(arguments.save),
    })
}

fn run(operation: &str, rounds: &str) -> Result<(), String> {
    let (_, operation) = operations().find(|(name, _)| *name == operation).ok_or("no such operation")?;
    operation(rounds.parse().map_err(|error| format!("{rounds}: {error}"))?);
    Ok(())
}

fn compare(save: bool) -> Result<(), String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("instructions.json");
    let compiler = compiler()?;
    let mut counts = BTreeMap::new();
    let mut empty = None;
    for (operation, _) in operations() {
        let count = count(operation)?;
        let Some(empty) = empty else {
            empty = Some(count);
            continue;
        };
        counts.insert(format!("{operation}{FEATURES}"), ((count - empty) * 100.0_f64).round() / 100.0);
    }
    let baseline = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut baseline: Baseline =
        serde_json::from_str(&baseline).map_err(|error| format!("{}: {error}", path.display()))?;
    if save {
        baseline.compiler.clone_from(&compiler);
        // Those with other features stay.
        baseline.instructions.retain(|operation, _| operation.ends_with(" (feature metrics)") == FEATURES.is_empty());
        baseline.instructions.extend(counts.clone());
        let json = serde_json::to_string_pretty(&baseline).map_err(|error| error.to_string())?;
        fs::write(&path, json + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
    }

    println!("\n| instructions for one operation | now | before |\n|---|---|---|");
    let mut grown = Vec::new();
    for (operation, now) in &counts {
        let before = baseline.instructions.get(operation);
        println!("| {operation} | {now} | {} |", before.map_or("-".to_owned(), f64::to_string));
        if before.is_none_or(|before| *now > before * (1.0 + TOLERANCE)) {
            grown.push(operation.as_str());
        }
    }
    println!();
    if compiler != baseline.compiler {
        println!("counted with {compiler}, before with {}", baseline.compiler);
    }
    if grown.is_empty() {
        return Ok(());
    }
    let moving = "cargo bench -p fusebox-benches --bench instructions -- --save";
    Err(format!(
        "grown by more than {}%: {}. If that is as it should be: {moving}",
        TOLERANCE * 100.0,
        grown.join("; ")
    ))
}

fn compiler() -> Result<String, String> {
    let version = Command::new("rustc").arg("--version").output().map_err(|error| format!("rustc: {error}"))?;
    Ok(String::from_utf8_lossy(&version.stdout).trim().to_owned())
}

/// Instructions for one round.
fn count(operation: &str) -> Result<f64, String> {
    let once = total(operation, ROUNDS)?;
    let twice = total(operation, 2 * ROUNDS)?;
    Ok((twice - once) / f64::from(ROUNDS))
}

/// Instructions of a whole process.
fn total(operation: &str, rounds: u32) -> Result<f64, String> {
    let this = env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(this)
        .args(["--run", operation, &rounds.to_string()])
        .output()
        .map_err(|error| format!("valgrind, which this needs: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    collected.filter(|_| output.status.success()).ok_or_else(|| format!("callgrind on `{operation}` said:\n{said}"))
}
