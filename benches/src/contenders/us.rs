//! fusebox, in each of the ways to use it.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fusebox::{CircuitBreaker, CircuitBreakerRegistry, Config, ConfigBuilder, PermitType};

use super::{Async, AsyncCall, Contender, HOUR, NAME, Plain, Start, names, poll_once, upstream};

fn config(start: Start) -> Config {
    let config = Config::builder().failure_threshold(start.threshold(1023, 1)).open_for(HOUR);
    config.build().expect("a valid configuration")
}

fn breaker(start: Start) -> CircuitBreaker {
    CircuitBreaker::new(NAME, config(start))
}

/// The call that a permit lets through. A macro, since a permit that goes through a function of its own is written to
/// memory for that, and the call takes three times as long.
macro_rules! call {
    ($permit:ident, $fails:ident) => {{
        match upstream($fails) {
            Ok(()) => $permit.success(),
            Err(_) => $permit.failure("broken", ""),
        }
        true
    }};
}

pub fn borrowed(start: Start) -> impl Contender {
    let breaker = breaker(start);
    start.of(Plain(move |fails| {
        let Ok(permit) = breaker.try_acquire() else { return false };
        call!(permit, fails)
    }))
}

/// With a policy besides failures in a row, which the calls never reach.
pub fn with(policy: ConfigBuilder) -> impl Contender {
    let config = policy.failure_threshold(1023).open_for(HOUR).build().expect("a valid configuration");
    let breaker = CircuitBreaker::new(NAME, config);
    Plain(move |fails| {
        let Ok(permit) = breaker.try_acquire() else { return false };
        call!(permit, fails)
    })
}

/// A permit that could go to another task.
pub fn owned(start: Start) -> impl Contender {
    let breaker = Arc::new(breaker(start));
    start.of(Plain(move |fails| {
        let Ok(permit) = Arc::clone(&breaker).try_acquire_owned() else { return false };
        call!(permit, fails)
    }))
}

/// Without a task or a loop of awaits around it.
pub fn polled(start: Start) -> impl Contender {
    let breaker = breaker(start);
    start.of(Plain(move |fails| {
        let polled = pin!(breaker.acquire()).poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Ok(permit)) = polled else { return false };
        call!(permit, fails)
    }))
}

pub fn awaited(start: Start) -> impl Contender {
    start.of(Async(Awaited(breaker(start))))
}

struct Awaited(CircuitBreaker);

impl AsyncCall for Awaited {
    async fn call(&self, fails: bool) -> bool {
        let Ok(permit) = self.0.acquire().await else { return false };
        call!(permit, fails)
    }
}

/// Two lookups for each call.
pub fn by_name(start: Start) -> impl Contender {
    start.of(Async(ByName(CircuitBreakerRegistry::with_config(names(), config(start)))))
}

struct ByName(CircuitBreakerRegistry);

impl AsyncCall for ByName {
    async fn call(&self, fails: bool) -> bool {
        match self.0.acquire_permit(NAME).await {
            Ok(PermitType::Normal) => match upstream(fails) {
                Ok(()) => self.0.record_success(NAME),
                Err(_) => self.0.record_failure(NAME, "broken", ""),
            },
            Ok(PermitType::Probe) => unreachable!("the circuit is closed, or open for an hour"),
            Err(_) => false,
        }
    }
}

/// A probe is in flight: a call begins to wait for it, and gives up.
pub fn waiting() -> impl Contender {
    let config =
        Config::builder().failure_threshold(1).open_for(Duration::from_millis(1)).probe_lease(HOUR).wait_limit(HOUR);
    let breaker = CircuitBreaker::new(NAME, config.build().expect("a valid configuration"));
    breaker.try_acquire().expect("closed").failure("broken", "");
    while breaker.try_acquire().map(std::mem::forget).is_err() {}
    Plain(move |_| poll_once(breaker.acquire()).is_ready())
}
