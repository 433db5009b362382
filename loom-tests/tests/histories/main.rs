//! Real threads on all cores: short histories of concurrent calls are recorded, and each of them has to be explained by
//! some order in which the calls happened one at a time, as the plain breaker in `spec` would have answered them.
//!
//! The models see few calls and everything that may happen between them; this sees many, and what this machine does.

#[path = "../../../src"]
#[expect(unreachable_pub, reason = "public in their own crate")]
#[allow(dead_code, unused_imports, clippy::trivially_copy_pass_by_ref, reason = "as the public interface needs it")]
mod production {
    pub(crate) mod breaker;
    pub(crate) mod clock;
    pub(crate) mod config;
    pub(crate) mod error;
    pub(crate) mod event;
    pub(crate) mod feed;
    pub(crate) mod permit;
    pub(crate) mod registry;
    pub(crate) mod settings;
    pub(crate) mod transition;
    pub(crate) mod window;
    pub(crate) mod word;
}
mod call;
mod run;
mod spec;
mod sync;

use production::{breaker, clock, config, error, event, feed, permit, registry, settings, transition, window, word};

use std::time::{Duration, Instant};

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use stateright::semantics::{ConsistencyTester as _, LinearizabilityTester};

use run::Script;
use spec::Spec;

const HISTORIES: usize = if cfg!(debug_assertions) { 2000 } else { 10_000 };

#[test]
fn every_history_of_real_threads_is_explained_by_one_call_after_the_other() {
    let mut runner = TestRunner::deterministic();
    let scripts = run::script();
    let (mut overlapping, mut waited, mut checking) = (0, 0, Duration::ZERO);
    let started = Instant::now();
    for n in 0..HISTORIES {
        let script: Script = scripts.new_tree(&mut runner).expect("scripts are not filtered").current();
        let history = run::follow(&script, n);
        overlapping += usize::from(history.overlaps());
        waited += history.waits;
        let at = Instant::now();
        let mut tester = LinearizabilityTester::new(Spec::new(run::FAILURE_THRESHOLD, script.policies));
        for event in &history.events {
            match event.clone() {
                run::Event::Invoke(thread, call) => tester.on_invoke(thread, call),
                run::Event::Return(thread, answer) => tester.on_return(thread, answer),
            }
            .expect("each thread does one call after the other");
        }
        let explained = tester.is_consistent();
        checking += at.elapsed();
        assert!(explained, "failed in execution {n}: no order of these calls explains their answers\n{history}");
    }
    eprintln!(
        "{HISTORIES} histories in {:.1} s ({:.1} s of checking): in {overlapping} of them calls overlapped, {waited} calls waited",
        started.elapsed().as_secs_f64(),
        checking.as_secs_f64()
    );
    // A quarter on an idle machine, a tenth on one that does other work.
    assert!(overlapping > HISTORIES / 40 && waited > 0, "threads that take turns race for nothing");
}
