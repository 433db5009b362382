//! A crowd in front of one probe.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fusebox::{CircuitBreaker, PermitType, RejectionReason};
use tokio::task::JoinSet;
use tokio::time::{Instant, advance};

use crate::support::{SECOND, breaker, probe, trip, until};

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

fn poll_once<F: Future>(future: &mut Pin<Box<F>>) -> Option<F::Output> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// Each waiter hands the probe back as soon as it has it. How often waiters were polled in all.
async fn handed_on_through(crowd: usize) -> usize {
    let breaker = breaker();
    let permit = probe(&breaker).await;
    let polls = Arc::new(AtomicUsize::new(0));
    let mut waiters = JoinSet::new();
    for _ in 0..crowd {
        let (breaker, polls) = (Arc::clone(&breaker), Arc::clone(&polls));
        waiters.spawn(async move {
            let mut wait = pin!(breaker.acquire());
            let polled = poll_fn(|cx| {
                polls.fetch_add(1, Ordering::Relaxed);
                wait.as_mut().poll(cx)
            });
            let permit = polled.await.unwrap();
            assert_eq!(permit.kind(), PermitType::Probe);
            permit.cancel();
        });
    }
    until(|| breaker.snapshot().waiters == crowd).await;
    permit.cancel();
    let handed_back = Instant::now();
    while let Some(waiter) = waiters.join_next().await {
        waiter.unwrap();
    }
    assert_eq!((breaker.snapshot().waiters, handed_back.elapsed()), (0, Duration::ZERO));
    polls.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_handed_on_wakes_each_of_ten_thousand_waiters_once() {
    assert_eq!(handed_on_through(CROWD).await, 2 * CROWD);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_with_the_probe_on_its_way_leaves_it_to_the_next_one() {
    let breaker = breaker();
    let permit = probe(&breaker).await;
    let [mut first, mut second] = [(); 2].map(|()| Box::pin(Arc::clone(&breaker).acquire_owned()));
    assert!(poll_once(&mut first).is_none() && poll_once(&mut second).is_none());
    permit.cancel();
    drop(first);
    assert_eq!(poll_once(&mut second).unwrap().unwrap().kind(), PermitType::Probe);
}

#[tokio::test(start_paused = true)]
async fn of_several_good_probes_each_next_one_wakes_one_waiter() {
    let breaker = Arc::new(CircuitBreaker::builder("openai").good_probes(3).build().unwrap());
    trip(&breaker);
    advance(30 * SECOND).await;
    let permit = breaker.try_acquire().unwrap();
    let mut waiters = [(); 3].map(|()| Box::pin(Arc::clone(&breaker).acquire_owned()));
    assert!(waiters.iter_mut().all(|waiter| poll_once(waiter).is_none()));
    permit.success();
    let [first, second, third] = &mut waiters;
    let next = poll_once(first).unwrap().unwrap();
    assert!(poll_once(second).is_none() && poll_once(third).is_none());
    next.success();
    poll_once(second).unwrap().unwrap().success();
    assert_eq!(poll_once(third).unwrap().unwrap().kind(), PermitType::Normal);
}

#[tokio::test(start_paused = true)]
async fn one_success_lets_ten_thousand_waiters_pass() {
    assert_eq!(crowd(true).await, (CROWD, 0));
}

#[tokio::test(start_paused = true)]
async fn one_failure_rejects_ten_thousand_waiters() {
    assert_eq!(crowd(false).await, (0, CROWD));
}
