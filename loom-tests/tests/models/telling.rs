//! What a change of state brings along: the error, the counts, and what its caller did before.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use loom::future::block_on;
use loom::sync::atomic::AtomicUsize;
use loom::thread;
use loom_tests::sync::time::advance;
use loom_tests::{CircuitBreaker, CircuitState, OwnedPermit, PermitType};

use crate::by_name;
use crate::harness::{
    LEASE, OPEN_FOR, Waiting, begin, beside, borrowing, breaker, claim, counting_polls, due, explore, fail, passed,
    permit, probing, told,
};

// ---- the error that opened the circuit ----

#[test]
fn a_reader_that_sees_an_opening_finds_its_error() {
    explore(&["closed", "open"], || {
        let breaker = breaker(1);
        let reader = beside(&breaker, |breaker| breaker.snapshot());
        fail(&breaker, "first");
        let seen = reader.join().unwrap();
        if seen.state == CircuitState::Open {
            assert_eq!(seen.last_error.expect("published before the circuit opened").message(), "first");
            "open"
        } else {
            "closed"
        }
    });
}

#[test]
fn a_rejected_call_is_told_the_error() {
    explore(&["admitted", "rejected"], || {
        let breaker = breaker(1);
        let caller =
            beside(&breaker, |breaker| breaker.try_acquire().err().map(|rejection| breaker.explain(rejection)));
        fail(&breaker, "first");
        match caller.join().unwrap() {
            None => "admitted",
            Some(error) => {
                assert_eq!(error.last_error().expect("published before the circuit opened").message(), "first");
                "rejected"
            }
        }
    });
}

#[test]
fn a_reader_that_sees_a_failed_probe_finds_its_error() {
    explore(&["half-open", "open again"], || {
        let (breaker, probe) = probing();
        let reader = beside(&breaker, |breaker| breaker.snapshot());
        probe.failure("test", "again");
        let seen = reader.join().unwrap();
        let error = seen.last_error.expect("the first opening's at least");
        if seen.state == CircuitState::Open {
            assert_eq!(error.message(), "again");
            "open again"
        } else {
            "half-open"
        }
    });
}

#[test]
fn of_racing_failures_the_one_that_opened_the_circuit_is_told() {
    explore(&["ours", "theirs"], || {
        let breakers = by_name::registry(1);
        let other = beside(&breakers, |breakers| breakers.record_failure("a", "test", "theirs"));
        let ours = breakers.record_failure("a", "test", "ours");
        let theirs = other.join().unwrap();
        let end = match (ours, theirs) {
            (true, false) => "ours",
            (false, true) => "theirs",
            (true, true) => "both counted",
            (false, false) => "neither counted",
        };
        let breaker = breakers.get("a").unwrap();
        assert_eq!(told(&breaker), end);
        // A probe that comes too late begins no opening, so this one stays the last.
        advance(OPEN_FOR);
        let slow = claim(&breaker);
        advance(LEASE);
        std::mem::forget(claim(&breaker));
        slow.failure("test", "late");
        assert_eq!(told(&breaker), end);
        end
    });
}

/// A success and a failure that would open the circuit, at once; `told_before` is the error of the opening before.
fn a_success_beside_the_last_failure(breaker: &Arc<CircuitBreaker>, told_before: &str) -> &'static str {
    fail(breaker, "first of the row");
    let (good, bad) = (permit(breaker), permit(breaker));
    let other = thread::spawn(move || bad.failure("test", "last of the row"));
    good.success();
    other.join().unwrap();
    if breaker.state() == CircuitState::Closed {
        assert_eq!(told(breaker), told_before);
        "the failure lost"
    } else {
        assert_eq!(told(breaker), "last of the row");
        "the failure opened the circuit"
    }
}

#[test]
fn a_failure_that_lost_to_a_success_is_not_told() {
    explore(&["the failure lost", "the failure opened the circuit"], || {
        a_success_beside_the_last_failure(&breaker(2), "")
    });
}

