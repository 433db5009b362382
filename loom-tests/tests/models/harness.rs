//! Runs a model in both load modes, and makes sure that it really explored its race.

use std::any::type_name;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::future::Future;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use loom::future::block_on;
use loom::thread::{self, JoinHandle};
use loom_tests::sync::time::advance;
use loom_tests::sync::{Loads, set_loads};
use loom_tests::{CircuitBreaker, Config, ConfigBuilder, OwnedPermit, PermitType, Rejection, RejectionReason};

const MODES: [Loads; 2] = [Loads::Plain, Loads::Rmw];

/// Preemptions per execution; loom's own variable `LOOM_MAX_PREEMPTIONS` has the last word.
const BOUND: usize = if cfg!(debug_assertions) { 2 } else { 3 };

/// What all models took until now, per mode.
static TOTALS: Mutex<Totals> =
    Mutex::new(Totals { models: 0, modes: [(0, Duration::ZERO); 2], fewest: usize::MAX, most: 0 });

struct Totals {
    models: usize,
    modes: [(usize, Duration); 2],
    fewest: usize,
    most: usize,
}

/// Explores `model` with plain loads, then with loads as read-modify-writes; `FUSEBOX_LOADS=plain` or `rmw` picks one.
///
/// `model` returns which of the `ends` its race came to, and every one of them has to be seen in each mode: loom has
/// passed models with races after a single execution. That, and a number of executions, is the guard; a mutant that
/// only the guard stops has not been noticed.
pub(crate) fn explore<F: Fn() -> &'static str + Copy + Send + Sync + 'static>(ends: &'static [&'static str], model: F) {
    explore_with(ends, 0, model);
}

/// The same with one preemption less, for models of two waiters, which take a hundred times as many executions.
pub(crate) fn explore_crowd<F: Fn() -> &'static str + Copy + Send + Sync + 'static>(
    ends: &'static [&'static str],
    model: F,
) {
    explore_with(ends, 1, model);
}

/// The same for models in which no thread writes: there is nothing to interleave, and one execution is all.
pub(crate) fn explore_still<F: Fn() + Copy + Send + Sync + 'static>(model: F) {
    for loads in MODES {
        run(loads, &[""], 0, move || {
            model();
            ""
        });
    }
}

fn explore_with<F>(ends: &'static [&'static str], less: usize, model: F)
where
    F: Fn() -> &'static str + Copy + Send + Sync + 'static,
{
    let name = type_name::<F>().trim_start_matches("models::").trim_end_matches("::{{closure}}");
    let only = std::env::var("FUSEBOX_LOADS").ok();
    let mut line = String::new();
    for (mode, loads) in MODES.into_iter().enumerate() {
        if only.as_ref().is_some_and(|only| !format!("{loads:?}").eq_ignore_ascii_case(only)) {
            continue;
        }
        let run = run(loads, ends, less, model);
        assert!(
            run.missing.is_empty(),
            "guard: with {loads:?} loads, {} executions never saw {:?}",
            run.executions,
            run.missing
        );
        assert!(run.executions > ends.len(), "guard: with {loads:?} loads, only {} executions", run.executions);
        let mut totals = TOTALS.lock().unwrap();
        totals.modes[mode].0 += run.executions;
        totals.modes[mode].1 += run.took;
        totals.fewest = totals.fewest.min(run.executions);
        totals.most = totals.most.max(run.executions);
        let _ = write!(line, "{:>7} {loads:?} {:>5.2} s ", run.executions, run.took.as_secs_f64());
    }
    let mut totals = TOTALS.lock().unwrap();
    totals.models += 1;
    let [plain, rmw] = totals.modes.map(|(executions, took)| format!("{executions} in {:.1} s", took.as_secs_f64()));
    // Written past the capture of passing tests: these numbers are half of what the models have to say.
    let _ = writeln!(
        std::io::stderr(),
        "{line} {name}\n        so far {} models, {} to {} executions, plain {plain}, rmw {rmw}",
        totals.models,
        totals.fewest,
        totals.most,
    );
}

struct Run {
    executions: usize,
    took: Duration,
    missing: BTreeSet<&'static str>,
}

fn run<F>(loads: Loads, ends: &'static [&'static str], less: usize, model: F) -> Run
where
    F: Fn() -> &'static str + Send + Sync + 'static,
{
    let mut builder = loom::model::Builder::new();
    let bound = builder.preemption_bound.unwrap_or(BOUND);
    // With fewer than 2, two waiters are never both woken.
    builder.preemption_bound = Some(if bound > 2 { bound - less } else { bound });
    let seen = Arc::new(Mutex::new((0, ends.iter().copied().collect::<BTreeSet<_>>())));
    let recorder = Arc::clone(&seen);
    let started = Instant::now();
    set_loads(loads);
    let result = catch_unwind(AssertUnwindSafe(|| {
        builder.check(move || {
            recorder.lock().unwrap().0 += 1;
            let end = model();
            assert!(ends.contains(&end), "this may not happen: {end}");
            recorder.lock().unwrap().1.remove(end);
        });
    }));
    let (executions, missing) = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    if let Err(panic) = result {
        eprintln!("failed in execution {executions} with {loads:?} loads");
        resume_unwind(panic);
    }
    Run { executions, took: started.elapsed(), missing }
}

