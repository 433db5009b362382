//! Throughput of ONE breaker that all threads share: permit and outcome, rejection, joining the wait for a probe.
//!
//! Every contender makes the same call: it asks its breaker, calls [`upstream`], which does nothing, and tells the breaker how
//! that went. A contender that cannot do an operation is not in its table.
//!
//! `cargo bench -p fusebox-benches --bench contention`, and with `-- --help` to see what can be set.

mod floors;
mod peers;
mod replaced;
mod us;

use std::hint::black_box;
use std::sync::LazyLock;

use fusebox_benches::{Options, Suite};
use tokio::runtime::Runtime;

/// Calls between two looks at whether the time is over.
const CALLS: u32 = 512;

/// In the table of failures every call fails but one in so many: a breaker that counts failures in a row must never open, and
/// the highest threshold of ours is 1,023. The threads together add at most that many between two successes of one of them.
const ONE_SUCCESS_IN: u32 = 128;

const SUCCESS: &str = "permit + success";
const FAILURE: &str = "permit + failure";
const TENTH: &str = "one failure in ten";
const REJECTED: &str = "rejected while open";
const WAITING: &str = "join the wait, and leave it";

/// The upstream failed.
#[derive(Debug)]
pub(crate) struct Failed;

/// The call that a breaker guards. What it returns cannot be known beforehand.
#[inline]
fn upstream(fails: bool) -> Result<(), Failed> {
    if black_box(fails) { Err(Failed) } else { Ok(()) }
}

/// Something that guards calls.
trait Contender: Sync + 'static {
    /// What each thread has for itself.
    type Handle;
    /// Makes one.
    fn handle(&self) -> Self::Handle;
    /// Makes [`CALLS`] calls, of which the n-th fails if `fails(n)`. How many were let through.
    fn calls(&self, handle: &mut Self::Handle, fails: impl Fn(u32) -> bool) -> u32;
}

/// For contenders whose calls are plain function calls.
fn each(fails: impl Fn(u32) -> bool, call: impl Fn(bool) -> bool) -> u32 {
    (0..CALLS).map(|n| u32::from(call(fails(n)))).sum()
}

/// For contenders whose calls are futures. One `block_on` for all of them: what is measured is the breaker.
fn each_async(fails: impl Fn(u32) -> bool, mut call: impl AsyncFnMut(bool) -> bool) -> u32 {
    futures_executor::block_on(async {
        let mut passed = 0;
        for n in 0..CALLS {
            passed += u32::from(call(fails(n)).await);
        }
        passed
    })
}

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
    fails: impl Fn(u32) -> bool + Copy + Sync + 'static,
) {
    suite.add(table, name, contender, C::handle, move |contender, handle| {
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

/// For its timer; it has nothing to do.
fn runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime")
    });
    &RUNTIME
}

fn main() -> Result<(), String> {
    let options = Options::parse();
    // For what is made here: each thread enters it where it has to.
    let _entered = runtime().enter();
    let mut suite = Suite::new("contention");
    let s = &mut suite;
    floors::add_all(s);
    breaker(s, "**fusebox**", us::Borrowed::closed, us::Borrowed::open);
    breaker(s, "fusebox, `acquire().await`", us::Awaited::closed, us::Awaited::open);
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
