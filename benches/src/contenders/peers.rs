//! Other breakers, each used as its own documentation says is fastest, with a window of the default size where it has
//! one.

use std::future::{Ready, ready};

use super::{Async, AsyncCall, CALLS, Contender, Failed, HOUR, Plain, Start, block_on, upstream};

/// A ring of the last 100 outcomes, the default. `call` with a closure is all there is to use.
pub fn recloser(start: Start) -> impl Contender {
    let breaker = recloser::Recloser::custom().error_rate(start.threshold(2.0, 0.5)).open_wait(HOUR).build();
    start.of(Plain(move |fails| !matches!(breaker.call(|| upstream(fails)), Err(recloser::Error::Rejected))))
}

/// Failures in a row: its success-rate policy reads a clock for each call.
pub fn failsafe(start: Start) -> impl Contender {
    use failsafe::{CircuitBreaker as _, backoff, failure_policy};
    let policy = failure_policy::consecutive_failures(start.threshold(u32::MAX, 1), backoff::constant(HOUR));
    let breaker = failsafe::Config::new().failure_policy(policy).build();
    start.of(Plain(move |fails| !matches!(breaker.call(|| upstream(fails)), Err(failsafe::Error::Rejected))))
}

/// Its synchronous `call`, without the `tokio` feature.
pub fn nobreak(start: Start) -> impl Contender {
    let builder = nobreak::builder().with_failure_threshold(start.threshold(usize::MAX, 1));
    let breaker = builder.with_open_duration(HOUR).build();
    start.of(Plain(move |fails| !matches!(breaker.call(|| upstream(fails)), Err(nobreak::CircuitError::Open))))
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("failed")
    }
}

impl std::error::Error for Failed {}

/// Without metrics and hooks, as its builder starts out.
pub fn circuitbreaker_rs(start: Start) -> impl Contender {
    use circuitbreaker_rs::{BreakerError, CircuitBreaker, DefaultPolicy};
    let builder = CircuitBreaker::<DefaultPolicy, Failed>::builder()
        .failure_threshold(2.0)
        .consecutive_failures(start.threshold(u64::MAX, 1))
        .cooldown(HOUR);
    let breaker = builder.build();
    start.of(Plain(move |fails| !matches!(breaker.call(|| upstream(fails)), Err(BreakerError::Open))))
}

/// `call` takes the lock to look, and again to record; it has no way with less.
pub fn breaker(start: Start) -> impl Contender {
    let config = breaker::CircuitBreakerConfig::builder()
        .consecutive_failures(start.threshold(u32::MAX, 1))
        .failure_rate_threshold(0.0)
        .wait_duration(HOUR);
    start.of(Async(Breaker(breaker::CircuitBreaker::new(config.build()))))
}

struct Breaker(breaker::CircuitBreaker);

impl AsyncCall for Breaker {
    async fn call(&self, fails: bool) -> bool {
        use breaker::CircuitBreakerError::{CircuitOpen, Rejected};
        !matches!(self.0.call(|| ready(upstream(fails))).await, Err(CircuitOpen | Rejected))
    }
}

/// Why a call that seatbelt guards has no answer.
enum Failure {
    Failed,
    Rejected,
}

/// The stack of its quick start, on a clock whose readings it calls fast.
pub fn seatbelt(start: Start) -> impl Contender {
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
        .min_throughput(start.threshold(u32::MAX, 10))
        .break_duration(HOUR);
    let upstream = layered::Execute::new(|fails| ready(upstream(fails).map_err(|_| Failure::Failed)));
    start.of(Async(Seatbelt((layer, upstream).into_service())))
}

struct Seatbelt<S>(S);

impl<S: layered::Service<bool, Out = Result<(), Failure>> + 'static> AsyncCall for Seatbelt<S> {
    async fn call(&self, fails: bool) -> bool {
        !matches!(self.0.execute(fails).await, Err(Failure::Rejected))
    }
}

/// A tower service: each thread has its clone, and waits until it is ready, for which it needs a runtime's timer: it
/// sleeps for a millisecond where another thread is asking. Failures in a row, which it counts without a window.
pub fn tower_resilience(start: Start) -> impl Contender {
    let builder = tower_resilience_circuitbreaker::CircuitBreakerLayer::builder();
    let builder = builder.consecutive_failures(start.threshold(usize::MAX, 1)).wait_duration_in_open(HOUR);
    let upstream: fn(bool) -> _ = |fails| ready(upstream(fails));
    start.of(TowerResilience(builder.build().expect("a valid layer").layer_fn(tower::service_fn(upstream))))
}

type Upstream = tower::util::ServiceFn<fn(bool) -> Ready<Result<(), Failed>>>;
type TowerService =
    tower_resilience_circuitbreaker::CircuitBreaker<Upstream, tower_resilience_circuitbreaker::DefaultClassifier>;

struct TowerResilience(TowerService);

impl Contender for TowerResilience {
    type Handle = TowerService;

    fn handle(&self) -> TowerService {
        self.0.clone()
    }

    fn calls(&self, service: &mut TowerService, fails: impl Fn(u32) -> bool + Send) -> u32 {
        block_on(self.calls_in_task(service, fails))
    }

    async fn calls_in_task(&self, service: &mut TowerService, fails: impl Fn(u32) -> bool + Send) -> u32 {
        use tower::{Service as _, ServiceExt as _};
        let mut passed = 0;
        for n in 0..CALLS {
            let Ok(service) = service.ready().await else { continue };
            let answer = service.call(fails(n)).await;
            passed += u32::from(!matches!(answer, Err(error) if error.is_circuit_open()));
        }
        passed
    }
}
