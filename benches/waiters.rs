//! A probe that many calls wait for: how long its success holds up the task that reports it, how long it takes until
//! all of them have run, and what one of them weighs; and how long it takes if each hands the probe on to the next one.
//!
//! Two workers of a tokio runtime; each waiter is a task. `cargo bench -p fusebox-benches --bench waiters`.

use std::future::Future;
use std::mem::size_of_val;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use clap::Parser;
use fusebox::{CircuitBreaker, OwnedPermit, PermitType};
use fusebox_benches::Spread;
use fusebox_benches::contenders::replaced;
use tokio::runtime::Builder;
use tokio::sync::Notify;
use tokio::task::{JoinSet, yield_now};

#[derive(Parser)]
struct Arguments {
    /// How often each contender is measured, taking turns.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

const COUNTS: [usize; 4] = [1, 100, 1_000, 10_000];

/// What ends the wait.
type Release = Box<dyn FnOnce() + Send>;

/// Something that calls can wait for.
trait Contender: Send + Sync + 'static {
    /// A probe in flight, and what reports its success.
    fn probing() -> (Arc<Self>, Release);
    fn wait(&self) -> impl Future<Output = ()> + Send;
    fn waiting(&self) -> usize;
}

fn probing() -> (Arc<CircuitBreaker>, OwnedPermit) {
    let builder = CircuitBreaker::builder("openai").failure_threshold(1).open_for(Duration::from_millis(1));
    let breaker = Arc::new(builder.build().expect("a valid configuration"));
    breaker.try_acquire().expect("closed").failure("timeout", "");
    loop {
        if let Ok(probe) = Arc::clone(&breaker).try_acquire_owned() {
            return (breaker, probe);
        }
    }
}

impl Contender for CircuitBreaker {
    fn probing() -> (Arc<Self>, Release) {
        let (breaker, probe) = probing();
        (breaker, Box::new(move || probe.success()))
    }

    async fn wait(&self) {
        let permit = self.acquire().await.expect("the probe succeeds");
        assert_eq!(permit.kind(), PermitType::Normal);
        permit.success();
    }

    fn waiting(&self) -> usize {
        self.snapshot().waiters
    }
}

impl Contender for replaced::Waiting {
    fn probing() -> (Arc<Self>, Release) {
        let waiting = Arc::new(Self::new());
        let probe = Arc::clone(&waiting);
        (waiting, Box::new(move || probe.succeed()))
    }

    async fn wait(&self) {
        self.wait_and_succeed().await;
    }

    fn waiting(&self) -> usize {
        self.count()
    }
}

/// The least there can be: to be told, without a limit, a reason or a look at what has happened.
#[derive(Default)]
struct BareNotify {
    notify: Notify,
    waiting: AtomicUsize,
}

impl Contender for BareNotify {
    fn probing() -> (Arc<Self>, Release) {
        let this = Arc::new(Self::default());
        let probe = Arc::clone(&this);
        (this, Box::new(move || probe.notify.notify_waiters()))
    }

    async fn wait(&self) {
        let told = self.notify.notified();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        told.await;
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// Microseconds.
struct Sample {
    /// That the task which reported the success was held up.
    block: f64,
    /// Until the last waiter had run.
    all: f64,
}

fn release<C: Contender>(count: usize) -> Sample {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let (contender, release) = C::probing();
        let mut waiters = JoinSet::new();
        for _ in 0..count {
            let contender = Arc::clone(&contender);
            waiters.spawn(async move { contender.wait().await });
        }
        while contender.waiting() < count {
            yield_now().await;
        }
        let began = Instant::now();
        let block = tokio::spawn(async move {
            let began = Instant::now();
            release();
            began.elapsed()
        });
        let block = block.await.expect("it does not panic");
        while waiters.join_next().await.is_some() {}
        Sample { block: block.as_secs_f64() * 1e6, all: began.elapsed().as_secs_f64() * 1e6 }
    })
}

/// Microseconds until the last waiter has run, where each hands the probe on to the next one.
fn hand_on(count: usize) -> f64 {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let (breaker, probe) = probing();
        let mut waiters = JoinSet::new();
        for _ in 0..count {
            let breaker = Arc::clone(&breaker);
            waiters.spawn(async move { breaker.acquire().await.expect("no probe fails").cancel() });
        }
        while breaker.waiting() < count {
            yield_now().await;
        }
        let began = Instant::now();
        probe.cancel();
        while waiters.join_next().await.is_some() {}
        began.elapsed().as_secs_f64() * 1e6
    })
}

/// Bytes of one waiter: its future, and what that allocates when it begins to wait. A task adds its own.
fn weight<C: Contender>() -> (usize, u64) {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    let (contender, _release) = C::probing();
    let future = contender.wait();
    let size = size_of_val(&future);
    let mut future = pin!(future);
    let heap = allocation_counter::measure(|| {
        assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    });
    (size, u64::try_from(heap.bytes_current).unwrap_or(0))
}

fn row<C: Contender>(name: &str, rounds: &[Vec<Sample>]) {
    let (future, heap) = weight::<C>();
    print!("| {name} | {future} + {heap} |");
    for samples in rounds {
        let block = Spread::of(samples.iter().map(|sample| sample.block));
        let all = Spread::of(samples.iter().map(|sample| sample.all));
        print!(" {block} | {all} |");
    }
    println!();
}

fn main() {
    let Arguments { rounds, .. } = Arguments::parse();
    let mut samples: [[Vec<Sample>; COUNTS.len()]; 3] = Default::default();
    let mut handed_on: [Vec<f64>; COUNTS.len()] = Default::default();
    for _ in 0..rounds {
        for (n, count) in COUNTS.into_iter().enumerate() {
            samples[0][n].push(release::<CircuitBreaker>(count));
            samples[1][n].push(release::<replaced::Waiting>(count));
            samples[2][n].push(release::<BareNotify>(count));
            handed_on[n].push(hand_on(count));
        }
    }
    println!("\nmedians (smallest-largest) of {rounds} rounds, in microseconds, two workers");
    print!("\n| waiters | bytes: future + heap |");
    for count in COUNTS {
        print!(" {count}: held up | all have run |");
    }
    println!("\n|---|{}", "---|".repeat(1 + 2 * COUNTS.len()));
    row::<CircuitBreaker>("**fusebox**", &samples[0]);
    row::<replaced::Waiting>("`DashMap` + `Mutex` + `watch`", &samples[1]);
    row::<BareNotify>("floor: `Notify` alone", &samples[2]);
    println!("\n| each hands the probe on to the next: waiters | all have run | of that, each |\n|---|---|---|");
    for (count, took) in COUNTS.into_iter().zip(handed_on) {
        let each = Spread::of(took.iter().map(|took| took / f64::from(u32::try_from(count).unwrap_or(u32::MAX))));
        println!("| {count} | {} | {each} |", Spread::of(took.into_iter()));
    }
}
