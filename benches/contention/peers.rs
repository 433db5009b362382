//! Other breakers, each used as its own documentation says is fastest, and set so that it never opens by itself: a window of
//! the default size, and a threshold that it cannot reach.

use std::future::{Ready, ready};
use std::time::Duration;

use tokio::runtime::EnterGuard;

use crate::{Contender, Failed, each, each_async, runtime, upstream};

const HOUR: Duration = Duration::from_hours(1);
const OFTEN: u32 = 100_000;

/// Failing calls, until one is refused.
fn opened<C: Contender>(contender: C) -> C {
    let mut handle = contender.handle();
    for _ in 0..OFTEN {
        if contender.calls(&mut handle, |_| true) == 0 {
            return contender;
        }
    }
    panic!("it does not open");
}

/// A ring of the last 100 outcomes, the default. `call` with a closure is all there is to use.
pub(crate) struct Recloser(recloser::Recloser);

impl Recloser {
    pub(crate) fn closed() -> Self {
        Self(recloser::Recloser::custom().error_rate(2.0).open_wait(HOUR).build())
    }

    pub(crate) fn open() -> Self {
        opened(Self(recloser::Recloser::custom().error_rate(0.5).open_wait(HOUR).build()))
    }
}

impl Contender for Recloser {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool) -> u32 {
        each(fails, |fails| !matches!(self.0.call(|| upstream(fails)), Err(recloser::Error::Rejected)))
    }
}

type Consecutive = failsafe::failure_policy::ConsecutiveFailures<std::iter::Repeat<Duration>>;

/// Failures in a row: its success-rate policy reads a clock for each call.
pub(crate) struct Failsafe(failsafe::StateMachine<Consecutive, ()>);

impl Failsafe {
    fn new(failures: u32) -> Self {
        let policy = failsafe::failure_policy::consecutive_failures(failures, failsafe::backoff::constant(HOUR));
        Self(failsafe::Config::new().failure_policy(policy).build())
    }

    pub(crate) fn closed() -> Self {
        Self::new(u32::MAX)
    }

    pub(crate) fn open() -> Self {
        opened(Self::new(1))
    }
}

impl Contender for Failsafe {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool) -> u32 {
        use failsafe::CircuitBreaker as _;
        each(fails, |fails| !matches!(self.0.call(|| upstream(fails)), Err(failsafe::Error::Rejected)))
    }
}

/// `call` takes the lock to look, and again to record; it has no way with less.
pub(crate) struct Breaker(breaker::CircuitBreaker);

impl Breaker {
    pub(crate) fn closed() -> Self {
        let config =
            breaker::CircuitBreakerConfig::builder().consecutive_failures(u32::MAX).failure_rate_threshold(0.0);
        Self(breaker::CircuitBreaker::new(config.build()))
    }

    pub(crate) fn open() -> Self {
        let config = breaker::CircuitBreakerConfig::builder().consecutive_failures(1).wait_duration(HOUR);
        opened(Self(breaker::CircuitBreaker::new(config.build())))
    }
}

impl Contender for Breaker {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool) -> u32 {
        use breaker::CircuitBreakerError::{CircuitOpen, Rejected};
        each_async(fails, async |fails| {
            !matches!(self.0.call(|| ready(upstream(fails))).await, Err(CircuitOpen | Rejected))
        })
    }
}

/// Its synchronous `call`, without the `tokio` feature.
pub(crate) struct Nobreak(nobreak::CircuitBreaker);

impl Nobreak {
    fn new(failures: usize) -> Self {
        Self(nobreak::builder().with_failure_threshold(failures).with_open_duration(HOUR).build())
    }

    pub(crate) fn closed() -> Self {
        Self::new(usize::MAX)
    }

    pub(crate) fn open() -> Self {
        opened(Self::new(1))
    }
}

impl Contender for Nobreak {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool) -> u32 {
        each(fails, |fails| !matches!(self.0.call(|| upstream(fails)), Err(nobreak::CircuitError::Open)))
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("failed")
    }
}

impl std::error::Error for Failed {}

/// Without metrics and hooks, as its builder starts out.
pub(crate) struct CircuitbreakerRs(circuitbreaker_rs::CircuitBreaker<circuitbreaker_rs::DefaultPolicy, Failed>);

