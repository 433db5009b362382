//! What a request costs in the gateway, beside nginx, `HAProxy` and a plain proxy of hyper and hyper-util. All of them stand in
//! front of the same upstream, and take turns within each round.

mod contender;
mod load;
mod plain;
mod upstream;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;

use contender::{Running, Setup, Who, pause, start, start_upstream};
use load::{Kind, at_rate, percentile, saturate};

#[derive(Parser)]
#[command(about)]
struct Options {
    /// Rounds, in each of which every contender has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of a turn.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Cores of a contender.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    cores: Vec<usize>,
    /// What is asked.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Kind::Json, Kind::Burst, Kind::Paced])]
    kinds: Vec<Kind>,
    /// Contenders.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Who::Nginx, Who::Haproxy, Who::Plain, Who::Fusebox])]
    who: Vec<Who>,
    /// Requests per second of the latency tables; 0: none.
    #[arg(long, default_value_t = 3000)]
    rate: u32,
    /// A gateway of another build, as the contender "other".
    #[arg(long)]
    other: Option<PathBuf>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse().ok()).expect("a number");
    match arguments.get(1).map(String::as_str) {
        Some("upstream") => upstream::serve(number(2)),
        Some("plain") => plain::serve(number(2), number(3), usize::from(number(4))),
        _ => run(&Options::parse()),
    }
}

/// One contender's turn.
struct Turn {
    per_10k: f64,
    per_second: f64,
    utilisation: f64,
    starved: bool,
    errors: u64,
    resident: u32,
}

fn run(options: &Options) {
    let folder = std::env::temp_dir().join(format!("gateway-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let fusebox = build();
    let who: Vec<Who> = options.who.iter().copied().filter(|who| is_there(*who)).collect();
    for &cores in &options.cores {
        let port = free_port();
        let upstream = start_upstream(port, cores).expect("an upstream");
        let setup =
            Setup { folder: &folder, upstream: port, cores, fusebox: &fusebox, other: options.other.as_deref() };
        let contenders: Vec<(Who, Running)> = who
            .iter()
            .map(|who| {
                (*who, start(*who, &setup, free_port()).unwrap_or_else(|error| panic!("{}: {error}", who.name())))
            })
            .collect();
        for &kind in &options.kinds {
            saturated(options, kind, cores, &contenders, &folder);
        }
        if options.rate > 0 {
            latency(options, &upstream, cores, &contenders);
        }
    }
    let _ = std::fs::remove_dir_all(folder);
}

/// Of those that are not given to connections by themselves.
fn free_port() -> u16 {
    let start = 10_000 + u16::try_from(std::process::id() % 20_000).expect("small");
    (start..32_768).find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).expect("a free port")
}

fn build() -> PathBuf {
    let status = Command::new("cargo")
        .args(["build", "-q", "--release", "-p", "fusebox", "--features", "proxy", "--bin", "fusebox"])
        .status();
    assert!(status.expect("cargo runs").success(), "the gateway does not build");
    std::env::current_exe().expect("this program").with_file_name("fusebox")
}

fn is_there(who: Who) -> bool {
    let program = match who {
        Who::Nginx => "nginx",
        Who::Haproxy => "haproxy",
        _ => return true,
    };
    let is_there = Command::new("sh")
        .args(["-c", &format!("command -v {program} >/dev/null || apt-get install -qq -y {program} >/dev/null 2>&1")])
        .status()
        .is_ok_and(|status| status.success());
    if !is_there {
        println!("SKIPPED: there is no {program} here");
    }
    is_there
}

fn saturated(options: &Options, kind: Kind, cores: usize, contenders: &[(Who, Running)], folder: &Path) {
    let mut turns: Vec<Vec<Turn>> = contenders.iter().map(|_| Vec::new()).collect();
    for (_, running) in contenders {
        saturate(kind, running.port, cores, 1, folder);
    }
    for round in 0..options.rounds {
        // There and back again, so that nobody always comes after the same one.
        let mut order: Vec<usize> = (0..contenders.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let running = &contenders[index].1;
            let before = running.used();
            let result = saturate(kind, running.port, cores, options.seconds, folder);
            pause(Duration::from_millis(100));
            let after = running.used();
            let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
            let waited = after.waited.saturating_sub(before.waited).as_secs_f64();
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let (per_10k, utilisation) =
                (cpu / result.requests as f64 * 1e4, cpu / f64::from(options.seconds) / cores as f64);
            let starved = cores == 1 && (waited > cpu * 0.1 || (kind != Kind::Paced && utilisation < 0.85));
            turns[index].push(Turn {
                per_10k,
                per_second: result.per_second,
                utilisation,
                starved,
                errors: result.errors,
                resident: running.resident(),
            });
        }
    }
    println!("\n{kind:?}, {cores} core(s), 64 connections\n");
    println!(
        "| | CPU s per 10,000 | against nginx | requests/s | busy | RSS MiB | rounds | errors |\n|---|---|---|---|---|---|---|---|"
    );
    let base: Vec<f64> = turns[0].iter().map(|turn| turn.per_10k).collect();
    for ((who, _), turns) in contenders.iter().zip(&turns) {
        let good: Vec<(usize, &Turn)> = turns.iter().enumerate().filter(|(_, turn)| !turn.starved).collect();
        let spread =
            |of: &dyn Fn(usize, &Turn) -> f64| Spread::of(good.iter().map(|(round, turn)| of(*round, turn)).collect());
        println!(
            "| {} | {} | {} | {:.0} | {:.2} | {:.1} | {} of {} | {} |",
            who.name(),
            spread(&|_, turn| turn.per_10k),
            spread(&|round, turn| turn.per_10k / base[round]),
            spread(&|_, turn| turn.per_second).median,
            spread(&|_, turn| turn.utilisation).median,
            turns.last().map_or(0.0, |turn| f64::from(turn.resident) / 1024.0),
            good.len(),
            turns.len(),
            turns.iter().map(|turn| turn.errors).sum::<u64>(),
        );
    }
}

fn latency(options: &Options, upstream: &Running, cores: usize, contenders: &[(Who, Running)]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let direct = [("direct", upstream.port)];
    let all: Vec<(&str, u16)> =
        direct.into_iter().chain(contenders.iter().map(|(who, running)| (who.name(), running.port))).collect();
    let mut samples: Vec<Vec<[f64; 3]>> = all.iter().map(|_| Vec::new()).collect();
    for _ in 0..options.rounds {
        for (index, (_, port)) in all.iter().enumerate() {
            let sorted = runtime.block_on(at_rate(Kind::Json, *port, options.rate, options.seconds));
            samples[index].push([500, 990, 999].map(|per_mille| percentile(&sorted, per_mille)));
        }
    }
    println!("\nJson at {}/s, {cores} core(s), milliseconds\n", options.rate);
    println!("| | p50 | p99 | p99.9 | p99 added |\n|---|---|---|---|---|");
    for (index, (name, _)) in all.iter().enumerate() {
        let of = |which: usize| Spread::of(samples[index].iter().map(|sample| sample[which]).collect());
        let added = samples[index].iter().zip(&samples[0]).map(|(own, direct)| own[1] - direct[1]).collect();
        println!("| {name} | {} | {} | {} | {} |", of(0), of(1), of(2), Spread::of(added));
    }
}

/// A median and what was around it.
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let median = values.get(values.len() / 2).copied().unwrap_or(f64::NAN);
        let end = |value: Option<&f64>| value.copied().unwrap_or(f64::NAN);
        Self { median, min: end(values.first()), max: end(values.last()) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} ({:.3}-{:.3})", self.median, self.min, self.max)
    }
}
