//! Breakers by name: lookups in maps of 16, 10,000 and 100,000 names, of one name and of all of them in turn; what a
//! new name costs while others look; and how a map grows name by name.
//!
//! All maps hold the same breakers, and a lookup ends with a look at one. `cargo bench -p fusebox-benches --bench
//! registry`.

use std::any::Any;
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Instant;

use arc_swap::{ArcSwap, Cache};
use clap::Parser;
use dashmap::DashMap;
use foldhash::fast::RandomState as Fold;
use fusebox::{CircuitBreaker, CircuitBreakerRegistry, PermitType};
use fusebox_benches::contenders::replaced::Replaced;
use fusebox_benches::{Options, Spread, Suite, exit};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

/// Lookups between two looks at whether the time is over.
const LOOKUPS: u32 = 512;
const FEW: usize = 16;
const MANY: usize = 10_000;
const CROWD: usize = 100_000;
/// Names that are inserted, one after the other, in each round.
const INSERTS: usize = 20;

/// The names to look for, one after the other.
#[derive(Clone, Copy)]
enum Keys {
    /// The same one.
    Hot,
    /// All of them, in an order that no cache foresees.
    Uniform,
}

fn names(count: usize) -> Vec<Arc<str>> {
    (0..count).map(|n| format!("provider-{n:05}").into()).collect()
}

type Cached = Cache<Arc<ArcSwap<Breakers<Fold>>>, Arc<Breakers<Fold>>>;
type Breakers<S> = HashMap<Arc<str>, Arc<CircuitBreaker>, S>;

fn breaker(name: &Arc<str>) -> Arc<CircuitBreaker> {
    Arc::new(CircuitBreaker::new(Arc::clone(name), fusebox::Config::default()))
}

fn breakers<M: FromIterator<(Arc<str>, Arc<CircuitBreaker>)>>(names: &[Arc<str>]) -> M {
    // Each map has texts of its own, as if the names came with requests.
    let own = |name: &Arc<str>| Arc::<str>::from(&**name);
    names.iter().map(own).map(|name| (Arc::clone(&name), breaker(&name))).collect()
}

/// What to do with each breaker that is found.
fn look(breaker: &CircuitBreaker) -> bool {
    breaker.failure_count() == 0
}

/// Adds a map to a table; `find` says whether the breaker is closed.
fn add<M: Sync + 'static, H: 'static>(
    suite: &mut Suite,
    (table, names, keys): (&'static str, &[Arc<str>], Keys),
    contender: &'static str,
    map: M,
    handle: impl Fn(&M) -> H + Sync + 'static,
    find: impl Fn(&M, &mut H, &str) -> bool + Sync + 'static,
) {
    let names = names.to_vec();
    let shared = (map, names);
    suite.add(
        table,
        contender,
        shared,
        move |(map, _)| (handle(map), 0_usize),
        move |(map, names), (handle, at)| {
            for _ in 0..LOOKUPS {
                if let Keys::Uniform = keys {
                    // A step that shares no factor with the number of names.
                    *at = (*at + 7_919) % names.len();
                }
                assert!(find(map, handle, black_box(&names[*at])));
            }
            LOOKUPS
        },
    );
}

fn swapped<S: BuildHasher + Default + Send + Sync + 'static>(names: &[Arc<str>]) -> Arc<ArcSwap<Breakers<S>>> {
    Arc::new(ArcSwap::from_pointee(breakers(names)))
}

