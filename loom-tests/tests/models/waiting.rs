//! A waiter gets the probe's result, whatever it is and however it comes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use loom::future::block_on;
use loom::thread;
use loom_tests::sync::time::advance;
use loom_tests::{CircuitState, PermitType, RejectionReason};

use crate::harness::{
    Answer, LEASE, OPEN_FOR, Waiting, begin, beside, caller, claim, due_with, explore, explore_crowd, go_on, passed,
    probes, probing, reason, settings, told, woken,
};

/// The waiter was rejected because its probe failed. Whether it had to be woken for that.
fn rejected((answer, waited): (Answer, bool)) -> &'static str {
    assert_eq!(reason(&answer), Some(RejectionReason::Reopened));
    woken(waited)
}

#[test]
fn a_waiter_passes_when_the_probe_succeeds() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, probe) = probing();
        let caller = caller(&breaker);
        probe.success();
        let (answer, waited) = caller.join().unwrap();
        assert!(passed(&answer));
        woken(waited)
    });
}

#[test]
fn a_waiter_is_rejected_when_the_probe_fails() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, probe) = probing();
        let waiter = go_on(begin(&breaker));
        probe.failure("test", "again");
        rejected(waiter.join().unwrap())
    });
}

#[test]
fn a_call_that_comes_while_the_probe_fails_is_rejected() {
    explore(&["waited for it", "came after it"], || {
        let (breaker, probe) = probing();
        let caller = caller(&breaker);
        probe.failure("test", "again");
        match reason(&caller.join().unwrap().0) {
            Some(RejectionReason::Reopened) => "waited for it",
            Some(RejectionReason::Open) => "came after it",
            _ => "admitted",
        }
    });
}

#[test]
fn a_waiter_is_rejected_when_the_probe_is_dropped() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, probe) = probing();
        let waiter = go_on(begin(&breaker));
        drop(probe);
        let end = rejected(waiter.join().unwrap());
        assert_eq!(breaker.snapshot().last_error.unwrap().error_type(), "dropped");
        end
    });
}

#[test]
fn a_waiter_is_rejected_when_the_probes_caller_panics() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, probe) = probing();
        let waiter = go_on(begin(&breaker));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _probe = probe;
            // As `panic!`, without a message on the terminal for each execution.
            std::panic::resume_unwind(Box::new("the provider's client panicked"));
        }));
        assert!(panicked.is_err());
        let end = rejected(waiter.join().unwrap());
        assert_eq!(breaker.snapshot().last_error.unwrap().error_type(), "dropped");
        end
    });
}

struct PanicsOnFormatting;

impl std::fmt::Display for PanicsOnFormatting {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::panic::resume_unwind(Box::new("the message cannot be formatted"))
    }
}

#[test]
fn a_waiter_is_rejected_when_the_message_of_the_probes_failure_panics() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, probe) = probing();
        let waiter = go_on(begin(&breaker));
        let panicked = catch_unwind(AssertUnwindSafe(|| probe.failure("test", PanicsOnFormatting)));
        assert!(panicked.is_err());
        rejected(waiter.join().unwrap())
    });
}

#[test]
fn a_thread_that_blocks_gets_the_probes_result() {
    explore(&["rejected with it", "rejected after it"], || {
        let (breaker, probe) = probing();
        let blocked = beside(&breaker, |breaker| {
            breaker.acquire_blocking(Duration::from_secs(60)).expect_err("the probe fails").reason()
        });
        probe.failure("test", "again");
        match blocked.join().unwrap() {
            RejectionReason::Reopened => "rejected with it",
            RejectionReason::Open => "rejected after it",
            _ => "something else",
        }
    });
}

#[test]
fn a_thread_that_blocks_takes_the_hung_probe_over() {
    explore(&["took it over"], || {
        let (breaker, probe) = probing();
        std::mem::forget(probe);
        let blocked = beside(&breaker, |breaker| {
            breaker.acquire_blocking(Duration::from_secs(60)).expect("it is over").kind() == PermitType::Probe
        });
        advance(LEASE);
        if blocked.join().unwrap() { "took it over" } else { "passed" }
    });
}

#[test]
fn a_waiter_becomes_the_probe_that_is_handed_back() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, probe) = probing();
        let caller = caller(&breaker);
        probe.cancel();
        let (answer, waited) = caller.join().unwrap();
        assert!(probes(&answer));
        answer.unwrap().success();
        assert_eq!(breaker.state(), CircuitState::Closed);
        woken(waited)
    });
}

#[test]
fn a_waiter_becomes_the_probe_that_is_dropped_after_cancel_on_drop() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, probe) = probing();
        let waiter = go_on(begin(&breaker));
        drop(probe.cancel_on_drop());
        let (answer, woke) = waiter.join().unwrap();
        assert!(probes(&answer));
        woken(woke)
    });
}