#[test]
fn a_failure_that_lost_to_a_success_does_not_hide_the_error_of_the_opening_before() {
    explore(&["the failure lost", "the failure opened the circuit"], || {
        let breaker = breaker(2);
        fail(&breaker, "of another row");
        fail(&breaker, "opened it");
        advance(OPEN_FOR);
        claim(&breaker).success();
        a_success_beside_the_last_failure(&breaker, "opened it")
    });
}

#[test]
fn the_error_of_a_probe_whose_lease_is_over_does_not_replace_its_successors() {
    explore(&["just in time", "too late"], || {
        let (breaker, slow) = probing();
        advance(LEASE);
        let other = thread::spawn(move || slow.failure("test", "late"));
        let next = Arc::clone(&breaker).try_acquire_owned();
        let taken_over = next.is_ok();
        if let Ok(next) = next {
            next.failure("test", "again");
        }
        other.join().unwrap();
        let seen = breaker.snapshot();
        assert_eq!((seen.state, seen.trip_count, seen.failed_probe_count), (CircuitState::Open, 1, 1));
        if taken_over {
            assert_eq!(told(&breaker), "again");
            "too late"
        } else {
            assert_eq!(told(&breaker), "late");
            "just in time"
        }
    });
}

#[test]
fn a_reader_that_sees_a_failed_probe_is_not_told_of_a_late_one_before_it() {
    explore(&["half-open", "open again"], || {
        let (breaker, slow) = probing();
        advance(LEASE);
        let next = claim(&breaker);
        slow.failure("test", "late");
        let reader = beside(&breaker, |breaker| breaker.snapshot());
        next.failure("test", "again");
        let seen = reader.join().unwrap();
        if seen.state == CircuitState::Open {
            assert_eq!(seen.last_error.unwrap().message(), "again");
            "open again"
        } else {
            "half-open"
        }
    });
}

#[test]
fn a_late_failure_of_a_probe_does_not_rewrite_the_error_of_a_newer_opening() {
    explore(&["just in time", "too late"], || {
        let (breaker, slow) = probing();
        advance(LEASE);
        let other = thread::spawn(move || slow.failure("test", "late"));
        let next = Arc::clone(&breaker).try_acquire_owned();
        let taken_over = next.is_ok();
        if let Ok(next) = next {
            next.success();
            fail(&breaker, "newer");
        }
        other.join().unwrap();
        assert_eq!(breaker.state(), CircuitState::Open);
        if taken_over {
            assert_eq!((&*told(&breaker), breaker.snapshot().failed_probe_count), ("newer", 0));
            "too late"
        } else {
            assert_eq!((&*told(&breaker), breaker.snapshot().failed_probe_count), ("late", 1));
            "just in time"
        }
    });
}

#[test]
fn the_next_opening_keeps_the_error_of_one_that_is_not_confirmed_yet() {
    explore(&["the first", "the second", "closed"], || {
        let breaker = breaker(1);
        let other = beside(&breaker, |breaker| fail(&breaker, "first"));
        let reader = beside(&breaker, |breaker| breaker.snapshot());
        advance(OPEN_FOR);
        if let Ok(probe) = breaker.try_acquire()
            && probe.kind() == PermitType::Probe
        {
            probe.failure("test", "second");
        }
        other.join().unwrap();
        let seen = reader.join().unwrap();
        match (seen.state, seen.last_error.as_ref().map(|error| error.message())) {
            (CircuitState::Closed, _) => "closed",
            (_, Some("first")) => "the first",
            (_, Some("second")) => "the second",
            _ => "none",
        }
    });
}

#[test]
fn the_error_of_a_probe_whose_lease_is_long_over_does_not_replace_that_of_a_newer_opening() {
    explore(&["an older word", "the newest word"], || {
        let (breaker, slow) = probing();
        advance(LEASE);
        claim(&breaker).failure("test", "again");
        advance(OPEN_FOR);
        let newest = claim(&breaker);
        let reader = beside(&breaker, |breaker| {
            let word = format!("{breaker:?}");
            (word.contains("generation: 3"), told(&breaker))
        });
        let other = thread::spawn(move || slow.failure("test", "late"));
        newest.failure("test", "newest");
        other.join().unwrap();
        let (newest, told) = reader.join().unwrap();
        if newest {
            assert_eq!(told, "newest");
            "the newest word"
        } else {
            assert!(told == "again" || told == "newest", "{told}");
            "an older word"
        }
    });
}

