//! Threads that work for a while, side by side.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Options;
use crate::report::{Results, Row};

/// A measurement with so many threads, for so long: operations of all of them together, per second.
type Run = Box<dyn Fn(u16, Duration) -> f64>;

/// The contenders of one bench.
pub struct Suite {
    name: &'static str,
    contenders: Vec<(&'static str, &'static str, Run)>,
}

impl Suite {
    /// An empty one.
    pub fn new(name: &'static str) -> Self {
        Self { name, contenders: Vec::new() }
    }

    /// Adds a contender to a table. Each thread makes a handle of its own from what they share, and then does one batch
    /// after the other; `batch` returns how many operations it has done.
    pub fn add<S: Sync + 'static, H>(
        &mut self,
        table: &'static str,
        contender: &'static str,
        shared: S,
        handle: impl Fn(&S) -> H + Sync + 'static,
        batch: impl Fn(&S, &mut H) -> u32 + Sync + 'static,
    ) {
        self.add_run(table, contender, move |threads, slice| {
            throughput(threads, slice, || handle(&shared), |handle| batch(&shared, handle))
        });
    }

    /// Adds one that brings its own threads, as many as it is told, and returns its operations per second.
    pub fn add_run(
        &mut self,
        table: &'static str,
        contender: &'static str,
        run: impl Fn(u16, Duration) -> f64 + 'static,
    ) {
        self.contenders.push((table, contender, Box::new(run)));
    }

    /// Measures all of them, taking turns.
    ///
    /// # Errors
    ///
    /// If the arguments leave nothing to measure.
    pub fn run(self, options: &Options) -> Result<Results, String> {
        let (wanted, others): (Vec<_>, Vec<_>) =
            self.contenders.into_iter().partition(|(table, ..)| table.contains(&options.only));
        if wanted.is_empty() {
            let tables: BTreeSet<_> = others.iter().map(|(table, ..)| *table).collect();
            return Err(format!("--only: no table's title contains `{}`; there are {tables:?}", options.only));
        }
        let mut rows: Vec<_> =
            wanted.iter().map(|(table, contender, _)| Row::new(table, contender, &options.threads)).collect();
        let slice = Duration::from_millis(options.slice);
        for round in 1..=options.rounds {
            eprintln!("round {round} of {}", options.rounds);
            for (row, (.., run)) in rows.iter_mut().zip(&wanted) {
                for cell in &mut row.cells {
                    cell.mops.push(run(cell.threads, slice) / 1e6);
                }
            }
        }
        Ok(Results::new(self.name, options, rows))
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn throughput<H>(
    threads: u16,
    slice: Duration,
    handle: impl Fn() -> H + Sync,
    batch: impl Fn(&mut H) -> u32 + Sync,
) -> f64 {
    let start = Barrier::new(usize::from(threads) + 1);
    let stop = AtomicBool::new(false);
    let work = || {
        let mut handle = handle();
        start.wait();
        let began = Instant::now();
        let mut operations = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            operations += u64::from(black_box(batch(&mut handle)));
        }
        operations as f64 / began.elapsed().as_secs_f64()
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        start.wait();
        #[expect(clippy::disallowed_methods, reason = "no runtime is here, and the threads that count are the others")]
        thread::sleep(slice);
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().map(|worker| worker.join().expect("no operation panics")).sum()
    })
}
