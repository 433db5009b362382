//! The simulated world: calls come to replicas by chance, and fail or succeed as the outage says.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use fusebox::fleet::{Hub, Mode};
use fusebox::{CircuitState, Config, OwnedPermit, PermitType};
use tokio::time::{Instant, sleep};

use crate::table::{shown, summary};
use crate::world::{MODES, in_paused_time, replicas, until_next};

#[derive(Args)]
pub(crate) struct Options {
    /// Runs of each scenario.
    #[arg(long, default_value_t = 20)]
    runs: u64,
    /// Only scenarios whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
}

const TICK: Duration = Duration::from_millis(1);
const LATENCY: Duration = Duration::from_millis(20);
const OPEN_FOR: Duration = Duration::from_secs(5);
/// When what is wrong begins.
const BEGINS: Duration = Duration::from_secs(5);

/// What is wrong, and for whom.
#[derive(Clone, Copy)]
enum Outage {
    /// For everybody, for so long.
    Total(Duration),
    /// For that share of the replicas.
    Zone(f64, Duration),
    /// That many replicas fail always.
    Liars(usize),
    /// That many replicas fail every other call.
    Flapping(usize),
    /// That share of all calls fails.
    Noise(f64),
    /// For everybody that share of calls fails, for so long.
    Partial(f64, Duration),
}

impl Outage {
    fn lasts(self) -> Duration {
        match self {
            Self::Total(time) | Self::Zone(_, time) | Self::Partial(_, time) => time,
            Self::Liars(_) | Self::Flapping(_) | Self::Noise(_) => Duration::from_secs(60),
        }
    }

    /// Whether a call fails that begins at `at`, and whether its replica is one of those that are not well.
    fn fails(self, replica: usize, replicas: usize, at: Duration) -> bool {
        let is_on = at >= BEGINS && at < BEGINS + self.lasts();
        is_on
            && match self {
                Self::Total(_) => true,
                Self::Zone(..) | Self::Liars(_) => self.is_sick(replica, replicas),
                Self::Flapping(_) => self.is_sick(replica, replicas) && fastrand::bool(),
                Self::Noise(share) | Self::Partial(share, _) => fastrand::f64() < share,
            }
    }

    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    fn is_sick(self, replica: usize, replicas: usize) -> bool {
        match self {
            Self::Total(_) | Self::Partial(..) => true,
            Self::Zone(share, _) => (replica as f64) < share * replicas as f64,
            Self::Liars(number) | Self::Flapping(number) => replica < number,
            Self::Noise(_) => false,
        }
    }
}

struct Scenario {
    name: &'static str,
    replicas: usize,
    /// Calls a second, of all replicas together.
    rate: f64,
    outage: Outage,
}

/// What came of it.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// Calls that failed and were no probes, while something was wrong.
    paid: u64,
    probes: u64,
    /// Of calls to replicas that were well.
    refused: u64,
    healthy: u64,
    /// Until all replicas that are well let calls pass again.
    back_after: Duration,
    messages: u64,
}

async fn world(scenario: &Scenario, mode: Option<Mode>) -> Seen {
    let hub = Hub::new(TICK);
    let config = Config::builder().open_for(OPEN_FOR).build().expect("a valid configuration");
    let replicas = replicas(scenario.replicas, config, mode, &hub);
    let (started, mut seen) = (Instant::now(), Seen::default());
    let mut calls: VecDeque<(Duration, OwnedPermit, bool)> = VecDeque::new();
    let ends = BEGINS + scenario.outage.lasts();
    let mut next = Duration::ZERO;
    let (mut back, mut at) = (None, Duration::ZERO);
    while at < ends + Duration::from_secs(10) {
        at = started.elapsed();
        while calls.front().is_some_and(|(due, ..)| *due <= at) {
            let Some((_, permit, fails)) = calls.pop_front() else { break };
            if fails { permit.failure("5xx", 503) } else { permit.success() }
        }
        while next <= at {
            next += until_next(scenario.rate);
            let replica = fastrand::usize(..scenario.replicas);
            let fails = scenario.outage.fails(replica, scenario.replicas, at);
            let is_well = !scenario.outage.is_sick(replica, scenario.replicas);
            seen.healthy += u64::from(is_well);
            match Arc::clone(&replicas[replica].breaker).try_acquire_owned() {
                Ok(permit) => {
                    let is_probe = permit.kind() == PermitType::Probe;
                    seen.probes += u64::from(is_probe && at < ends);
                    seen.paid += u64::from(!is_probe && fails);
                    calls.push_back((at + LATENCY, permit, fails));
                }
                Err(_) => seen.refused += u64::from(is_well),
            }
        }
        if at >= ends && back.is_none() && replicas.iter().all(|it| it.breaker.state() == CircuitState::Closed) {
            back = Some(at.saturating_sub(ends));
        }
        sleep(TICK).await;
    }
    Seen { back_after: back.unwrap_or(Duration::from_secs(10)), messages: hub.messages(), ..seen }
}