#[test]
fn a_late_confirmation_does_not_expose_the_error_of_a_newer_opening() {
    explore(&["closed by then", "opened twice"], || {
        let breaker = breaker(1);
        let other = beside(&breaker, |breaker| fail(&breaker, "first"));
        advance(OPEN_FOR);
        let end = match Arc::clone(&breaker).try_acquire_owned() {
            Ok(slow) if slow.kind() == PermitType::Probe => {
                advance(LEASE);
                claim(&breaker).failure("test", "again");
                slow.failure("test", "late");
                "opened twice"
            }
            _ => "closed by then",
        };
        other.join().unwrap();
        assert_eq!(told(&breaker), if end == "opened twice" { "again" } else { "first" });
        end
    });
}

#[test]
fn a_success_in_between_does_not_cut_a_waiter_off_from_the_error_of_the_next_opening() {
    explore(&["passed", "told"], || {
        let (breaker, probe) = probing();
        let waiting = begin(&breaker);
        let waiter = beside(&breaker, |breaker| block_on(waiting).err().map(|rejection| breaker.explain(rejection)));
        probe.success();
        fail(&breaker, "third");
        match waiter.join().unwrap() {
            None => "passed",
            Some(error) if error.last_error().is_some_and(|error| error.message() == "third") => "told",
            Some(_) => "told an older one",
        }
    });
}

// ---- the counts ----

#[test]
fn racing_openings_are_counted_once_each() {
    explore(&["one trip", "two trips"], || {
        let breaker = breaker(1);
        let other = beside(&breaker, |breaker| fail(&breaker, "first"));
        advance(OPEN_FOR);
        let mut ends = (0, 0);
        if let Ok(probe) = breaker.try_acquire()
            && probe.kind() == PermitType::Probe
        {
            probe.success();
            fail(&breaker, "second");
            ends.0 += 1;
            advance(OPEN_FOR);
            claim(&breaker).failure("test", "third");
            ends.1 += 1;
        }
        other.join().unwrap();
        ends.0 += 1;
        let seen = breaker.snapshot();
        assert_eq!((seen.trip_count, seen.failed_probe_count), ends);
        if ends.0 == 2 { "two trips" } else { "one trip" }
    });
}

#[test]
fn a_probe_that_lost_its_race_is_not_counted() {
    explore(&["closed", "open"], || {
        let breakers = by_name::probing();
        let other = beside(&breakers, |breakers| breakers.record_probe_failure("a", "test", "again"));
        breakers.record_probe_success("a");
        let failed = other.join().unwrap();
        let seen = breakers.get("a").unwrap().snapshot();
        assert_eq!((seen.trip_count, seen.failed_probe_count), (1, u64::from(failed)));
        seen.state.as_str()
    });
}

#[test]
fn a_probe_that_comes_too_late_does_not_turn_a_trip_into_a_failed_probe() {
    explore(&["closed", "open"], || {
        let (breaker, slow) = probing();
        advance(LEASE);
        claim(&breaker).success();
        let reader = beside(&breaker, |breaker| breaker.snapshot());
        let other = thread::spawn(move || slow.failure("test", "late"));
        fail(&breaker, "newer");
        other.join().unwrap();
        assert_eq!((breaker.trip_count(), breaker.snapshot().failed_probe_count), (2, 0));
        let seen = reader.join().unwrap();
        assert_eq!(seen.failed_probe_count, 0);
        assert!(seen.trip_count == 2 || seen.state == CircuitState::Closed);
        seen.state.as_str()
    });
}

// ---- what the caller did before ----

/// Something outside of the breaker that the probe's caller changes before it reports success.
fn leave(data: &AtomicUsize, probe: OwnedPermit) {
    data.store(1, Relaxed);
    probe.success();
}

