//! What clients notice while a provider fails and another one is there, and what the failing one gets to bear: the
//! gateway beside nginx and `HAProxy`, each with two providers of its own, at the same time if the machine has open
//! files enough for that.

mod burst;
mod contender;
mod healthy;
mod load;
#[path = "../../gateway/src/metrics.rs"]
mod metrics;
#[path = "../../gateway/src/process.rs"]
mod process;
#[expect(dead_code, reason = "what only the demo shows")]
#[path = "../../../src/demo/provider.rs"]
mod provider;
mod scope;
mod server;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use tokio::sync::watch;
use tokio::time::sleep;

use contender::{Who, start};
use load::{Sample, send};
use process::build;
use provider::{Fault, Latency, Simulated};
use scope::Case;

#[derive(Parser)]
#[command(about)]
struct Options {
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [
        Fault::Http500, Fault::Hang, Fault::Pause, Fault::Refuse, Fault::Http429, Fault::Abort, Fault::Slow, Fault::Stall,
        Fault::KeepAlive, Fault::StallAlive,
    ])]
    faults: Vec<Fault>,
    /// Requests per second.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1000])]
    rates: Vec<u32>,
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Latency::Short, Latency::Tail])]
    latencies: Vec<Latency>,
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Who::Nginx, Who::Haproxy, Who::Fusebox])]
    who: Vec<Who>,
    /// A gateway of another build, instead of this one.
    #[arg(long)]
    gateway: Option<PathBuf>,
    /// Only bursts of requests that take a hundred times as long as usual: no provider fails.
    #[arg(long)]
    bursts: bool,
    /// Only the gateway, and only whose fault it is: a provider that says later, a key, one model of two, one request.
    #[arg(long)]
    scopes: bool,
    /// Only the gateway, and only so many streams of a provider that works: 100,000 take seven minutes.
    #[arg(long)]
    healthy_streams: Option<usize>,
    /// Of the scopes.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Case::value_variants().to_vec())]
    cases: Vec<Case>,
}