pub(crate) fn run(options: &Options) {
    const HALF_A_MINUTE: Duration = Duration::from_secs(30);
    let total = |name, replicas, rate| Scenario { name, replicas, rate, outage: Outage::Total(HALF_A_MINUTE) };
    let scenarios = [
        total("total outage, 3", 3, 1000.0),
        total("total outage, 20", 20, 1000.0),
        total("total outage, 20 at 200/s", 20, 200.0),
        total("total outage, 100", 100, 1000.0),
        total("total outage, 1000", 1000, 1000.0),
        Scenario { name: "blip of 1 s, 100", outage: Outage::Total(Duration::from_secs(1)), ..total("", 100, 1000.0) },
        Scenario { name: "zone of 34 of 100", outage: Outage::Zone(0.34, HALF_A_MINUTE), ..total("", 100, 1000.0) },
        Scenario { name: "zone of 60 of 100", outage: Outage::Zone(0.6, HALF_A_MINUTE), ..total("", 100, 1000.0) },
        Scenario { name: "2 liars of 100", outage: Outage::Liars(2), ..total("", 100, 1000.0) },
        Scenario { name: "2 flapping of 100", outage: Outage::Flapping(2), ..total("", 100, 1000.0) },
        Scenario { name: "1% noise, 100", outage: Outage::Noise(0.01), ..total("", 100, 1000.0) },
        Scenario { name: "1% noise, 100 at 10000/s", outage: Outage::Noise(0.01), ..total("", 100, 10_000.0) },
        Scenario { name: "30% fail, 100", outage: Outage::Partial(0.3, HALF_A_MINUTE), ..total("", 100, 1000.0) },
    ];
    println!(
        "{:26} {:7} {:>22} {:>22} {:>24} {:>16} {:>9}",
        "", "", "paid", "probes a cycle", "refused though well, %", "back after, s", "messages"
    );
    for scenario in scenarios.iter().filter(|scenario| scenario.name.contains(&options.only)) {
        for (name, mode) in MODES {
            let one = |run| {
                fastrand::seed(run);
                in_paused_time(world(scenario, mode))
            };
            let seen: Vec<_> = (0..options.runs).map(one).collect();
            let table = |f: &dyn Fn(&Seen) -> f64| summary(&mut seen.iter().map(f).collect::<Vec<_>>());
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let cells = (
                table(&|seen| seen.paid as f64),
                table(&|seen| seen.probes as f64 / (scenario.outage.lasts().as_secs_f64() / 5.0)),
                table(&|seen| seen.refused as f64 * 100.0 / (seen.healthy.max(1)) as f64),
                table(&|seen| seen.back_after.as_secs_f64()),
                table(&|seen| seen.messages as f64),
            );
            println!(
                "{:26} {name:7} {:>22} {:>22} {:>24} {:>16} {:>9.0}",
                scenario.name,
                shown(cells.0, 0),
                shown(cells.1, 1),
                shown(cells.2, 3),
                shown(cells.3, 1),
                cells.4.0
            );
        }
    }
    if "herd".contains(&options.only) {
        crate::herd::run(options.runs);
    }
}
