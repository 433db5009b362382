//! Replicas that are processes, and a real Redis, in real time.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep};

use crate::provider::{Counts, Fails, Provider};
use crate::server::{Redis, Way};
use crate::table::{shown, summary};

#[derive(Args)]
pub(crate) struct Options {
    /// Runs of each scenario.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Worlds at one time, each with its own processes and its own Redis.
    #[arg(long, default_value_t = 4)]
    beside: usize,
    /// Processes in each.
    #[arg(long, default_value_t = 20)]
    replicas: usize,
    /// Calls a second, of all replicas of a world together.
    #[arg(long, default_value_t = 200.0)]
    rate: f64,
    /// Only scenarios whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
}

const OPEN_FOR: Duration = Duration::from_millis(1500);
const OUTAGE: Duration = Duration::from_secs(5);

/// What happens besides the outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Nothing,
    /// Only 6 of 20 replicas meet the outage.
    SixSick,
    /// One replica always fails.
    OneLiar,
    /// Another replica starts in the middle of it.
    Joiner,
    RedisHangsBefore,
    RedisHangsDuring,
    RedisKilledAndBack,
    HalfCutOff,
    Full,
    ReadOnly,
    /// The clocks of Redis and of half of the replicas are five minutes ahead.
    ClockOff,
    /// The replica that probes is killed, and its probe never answered.
    ProberKilled,
}

const SCENARIOS: [(&str, Event); 12] = [
    ("total outage", Event::Nothing),
    ("6 of 20 sick", Event::SixSick),
    ("a liar", Event::OneLiar),
    ("a joiner in mid-outage", Event::Joiner),
    ("Redis hangs before", Event::RedisHangsBefore),
    ("Redis hangs during", Event::RedisHangsDuring),
    ("Redis killed, back empty", Event::RedisKilledAndBack),
    ("half cut off", Event::HalfCutOff),
    ("Redis full", Event::Full),
    ("Redis read-only", Event::ReadOnly),
    ("clocks 5 min off", Event::ClockOff),
    ("the prober is killed", Event::ProberKilled),
];

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    counts: Counts,
    back_after: Duration,
    /// Of Redis, in seconds.
    cpu: f64,
    scripts: f64,
    /// Messages, and how often they were handed to a replica.
    messages: f64,
    lasted: Duration,
}

/// Processes that end with the world.
struct Replicas {
    processes: Vec<Child>,
    /// Calls a second of each.
    rate: f64,
}

impl Replicas {
    fn start(&mut self, number: usize, provider: &Provider, redis: Option<u16>, is_ahead: bool) {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["replica", "--number", &number.to_string(), "--provider", &provider.address.to_string()]);
        command.args(["--rate", &self.rate.to_string(), "--open-ms", &OPEN_FOR.as_millis().to_string()]);
        if let Some(port) = redis {
            command.args(["--redis", &port.to_string()]);
        }
        if is_ahead {
            // Debian's libfaketime moves the wall clock, and leaves the monotonic one alone.
            command.env("LD_PRELOAD", "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1");
            command.env("FAKETIME", "+5m").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        self.processes.push(command.stdout(Stdio::null()).spawn().expect("a process"));
    }

    fn kill(&mut self, number: usize) {
        let _ = self.processes[number].kill();
        let _ = self.processes[number].wait();
    }
}

impl Drop for Replicas {
    fn drop(&mut self) {
        for replica in &mut self.processes {
            let _ = replica.kill();
            let _ = replica.wait();
        }
    }
}