#[test]
fn a_call_that_passes_after_a_probe_sees_what_its_caller_did() {
    explore(&["came before it closed", "came after it closed"], || {
        let (breaker, probe) = probing();
        let data = Arc::new(AtomicUsize::new(0));
        let caller = {
            let (breaker, data) = (Arc::clone(&breaker), Arc::clone(&data));
            thread::spawn(move || match breaker.try_acquire() {
                Ok(_) => {
                    assert_eq!(data.load(Relaxed), 1);
                    "came after it closed"
                }
                Err(_) => "came before it closed",
            })
        };
        leave(&data, probe);
        caller.join().unwrap()
    });
}

#[test]
fn a_waiter_sees_what_the_probes_caller_did() {
    explore(&["woken", "found it resolved"], || {
        let (breaker, probe) = probing();
        let data = Arc::new(AtomicUsize::new(0));
        let waiter = {
            let (waiting, data) = (begin(&breaker), Arc::clone(&data));
            thread::spawn(move || {
                let (answer, waited) = counting_polls(waiting);
                assert!(passed(&answer));
                assert_eq!(data.load(Relaxed), 1);
                waited
            })
        };
        leave(&data, probe);
        if waiter.join().unwrap() { "woken" } else { "found it resolved" }
    });
}

/// A call that comes while the probe succeeds.
fn sees_what_the_probes_caller_did(ask: fn(Arc<CircuitBreaker>) -> Waiting) -> &'static str {
    let (breaker, probe) = probing();
    let data = Arc::new(AtomicUsize::new(0));
    let caller = {
        let (breaker, data) = (Arc::clone(&breaker), Arc::clone(&data));
        thread::spawn(move || {
            let (answer, waited) = counting_polls(ask(breaker));
            assert!(passed(&answer));
            assert_eq!(data.load(Relaxed), 1);
            waited
        })
    };
    leave(&data, probe);
    if caller.join().unwrap() { "woken" } else { "did not sleep" }
}

#[test]
fn a_call_that_comes_while_the_probe_succeeds_sees_what_its_caller_did() {
    explore(&["woken", "did not sleep"], || sees_what_the_probes_caller_did(borrowing));
}

#[test]
fn a_call_for_an_owned_permit_that_comes_while_the_probe_succeeds_sees_what_its_caller_did() {
    explore(&["woken", "did not sleep"], || {
        sees_what_the_probes_caller_did(|breaker| Box::pin(breaker.acquire_owned()))
    });
}

fn probe_or_see(breaker: Arc<CircuitBreaker>, data: &AtomicUsize) -> bool {
    let permit = block_on(breaker.acquire_owned()).unwrap();
    let probes = permit.kind() == PermitType::Probe;
    if probes {
        leave(data, permit);
    } else {
        assert_eq!(data.load(Relaxed), 1);
    }
    probes
}

#[test]
fn a_call_that_loses_the_race_for_the_probe_sees_what_the_winner_did() {
    explore(&["we probed", "they probed"], || {
        let breaker = due();
        let data = Arc::new(AtomicUsize::new(0));
        let other = {
            let (breaker, data) = (Arc::clone(&breaker), Arc::clone(&data));
            thread::spawn(move || probe_or_see(breaker, &data))
        };
        let ours = probe_or_see(breaker, &data);
        match (ours, other.join().unwrap()) {
            (true, false) => "we probed",
            (false, true) => "they probed",
            (true, true) => "both probed",
            (false, false) => "nobody probed",
        }
    });
}

#[test]
fn a_claim_in_between_does_not_cut_the_next_caller_off_from_the_error_of_the_opening() {
    explore(&["closed", "open", "half_open"], || {
        let breaker = breaker(1);
        let other = beside(&breaker, |breaker| {
            advance(OPEN_FOR);
            breaker.try_acquire_owned().map(std::mem::forget).is_ok()
        });
        let reader = beside(&breaker, |breaker| breaker.snapshot());
        fail(&breaker, "first");
        other.join().unwrap();
        let seen = reader.join().unwrap();
        if seen.state != CircuitState::Closed {
            assert_eq!(seen.last_error.expect("published before the circuit opened").message(), "first");
        }
        seen.state.as_str()
    });
}
