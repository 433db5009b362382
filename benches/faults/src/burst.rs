//! Bursts of requests that take a hundred times as long as usual, in front of providers that work: whether anybody
//! notices them but those who sent them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;

use crate::contender::{Who, start};
use crate::load::{Sample, burst, send};
use crate::provider::{Latency, Simulated};
use crate::{millis, percentile};

/// Short requests per second, before the bursts and during them. There are so few then that nothing is answered for a
/// while, as if the provider were silent.
const RATES: (u32, u32) = (100, 5);
const BURSTS: usize = 5;
const LONG: usize = 10;

pub(crate) fn head() {
    println!("\n### {BURSTS} bursts of {LONG} requests of 2 s each, beside {} requests/s of 20 ms\n", RATES.1);
    println!(
        "| providers | | client errors | short p50 ms before, during | short p99 ms before, during | long p50 ms | sent twice |"
    );
    println!("|---|---|---|---|---|---|---|");
}

pub(crate) async fn run(who: Who, folder: PathBuf, fusebox: PathBuf, providers: usize) -> String {
    let asked = Arc::<AtomicUsize>::default();
    let count = || {
        let asked = Arc::clone(&asked);
        move || {
            asked.fetch_add(1, Ordering::Relaxed);
        }
    };
    let simulated = ["primary", "fallback"].map(|name| Simulated::start(name, Latency::Short, count()));
    let [primary, fallback] = simulated.map(|provider| provider.expect("a provider"));
    let second = (providers > 1).then(|| fallback.address().port());
    let first = primary.address().port();
    let start = move |folder: &Path, fusebox: &Path| start(who, folder, fusebox, Latency::Short, first, second);
    let proxy = tokio::task::spawn_blocking(move || start(&folder, &fusebox)).await.expect("a contender");
    let mut short = send_for(Duration::from_secs(8), proxy.port).await;
    let began = Instant::now();
    let (over, is_over) = watch::channel(false);
    let sending = tokio::spawn(send(proxy.port, RATES.1, false, is_over));
    let mut long = Vec::new();
    for _ in 0..BURSTS {
        long.extend(burst(proxy.port, LONG).await);
        sleep(Duration::from_secs(1)).await;
    }
    over.send_replace(true);
    short.extend(sending.await.expect("no request panics"));
    let twice = asked.load(Ordering::Relaxed).saturating_sub(short.len() + long.len());
    let errors = short.iter().chain(&long).filter(|sample| !sample.is_good).count();
    let times = |samples: &[Sample], is_it: &dyn Fn(&Sample) -> bool| {
        let mut times: Vec<_> = samples.iter().filter(|sample| is_it(sample)).map(|sample| sample.took).collect();
        times.sort_unstable();
        times
    };
    let (before, during) = (times(&short, &|it| it.started < began), times(&short, &|it| it.started >= began));
    let at = |percent| [&before, &during].map(|times| millis(percentile(times, percent))).join(", ");
    let long = times(&long, &|_| true);
    format!("{errors} | {} | {} | {} | {twice}", at(50), at(99), millis(percentile(&long, 50)))
}

async fn send_for(time: Duration, port: u16) -> Vec<Sample> {
    let (over, is_over) = watch::channel(false);
    let sending = tokio::spawn(send(port, RATES.0, false, is_over));
    sleep(time).await;
    over.send_replace(true);
    sending.await.expect("no request panics")
}
