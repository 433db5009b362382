//! 64 tasks of a tokio runtime with so many worker threads, all on ONE breaker. Every task makes a batch of calls and
//! lets the others run.
//!
//! `cargo bench -p fusebox-benches --bench tokio_tasks`.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use fusebox_benches::contenders::{CALLS, Contender, Start, floors, peers, replaced, runtime, us};
use fusebox_benches::{Options, Suite, exit};
use tokio::runtime::Builder;

const TASKS: usize = 64;

const SUCCESS: &str = "64 tasks: permit + success";
const TENTH: &str = "64 tasks: one failure in ten";

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn breaker<C: Contender>(suite: &mut Suite, name: &'static str, started: impl Fn(Start) -> C) {
    add(suite, SUCCESS, name, started(Start::Closed), |_| false);
    add(suite, TENTH, name, started(Start::Closed), |n| n % 10 == 0);
}

fn add<C: Contender>(
    suite: &mut Suite,
    table: &'static str,
    name: &'static str,
    contender: C,
    fails: impl Fn(u32) -> bool + Copy + Send + Sync + 'static,
) {
    let contender = Arc::new(contender);
    suite.add_run(table, name, move |workers, slice| {
        let builder = &mut Builder::new_multi_thread();
        let runtime = builder.worker_threads(workers.into()).enable_time().build().expect("a runtime");
        runtime.block_on(work(&contender, slice, fails))
    });
}

/// Calls per second.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
async fn work<C: Contender>(
    contender: &Arc<C>,
    slice: Duration,
    fails: impl Fn(u32) -> bool + Copy + Send + Sync + 'static,
) -> f64 {
    let over = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (contender, over, calls) = (Arc::clone(contender), Arc::clone(&over), Arc::clone(&calls));
            tokio::spawn(async move {
                let mut handle = contender.handle();
                while !over.load(Ordering::Relaxed) {
                    let passed = contender.calls_in_task(&mut handle, fails).await;
                    assert_eq!(passed, CALLS, "every call is let through");
                    calls.fetch_add(u64::from(CALLS), Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    tokio::time::sleep(slice).await;
    over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("no call panics");
    }
    calls.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
}

fn main() -> ExitCode {
    exit(measure(&Arguments::parse()))
}

fn measure(arguments: &Arguments) -> Result<(), String> {
    let Arguments { options } = arguments;
    // For what is made here.
    let _entered = runtime().enter();
    let mut suite = Suite::new("tokio_tasks");
    let s = &mut suite;
    add(s, SUCCESS, "floor: a ready future, two loads", floors::ready_future(), |_| false);
    breaker(s, "**fusebox**, `acquire().await`", us::awaited);
    breaker(s, "fusebox, `try_acquire()`", us::borrowed);
    breaker(s, "fusebox, by name", us::by_name);
    breaker(s, "recloser", peers::recloser);
    breaker(s, "failsafe", peers::failsafe);
    breaker(s, "breaker", peers::breaker);
    breaker(s, "nobreak", peers::nobreak);
    breaker(s, "circuitbreaker-rs", peers::circuitbreaker_rs);
    breaker(s, "seatbelt", peers::seatbelt);
    breaker(s, "tower-resilience", peers::tower_resilience);
    breaker(s, "`DashMap` + `Mutex` + `watch`", replaced::replaced);
    suite.run(options)?.report(options)
}
