//! What a request costs in the gateway, beside nginx, `HAProxy` and a plain proxy of hyper and hyper-util. All of them
//! stand in front of the same upstream, and take turns within each round.

mod contender;
mod load;
mod metrics;
mod plain;
mod process;
mod report;
mod upstream;

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;

use contender::{Running, Setup, Who, start, start_upstream};
use load::{Kind, Saturated, at_rate, saturate};
use metrics::{metrics, sum};
use process::{build, free_port, is_there, pause};
use report::{Spread, head, row};

#[derive(Parser)]
#[command(about)]
struct Options {
    /// Rounds, in each of which every contender has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of a turn.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Cores of a contender. One that has one core has it for itself; two are shared with the upstream and the load.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    cores: Vec<usize>,
    /// The kind of request.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Kind::Json, Kind::Burst, Kind::Paced])]
    kinds: Vec<Kind>,
    /// Contenders. What the first of them costs is what the others are compared with.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Who::Nginx, Who::Haproxy, Who::Plain, Who::Fusebox])]
    who: Vec<Who>,
    /// Requests per second where latencies are measured; 0: nowhere.
    #[arg(long, default_value_t = 3000)]
    rate: u32,
    /// Idle connections of clients; 0: not measured.
    #[arg(long, default_value_t = 10_000)]
    idle: u32,
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
        Some("rate") => load::print_at_rate(&arguments[2], number(3), number(4).into(), number(5).into()),
        _ => run(&Options::parse()),
    }
}

type Contenders = Vec<(Who, Running)>;

fn run(options: &Options) {
    let folder = std::env::temp_dir().join(format!("gateway-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let fusebox = build();
    assert!(is_there("wrk"), "without wrk there is no load");
    let who: Vec<Who> = options.who.iter().copied().filter(|who| who.program().is_none_or(is_there)).collect();
    for &cores in &options.cores {
        let port = free_port();
        let upstream = start_upstream(port, cores).expect("an upstream");
        let setup =
            Setup { folder: &folder, upstream: port, cores, fusebox: &fusebox, other: options.other.as_deref() };
        let start =
            |who: &Who| start(*who, &setup, free_port()).unwrap_or_else(|error| panic!("{}: {error}", who.name()));
        let contenders: Contenders = who.iter().map(|who| (*who, start(who))).collect();
        for &kind in &options.kinds {
            saturated(options, kind, cores, &contenders, &folder);
        }
        if options.rate > 0 {
            for kind in [Kind::Json, Kind::Burst].into_iter().filter(|kind| options.kinds.contains(kind)) {
                latency(options, kind, &upstream, cores, &contenders);
            }
        }
        for (who, running) in &contenders {
            alarms(*who, running.port);
        }
        if cores == 1 {
            syscalls(options, &contenders, &folder);
            drop(contenders);
            idle(options, &who, &start);
        }
    }
    at_rest(&folder, &fusebox);
    let _ = std::fs::remove_dir_all(folder);
}

/// One contender's turn.
struct Turn {
    per_10k: f64,
    load: Saturated,
    busy: f64,
    starved: bool,
    resident: u32,
}

/// As much as there can be.
fn saturated(options: &Options, kind: Kind, cores: usize, contenders: &Contenders, folder: &Path) {
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
            turns[index].push(turn(options, kind, cores, &contenders[index].1, folder));
        }
    }
    let title = format!("{}, {}, 64 connections", kind.title(), of_cores(cores));
    let columns =
        ["CPU s per 10,000", "ratio", "requests/s", "p50 ms", "p99 ms", "p99.9 ms", "busy", "MiB", "rounds", "errors"];
    head(&title, &columns);
    let base: Vec<f64> = turns[0].iter().map(|turn| turn.per_10k).collect();
    for ((who, _), turns) in contenders.iter().zip(&turns) {
        let good = || turns.iter().enumerate().filter(|(_, turn)| !turn.starved);
        let spread = |of: &dyn Fn(usize, &Turn) -> f64| Spread::of(good().map(|(round, turn)| of(round, turn)));
        let latency = |index: usize| format!("{:#.2}", spread(&|_, turn| turn.load.latency[index]));
        let cells = [
            format!("{:.3}", spread(&|_, turn| turn.per_10k)),
            format!("{:.2}", spread(&|round, turn| turn.per_10k / base[round])),
            format!("{:#.0}", spread(&|_, turn| turn.load.per_second)),
            latency(0),
            latency(1),
            latency(2),
            format!("{:#.2}", spread(&|_, turn| turn.busy)),
            format!("{:#.1}", spread(&|_, turn| f64::from(turn.resident) / 1024.0)),
            format!("{} of {}", good().count(), turns.len()),
            turns.iter().map(|turn| turn.load.errors).sum::<u64>().to_string(),
        ];
        row(who.name(), &cells);
    }
}

