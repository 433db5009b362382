//! A circuit that opens because requests go unanswered, and closes when one is answered after all.
//!
//! All alarms here are by the ceiling: nothing has to be learnt for them.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use loom::future::block_on;
use loom::sync::atomic::AtomicUsize;
use loom::thread;
use loom_tests::silence::{Config, Detector, Ticket, Watcher};
use loom_tests::sync::time::advance;
use loom_tests::{CircuitBreaker, CircuitState, OwnedPermit, PermitType, RejectionReason};

use crate::harness::{
    LEASE, OPEN_FOR, begin, beside, breaker, claim, explore, fail, go_on, permit, probes, reason, told,
};

pub(crate) const CEILING: Duration = Duration::from_millis(10);

/// So many cores that watch `breaker`, and a time for their first requests.
pub(crate) fn watch<const CORES: usize>(breaker: &Arc<CircuitBreaker>) -> ([Watcher; CORES], Instant) {
    let now = Instant::now() + Duration::from_secs(1);
    let config = Config::builder().ceiling(CEILING).build().unwrap();
    let detector = Arc::new(Detector::new(Arc::clone(breaker), config, CORES));
    (std::array::from_fn(|_| detector.watcher().unwrap()), now)
}

/// A request that is sent, and its permit.
pub(crate) fn send(breaker: &Arc<CircuitBreaker>, watcher: &mut Watcher, now: Instant) -> (OwnedPermit, Ticket) {
    let permit = permit(breaker);
    let ticket = watcher.start(&permit, now);
    (permit, ticket)
}

/// A breaker with threshold 1 and one core, silent in generation 1; a request that was sent before, and the time.
pub(crate) fn silent() -> (Arc<CircuitBreaker>, Watcher, (OwnedPermit, Ticket), Instant) {
    let breaker = breaker(1);
    let ([mut watcher], now) = watch(&breaker);
    let call = send(&breaker, &mut watcher, now);
    let now = now + CEILING;
    assert!(watcher.look(now).is_some());
    assert!(breaker.snapshot().silent);
    (breaker, watcher, call, now)
}

#[test]
fn of_an_alarm_and_the_last_failure_one_opens_the_circuit_and_the_requests_move_on_all_the_same() {
    explore(&["the alarm", "the failure"], || {
        let breaker = breaker(1);
        let ([mut watcher], now) = watch(&breaker);
        let call = send(&breaker, &mut watcher, now);
        let failing = permit(&breaker);
        let other = thread::spawn(move || failing.failure("test", "failure"));
        assert!(watcher.look(now + CEILING).is_some());
        other.join().unwrap();
        let snapshot = breaker.snapshot();
        assert_eq!((snapshot.state, snapshot.trip_count), (CircuitState::Open, 1));
        assert_eq!(told(&breaker) == "failure", !snapshot.silent);
        drop(call);
        if snapshot.silent { "the alarm" } else { "the failure" }
    });
}

#[test]
fn an_alarm_from_before_a_probe_does_not_open_the_circuit_that_the_probe_closed() {
    explore(&["the alarm came first", "the failure came first", "all was well again"], || {
        let breaker = breaker(1);
        let ([mut watcher, mut other_core], now) = watch(&breaker);
        let call = send(&breaker, &mut watcher, now);
        let failing = permit(&breaker);
        let other = beside(&breaker, move |breaker| {
            failing.failure("test", "failure");
            let failed = !breaker.snapshot().silent;
            advance(OPEN_FOR);
            let probe = claim(&breaker);
            let ticket = other_core.start(&probe, now + CEILING);
            other_core.answered(ticket, now + CEILING);
            probe.success();
            failed
        });
        let moved_on = watcher.look(now + CEILING).is_some();
        let failed = other.join().unwrap();
        assert_eq!((breaker.state(), breaker.trip_count()), (CircuitState::Closed, 1));
        drop(call);
        match (failed, moved_on) {
            (false, true) => "the alarm came first",
            (true, true) => "the failure came first",
            _ => "all was well again",
        }
    });
}

#[test]
fn a_success_that_ends_a_row_of_failures_does_not_hold_an_alarm_up() {
    explore(&["the reset came first", "the alarm came first"], || {
        let breaker = breaker(2);
        let ([mut watcher], now) = watch(&breaker);
        let calls = [send(&breaker, &mut watcher, now), send(&breaker, &mut watcher, now)];
        let good = permit(&breaker);
        fail(&breaker, "first");
        let other = thread::spawn(move || good.success());
        assert!(watcher.look(now + CEILING).is_some());
        other.join().unwrap();
        let snapshot = breaker.snapshot();
        assert!(snapshot.silent);
        drop(calls);
        if snapshot.failure_count == 0 { "the reset came first" } else { "the alarm came first" }
    });
}

