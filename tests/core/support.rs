//! Breakers in the states that tests begin with, and futures that are polled by hand.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use fusebox::{CircuitBreaker, CircuitBreakerRegistry, OwnedPermit, PermitType, Rejection};
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// With the default settings: 3 failures, 30 s.
pub(crate) fn breaker() -> Arc<CircuitBreaker> {
    Arc::new(CircuitBreaker::builder("openai").build().unwrap())
}

pub(crate) fn fail(breaker: &CircuitBreaker, error_type: &str) {
    breaker.try_acquire().unwrap().failure(error_type, "test");
}

/// Closed -> Open.
pub(crate) fn trip(breaker: &CircuitBreaker) {
    for _ in 0..breaker.config().failure_threshold().expect("it has one") {
        fail(breaker, "5xx");
    }
}

/// Closed -> Open -> `HalfOpen`, and its probe.
pub(crate) async fn probe(breaker: &Arc<CircuitBreaker>) -> OwnedPermit {
    trip(breaker);
    next_probe(breaker).await
}

/// Open -> `HalfOpen`, and its probe.
pub(crate) async fn next_probe(breaker: &Arc<CircuitBreaker>) -> OwnedPermit {
    advance(breaker.config().open_for()).await;
    let permit = Arc::clone(breaker).try_acquire_owned().unwrap();
    assert_eq!(permit.kind(), PermitType::Probe);
    permit
}

pub(crate) type Waiter = JoinHandle<Result<OwnedPermit, Rejection>>;

/// A task that waits for the probe in flight.
pub(crate) async fn waiter(breaker: &Arc<CircuitBreaker>) -> Waiter {
    let before = breaker.snapshot().waiters;
    let waiter = tokio::spawn(Arc::clone(breaker).acquire_owned());
    until(|| breaker.snapshot().waiters > before).await;
    waiter
}

/// Under paused time, which jumps to the next timer when all is idle, a lost wakeup looks like one that came: only that
/// no time has passed tells them apart.
pub(crate) async fn at_once<F: Future>(future: F) -> F::Output {
    let start = Instant::now();
    let output = future.await;
    assert_eq!(start.elapsed(), Duration::ZERO, "not woken, but found by a timer");
    output
}

/// Waits for a condition. The deadline is one of real time: tokio's is paused in most tests.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "the condition is not met");
        tokio::task::yield_now().await;
    }
}

pub(crate) fn registry() -> Arc<CircuitBreakerRegistry> {
    Arc::new(CircuitBreakerRegistry::new(["openai", "anthropic", "mistral"]))
}

pub(crate) fn trip_by_name(registry: &CircuitBreakerRegistry, name: &str) {
    for _ in 0..3 {
        registry.record_failure(name, "5xx", "test");
    }
}

/// Polls once and says whether that was enough.
pub(crate) async fn is_ready<F: Future>(mut future: Pin<&mut F>) -> bool {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await
}