fn turn(options: &Options, kind: Kind, cores: usize, running: &Running, folder: &Path) -> Turn {
    let before = running.used();
    let load = saturate(kind, running.port, cores, options.seconds, folder);
    let after = running.used();
    let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
    let waited = after.waited.saturating_sub(before.waited).as_secs_f64();
    let busy = cpu / f64::from(options.seconds);
    // On a core of its own it waits only if somebody else on the machine takes it, and is not busy if the load falls
    // short.
    let starved = cores == 1 && kind != Kind::Paced && (waited > cpu * 0.1 || busy < 0.85);
    Turn { per_10k: cpu / load.requests() * 1e4, busy, starved, resident: running.resident(), load }
}

fn of_cores(cores: usize) -> String {
    if cores == 1 { "1 core".to_owned() } else { format!("{cores} cores") }
}

/// At a given rate, whatever becomes of the requests before.
fn latency(options: &Options, kind: Kind, upstream: &Running, cores: usize, contenders: &Contenders) {
    let direct = [("direct", upstream.port)];
    let all: Vec<(&str, u16)> =
        direct.into_iter().chain(contenders.iter().map(|(who, running)| (who.name(), running.port))).collect();
    let mut samples: Vec<Vec<[f64; 3]>> = all.iter().map(|_| Vec::new()).collect();
    for _ in 0..options.rounds {
        for (index, (_, port)) in all.iter().enumerate() {
            samples[index].push(at_rate(kind, *port, cores, options.rate, options.seconds));
        }
    }
    let title = format!("{}, {}, {} requests a second", kind.title(), of_cores(cores), options.rate);
    head(&title, &["p50 ms", "p99 ms", "p99.9 ms", "p99 added to direct"]);
    for (index, (name, _)) in all.iter().enumerate() {
        let of = |which: usize| format!("{:.2}", Spread::of(samples[index].iter().map(|sample| sample[which])));
        let added = samples[index].iter().zip(&samples[0]).map(|(own, direct)| own[1] - direct[1]);
        row(name, &[of(0), of(1), of(2), format!("{:.2}", Spread::of(added))]);
    }
}

/// Nothing was wrong: each opening of a circuit was a false alarm.
fn alarms(who: Who, port: u16) {
    let Some(metrics) = metrics(port) else { return };
    let [requests, trips] = ["fusebox_requests_total", "fusebox_circuit_trips_total"].map(|name| sum(&metrics, name));
    println!("\n{}: {requests} requests, the circuits opened {trips} times", who.name());
}

/// By the kernel's own count.
fn syscalls(options: &Options, contenders: &Contenders, folder: &Path) {
    let count = |running: &Running| -> Option<f64> {
        let pids = running.pids().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut perf = Command::new("perf")
            .args([
                "stat",
                "-x,",
                "-e",
                "raw_syscalls:sys_enter",
                "-p",
                &pids,
                "--",
                "sleep",
                &options.seconds.to_string(),
            ])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .ok()?;
        let load = saturate(Kind::Json, running.port, 1, options.seconds, folder);
        let mut text = String::new();
        std::io::Read::read_to_string(perf.stderr.as_mut()?, &mut text).ok()?;
        perf.wait().ok()?;
        Some(text.split(',').next()?.trim().parse::<f64>().ok()? / load.requests())
    };
    let counts: Vec<Option<f64>> = contenders.iter().map(|(_, running)| count(running)).collect();
    if counts.iter().all(Option::is_none) {
        println!("\nSKIPPED: system calls are counted by perf, which cannot do it here (is tracefs mounted?)");
        return;
    }
    head("System calls for one JSON request", &["calls"]);
    for ((who, _), count) in contenders.iter().zip(counts) {
        row(who.name(), &[count.map_or("-".to_owned(), |count| format!("{count:.2}"))]);
    }
}

/// What a connection costs that has been used once, and rests.
fn idle(options: &Options, who: &[Who], start: &dyn Fn(&Who) -> Running) {
    if options.idle == 0 {
        return;
    }
    head(
        &format!("{} idle connections of clients, 1 core", options.idle),
        &["MiB before", "MiB with them", "KiB for each"],
    );
    for who in who {
        let running = start(who);
        let before = running.resident();
        let connections: Vec<TcpStream> =
            (0..options.idle).map_while(|_| load::ask_once(Kind::Json, running.port)).collect();
        let held = u32::try_from(connections.len()).expect("as many as were asked for");
        let with = running.resident();
        let mib = |kib: u32| format!("{:.1}", f64::from(kib) / 1024.0);
        let each = f64::from(with.saturating_sub(before)) / f64::from(held.max(1));
        let note = if held < options.idle { format!(" (of {held})") } else { String::new() };
        row(who.name(), &[mib(before), mib(with), format!("{each:.1}{note}")]);
    }
}

/// A gateway that nobody uses.
fn at_rest(folder: &Path, fusebox: &Path) {
    const CORES: usize = 8;
    const SECONDS: u32 = 10;
    let setup = Setup { folder, upstream: free_port(), cores: CORES, fusebox, other: None };
    let running = start(Who::Fusebox, &setup, free_port()).unwrap_or_else(|error| panic!("fusebox: {error}"));
    pause(Duration::from_secs(2));
    let before = running.used().cpu;
    pause(Duration::from_secs(SECONDS.into()));
    let used = running.used().cpu.saturating_sub(before);
    println!("\nAt rest, {CORES} cores configured: {used:?} of CPU time in {SECONDS} s");
}