async fn world(event: Event, is_fleet: bool, number: usize, rate: f64) -> Seen {
    let is_late = event == Event::Joiner;
    let all = number + usize::from(is_late);
    let provider = Provider::start(all).await;
    let mut redis = Redis::start().await;
    let way = Way::to(&redis).await;
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    let mut replicas = Replicas { processes: Vec::new(), rate: rate / number as f64 };
    for replica in 0..number {
        let port = if event == Event::HalfCutOff && replica % 2 == 0 { way.port } else { redis.port };
        let is_ahead = event == Event::ClockOff && replica % 2 == 0;
        replicas.start(replica, &provider, is_fleet.then_some(port), is_ahead);
    }
    sleep(Duration::from_secs(3)).await;
    let (before, begun) = (Load::of(&redis), Instant::now());
    match event {
        Event::RedisHangsBefore => redis.signal("-STOP"),
        Event::HalfCutOff => way.cut(),
        Event::Full => drop(redis.cli(&["CONFIG", "SET", "maxmemory", "1"])),
        _ => {}
    }
    provider.set(match event {
        Event::SixSick => Fails::Below(6),
        Event::OneLiar => Fails::Below(1),
        _ => Fails::Everybody,
    });
    sleep(OUTAGE / 3).await;
    match event {
        Event::Joiner => replicas.start(number, &provider, is_fleet.then_some(redis.port), false),
        Event::RedisHangsDuring => redis.signal("-STOP"),
        Event::RedisKilledAndBack => redis.kill(),
        Event::ReadOnly => drop(redis.cli(&["REPLICAOF", "127.0.0.1", "1"])),
        _ => {}
    }
    sleep(OUTAGE / 3).await;
    if event == Event::RedisKilledAndBack {
        redis.start_again().await;
    }
    sleep(OUTAGE / 3).await;
    let mut killed = None;
    if event == Event::ProberKilled {
        provider.hang_a_probe();
        let limit = Instant::now() + Duration::from_secs(5);
        while killed.is_none() && Instant::now() < limit {
            sleep(Duration::from_millis(1)).await;
            killed = provider.hung();
        }
        if let Some(killed) = killed {
            replicas.kill(killed);
        }
    }
    let counts = provider.counts();
    let healed = Instant::now();
    provider.set(Fails::Nobody);
    let well = || (0..all).filter(|replica| Some(*replica) != killed);
    while !provider.all_good_since(healed, well()) && healed.elapsed() < Duration::from_secs(20) {
        sleep(Duration::from_millis(5)).await;
    }
    let (back_after, lasted) = (healed.elapsed(), begun.elapsed());
    redis.signal("-CONT");
    let after = Load::of(&redis);
    let (cpu, scripts) = (after.cpu - before.cpu, after.scripts - before.scripts);
    Seen { counts, back_after, cpu, scripts, messages: after.messages - before.messages, lasted }
}

/// What a Redis has done.
struct Load {
    cpu: f64,
    scripts: f64,
    messages: f64,
}

impl Load {
    fn of(redis: &Redis) -> Self {
        let calls = |command: &str| redis.calls(command);
        let cpu = redis.info("used_cpu_user") + redis.info("used_cpu_sys");
        Self { cpu, scripts: calls("evalsha") + calls("eval"), messages: calls("publish") }
    }
}

pub(crate) fn run(options: &Options) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    println!(
        "{} processes, {} calls a second, open for {OPEN_FOR:?}, an outage of {OUTAGE:?}; mean, median and worst of {}",
        options.replicas, options.rate, options.runs
    );
    println!(
        "{:26} {:6} {:>15} {:>15} {:>15} {:>21}",
        "", "", "paid", "probes", "refused though well", "back after, s"
    );
    for (name, event) in SCENARIOS.iter().filter(|(name, _)| name.contains(&options.only)) {
        for is_fleet in [false, true] {
            let seen = runtime.block_on(worlds(*event, is_fleet, options));
            let what = if is_fleet { "fleet" } else { "alone" };
            println!(
                "{name:26} {what:6} {:>15} {:>15} {:>15} {:>21}",
                table(&seen, 0, |it| count(it.counts.paid)),
                table(&seen, 0, |it| count(it.counts.probes)),
                table(&seen, 0, |it| count(it.counts.refused)),
                table(&seen, 2, |it| it.back_after.as_secs_f64()),
            );
            if *event == Event::Joiner {
                println!("{:33} paid by the joiner: {}", "", table(&seen, 1, |it| count(it.counts.paid_by_last)));
            }
            if is_fleet && matches!(event, Event::Nothing) {
                println!(
                    "{:33} Redis: {} scripts a second, {} messages in all, {} ms of CPU a second",
                    "",
                    table(&seen, 1, |it| it.scripts / it.lasted.as_secs_f64()),
                    table(&seen, 0, |it| it.messages),
                    table(&seen, 2, |it| it.cpu * 1e3 / it.lasted.as_secs_f64()),
                );
            }
        }
    }
}

async fn worlds(event: Event, is_fleet: bool, options: &Options) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut left = options.runs;
    let set = tokio::task::LocalSet::new();
    while left > 0 {
        let now = left.min(options.beside);
        left -= now;
        let worlds: Vec<_> =
            (0..now).map(|_| set.spawn_local(world(event, is_fleet, options.replicas, options.rate))).collect();
        set.run_until(async {
            for world in worlds {
                seen.push(world.await.expect("no panic"));
            }
        })
        .await;
    }
    seen
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn count(count: u64) -> f64 {
    count as f64
}

fn table(seen: &[Seen], digits: usize, f: impl Fn(&Seen) -> f64) -> String {
    shown(summary(&mut seen.iter().map(f).collect::<Vec<_>>()), digits)
}
