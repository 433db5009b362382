//! fusebox, in each of the ways to use it.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fusebox::{CircuitBreaker, CircuitBreakerRegistry, Config, PermitType};

use super::{Async, AsyncContender, CALLS, Contender, each, upstream};

const NAME: &str = "anthropic";

fn config() -> Config {
    let config = Config::builder().failure_threshold(1023).open_for(Duration::from_hours(1));
    config.build().expect("a valid configuration")
}

fn closed() -> CircuitBreaker {
    CircuitBreaker::new(NAME, config())
}

fn open() -> CircuitBreaker {
    let config = Config::builder().failure_threshold(1).open_for(Duration::from_hours(1));
    let breaker = CircuitBreaker::new(NAME, config.build().expect("a valid configuration"));
    breaker.try_acquire().expect("closed").failure("broken", "");
    breaker
}

pub struct Borrowed(CircuitBreaker);

impl Borrowed {
    pub fn closed() -> Self {
        Self(closed())
    }

    pub fn open() -> Self {
        Self(open())
    }
}

impl Contender for Borrowed {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool + Send) -> u32 {
        each(fails, |fails| {
            let Ok(permit) = self.0.try_acquire() else { return false };
            match upstream(fails) {
                Ok(()) => permit.success(),
                Err(_) => permit.failure("broken", ""),
            }
            true
        })
    }
}

pub struct Awaited(CircuitBreaker);

impl Awaited {
    pub fn closed() -> Async<Self> {
        Async(Self(closed()))
    }

    pub fn open() -> Async<Self> {
        Async(Self(open()))
    }
}

impl AsyncContender for Awaited {
    type Handle = ();

    fn handle(&self) {}

    async fn call(&self, (): &mut (), fails: bool) -> bool {
        let Ok(permit) = self.0.acquire().await else { return false };
        match upstream(fails) {
            Ok(()) => permit.success(),
            Err(_) => permit.failure("broken", ""),
        }
        true
    }
}

/// Without a task or a loop of awaits around it.
pub struct Polled(CircuitBreaker);

impl Polled {
    pub fn closed() -> Self {
        Self(closed())
    }

    pub fn open() -> Self {
        Self(open())
    }
}

impl Contender for Polled {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool + Send) -> u32 {
        each(fails, |fails| {
            let polled = pin!(self.0.acquire()).poll(&mut Context::from_waker(Waker::noop()));
            let Poll::Ready(Ok(permit)) = polled else { return false };
            match upstream(fails) {
                Ok(()) => permit.success(),
                Err(_) => permit.failure("broken", ""),
            }
            true
        })
    }
}

/// A permit that could go to another task.
pub struct Owned(Arc<CircuitBreaker>);

impl Owned {
    pub fn closed() -> Self {
        Self(Arc::new(closed()))
    }

    pub fn open() -> Self {
        Self(Arc::new(open()))
    }
}

impl Contender for Owned {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool + Send) -> u32 {
        each(fails, |fails| {
            let Ok(permit) = Arc::clone(&self.0).try_acquire_owned() else { return false };
            match upstream(fails) {
                Ok(()) => permit.success(),
                Err(_) => permit.failure("broken", ""),
            }
            true
        })
    }
}

/// Two lookups for each call. The registry has 16 names.
pub struct ByName(CircuitBreakerRegistry);

impl ByName {
    pub fn closed() -> Async<Self> {
        let names = (0..15).map(|n| format!("provider-{n}")).chain([NAME.to_owned()]);
        Async(Self(CircuitBreakerRegistry::with_config(names, config())))
    }

    pub fn open() -> Async<Self> {
        let registry = Self::closed().0.0;
        for _ in 0..1023 {
            registry.record_failure(NAME, "broken", "");
        }
        Async(Self(registry))
    }
}

impl AsyncContender for ByName {
    type Handle = ();

    fn handle(&self) {}

    async fn call(&self, (): &mut (), fails: bool) -> bool {
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

/// A probe is in flight.
pub struct Waiting(CircuitBreaker);

impl Waiting {
    pub fn new() -> Self {
        let config = Config::builder()
            .failure_threshold(1)
            .open_for(Duration::from_millis(1))
            .probe_lease(Duration::from_hours(1))
            .wait_limit(Duration::from_hours(1));
        let breaker = CircuitBreaker::new(NAME, config.build().expect("a valid configuration"));
        breaker.try_acquire().expect("closed").failure("broken", "");
        while breaker.try_acquire().map(std::mem::forget).is_err() {}
        Self(breaker)
    }
}

impl Contender for Waiting {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), _: impl Fn(u32) -> bool + Send) -> u32 {
        (0..CALLS).map(|_| u32::from(poll_once(self.0.acquire()).is_ready())).sum()
    }
}

/// Polls a future once, and drops it.
pub(super) fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}