#[test]
fn a_waiter_takes_the_probe_over_when_its_lease_ends() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, probe) = probing();
        std::mem::forget(probe);
        let caller = caller(&breaker);
        advance(LEASE);
        let (answer, waited) = caller.join().unwrap();
        assert!(probes(&answer));
        woken(waited)
    });
}

#[test]
fn two_waiters_pass_when_the_probe_succeeds() {
    explore_crowd(&["both woken", "one woken", "none woken"], || {
        let (breaker, probe) = probing();
        let waiters = [begin(&breaker), begin(&breaker)].map(go_on);
        probe.success();
        how_many_woken(waiters.map(|waiter| {
            let (answer, woke) = waiter.join().unwrap();
            assert!(passed(&answer));
            woke
        }))
    });
}

#[test]
fn two_waiters_are_rejected_when_the_probe_fails() {
    explore_crowd(&["both woken", "one woken", "none woken"], || {
        let (breaker, probe) = probing();
        let waiters = [begin(&breaker), begin(&breaker)].map(go_on);
        probe.failure("test", "again");
        how_many_woken(waiters.map(|waiter| rejected(waiter.join().unwrap()) == "woken"))
    });
}

fn how_many_woken(woken: [bool; 2]) -> &'static str {
    match woken {
        [true, true] => "both woken",
        [false, false] => "none woken",
        _ => "one woken",
    }
}

/// Two waiters, which report a success, and then say what kind of permit they had.
fn two_that_succeed(waiting: [Waiting; 2]) -> [loom::thread::JoinHandle<PermitType>; 2] {
    waiting.map(|waiting| {
        thread::spawn(move || {
            let permit = block_on(waiting).expect("no probe fails here");
            let kind = permit.kind();
            permit.success();
            kind
        })
    })
}

fn which_probed(kinds: [PermitType; 2]) -> &'static str {
    match kinds {
        [PermitType::Probe, PermitType::Normal] => "the first probed",
        [PermitType::Normal, PermitType::Probe] => "the second probed",
        [PermitType::Probe, PermitType::Probe] => "both probed",
        [PermitType::Normal, PermitType::Normal] => "none probed",
    }
}

#[test]
fn of_two_waiters_the_first_becomes_the_probe_that_was_handed_back_and_the_other_gets_its_result() {
    explore_crowd(&["the first probed"], || {
        let (breaker, probe) = probing();
        let waiters = two_that_succeed([begin(&breaker), begin(&breaker)]);
        probe.cancel();
        let kinds = waiters.map(|waiter| waiter.join().unwrap());
        assert_eq!(breaker.state(), CircuitState::Closed);
        which_probed(kinds)
    });
}

#[test]
fn of_two_waiters_one_takes_the_hung_probe_over_and_the_other_gets_its_result() {
    explore_crowd(&["the first probed", "the second probed"], || {
        let (breaker, probe) = probing();
        std::mem::forget(probe);
        let waiters = two_that_succeed([begin(&breaker), begin(&breaker)]);
        advance(LEASE);
        which_probed(waiters.map(|waiter| waiter.join().unwrap()))
    });
}

#[test]
fn a_probe_that_was_taken_over_cannot_resolve_its_successor() {
    explore(&["taken over", "just in time"], || {
        let (breaker, slow) = probing();
        let waiter = go_on(begin(&breaker));
        advance(LEASE);
        slow.success();
        let (answer, _) = waiter.join().unwrap();
        if probes(&answer) {
            assert_eq!(breaker.state(), CircuitState::HalfOpen);
            answer.unwrap().failure("test", "again");
            assert_eq!((breaker.state(), &*told(&breaker)), (CircuitState::Open, "again"));
            "taken over"
        } else {
            assert!(passed(&answer));
            assert_eq!(breaker.state(), CircuitState::Closed);
            "just in time"
        }
    });
}

#[test]
fn a_waiter_that_leaves_takes_no_wakeup_with_it() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, probe) = probing();
        let leaving = begin(&breaker);
        let waiter = go_on(begin(&breaker));
        let leaver = thread::spawn(move || drop(leaving));
        probe.success();
        let (answer, woke) = waiter.join().unwrap();
        assert!(passed(&answer));
        leaver.join().unwrap();
        assert_eq!(breaker.snapshot().waiters, 0, "each gave its place back");
        woken(woke)
    });
}

#[test]
fn a_waiter_that_leaves_hands_the_probe_on_to_the_next_one() {
    explore_crowd(&["the next one was woken", "the next one found it free"], || {
        let (breaker, probe) = probing();
        let leaving = begin(&breaker);
        let waiter = go_on(begin(&breaker));
        let leaver = thread::spawn(move || drop(leaving));
        // It wakes one of the two, which may be the one that leaves.
        probe.cancel();
        let (answer, woke) = waiter.join().unwrap();
        assert!(probes(&answer));
        leaver.join().unwrap();
        if woke { "the next one was woken" } else { "the next one found it free" }
    });
}

