//! Throughput of ONE breaker that all threads share: permit and outcome, rejection, joining the wait for a probe.
//!
//! Every contender makes the same call: it asks its breaker, calls an upstream that does nothing, and tells the breaker how
//! that went. A contender that cannot do an operation is not in its table.
//!
//! `cargo bench -p fusebox-benches --bench contention`, and with `-- --help` to see what can be set.

use fusebox_benches::contenders::{Async, CALLS, Contender, floors, peers, replaced, runtime, us};
use fusebox_benches::{Options, Suite};

/// In the table of failures every call fails but one in so many: a breaker that counts failures in a row must never open, and
/// the highest threshold of ours is 1,023. Up to 8 threads add no more than that between two successes.
const ONE_SUCCESS_IN: u32 = 128;

const SUCCESS: &str = "permit + success";
const FAILURE: &str = "permit + failure";
const TENTH: &str = "one failure in ten";
const REJECTED: &str = "rejected while open";
const WAITING: &str = "join the wait, and leave it";

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
fn breaker<C: Contender, O: Contender>(
    suite: &mut Suite,
    name: &'static str,
    closed: impl Fn() -> C,
    open: impl FnOnce() -> O,
) {
    add(suite, SUCCESS, name, closed(), Expect::AllPass, |_| false);
    add(suite, FAILURE, name, closed(), Expect::AllPass, |n| n % ONE_SUCCESS_IN != 0);
    add(suite, TENTH, name, closed(), Expect::AllPass, |n| n % 10 == 0);
    add(suite, REJECTED, name, open(), Expect::NonePasses, |_| false);
}

fn main() -> Result<(), String> {
    let options = Options::parse();
    // For what is made here: each thread enters it where it has to.
    let _entered = runtime().enter();
    let mut suite = Suite::new("contention");
    let s = &mut suite;
    add(s, SUCCESS, "floor: no breaker", floors::NoBreaker, Expect::AllPass, |_| false);
    add(s, SUCCESS, "floor: one acquire load", floors::Loads::<1>::default(), Expect::AllPass, |_| false);
    add(s, SUCCESS, "floor: two acquire loads", floors::Loads::<2>::default(), Expect::AllPass, |_| false);
    add(
        s,
        SUCCESS,
        "floor: a ready future and two loads",
        Async(floors::ReadyFuture::default()),
        Expect::AllPass,
        |_| false,
    );
    add(
        s,
        SUCCESS,
        "floor: a ready future polled once and two loads",
        floors::ReadyFuturePolled::default(),
        Expect::AllPass,
        |_| false,
    );
    add(s, SUCCESS, "floor: one shared `fetch_add`", floors::Adds::default(), Expect::AllPass, |_| false);
    add(s, FAILURE, "floor: one shared `fetch_add`", floors::Adds::default(), Expect::AllPass, |_| true);
    add(s, REJECTED, "floor: one reading of `Instant`", floors::Clock::default(), Expect::NonePasses, |_| false);
    breaker(s, "**fusebox**", us::Borrowed::closed, us::Borrowed::open);
    breaker(s, "fusebox, `acquire().await`", us::Awaited::closed, us::Awaited::open);
    breaker(s, "fusebox, `acquire()` polled once", us::Polled::closed, us::Polled::open);
    breaker(s, "fusebox, owned permit", us::Owned::closed, us::Owned::open);
    breaker(s, "fusebox, by name", us::ByName::closed, us::ByName::open);
    breaker(s, "recloser", peers::Recloser::closed, peers::Recloser::open);
    breaker(s, "failsafe", peers::Failsafe::closed, peers::Failsafe::open);
    breaker(s, "breaker", peers::Breaker::closed, peers::Breaker::open);
    breaker(s, "nobreak", peers::Nobreak::closed, peers::Nobreak::open);
    breaker(s, "circuitbreaker-rs", peers::CircuitbreakerRs::closed, peers::CircuitbreakerRs::open);
    breaker(s, "seatbelt", peers::seatbelt_closed, peers::seatbelt_open);
    breaker(s, "tower-resilience", peers::TowerResilience::closed, peers::TowerResilience::open);
    breaker(s, "`DashMap` + `Mutex` + `watch`", replaced::Replaced::closed, replaced::Replaced::open);
    add(s, WAITING, "**fusebox**", us::Waiting::new(), Expect::NonePasses, |_| false);
    add(s, WAITING, "`DashMap` + `Mutex` + `watch`", replaced::Waiting::new(), Expect::NonePasses, |_| false);

    let results = suite.run(&options);
    results.report(&options)?;
    match &options.svg {
        Some(path) => results.draw(SUCCESS, "A permit and its success, all threads on one breaker", path),
        None => Ok(()),
    }
}
