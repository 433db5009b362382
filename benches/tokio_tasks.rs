//! 64 tasks on 2 workers of a tokio runtime, all on ONE breaker. Every task makes a batch of calls and lets the others run.
//!
//! `cargo bench -p fusebox-benches --bench tokio_tasks`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fusebox_benches::contenders::{Async, CALLS, Contender, floors, peers, replaced, us};
use fusebox_benches::{Options, Spread};
use tokio::runtime::{Builder, Runtime};

const TASKS: usize = 64;
const WORKERS: usize = 2;

/// Million calls per second.
type Run = Box<dyn Fn(&Runtime, Duration) -> f64>;

struct Row {
    name: &'static str,
    run: [Run; 2],
    mops: [Vec<f64>; 2],
}

fn row<C: Contender>(name: &'static str, closed: impl Fn() -> C) -> Row {
    Row { name, run: [run(closed(), |_| false), run(closed(), |n| n % 10 == 0)], mops: Default::default() }
}

fn run<C: Contender>(contender: C, fails: impl Fn(u32) -> bool + Copy + Send + Sync + 'static) -> Run {
    let contender = Arc::new(contender);
    Box::new(move |runtime, slice| runtime.block_on(work(&contender, slice, fails)))
}

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
    calls.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64() / 1e6
}

fn main() {
    let options = Options::parse();
    let runtime = Builder::new_multi_thread().worker_threads(WORKERS).enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    let mut rows = [
        row("floor: a ready future and two loads", || Async(floors::ReadyFuture::default())),
        row("**fusebox**, `acquire().await`", us::Awaited::closed),
        row("fusebox, `try_acquire()`", us::Borrowed::closed),
        row("fusebox, by name", us::ByName::closed),
        row("recloser", peers::Recloser::closed),
        row("failsafe", peers::Failsafe::closed),
        row("breaker", peers::Breaker::closed),
        row("nobreak", peers::Nobreak::closed),
        row("circuitbreaker-rs", peers::CircuitbreakerRs::closed),
        row("seatbelt", peers::seatbelt_closed),
        row("tower-resilience", peers::TowerResilience::closed),
        row("`DashMap` + `Mutex` + `watch`", replaced::Replaced::closed),
    ];
    let slice = Duration::from_millis(options.slice);
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for Row { run, mops, .. } in &mut rows {
            for (run, mops) in run.iter().zip(mops) {
                mops.push(run(&runtime, slice));
            }
        }
    }
    println!(
        "\nmedians (smallest-largest) of {} rounds of {} ms, contenders interleaved",
        options.rounds, options.slice
    );
    println!(
        "\n| {TASKS} tasks on {WORKERS} workers, M/s in all | permit + success | one failure in ten |\n|---|---|---|"
    );
    for Row { name, mops: [success, tenth], .. } in rows {
        println!("| {name} | {} | {} |", Spread::of(success), Spread::of(tenth));
    }
}
