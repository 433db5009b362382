//! Throughput of ONE breaker that all threads share: permit and outcome, rejection, joining the wait for a probe.
//!
//! Every contender makes the same call: it asks its breaker, calls an upstream that does nothing, and tells the breaker
//! how that went. A contender that cannot do an operation is not in its table.
//!
//! `cargo bench -p fusebox-benches --bench contention`, and with `-- --help` to see what can be set.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use fusebox::{Abandoned, Config, ConfigBuilder};
use fusebox_benches::contenders::{CALLS, Contender, Start, floors, peers, replaced, runtime, us};
use fusebox_benches::{Options, Suite, exit, writable};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Draws the throughput of permits and successes over the threads into this file; from `benches/`.
    #[arg(long, value_parser = writable)]
    svg: Option<PathBuf>,
}

/// In the table of failures every call fails but one in so many: a breaker that counts failures in a row must never
/// open, and the highest threshold of ours is 1,023. 64 threads add no more than that between two successes.
const ONE_SUCCESS_IN: u32 = 16;

const SUCCESS: &str = "permit + success";
const FAILURE: &str = "permit + failure";
const TENTH: &str = "one failure in ten";
const REJECTED: &str = "rejected while open";
const WAITING: &str = "join the wait, and leave it";

const TWO_LOADS: &str = "floor: two acquire loads";
const ONE_ADD: &str = "floor: one shared `fetch_add`";

/// Every call is let through, or none is: that is what a table is about.
#[derive(Clone, Copy)]
enum Expect {
    AllPass,
    NonePasses,
}

fn add<C: Contender>(
    suite: &mut Suite,
    table: &'static str,
    name: &'static str,
    contender: C,
    expect: Expect,
    fails: impl Fn(u32) -> bool + Copy + Send + Sync + 'static,
) {
    // Some need a runtime's timer.
    let handle = |contender: &C| (contender.handle(), runtime().enter());
    suite.add(table, name, contender, handle, move |contender, (handle, _)| {
        let passed = contender.calls(handle, fails);
        let expected = match expect {
            Expect::AllPass => CALLS,
            Expect::NonePasses => 0,
        };
        assert_eq!(passed, expected, "{name}: {table}");
        CALLS
    });
}

/// Adds a contender to the tables of every breaker.
fn breaker<C: Contender>(suite: &mut Suite, name: &'static str, started: impl Fn(Start) -> C) {
    add(suite, SUCCESS, name, started(Start::Closed), Expect::AllPass, |_| false);
    add(suite, FAILURE, name, started(Start::Closed), Expect::AllPass, |n| n % ONE_SUCCESS_IN != 0);
    add(suite, TENTH, name, started(Start::Closed), Expect::AllPass, |n| n % 10 == 0);
    add(suite, REJECTED, name, started(Start::Open), Expect::NonePasses, |_| false);
}

/// The settings that make a call that passes do more. No call fails often enough to open the circuit.
fn policies(suite: &mut Suite) {
    let seconds = Duration::from_secs;
    let rate = || Config::builder().failure_rate(99).window(seconds(10));
    let policies: [(&'static str, ConfigBuilder); 5] = [
        ("fusebox, `failure_rate`", rate()),
        ("fusebox, `failure_rate` and `slow_rate`", rate().slow_rate(99).slow_after(seconds(3600))),
        ("fusebox, `failure_rate` of 1,000 calls", rate().window(1000)),
        ("fusebox, `failure_memory`", Config::builder().failure_memory(seconds(60))),
        ("fusebox, `abandoned`", Config::builder().abandoned(Abandoned::Failure)),
    ];
    for (name, policy) in policies {
        add(suite, SUCCESS, name, us::with(policy.clone()), Expect::AllPass, |_| false);
        add(suite, TENTH, name, us::with(policy), Expect::AllPass, |n| n % 10 == 0);
    }
}

fn main() -> ExitCode {
    exit(measure(&Arguments::parse()))
}

fn measure(arguments: &Arguments) -> Result<(), String> {
    let Arguments { options, svg } = arguments;
    // For what is made here: each thread enters it where it has to.
    let _entered = runtime().enter();
    let mut suite = Suite::new("contention");
    let s = &mut suite;
    add(s, SUCCESS, "floor: no breaker", floors::no_breaker(), Expect::AllPass, |_| false);
    add(s, SUCCESS, "floor: one acquire load", floors::one_load(), Expect::AllPass, |_| false);
    add(s, SUCCESS, TWO_LOADS, floors::two_loads(), Expect::AllPass, |_| false);
    add(s, SUCCESS, "floor: a ready future, two loads", floors::ready_future(), Expect::AllPass, |_| false);
    add(s, SUCCESS, "floor: the same, polled once", floors::ready_future_polled(), Expect::AllPass, |_| false);
    add(s, SUCCESS, ONE_ADD, floors::one_add(), Expect::AllPass, |_| false);
    add(s, FAILURE, ONE_ADD, floors::one_add(), Expect::AllPass, |_| true);
    add(s, REJECTED, "floor: one reading of `Instant`", floors::one_reading(), Expect::NonePasses, |_| false);
    breaker(s, "**fusebox**", us::borrowed);
    breaker(s, "fusebox, `acquire().await`", us::awaited);
    breaker(s, "fusebox, `acquire()` polled once", us::polled);
    breaker(s, "fusebox, owned permit", us::owned);
    breaker(s, "fusebox, by name", us::by_name);
    policies(s);
    breaker(s, "recloser", peers::recloser);
    breaker(s, "failsafe", peers::failsafe);
    breaker(s, "breaker", peers::breaker);
    breaker(s, "nobreak", peers::nobreak);
    breaker(s, "circuitbreaker-rs", peers::circuitbreaker_rs);
    breaker(s, "seatbelt", peers::seatbelt);
    breaker(s, "tower-resilience", peers::tower_resilience);
    breaker(s, "`DashMap` + `Mutex` + `watch`", replaced::replaced);
    add(s, WAITING, "**fusebox**", us::waiting(), Expect::NonePasses, |_| false);
    add(s, WAITING, "`DashMap` + `Mutex` + `watch`", replaced::waiting(), Expect::NonePasses, |_| false);

    let results = suite.run(options)?;
    results.report(options)?;
    let Some(svg) = svg else { return Ok(()) };
    // One line where the table has several that would lie on one another.
    let drawn = |name: &str| !name.starts_with("floor") || [TWO_LOADS, ONE_ADD].contains(&name);
    results.draw(SUCCESS, drawn, "A permit and its success, all threads on one breaker", svg)
}
