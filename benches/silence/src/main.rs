//! `cargo run --release -p silence-bench` prints how soon a hang is noticed, what healthy traffic does to the detector,
//! and what the detector costs.

#[path = "../../../tests/core/simulation.rs"]
mod simulation;
#[expect(dead_code, reason = "what only the tests need")]
#[path = "../../../tests/core/streaming.rs"]
mod streaming;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use fusebox::CircuitBreaker;
use fusebox::silence::{self, Detector, TICK};
use simulation::{Fault, Latency, Settings, World, notice};
use streaming::Habits;

#[derive(Parser)]
struct Arguments {
    /// Hangs in each row.
    #[arg(long, default_value_t = 60)]
    hangs: u64,
    /// Healthy requests in each row.
    #[arg(long, default_value_t = 1_000_000)]
    requests: u64,
    /// Healthy streams in each row.
    #[arg(long, default_value_t = 100_000)]
    streams: u64,
    /// Only what concerns streams.
    #[arg(long)]
    only_streams: bool,
}

const MINUTE: Duration = Duration::from_secs(60);

fn main() {
    let arguments = Arguments::parse();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        healthy_streams(arguments.streams).await;
        stalls().await;
        if arguments.only_streams {
            return;
        }
        hangs(arguments.hangs).await;
        healthy(arguments.requests).await;
        cold_starts().await;
        own_pauses().await;
        changes().await;
        recoveries().await;
        cost();
    });
}