#[test]
fn an_answer_after_all_closes_the_circuit_unless_a_probe_has_been_claimed() {
    explore(&["the answer closed it", "the probe decides"], || {
        let (breaker, mut watcher, (late, ticket), now) = silent();
        advance(OPEN_FOR);
        let other = beside(&breaker, |breaker| breaker.try_acquire_owned().expect("let through"));
        watcher.answered(ticket, now);
        late.success();
        let next = other.join().unwrap();
        if next.kind() == PermitType::Normal {
            assert_eq!(breaker.state(), CircuitState::Closed);
            return "the answer closed it";
        }
        assert_eq!(breaker.state(), CircuitState::HalfOpen);
        next.failure("test", "failure");
        assert!(breaker.state() == CircuitState::Open && !breaker.snapshot().silent);
        "the probe decides"
    });
}

#[test]
fn an_answer_that_comes_while_the_alarm_is_raised_closes_the_circuit_at_the_next_look() {
    explore(&["no alarm", "closed at the next look"], || {
        let breaker = breaker(1);
        let ([mut watcher, mut other_core], now) = watch(&breaker);
        let call = send(&breaker, &mut watcher, now);
        let now = now + Duration::from_millis(1);
        let (late, ticket) = send(&breaker, &mut other_core, now);
        let look = thread::spawn(move || {
            let moved_on = watcher.look(now + CEILING).is_some();
            (watcher, moved_on)
        });
        other_core.answered(ticket, now + CEILING);
        late.success();
        let (mut watcher, moved_on) = look.join().unwrap();
        watcher.look(now + CEILING);
        assert_eq!(breaker.state(), CircuitState::Closed);
        drop(call);
        if moved_on { "closed at the next look" } else { "no alarm" }
    });
}

#[test]
fn of_two_cores_that_get_their_last_answers_one_closes_the_circuit() {
    explore(&["closed"], || {
        let breaker = breaker(1);
        let ([mut watcher, mut other_core], now) = watch(&breaker);
        let (first, ticket) = send(&breaker, &mut watcher, now);
        let (second, other_ticket) = send(&breaker, &mut other_core, now);
        let now = now + CEILING;
        assert!(watcher.look(now).is_some());
        assert!(other_core.look(now).is_some());
        let other = thread::spawn(move || {
            other_core.answered(other_ticket, now);
            second.success();
        });
        watcher.answered(ticket, now);
        first.success();
        other.join().unwrap();
        assert_eq!((breaker.state(), breaker.trip_count()), (CircuitState::Closed, 1));
        "closed"
    });
}

#[test]
fn a_late_failure_of_a_silent_request_is_not_counted() {
    explore(&["while silent", "when closed"], || {
        let breaker = breaker(1);
        let ([mut watcher], now) = watch(&breaker);
        let (moved_on, _lost) = send(&breaker, &mut watcher, now);
        let (late, ticket) = send(&breaker, &mut watcher, now);
        let now = now + CEILING;
        assert!(watcher.look(now).is_some());
        let other = beside(&breaker, |breaker| {
            moved_on.failure("test", "timeout");
            breaker.state()
        });
        watcher.answered(ticket, now);
        late.success();
        let seen = other.join().unwrap();
        assert_eq!((breaker.state(), breaker.trip_count()), (CircuitState::Closed, 1));
        if seen == CircuitState::Open { "while silent" } else { "when closed" }
    });
}

#[test]
fn a_second_answer_does_not_close_what_failures_opened_since() {
    explore(&["before the failure", "after it"], || {
        let breaker = breaker(1);
        let ([mut watcher, mut other_core], now) = watch(&breaker);
        let (first, ticket) = send(&breaker, &mut watcher, now);
        let (second, other_ticket) = send(&breaker, &mut other_core, now + Duration::from_millis(1));
        let now = now + CEILING + Duration::from_millis(1);
        assert!(watcher.look(now).is_some());
        drop((first, watcher, ticket));
        let failed = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&failed);
        let other = thread::spawn(move || {
            other_core.answered(other_ticket, now);
            second.success();
            seen.load(Ordering::Relaxed)
        });
        // As if by the first one.
        while let Err(rejection) = breaker.try_acquire() {
            assert_eq!(rejection.reason(), RejectionReason::Silent);
            thread::yield_now();
        }
        fail(&breaker, "failure");
        failed.fetch_add(1, Ordering::Relaxed);
        let seen = other.join().unwrap();
        let snapshot = breaker.snapshot();
        assert!(snapshot.state == CircuitState::Open && !snapshot.silent && snapshot.trip_count == 2);
        if seen == 0 { "before the failure" } else { "after it" }
    });
}

