//! Threads that work for a while, side by side.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Options;
use crate::report::{Cell, Results};

/// What one measurement of one contender came to.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Operations of all threads together, in millions per second.
    pub mops: f64,
}

/// A measurement: with so many threads, for so long.
type Run = Box<dyn Fn(u16, Duration) -> Sample>;

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
        let run = move |threads, slice| throughput(threads, slice, || handle(&shared), |handle| batch(&shared, handle));
        self.contenders.push((table, contender, Box::new(run)));
    }

    /// Measures all of them, taking turns.
    pub fn run(mut self, options: &Options) -> Results {
        self.contenders.retain(|(table, ..)| table.contains(&options.only));
        let mut cells: Vec<Cell> = Vec::new();
        for (table, contender, _) in &self.contenders {
            cells.extend(options.threads.iter().map(|threads| Cell::new(table, contender, *threads)));
        }
        let slice = Duration::from_millis(options.slice);
        let each = options.threads.len();
        for round in 1..=options.rounds {
            eprintln!("round {round} of {}", options.rounds);
            for (cells, (.., run)) in cells.chunks_mut(each).zip(&self.contenders) {
                for cell in cells {
                    cell.mops.push(run(cell.threads, slice).mops);
                }
            }
        }
        Results::new(self.name, options, cells)
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn throughput<H>(
    threads: u16,
    slice: Duration,
    handle: impl Fn() -> H + Sync,
    batch: impl Fn(&mut H) -> u32 + Sync,
) -> Sample {
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
    let per_second: f64 = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        start.wait();
        #[expect(clippy::disallowed_methods, reason = "no runtime is here, and the threads that count are the others")]
        thread::sleep(slice);
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().map(|worker| worker.join().expect("no operation panics")).sum()
    });
    Sample { mops: per_second / 1e6 }
}
