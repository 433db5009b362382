//! The clock of production. The other tests may pause tokio's time, and so never read the system's coarse clock; in a
//! build of this package alone, nothing can be paused.

use std::time::{Duration, Instant};

use fusebox::{CircuitBreaker, PermitType, RejectionReason};

#[test]
fn an_open_circuit_takes_its_probe_when_the_open_time_has_passed_and_not_before() {
    const OPEN_FOR: Duration = Duration::from_millis(150);
    let breaker = CircuitBreaker::builder("upstream").failure_threshold(1).open_for(OPEN_FOR).build().unwrap();
    let before = Instant::now();
    breaker.try_acquire().unwrap().failure("test", "");
    let opened = Instant::now();
    let mut rejected = 0;
    let probe = loop {
        assert!(opened.elapsed() < Duration::from_secs(30), "still rejected after {rejected} calls");
        match breaker.try_acquire() {
            Ok(probe) => break probe,
            Err(rejection) => {
                rejected += 1;
                assert_eq!(rejection.reason(), RejectionReason::Open);
                // Ticks of a millisecond are rounded down.
                let left = OPEN_FOR.saturating_sub(before.elapsed() + Duration::from_millis(1));
                assert!(rejection.retry_after() >= Some(left), "{rejection}, {left:?} are left");
            }
        }
    };
    // Ticks of a millisecond are rounded down.
    assert!(before.elapsed() + Duration::from_millis(1) >= OPEN_FOR, "after {:?}", before.elapsed());
    assert_eq!(probe.kind(), PermitType::Probe);
    assert!(rejected > 0);
    probe.success();
}

#[test]
fn a_call_that_comes_back_after_exactly_as_long_as_it_was_told_is_not_rejected_again() {
    const OPEN_FOR: Duration = Duration::from_millis(40);
    // Breakers that begin at different times between two ticks of the coarse clock.
    for number in 0..20 {
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(number * 700) {}
        let breaker = CircuitBreaker::builder("upstream").failure_threshold(1).open_for(OPEN_FOR).build().unwrap();
        breaker.try_acquire().unwrap().failure("test", "");
        let mut earliest = Instant::now() + Duration::from_secs(30);
        loop {
            let asked = Instant::now();
            assert!(asked < start + Duration::from_secs(30), "still rejected");
            match breaker.try_acquire() {
                Ok(probe) => {
                    probe.success();
                    break;
                }
                Err(rejection) => {
                    assert!(asked < earliest, "rejected, though it came no earlier than an answer before had said");
                    earliest = earliest.min(Instant::now() + rejection.retry_after().expect("it is not isolated"));
                }
            }
        }
    }
}