#[test]
fn a_probe_that_has_been_taken_over_does_not_fall_silent_in_its_successors_place() {
    explore(&["it fell silent first", "it was taken over"], || {
        let breaker = breaker(1);
        let ([mut watcher], now) = watch(&breaker);
        fail(&breaker, "first");
        advance(OPEN_FOR);
        let probe = claim(&breaker);
        let ticket = watcher.start(&probe, now);
        advance(LEASE);
        let other = beside(&breaker, CircuitBreaker::try_acquire_owned);
        watcher.look(now + CEILING);
        let next = other.join().unwrap();
        drop((probe, ticket));
        let snapshot = breaker.snapshot();
        if probes(&next) {
            assert_eq!((snapshot.state, snapshot.failed_probe_count), (CircuitState::HalfOpen, 0));
            return "it was taken over";
        }
        assert_eq!(reason(&next), Some(RejectionReason::Silent));
        assert!(snapshot.silent && snapshot.failed_probe_count == 1);
        "it fell silent first"
    });
}

#[test]
fn the_answer_of_a_probe_that_fell_silent_closes_the_circuit() {
    explore(&["let through", "rejected"], || {
        let breaker = breaker(1);
        let ([mut watcher], now) = watch(&breaker);
        fail(&breaker, "first");
        advance(OPEN_FOR);
        let probe = claim(&breaker);
        let ticket = watcher.start(&probe, now);
        assert!(watcher.look(now + CEILING).is_some());
        let other = beside(&breaker, CircuitBreaker::try_acquire_owned);
        watcher.answered(ticket, now + CEILING);
        probe.success();
        assert_eq!(breaker.state(), CircuitState::Closed);
        if other.join().unwrap().is_ok() { "let through" } else { "rejected" }
    });
}

#[test]
fn a_waiter_is_rejected_when_the_probe_falls_silent() {
    explore(&["woken", "found"], || {
        let breaker = breaker(1);
        let ([mut watcher], now) = watch(&breaker);
        fail(&breaker, "first");
        advance(OPEN_FOR);
        let probe = claim(&breaker);
        let ticket = watcher.start(&probe, now);
        let waiting = go_on(begin(&breaker));
        watcher.look(now + CEILING);
        // Even if it could be the next probe by now.
        advance(OPEN_FOR);
        let (answer, woken) = waiting.join().unwrap();
        assert_eq!(reason(&answer), Some(RejectionReason::Reopened));
        assert!(told(&breaker).contains("unanswered"), "{}", told(&breaker));
        drop((probe, ticket));
        if woken { "woken" } else { "found" }
    });
}

#[test]
fn a_waiter_through_silence_passes_when_an_answer_ends_it() {
    explore(&["at once", "after a wait"], || {
        let (breaker, mut watcher, (late, ticket), now) = silent();
        let caller = beside(&breaker, |breaker| {
            let mut polls = 0;
            let mut call = pin!(breaker.acquire_through_silence());
            let permit = block_on(poll_fn(|cx| {
                polls += 1;
                call.as_mut().poll(cx)
            }));
            assert_eq!(permit.expect("an answer came").kind(), PermitType::Normal);
            polls
        });
        watcher.answered(ticket, now);
        late.success();
        if caller.join().unwrap() == 1 { "at once" } else { "after a wait" }
    });
}

#[test]
fn a_call_rejected_for_silence_is_told_of_it() {
    explore(&["let through", "rejected"], || {
        let breaker = breaker(1);
        let ([mut watcher], now) = watch(&breaker);
        let call = send(&breaker, &mut watcher, now);
        let other = beside(&breaker, |breaker| {
            let rejected = breaker.try_acquire().is_err();
            rejected.then(|| told(&breaker))
        });
        assert!(watcher.look(now + CEILING).is_some());
        drop(call);
        match other.join().unwrap() {
            None => "let through",
            Some(told) => {
                assert!(told.contains("1 unanswered"), "{told}");
                "rejected"
            }
        }
    });
}
