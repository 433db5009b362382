//! fusebox, in each of the ways to use it.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fusebox::{CircuitBreaker, CircuitBreakerRegistry, Config, PermitType};
use tokio::runtime::EnterGuard;

use crate::{CALLS, Contender, each, each_async, runtime, upstream};

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

pub(crate) struct Borrowed(CircuitBreaker);

impl Borrowed {
    pub(crate) fn closed() -> Self {
        Self(closed())
    }

    pub(crate) fn open() -> Self {
        Self(open())
    }
}

impl Contender for Borrowed {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool) -> u32 {
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

pub(crate) struct Awaited(CircuitBreaker);

impl Awaited {
    pub(crate) fn closed() -> Self {
        Self(closed())
    }

    pub(crate) fn open() -> Self {
        Self(open())
    }
}

impl Contender for Awaited {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool) -> u32 {
        each_async(fails, async |fails| {
            let Ok(permit) = self.0.acquire().await else { return false };
            match upstream(fails) {
                Ok(()) => permit.success(),
                Err(_) => permit.failure("broken", ""),
            }
            true
        })
    }
}

/// A permit that could go to another task.
pub(crate) struct Owned(Arc<CircuitBreaker>);

impl Owned {
    pub(crate) fn closed() -> Self {
        Self(Arc::new(closed()))
    }

    pub(crate) fn open() -> Self {
        Self(Arc::new(open()))
    }
}

impl Contender for Owned {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool) -> u32 {
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
pub(crate) struct ByName(CircuitBreakerRegistry);

impl ByName {
    pub(crate) fn closed() -> Self {
        let names = (0..15).map(|n| format!("provider-{n}")).chain([NAME.to_owned()]);
        Self(CircuitBreakerRegistry::with_config(names, config()))
    }

    pub(crate) fn open() -> Self {
        let registry = Self::closed().0;
        for _ in 0..1023 {
            registry.record_failure(NAME, "broken", "");
        }
        Self(registry)
    }
}

impl Contender for ByName {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool) -> u32 {
        each_async(fails, async |fails| match self.0.acquire_permit(NAME).await {
            Ok(PermitType::Normal) => match upstream(fails) {
                Ok(()) => self.0.record_success(NAME),
                Err(_) => self.0.record_failure(NAME, "broken", ""),
            },
            Ok(PermitType::Probe) => unreachable!("the circuit is closed, or open for an hour"),
            Err(_) => false,
        })
    }
}

/// A probe is in flight.
pub(crate) struct Waiting(CircuitBreaker);

impl Waiting {
    pub(crate) fn new() -> Self {
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
    // Waiting needs a runtime's timer.
    type Handle = EnterGuard<'static>;

    fn handle(&self) -> Self::Handle {
        runtime().enter()
    }

    fn calls(&self, _: &mut Self::Handle, _: impl Fn(u32) -> bool) -> u32 {
        (0..CALLS).map(|_| u32::from(is_ready(self.0.acquire()))).sum()
    }
}

/// Polls a future once, and drops it.
pub(crate) fn is_ready(future: impl Future) -> bool {
    matches!(pin!(future).poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(_))
}