fn lookups(suite: &mut Suite, table: (&'static str, &[Arc<str>], Keys)) {
    let names = table.1;
    add(
        suite,
        table,
        "**fusebox**, `failure_count(name)`",
        CircuitBreakerRegistry::new(names),
        |_| (),
        |map, (), name| map.failure_count(name) == Some(0),
    );
    add(
        suite,
        table,
        "fusebox, `get(name)`: an `Arc`",
        CircuitBreakerRegistry::new(names),
        |_| (),
        |map, (), name| map.get(name).is_some_and(|breaker| look(&breaker)),
    );
    add(suite, table, "fusebox, a handle from before", breakers::<Vec<_>>(names), |_| (), |map, (), _| look(&map[0].1));
    add(suite, table, "`arc_swap::Cache`, foldhash", swapped::<Fold>(names), |map| Cache::new(Arc::clone(map)), {
        |_, cache: &mut Cached, name| cache.load().get(name).is_some_and(|breaker| look(breaker))
    });
    add(
        suite,
        table,
        "`ArcSwap<HashMap>`, foldhash",
        swapped::<Fold>(names),
        |_| (),
        |map, (), name| map.load().get(name).is_some_and(|breaker| look(breaker)),
    );
    add(
        suite,
        table,
        "`ArcSwap<HashMap>`, SipHash",
        swapped::<RandomState>(names),
        |_| (),
        |map, (), name| map.load().get(name).is_some_and(|breaker| look(breaker)),
    );
    let papaya: papaya::HashMap<Arc<str>, Arc<CircuitBreaker>, Fold> = breakers(names);
    add(suite, table, "papaya, foldhash", papaya, |_| (), |map, (), name| map.pin().get(name).is_some_and(|b| look(b)));
    let papaya: papaya::HashMap<Arc<str>, Arc<CircuitBreaker>> = breakers(names);
    add(suite, table, "papaya, SipHash", papaya, |_| (), |map, (), name| map.pin().get(name).is_some_and(|b| look(b)));
    let dashmap: DashMap<Arc<str>, Arc<CircuitBreaker>, Fold> = breakers(names);
    add(suite, table, "`DashMap`, foldhash", dashmap, |_| (), |map, (), name| map.get(name).is_some_and(|b| look(&b)));
    let dashmap: DashMap<Arc<str>, Arc<CircuitBreaker>> = breakers(names);
    add(suite, table, "`DashMap`, SipHash", dashmap, |_| (), |map, (), name| map.get(name).is_some_and(|b| look(&b)));
}

/// Asking for a permit and recording a success, each by name. The future is polled in place: nobody has to wait.
fn calls(suite: &mut Suite, table: (&'static str, &[Arc<str>], Keys)) {
    let names = table.1;
    add(
        suite,
        table,
        "**fusebox**",
        CircuitBreakerRegistry::new(names),
        |_| (),
        |map, (), name| {
            let polled = pin!(map.acquire_permit(name)).poll(&mut Context::from_waker(Waker::noop()));
            matches!(polled, Poll::Ready(Ok(PermitType::Normal))) && map.record_success(name)
        },
    );
    add(
        suite,
        table,
        "`DashMap` + `Mutex` + `watch`",
        Replaced::new(names, 3),
        |_| (),
        |map, (), name| {
            let polled = pin!(map.acquire(name)).poll(&mut Context::from_waker(Waker::noop()));
            map.record_success(name);
            matches!(polled, Poll::Ready(Ok(())))
        },
    );
}

/// One new name after the other, while a thread looks up another one: microseconds for each.
fn inserts(rounds: u32) -> [(&'static str, Spread); 4] {
    let names = names(MANY);
    let new: Vec<Arc<str>> = (0..INSERTS).map(|n| format!("new-{n}").into()).collect();
    let mut samples = [const { Vec::new() }; 4];
    for _ in 0..rounds {
        let ours = CircuitBreakerRegistry::new(&names);
        samples[0].push(timed(&|| ours.failure_count(&names[0]).is_some(), || {
            for name in &new {
                ours.insert(name);
            }
        }));
        let ours = CircuitBreakerRegistry::new(&names);
        samples[1].push(timed(&|| ours.failure_count(&names[0]).is_some(), || ours.insert_all(&new)));
        let papaya: papaya::HashMap<Arc<str>, Arc<CircuitBreaker>> = breakers(&names);
        samples[2].push(timed(&|| papaya.pin().get(&names[0]).is_some(), || {
            for name in &new {
                papaya.pin().insert(Arc::clone(name), breaker(name));
            }
        }));
        let dashmap: DashMap<Arc<str>, Arc<CircuitBreaker>> = breakers(&names);
        samples[3].push(timed(&|| dashmap.get(&names[0]).is_some(), || {
            for name in &new {
                dashmap.insert(Arc::clone(name), breaker(name));
            }
        }));
    }
    let [insert, insert_all, papaya, dashmap] = samples.map(Spread::of);
    [
        ("**fusebox**, `insert`", insert),
        ("fusebox, `insert_all`, of 20 at once", insert_all),
        ("papaya", papaya),
        ("`DashMap`", dashmap),
    ]
}

/// What a map takes that grows name by name: milliseconds in all, and bytes for each name beside its breaker.
struct Growth {
    took: Vec<f64>,
    bytes: u64,
}

/// Makes a map and adds all names to it.
type Grow<'a> = dyn Fn() -> Box<dyn Any> + 'a;

fn growth(rounds: u32) -> [(&'static str, Growth); 4] {
    let breakers: Vec<_> = names(CROWD).iter().map(|name| (Arc::clone(name), breaker(name))).collect();
    let grown = |grow: &Grow<'_>| {
        let mut map: Box<dyn Any> = Box::new(());
        let began = Instant::now();
        let heap = allocation_counter::measure(|| map = grow());
        (began.elapsed().as_secs_f64() * 1e3, u64::try_from(heap.bytes_current).unwrap_or(0) / CROWD as u64)
    };
    let ours = || -> Box<dyn Any> {
        let map = CircuitBreakerRegistry::default();
        for (_, breaker) in &breakers {
            map.insert_breaker(Arc::clone(breaker));
        }
        Box::new(map)
    };
    let papaya = || -> Box<dyn Any> {
        let map: papaya::HashMap<Arc<str>, Arc<CircuitBreaker>, Fold> = papaya::HashMap::default();
        for (name, breaker) in &breakers {
            map.pin().insert(Arc::clone(name), Arc::clone(breaker));
        }
        Box::new(map)
    };
    let dashmap = || -> Box<dyn Any> {
        let map: DashMap<Arc<str>, Arc<CircuitBreaker>, Fold> = DashMap::default();
        for (name, breaker) in &breakers {
            map.insert(Arc::clone(name), Arc::clone(breaker));
        }
        Box::new(map)
    };
    let locked = || -> Box<dyn Any> {
        let mut map: Breakers<Fold> = HashMap::default();
        for (name, breaker) in &breakers {
            map.insert(Arc::clone(name), Arc::clone(breaker));
        }
        Box::new(map)
    };
    let makers: [(&str, &Grow<'_>); 4] =
        [("**fusebox**", &ours), ("papaya", &papaya), ("`DashMap`", &dashmap), ("`HashMap`, one thread", &locked)];
    let mut growths = makers.map(|(name, _)| (name, Growth { took: Vec::new(), bytes: 0 }));
    for _ in 0..rounds {
        for ((_, maker), (_, growth)) in makers.iter().zip(&mut growths) {
            let (took, bytes) = grown(maker);
            growth.took.push(took);
            growth.bytes = bytes;
        }
    }
    growths
}

/// Microseconds for one of the inserts that `insert` makes, while another thread reads.
fn timed(read: &(dyn Fn() -> bool + Sync), insert: impl FnOnce()) -> f64 {
    let (reading, over) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert!(read());
                reading.store(true, Ordering::Relaxed);
            }
        });
        while !reading.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
        let began = Instant::now();
        insert();
        let took = began.elapsed();
        over.store(true, Ordering::Relaxed);
        took.as_secs_f64() * 1e6 / f64::from(u32::try_from(INSERTS).expect("a few"))
    })
}

