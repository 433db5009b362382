//! How many calls the upstream gets when it is just back: callers wait for the probe's result, and then all go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fusebox::Config;
use fusebox::fleet::{Hub, Mode};
use tokio::time::{Instant, sleep, sleep_until};

use crate::table::{shown, summary};
use crate::world::{MODES, in_paused_time, replicas, until_next};

/// What answers take: a provider's first words may take long.
const LATENCIES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];
const OPEN_FOR: Duration = Duration::from_secs(5);
const OUTAGE: Duration = Duration::from_secs(12);
/// Calls that the upstream gets are counted in windows of so long.
const WINDOW: Duration = Duration::from_millis(100);
/// After the heal it is watched for so long.
const WATCHED: Duration = Duration::from_secs(10);
const RATE: f64 = 1000.0;
const REPLICAS: usize = 100;

/// Calls in the fullest window after the heal, in multiples of what comes on average.
async fn peak(mode: Option<Mode>, latency: Duration, ramp: Duration) -> f64 {
    let hub = Hub::new(Duration::from_millis(1));
    let config = Config::builder().open_for(OPEN_FOR).ramp(ramp).build().expect("a valid configuration");
    let replicas = replicas(REPLICAS, config, mode, &hub);
    sleep(Duration::from_secs(3)).await;
    let begun = Instant::now();
    let healed = begun + OUTAGE;
    let ends = healed + WATCHED;
    let windows: Arc<Vec<AtomicU64>> =
        Arc::new((0..WATCHED.as_millis() / WINDOW.as_millis()).map(|_| AtomicU64::new(0)).collect());
    let mut next = begun;
    while next < ends {
        sleep_until(next).await;
        next += until_next(RATE);
        let breaker = Arc::clone(&replicas[fastrand::usize(..REPLICAS)].breaker);
        let windows = Arc::clone(&windows);
        tokio::spawn(async move {
            let Ok(permit) = breaker.acquire().await else { return };
            let at = Instant::now();
            sleep(latency).await;
            if at < healed {
                return permit.failure("5xx", 503);
            }
            permit.success();
            let window = (at - healed).as_millis() / WINDOW.as_millis();
            if let Some(window) = usize::try_from(window).ok().and_then(|window| windows.get(window)) {
                window.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let fullest = windows.iter().map(|window| window.load(Ordering::Relaxed)).max().unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let fullest = fullest as f64;
    fullest / (RATE * WINDOW.as_secs_f64())
}

pub(crate) fn run(runs: u64) {
    println!(
        "\nThe herd after an outage of {OUTAGE:?}, {REPLICAS} replicas, callers wait for the probe: calls in the fullest \
         {WINDOW:?}, in multiples of the mean; mean, median and worst of {runs}"
    );
    println!("{:14} {:7} {:>14} {:>14} {:>14} {:>14}", "answers after", "ramp:", "none", "1s", "2s", "5s");
    for latency in LATENCIES {
        for (name, mode) in MODES {
            let cells = [0, 1, 2, 5].map(|seconds| {
                let one = |run| {
                    fastrand::seed(run);
                    in_paused_time(peak(mode, latency, Duration::from_secs(seconds)))
                };
                shown(summary(&mut (0..runs).map(one).collect::<Vec<_>>()), 1)
            });
            println!(
                "{:14} {name:7} {:>14} {:>14} {:>14} {:>14}",
                format!("{latency:?}"),
                cells[0],
                cells[1],
                cells[2],
                cells[3]
            );
        }
    }
}
