//! A crowd in front of one probe.

use std::sync::Arc;
use std::time::Duration;

use fusebox::{PermitType, RejectionReason};
use tokio::time::Instant;

use crate::support::{breaker, probe, until};

const CROWD: usize = if cfg!(miri) { 20 } else { 10_000 };

async fn crowd(succeeds: bool) -> (usize, usize) {
    let breaker = breaker();
    let permit = probe(&breaker).await;
    let waiters: Vec<_> = (0..CROWD).map(|_| tokio::spawn(Arc::clone(&breaker).acquire_owned())).collect();
    until(|| breaker.snapshot().waiters == CROWD).await;
    if succeeds {
        permit.success();
    } else {
        permit.failure("timeout", "");
    }
    let (mut passed, mut rejected) = (0, 0);
    let released = Instant::now();
    for waiter in waiters {
        match waiter.await.unwrap() {
            Ok(permit) if permit.kind() == PermitType::Normal => passed += 1,
            Err(rejection) if rejection.reason() == RejectionReason::Reopened => rejected += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((breaker.snapshot().waiters, released.elapsed()), (0, Duration::ZERO));
    (passed, rejected)
}

#[tokio::test(start_paused = true)]
async fn one_success_lets_ten_thousand_waiters_pass() {
    assert_eq!(crowd(true).await, (CROWD, 0));
}

#[tokio::test(start_paused = true)]
async fn one_failure_rejects_ten_thousand_waiters() {
    assert_eq!(crowd(false).await, (0, CROWD));
}