fn main() -> ExitCode {
    exit(measure(&Arguments::parse()))
}

fn measure(arguments: &Arguments) -> Result<(), String> {
    let Arguments { options } = arguments;
    let (few, many, crowd) = (names(FEW), names(MANY), names(CROWD));
    let mut suite = Suite::new("registry");
    lookups(&mut suite, ("lookup, 16 names, hot", &few, Keys::Hot));
    lookups(&mut suite, ("lookup, 16 names, uniform", &few, Keys::Uniform));
    lookups(&mut suite, ("lookup, 10,000 names, hot", &many, Keys::Hot));
    lookups(&mut suite, ("lookup, 10,000 names, uniform", &many, Keys::Uniform));
    lookups(&mut suite, ("lookup, 100,000 names, uniform", &crowd, Keys::Uniform));
    calls(&mut suite, ("permit + success by name, 16 names, hot", &few, Keys::Hot));
    calls(&mut suite, ("permit + success by name, 10,000 names, hot", &many, Keys::Hot));
    calls(&mut suite, ("permit + success by name, 10,000 names, uniform", &many, Keys::Uniform));
    suite.run(options)?.report(options)?;

    if options.only.is_empty() {
        println!("| a new name among 10,000, while a thread reads | µs |\n|---|---|");
        for (contender, spread) in inserts(options.rounds) {
            println!("| {contender} | {spread} |");
        }
        println!("\n| 100,000 names, one by one | ms | bytes of the map for each |\n|---|---|---|");
        for (contender, Growth { took, bytes }) in growth(options.rounds) {
            println!("| {contender} | {} | {bytes} |", Spread::of(took));
        }
    }
    Ok(())
}