pub(crate) const OPEN_FOR: Duration = Duration::from_secs(1);
pub(crate) const LEASE: Duration = Duration::from_secs(2);

pub(crate) fn settings(failure_threshold: u32) -> ConfigBuilder {
    Config::builder()
        .failure_threshold(failure_threshold)
        .open_for(OPEN_FOR)
        .probe_lease(LEASE)
        .wait_limit(Duration::from_secs(3600))
}

/// A closed breaker.
pub(crate) fn breaker(failure_threshold: u32) -> Arc<CircuitBreaker> {
    Arc::new(CircuitBreaker::new("upstream", settings(failure_threshold).build().unwrap()))
}

/// A breaker with these settings whose next call is the probe of generation 1.
pub(crate) fn due_with(settings: ConfigBuilder) -> Arc<CircuitBreaker> {
    let breaker = Arc::new(CircuitBreaker::new("upstream", settings.build().unwrap()));
    fail(&breaker, "first");
    advance(OPEN_FOR);
    breaker
}

/// The same with a threshold of 1.
pub(crate) fn due() -> Arc<CircuitBreaker> {
    due_with(settings(1))
}

/// The same, after that call.
pub(crate) fn probing() -> (Arc<CircuitBreaker>, OwnedPermit) {
    let breaker = due();
    let probe = claim(&breaker);
    (breaker, probe)
}

pub(crate) fn fail(breaker: &CircuitBreaker, message: &str) {
    breaker.try_acquire().expect("closed").failure("test", message);
}

pub(crate) fn permit(breaker: &Arc<CircuitBreaker>) -> OwnedPermit {
    let permit = Arc::clone(breaker).try_acquire_owned().expect("closed");
    assert_eq!(permit.kind(), PermitType::Normal);
    permit
}

pub(crate) fn claim(breaker: &Arc<CircuitBreaker>) -> OwnedPermit {
    let probe = Arc::clone(breaker).try_acquire_owned().expect("the probe is free");
    assert_eq!(probe.kind(), PermitType::Probe);
    probe
}

/// The error that would be told now.
pub(crate) fn told(breaker: &CircuitBreaker) -> String {
    breaker.snapshot().last_error.map_or_else(String::new, |error| error.message().to_owned())
}

/// Runs `f` on a thread of its own.
pub(crate) fn beside<S: 'static, T: 'static>(shared: &Arc<S>, f: impl FnOnce(Arc<S>) -> T + 'static) -> JoinHandle<T> {
    let shared = Arc::clone(shared);
    thread::spawn(move || f(shared))
}

pub(crate) type Answer = Result<OwnedPermit, Rejection>;
pub(crate) type Waiting = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// A caller that may find the probe in flight or already resolved; and whether it had to be woken.
pub(crate) fn caller(breaker: &Arc<CircuitBreaker>) -> JoinHandle<(Answer, bool)> {
    beside(breaker, |breaker| counting_polls(borrowing(breaker)))
}

/// As `acquire_owned`, by way of `acquire`.
pub(crate) fn borrowing(breaker: Arc<CircuitBreaker>) -> Waiting {
    Box::pin(async move { breaker.acquire().await.map(|permit| permit.held_by(Arc::clone(&breaker))) })
}

/// The rest of a call, and whether it had to be woken.
pub(crate) fn counting_polls(mut call: Waiting) -> (Answer, bool) {
    let mut polls = 0;
    let answer = block_on(std::future::poll_fn(|cx| {
        polls += 1;
        call.as_mut().poll(cx)
    }));
    (answer, polls > 1)
}

/// A caller that has begun to wait.
pub(crate) fn begin(breaker: &Arc<CircuitBreaker>) -> Waiting {
    let mut waiting: Waiting = Box::pin(Arc::clone(breaker).acquire_owned());
    assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    waiting
}

/// The rest of its wait, on a thread of its own.
pub(crate) fn go_on(waiting: Waiting) -> JoinHandle<(Answer, bool)> {
    thread::spawn(move || counting_polls(waiting))
}

/// The end of a race between a waiter and what it waits for.
pub(crate) fn woken(waited: bool) -> &'static str {
    if waited { "woken" } else { "found it resolved" }
}

pub(crate) fn passed(answer: &Answer) -> bool {
    answer.as_ref().is_ok_and(|permit| permit.kind() == PermitType::Normal)
}

pub(crate) fn probes(answer: &Answer) -> bool {
    answer.as_ref().is_ok_and(|permit| permit.kind() == PermitType::Probe)
}

pub(crate) fn reason(answer: &Answer) -> Option<RejectionReason> {
    answer.as_ref().err().map(Rejection::reason)
}