/// What streams do, by name.
fn habits() -> [(&'static str, Habits); 5] {
    let plain = Habits::PLAIN;
    [
        ("a piece every 20 ms", plain),
        ("one in a hundred pieces after 2 to 60 s", Habits { long_pauses: 0.01, ..plain }),
        ("all pause for 50 to 300 ms, every 3 s", Habits { schedules: Some(3.0), ..plain }),
        ("one client in five takes a second for each piece", Habits { slow_clients: 20, ..plain }),
        ("all of that", Habits::ALL),
    ]
}

async fn healthy_streams(streams: u64) {
    println!(
        "\n| healthy streams | a second | cores | streams | alarms | of them in the first minute |\n|---|---|---|---|---|---|"
    );
    for (name, habits) in habits() {
        for (rate, cores, of) in [(1000.0, 4, 1), (100.0, 1, 1), (1.0, 1, 10)] {
            let mut world = streaming::World::new(habits, rate, cores, 1);
            world.run_for(MINUTE).await;
            let early = world.breaker.trip_count();
            let all = streams / of;
            world.run_while(|world| world.sent < all).await;
            println!("| {name} | {rate} | {cores} | {all} | {} | {early} |", world.breaker.trip_count());
        }
    }
    let mut world = streaming::World::new(Habits::PLAIN, 100.0, 1, 1);
    for pause in [40, 100, 250, 1000].repeat(25) {
        world.hold_up(Duration::from_millis(pause));
        world.run_for(Duration::from_secs(5)).await;
    }
    println!("| 100 pauses of the watching core | 100 | 1 | {} | {} | |", world.sent, world.breaker.trip_count());
}

async fn stalls() {
    println!("\n| new streams stop after four pieces | a second | noticed after | streams lost |\n|---|---|---|---|");
    for (name, habits) in habits() {
        for rate in [1000.0, 100.0, 10.0] {
            let (mut times, mut lost) = (Vec::new(), Vec::new());
            for seed in 0..5 {
                let mut world = streaming::World::new(habits, rate, 2, seed);
                world.run_for(4 * MINUTE).await;
                world.run_while(|world| !world.is_closed()).await;
                let (at, sent) = (world.now(), world.sent);
                world.begin(streaming::Fault::New);
                world.run_while(streaming::World::is_closed).await;
                times.push(world.now().duration_since(at));
                lost.push(world.sent - sent);
            }
            lost.sort_unstable();
            println!("| {name} | {rate} | {} | {} |", median_and_worst(times), lost[lost.len() / 2]);
        }
    }
}

async fn hangs(hangs: u64) {
    println!("\n| latency | requests/s | frozen | running |\n|---|---|---|---|");
    for (latency, rate) in [
        (Latency::Fast, 500.0),
        (Latency::Fast, 50.0),
        (Latency::Heavy, 500.0),
        (Latency::Heavy, 50.0),
        (Latency::Heavy, 0.5),
        (Latency::Reasoning, 50.0),
    ] {
        print!("| {latency:?} | {rate} |");
        for fault in [Fault::Frozen, Fault::Running] {
            let (mut noticed, mut sent) = (Vec::new(), Vec::new());
            for seed in 0..hangs {
                let settings = Settings { latency, rate, seed, ..Settings::USUAL };
                let (after, sent_into_it) = notice(settings, 3000 + seed * 37, fault).await;
                noticed.push(after);
                sent.push(sent_into_it);
            }
            sent.sort_unstable();
            print!(" {}, {} |", median_and_worst(noticed), sent[sent.len() / 2]);
        }
        println!();
    }
}

async fn healthy(requests: u64) {
    println!("\n| healthy, heavy-tailed | requests/s | cores | requests | alarms |\n|---|---|---|---|---|");
    for (rate, cores) in [(10.0, 1), (100.0, 1), (1000.0, 1), (5000.0, 1), (1000.0, 16), (5000.0, 16)] {
        let mut world = World::new(Settings { latency: Latency::Heavy, rate, cores, ..Settings::USUAL });
        world.send(requests).await;
        println!("| | {rate} | {cores} | {requests} | {} |", world.breaker.trip_count());
    }
}

async fn cold_starts() {
    println!("\n| 200 cold starts | requests/s | cores | alarms |\n|---|---|---|---|");
    for (latency, rate, cores) in [
        (Latency::Heavy, 500.0, 1),
        (Latency::Heavy, 5000.0, 1),
        (Latency::Heavy, 5000.0, 16),
        (Latency::Reasoning, 500.0, 1),
        (Latency::Fast, 5000.0, 1),
    ] {
        let mut alarms = 0;
        for seed in 0..200 {
            let mut world = World::new(Settings { latency, rate, cores, seed, ..Settings::USUAL });
            world.run_for(Duration::from_secs(10)).await;
            alarms += world.breaker.trip_count();
        }
        println!("| {latency:?} | {rate} | {cores} | {alarms} |");
    }
}

async fn own_pauses() {
    println!("\n| own pauses | latency | pauses | alarms |\n|---|---|---|---|");
    for latency in [Latency::Fast, Latency::Heavy] {
        for pause in [40, 100, 250, 1000] {
            let mut world = World::new(Settings { latency, ..Settings::USUAL });
            world.send(3000).await;
            for _ in 0..20 {
                world.hold_up(Duration::from_millis(pause));
                world.run_for(Duration::from_secs(3)).await;
            }
            println!("| {pause} ms | {latency:?} | 20 | {} |", world.breaker.trip_count());
        }
    }
}

async fn changes() {
    println!("\n| change | latency | requests/s | alarms |\n|---|---|---|---|");
    for (latency, rate) in
        [(Latency::Fast, 500.0), (Latency::Fast, 50.0), (Latency::Heavy, 500.0), (Latency::Heavy, 50.0)]
    {
        let settings = Settings { latency, rate, ..Settings::USUAL };
        let mut drift = World::new(settings);
        drift.send(3000).await;
        for step in 0..600 {
            drift.slowness = 1.0 + 2.0 * f64::from(step) / 600.0;
            drift.run_for(Duration::from_millis(100)).await;
        }
        println!("| x3 in a minute | {latency:?} | {rate} | {} |", drift.breaker.trip_count());

        let mut sudden = World::new(settings);
        sudden.send(3000).await;
        sudden.slowness = 20.0;
        sudden.run_for(10 * MINUTE).await;
        println!("| x20 at once | {latency:?} | {rate} | {} |", sudden.breaker.trip_count());

        let mut busy = World::new(settings);
        busy.send(3000).await;
        busy.settings.rate *= 10.0;
        busy.run_for(MINUTE).await;
        println!("| 10 times the rate | {latency:?} | {rate} | {} |", busy.breaker.trip_count());
    }
}

async fn recoveries() {
    println!("\n| hang of 20 s, then | closes after, median / worst |\n|---|---|");
    for late in [false, true] {
        let mut closed = Vec::new();
        for seed in 0..60 {
            let mut world = World::new(Settings { latency: Latency::Heavy, rate: 50.0, seed, ..Settings::USUAL });
            world.send(3000).await;
            world.begin(Fault::Frozen);
            world.run_for(Duration::from_secs(20)).await;
            assert!(!world.is_closed());
            let at = world.now();
            world.heal(late);
            world.run_while(|world| !world.is_closed()).await;
            closed.push(world.now().duration_since(at));
        }
        println!("| {} | {} |", if late { "it answers all" } else { "nothing comes of it" }, median_and_worst(closed));
    }
}

/// At 50,000 requests a second.
fn cost() {
    const REQUESTS: u32 = 100_000;
    const BETWEEN_TWO: Duration = Duration::from_micros(20);
    println!("\n| one core, in flight | a request: start and answered | the looks' share of it |\n|---|---|---|");
    for in_flight in [1, 64, 1024] {
        let breaker = Arc::new(CircuitBreaker::builder("openai").build().expect("the defaults"));
        let config = silence::Config::builder().build().expect("the defaults");
        let detector = Arc::new(Detector::new(Arc::clone(&breaker), config, 1));
        let mut watcher = detector.watcher().expect("of one core");
        let mut now = Instant::now();
        let mut looked_at = now;
        let mut calls = VecDeque::new();
        // How long it looked.
        let mut request = |in_flight: usize| {
            now += BETWEEN_TWO;
            calls.push_back(watcher.start(&breaker.try_acquire().expect("closed"), now));
            if calls.len() > in_flight {
                watcher.answered(calls.pop_front().expect("some"), now);
            }
            if now.duration_since(looked_at) < TICK {
                return Duration::ZERO;
            }
            looked_at = now;
            let begun = Instant::now();
            assert!(watcher.look(now).is_none());
            begun.elapsed()
        };
        let mut round = || {
            let begun = Instant::now();
            let looks = (0..REQUESTS).map(|_| request(in_flight)).sum();
            [begun.elapsed().saturating_sub(looks), looks].map(|time| time.as_secs_f64() * 1e9 / f64::from(REQUESTS))
        };
        round();
        let mut times: Vec<[f64; 2]> = (0..11).map(|_| round()).collect();
        let median = |times: &mut [[f64; 2]], of: usize| {
            times.sort_by(|a, b| a[of].total_cmp(&b[of]));
            times[times.len() / 2][of]
        };
        println!("| {in_flight} | {:.0} ns | {:.0} ns |", median(&mut times, 0), median(&mut times, 1));
    }
}

fn median_and_worst(mut times: Vec<Duration>) -> String {
    times.sort();
    let seconds = |time: Duration| {
        let seconds = time.as_secs_f64();
        if seconds < 0.2 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
    };
    format!("{} / {}", seconds(times[times.len() / 2]), seconds(*times.last().expect("some")))
}
