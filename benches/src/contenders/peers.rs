//! Other breakers, each used as its own documentation says is fastest, and set so that it never opens by itself: a window of
//! the default size, and a threshold that it cannot reach.

use std::future::{Ready, ready};
use std::time::Duration;

use super::{Async, AsyncContender, Contender, Failed, each, upstream};

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
pub struct Recloser(recloser::Recloser);

impl Recloser {
    pub fn closed() -> Self {
        Self(recloser::Recloser::custom().error_rate(2.0).open_wait(HOUR).build())
    }

    pub fn open() -> Self {
        opened(Self(recloser::Recloser::custom().error_rate(0.5).open_wait(HOUR).build()))
    }
}

impl Contender for Recloser {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool + Send) -> u32 {
        each(fails, |fails| !matches!(self.0.call(|| upstream(fails)), Err(recloser::Error::Rejected)))
    }
}

type Consecutive = failsafe::failure_policy::ConsecutiveFailures<std::iter::Repeat<Duration>>;

/// Failures in a row: its success-rate policy reads a clock for each call.
pub struct Failsafe(failsafe::StateMachine<Consecutive, ()>);

impl Failsafe {
    fn new(failures: u32) -> Self {
        let policy = failsafe::failure_policy::consecutive_failures(failures, failsafe::backoff::constant(HOUR));
        Self(failsafe::Config::new().failure_policy(policy).build())
    }

    pub fn closed() -> Self {
        Self::new(u32::MAX)
    }

    pub fn open() -> Self {
        opened(Self::new(1))
    }
}

impl Contender for Failsafe {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool + Send) -> u32 {
        use failsafe::CircuitBreaker as _;
        each(fails, |fails| !matches!(self.0.call(|| upstream(fails)), Err(failsafe::Error::Rejected)))
    }
}

/// `call` takes the lock to look, and again to record; it has no way with less.
pub struct Breaker(breaker::CircuitBreaker);

impl Breaker {
    pub fn closed() -> Async<Self> {
        let config =
            breaker::CircuitBreakerConfig::builder().consecutive_failures(u32::MAX).failure_rate_threshold(0.0);
        Async(Self(breaker::CircuitBreaker::new(config.build())))
    }

    pub fn open() -> Async<Self> {
        let config = breaker::CircuitBreakerConfig::builder().consecutive_failures(1).wait_duration(HOUR);
        opened(Async(Self(breaker::CircuitBreaker::new(config.build()))))
    }
}

impl AsyncContender for Breaker {
    type Handle = ();

    fn handle(&self) {}

    async fn call(&self, (): &mut (), fails: bool) -> bool {
        use breaker::CircuitBreakerError::{CircuitOpen, Rejected};
        !matches!(self.0.call(|| ready(upstream(fails))).await, Err(CircuitOpen | Rejected))
    }
}

/// Its synchronous `call`, without the `tokio` feature.
pub struct Nobreak(nobreak::CircuitBreaker);

impl Nobreak {
    fn new(failures: usize) -> Self {
        Self(nobreak::builder().with_failure_threshold(failures).with_open_duration(HOUR).build())
    }

    pub fn closed() -> Self {
        Self::new(usize::MAX)
    }

    pub fn open() -> Self {
        opened(Self::new(1))
    }
}

impl Contender for Nobreak {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool + Send) -> u32 {
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
pub struct CircuitbreakerRs(circuitbreaker_rs::CircuitBreaker<circuitbreaker_rs::DefaultPolicy, Failed>);

impl CircuitbreakerRs {
    pub fn closed() -> Self {
        let builder = circuitbreaker_rs::CircuitBreaker::<circuitbreaker_rs::DefaultPolicy, Failed>::builder();
        Self(builder.failure_threshold(2.0).consecutive_failures(u64::MAX).build())
    }

    pub fn open() -> Self {
        let builder = circuitbreaker_rs::CircuitBreaker::<circuitbreaker_rs::DefaultPolicy, Failed>::builder();
        opened(Self(builder.consecutive_failures(1).cooldown(HOUR).build()))
    }
}

impl Contender for CircuitbreakerRs {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool + Send) -> u32 {
        each(fails, |fails| !matches!(self.0.call(|| upstream(fails)), Err(circuitbreaker_rs::BreakerError::Open)))
    }
}

/// Why a call that seatbelt guards has no answer.
pub enum Failure {
    Failed,
    Rejected,
}

/// The stack of its quick start, on a clock whose readings it calls fast.
pub struct Seatbelt<S>(S);

pub fn seatbelt_closed() -> impl Contender {
    Async(seatbelt(0.5, u32::MAX))
}

pub fn seatbelt_open() -> impl Contender {
    opened(Async(seatbelt(0.1, 10)))
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

impl<S: layered::Service<bool, Out = Result<(), Failure>> + 'static> AsyncContender for Seatbelt<S> {
    type Handle = ();

    fn handle(&self) {}

    async fn call(&self, (): &mut (), fails: bool) -> bool {
        !matches!(self.0.execute(fails).await, Err(Failure::Rejected))
    }
}

type Upstream = tower::util::ServiceFn<fn(bool) -> Ready<Result<(), Failed>>>;
type TowerService =
    tower_resilience_circuitbreaker::CircuitBreaker<Upstream, tower_resilience_circuitbreaker::DefaultClassifier>;

/// A tower service: each thread has its clone, and waits until it is ready, for which it needs a runtime's timer: it sleeps
/// for a millisecond where another thread is asking. Failures in a row, which it counts without a window.
pub struct TowerResilience(TowerService);

impl TowerResilience {
    fn new(failures: usize) -> Self {
        let builder = tower_resilience_circuitbreaker::CircuitBreakerLayer::builder();
        let layer = builder.consecutive_failures(failures).wait_duration_in_open(HOUR).build().expect("a valid layer");
        let upstream: fn(bool) -> _ = |fails| ready(upstream(fails));
        Self(layer.layer_fn(tower::service_fn(upstream)))
    }

    pub fn closed() -> Async<Self> {
        Async(Self::new(usize::MAX))
    }

    pub fn open() -> Async<Self> {
        opened(Async(Self::new(1)))
    }
}

impl AsyncContender for TowerResilience {
    type Handle = TowerService;

    fn handle(&self) -> Self::Handle {
        self.0.clone()
    }

    async fn call(&self, service: &mut Self::Handle, fails: bool) -> bool {
        use tower::{Service as _, ServiceExt as _};
        let Ok(service) = service.ready().await else { return false };
        !matches!(service.call(fails).await, Err(error) if error.is_circuit_open())
    }
}