impl CircuitbreakerRs {
    pub(crate) fn closed() -> Self {
        let builder = circuitbreaker_rs::CircuitBreaker::<circuitbreaker_rs::DefaultPolicy, Failed>::builder();
        Self(builder.failure_threshold(2.0).consecutive_failures(u64::MAX).build())
    }

    pub(crate) fn open() -> Self {
        let builder = circuitbreaker_rs::CircuitBreaker::<circuitbreaker_rs::DefaultPolicy, Failed>::builder();
        opened(Self(builder.consecutive_failures(1).cooldown(HOUR).build()))
    }
}

impl Contender for CircuitbreakerRs {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool) -> u32 {
        each(fails, |fails| !matches!(self.0.call(|| upstream(fails)), Err(circuitbreaker_rs::BreakerError::Open)))
    }
}

/// Why a call that seatbelt guards has no answer.
pub(crate) enum Failure {
    Failed,
    Rejected,
}

/// The stack of its quick start, on a clock whose readings it calls fast.
pub(crate) struct Seatbelt<S>(S);

pub(crate) fn seatbelt_closed() -> impl Contender {
    seatbelt(0.5, u32::MAX)
}

pub(crate) fn seatbelt_open() -> impl Contender {
    opened(seatbelt(0.1, 10))
}

fn seatbelt(threshold: f32, calls: u32) -> Seatbelt<impl layered::Service<bool, Out = Result<(), Failure>> + 'static> {
    use layered::Stack as _;
    use seatbelt::RecoveryInfo;
    let clock = tick::Clock::new_tokio().with_fast_instant(true);
    let context = seatbelt::ResilienceContext::new(clock);
    let layer = seatbelt::breaker::Breaker::layer("bench", &context)
        .recovery_with(|result: &Result<(), Failure>, _| match result {
            Ok(()) => RecoveryInfo::never(),
            Err(_) => RecoveryInfo::retry(),
        })
        .rejected_input_error(|_, _| Failure::Rejected)
        .failure_threshold(threshold)
        .min_throughput(calls)
        .break_duration(HOUR);
    let upstream = layered::Execute::new(|fails| ready(upstream(fails).map_err(|_| Failure::Failed)));
    Seatbelt((layer, upstream).into_service())
}

impl<S: layered::Service<bool, Out = Result<(), Failure>> + 'static> Contender for Seatbelt<S> {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool) -> u32 {
        each_async(fails, async |fails| !matches!(self.0.execute(fails).await, Err(Failure::Rejected)))
    }
}

type Upstream = tower::util::ServiceFn<fn(bool) -> Ready<Result<(), Failed>>>;
type TowerService =
    tower_resilience_circuitbreaker::CircuitBreaker<Upstream, tower_resilience_circuitbreaker::DefaultClassifier>;

/// A tower service: each thread has its clone, and waits until it is ready, for which it needs a runtime's timer: it sleeps
/// for a millisecond where another thread is asking. Failures in a row, which it counts without a window.
pub(crate) struct TowerResilience(TowerService);

impl TowerResilience {
    fn new(failures: usize) -> Self {
        let builder = tower_resilience_circuitbreaker::CircuitBreakerLayer::builder();
        let layer = builder.consecutive_failures(failures).wait_duration_in_open(HOUR).build().expect("a valid layer");
        let upstream: fn(bool) -> _ = |fails| ready(upstream(fails));
        Self(layer.layer_fn(tower::service_fn(upstream)))
    }

    pub(crate) fn closed() -> Self {
        Self::new(usize::MAX)
    }

    pub(crate) fn open() -> Self {
        opened(Self::new(1))
    }
}

impl Contender for TowerResilience {
    type Handle = (TowerService, EnterGuard<'static>);

    fn handle(&self) -> Self::Handle {
        (self.0.clone(), runtime().enter())
    }

    fn calls(&self, (service, _): &mut Self::Handle, fails: impl Fn(u32) -> bool) -> u32 {
        use tower::{Service as _, ServiceExt as _};
        each_async(fails, async |fails| {
            let Ok(service) = service.ready().await else { return false };
            !matches!(service.call(fails).await, Err(error) if error.is_circuit_open())
        })
    }
}