fn main() {
    let options = Options::parse();
    let folder = std::env::temp_dir().join(format!("fault-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let fusebox = options.gateway.unwrap_or_else(build);
    let who: Vec<Who> = options.who.iter().copied().filter(|who| who.is_there()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if options.scopes {
        scope::head();
        for case in options.cases {
            println!("| {} |", runtime.block_on(scope::run(case, folder.clone(), fusebox.clone())));
        }
        let _ = std::fs::remove_dir_all(folder);
        return;
    }
    if let Some(streams) = options.healthy_streams {
        healthy::head();
        println!("| {} |", runtime.block_on(healthy::run(streams, folder.clone(), fusebox)));
        let _ = std::fs::remove_dir_all(folder);
        return;
    }
    if options.bursts {
        burst::head();
        for who in who {
            for providers in [1, 2] {
                let seen = runtime.block_on(burst::run(who, folder.clone(), fusebox.clone(), providers));
                println!("| {providers} | {} | {seen} |", who.name());
            }
        }
        let _ = std::fs::remove_dir_all(folder);
        return;
    }
    for &latency in &options.latencies {
        for &rate in &options.rates {
            head(latency, rate);
            for &fault in &options.faults {
                let (outage, at_once) = fitting(fault, latency, rate, who.len());
                for who in who.chunks(at_once) {
                    let run = |who| run(who, folder.clone(), fusebox.clone(), latency, rate, fault, outage);
                    let runs: Vec<_> = who.iter().map(|who| runtime.spawn(run(*who))).collect();
                    for (who, run) in who.iter().zip(runs) {
                        let seen = runtime.block_on(run).expect("a run");
                        println!("| {} | {} | {seen} |", name(fault), who.name());
                    }
                }
            }
        }
    }
    let _ = std::fs::remove_dir_all(folder);
}

fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::Abort => "cut answers",
        Fault::Slow => "slow drip",
        Fault::Stall => "stalled streams",
        Fault::KeepAlive => "comments before content",
        Fault::StallAlive => "comments after content",
        _ => fault.as_str(),
    }
}

fn head(latency: Latency, rate: u32) {
    let latency = match latency {
        Latency::Short => "20 ms",
        Latency::Tail => "0.6 s with a long tail",
    };
    println!("\n### {rate} requests/s, answers take {latency}\n");
    println!(
        "| fault | | client errors | requests sent into it | p50 ms | p99 ms | healthy p99 ms | open after | closed after | largest burst |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
}

/// Whether it concerns streams, and they stay open.
fn is_kept_open(fault: Fault) -> bool {
    matches!(fault, Fault::Stall | Fault::KeepAlive | Fault::StallAlive)
}

/// How long a fault lasts, and how many contenders meet it at once: a request that is under way takes two open files
/// here, one at either end.
fn fitting(fault: Fault, latency: Latency, rate: u32, contenders: usize) -> (Duration, usize) {
    let outage = match (fault, latency) {
        (Fault::Pause, _) => 1,
        (_, Latency::Short) => 10,
        (_, Latency::Tail) => 15,
    };
    if !is_kept_open(fault) && fault != Fault::Hang && fault != Fault::Slow {
        return (Duration::from_secs(outage), contenders);
    }
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    let files: u64 = files.and_then(|files| files.parse().ok()).unwrap_or(1024);
    let fits = (files * 3 / 4 / 2 / u64::from(rate)).max(1);
    let at_once = if outage * contenders as u64 <= fits { contenders } else { 1 };
    (Duration::from_secs(outage.min(fits)), at_once)
}

async fn run(
    who: Who,
    folder: PathBuf,
    fusebox: PathBuf,
    latency: Latency,
    rate: u32,
    fault: Fault,
    outage: Duration,
) -> String {
    let asked = Arc::<Mutex<Vec<Instant>>>::default();
    let note = Arc::clone(&asked);
    let note = move || note.lock().expect("nobody panics").push(Instant::now());
    let primary = Simulated::start("primary", latency, note).expect("a provider");
    let fallback = Simulated::start("fallback", latency, || {}).expect("a provider");
    let ports = (primary.address().port(), Some(fallback.address().port()));
    let start = move |folder: &Path, fusebox: &Path| start(who, folder, fusebox, latency, ports.0, ports.1);
    let proxy = tokio::task::spawn_blocking(move || start(&folder, &fusebox)).await.expect("a contender");
    let (over, is_over) = watch::channel(false);
    let sending = tokio::spawn(send(proxy.port, rate, is_kept_open(fault), is_over));

    let extra = match latency {
        Latency::Short => Duration::from_secs(3),
        Latency::Tail => Duration::from_secs(8),
    };
    // As long as it takes to know how long answers take.
    sleep(extra + Duration::from_secs(130) / rate).await;
    let began = Instant::now();
    primary.set(Some(fault)).await;
    sleep(outage).await;
    primary.set(None).await;
    let healed = Instant::now();
    sleep(Duration::from_secs(8) + extra).await;
    over.send_replace(true);
    let samples = sending.await.expect("no request panics");
    drop(proxy);
    let asked = asked.lock().expect("nobody panics").clone();
    describe(&samples, &asked, rate, began, healed)
}

fn describe(samples: &[Sample], asked: &[Instant], rate: u32, began: Instant, healed: Instant) -> String {
    let errors = samples.iter().filter(|sample| !sample.is_good).count();
    let times = |from: Option<Instant>, to: Instant| {
        let is_then = |sample: &&Sample| from.is_none_or(|from| sample.started >= from) && sample.started < to;
        let mut times: Vec<_> = samples.iter().filter(is_then).map(|sample| sample.took).collect();
        times.sort_unstable();
        times
    };
    let (healthy, outage) = (times(None, began), times(Some(began), healed));
    let during: Vec<_> = asked.iter().copied().filter(|at| (began..healed).contains(at)).collect();
    let after: Vec<_> = asked.iter().copied().filter(|at| *at >= healed).collect();
    // As long as nobody but a probe comes.
    let silence = Duration::from_millis(300).max(Duration::from_secs(10) / rate);
    let opened = if during.is_empty() {
        Some(Duration::ZERO)
    } else {
        let gap = during.windows(2).find(|pair| pair[1] - pair[0] > silence).map(|pair| pair[0]);
        let last = during[during.len() - 1];
        gap.or((healed - last > silence).then_some(last)).map(|at| at - began)
    };
    let closed =
        after.windows(3).find(|three| three[2] - three[0] < Duration::from_secs(6) / rate).map(|at| at[0] - healed);
    let burst = (0..after.len())
        .map(|first| after[first..].iter().take_while(|at| **at - after[first] < Duration::from_millis(100)).count())
        .max();
    format!(
        "{errors} | {} | {} | {} | {} | {} | {} | {}",
        during.len(),
        millis(percentile(&outage, 50)),
        millis(percentile(&outage, 99)),
        millis(percentile(&healthy, 99)),
        seconds(opened),
        seconds(closed),
        burst.unwrap_or_default(),
    )
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or_default()
}

fn millis(time: Duration) -> String {
    format!("{:.0}", time.as_secs_f64() * 1e3)
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or("never".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
}