#[test]
fn a_probe_that_every_waiter_hands_on_gets_to_the_last_one() {
    explore_crowd(&["in the order in which they came"], || {
        let (breaker, probe) = probing();
        let had_it = Arc::new(Mutex::new(Vec::new()));
        let waiters = [begin(&breaker), begin(&breaker)].into_iter().enumerate().map(|(n, waiting)| {
            beside(&had_it, move |had_it| {
                let permit = block_on(waiting).expect("no probe fails here");
                assert_eq!(permit.kind(), PermitType::Probe);
                had_it.lock().unwrap().push(n);
                permit.cancel();
            })
        });
        let waiters: Vec<_> = waiters.collect();
        probe.cancel();
        for waiter in waiters {
            waiter.join().unwrap();
        }
        assert_eq!(*had_it.lock().unwrap(), [0, 1]);
        "in the order in which they came"
    });
}

#[test]
fn a_waiter_is_rejected_even_if_the_new_open_time_has_passed() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, probe) = probing();
        let waiter = go_on(begin(&breaker));
        probe.failure("test", "again");
        advance(OPEN_FOR);
        let end = rejected(waiter.join().unwrap());
        assert_eq!(breaker.state(), CircuitState::Open, "the next probe is for a new call");
        end
    });
}

#[test]
fn a_waiter_that_sleeps_through_a_failed_and_a_good_probe_never_becomes_one() {
    explore(&["rejected with the first", "passed with the second"], || {
        let (breaker, probe) = probing();
        let waiter = go_on(begin(&breaker));
        probe.failure("test", "again");
        advance(OPEN_FOR);
        claim(&breaker).success();
        let (answer, _) = waiter.join().unwrap();
        match reason(&answer) {
            Some(RejectionReason::Reopened) => "rejected with the first",
            None if passed(&answer) => "passed with the second",
            _ => "neither",
        }
    });
}

#[test]
fn a_waiter_that_sleeps_through_two_failed_probes_is_rejected() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, probe) = probing();
        let waiter = go_on(begin(&breaker));
        probe.failure("test", "again");
        advance(OPEN_FOR);
        claim(&breaker).failure("test", "and again");
        advance(OPEN_FOR);
        rejected(waiter.join().unwrap())
    });
}

#[test]
fn a_waiter_that_moved_on_to_a_later_probe_is_rejected_when_that_one_fails() {
    explore(&["woken", "found it resolved"], || {
        let breaker = due_with(settings(1).probe_lease(Duration::from_secs(60)));
        let probe = claim(&breaker);
        let mut waiting = begin(&breaker);
        probe.failure("test", "again");
        advance(OPEN_FOR);
        let later = claim(&breaker);
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let waiter = go_on(waiting);
        later.failure("test", "and again");
        advance(OPEN_FOR);
        rejected(waiter.join().unwrap())
    });
}

#[test]
fn a_waiter_gives_up_at_its_limit_unless_the_probe_is_resolved_first() {
    explore(&["passed", "gave up"], || {
        let breaker = due_with(settings(1).wait_limit(Duration::from_secs(1)));
        let probe = claim(&breaker);
        let waiter = go_on(begin(&breaker));
        let clock = thread::spawn(|| advance(Duration::from_secs(1)));
        probe.success();
        clock.join().unwrap();
        let (answer, _) = waiter.join().unwrap();
        match reason(&answer) {
            Some(RejectionReason::WaitLimit) => "gave up",
            None if passed(&answer) => "passed",
            _ => "neither",
        }
    });
}

#[test]
fn a_waiter_for_a_probe_that_hangs_gives_up_at_its_limit() {
    explore(&["woken", "found it passed"], || {
        let breaker = due_with(settings(1).wait_limit(Duration::from_secs(1)));
        std::mem::forget(claim(&breaker));
        let waiter = go_on(begin(&breaker));
        advance(Duration::from_secs(1));
        let (answer, woke) = waiter.join().unwrap();
        assert_eq!(reason(&answer), Some(RejectionReason::WaitLimit));
        if woke { "woken" } else { "found it passed" }
    });
}

#[test]
fn as_many_calls_wait_as_the_limit_allows() {
    explore(&["the first waits", "the second waits"], || {
        let breaker = due_with(settings(1).max_waiters(1));
        let probe = claim(&breaker);
        let callers = [(); 2].map(|()| {
            beside(&breaker, |breaker| {
                let mut waiting: Waiting = Box::pin(breaker.acquire_owned());
                match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    std::task::Poll::Pending => Some(waiting),
                    std::task::Poll::Ready(answer) => {
                        assert_eq!(reason(&answer), Some(RejectionReason::TooManyWaiters));
                        None
                    }
                }
            })
        });
        let waiting = callers.map(|caller| caller.join().unwrap());
        probe.success();
        match waiting {
            [Some(first), None] => {
                assert!(passed(&block_on(first)));
                "the first waits"
            }
            [None, Some(second)] => {
                assert!(passed(&block_on(second)));
                "the second waits"
            }
            [Some(_), Some(_)] => "both wait",
            [None, None] => "none waits",
        }
    });
}
