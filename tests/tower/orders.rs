//! Which order of layers means what: each cell of the table in `fusebox::tower`.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fusebox::tower::CircuitBreakerLayer;
use fusebox::{Abandoned, CircuitBreaker, CircuitState, Outcome, is_rejection};
use tokio::time::{advance, timeout};
use tower::retry::Policy;
use tower::timeout::error::Elapsed;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

use crate::support::{SECOND, Upstream, breaker, trip, until};

#[tokio::test(start_paused = true)]
async fn a_timeout_inside_is_a_failure() {
    let (breaker, upstream) = (breaker(), Upstream::new());
    upstream.hang(true);
    let layer = CircuitBreakerLayer::new(Arc::clone(&breaker));
    let service = ServiceBuilder::new().layer(layer).timeout(SECOND).service(upstream);
    assert!(service.oneshot(1).await.unwrap_err().is::<Elapsed>());
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_outside_counts_if_abandoned_calls_do() {
    for (abandoned, state) in [(Abandoned::Ignored, CircuitState::Closed), (Abandoned::Failure, CircuitState::Open)] {
        let settings = CircuitBreaker::builder("upstream").failure_threshold(1).abandoned(abandoned);
        let breaker = Arc::new(settings.build().unwrap());
        let upstream = Upstream::new();
        upstream.hang(true);
        let layer = CircuitBreakerLayer::new(Arc::clone(&breaker));
        let service = ServiceBuilder::new().timeout(SECOND).layer(layer).service(upstream);
        assert!(service.oneshot(1).await.unwrap_err().is::<Elapsed>());
        assert_eq!(breaker.state(), state);
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_outside_of_a_probe_counts_and_covers_the_wait_for_it() {
    let (breaker, upstream) = (breaker(), Upstream::new());
    trip(&breaker);
    advance(30 * SECOND).await;
    upstream.hang(true);
    let layer = CircuitBreakerLayer::new(Arc::clone(&breaker));
    let service = ServiceBuilder::new().timeout(SECOND).layer(layer).service(upstream);
    let probe = tokio::spawn(service.clone().oneshot(1));
    until(|| breaker.snapshot().probe_in_flight).await;
    let waiter = tokio::spawn(service.oneshot(2));
    assert!(probe.await.unwrap().unwrap_err().is::<Elapsed>());
    assert_eq!(breaker.snapshot().failed_probe_count, 1);
    let error = waiter.await.unwrap().unwrap_err();
    assert!(is_rejection(&*error) || error.is::<Elapsed>());
}

/// Tries again what has failed, and not what was rejected.
#[derive(Clone, Default)]
struct Retry {
    spent: Arc<AtomicUsize>,
}

impl Policy<u32, u32, BoxError> for Retry {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut u32, result: &mut Result<u32, BoxError>) -> Option<Ready<()>> {
        let error = result.as_ref().err()?;
        if is_rejection(&**error) || self.spent.load(Ordering::Relaxed) == 5 {
            return None;
        }
        self.spent.fetch_add(1, Ordering::Relaxed);
        Some(ready(()))
    }

    fn clone_request(&mut self, request: &u32) -> Option<u32> {
        Some(*request)
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_outside_asks_for_each_try_and_spends_nothing_on_rejections() {
    let (upstream, policy) = (Upstream::new(), Retry::default());
    let breaker = Arc::new(CircuitBreaker::builder("upstream").failure_threshold(3).build().unwrap());
    upstream.fail(true);
    let layer = CircuitBreakerLayer::new(Arc::clone(&breaker));
    let service = ServiceBuilder::new().retry(policy.clone()).layer(layer).service(upstream.clone());
    assert!(is_rejection(&*service.clone().oneshot(1).await.unwrap_err()));
    assert!(is_rejection(&*service.oneshot(1).await.unwrap_err()));
    assert_eq!((policy.spent.load(Ordering::Relaxed), upstream.calls()), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn of_a_retry_inside_the_last_try_counts() {
    let (breaker, upstream, policy) = (breaker(), Upstream::new(), Retry::default());
    upstream.fail(true);
    let layer = CircuitBreakerLayer::new(Arc::clone(&breaker));
    let boxed = upstream.clone().map_err(BoxError::from);
    let service = ServiceBuilder::new().layer(layer).retry(policy.clone()).service(boxed);
    assert!(!is_rejection(&*service.oneshot(1).await.unwrap_err()));
    assert_eq!((upstream.calls(), breaker.trip_count()), (6, 1));
}

#[tokio::test(start_paused = true)]
async fn a_buffer_outside_queues_calls_which_are_rejected_when_they_leave_it() {
    let (breaker, upstream) = (breaker(), Upstream::new());
    let layer = CircuitBreakerLayer::new(Arc::clone(&breaker));
    let service = ServiceBuilder::new().buffer(8).layer(layer).service(upstream.clone());
    assert_eq!(service.clone().oneshot(7).await.unwrap(), 7);
    upstream.fill(true);
    let waiting = tokio::spawn(service.clone().oneshot(8));
    tokio::task::yield_now().await;
    trip(&breaker);
    for call in [waiting, tokio::spawn(service.oneshot(9))] {
        assert!(is_rejection(&*timeout(SECOND, call).await.unwrap().unwrap().unwrap_err()));
    }
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_buffer_inside_holds_up_no_call_that_will_be_rejected() {
    let (breaker, upstream) = (breaker(), Upstream::new());
    upstream.fill(true);
    let layer = CircuitBreakerLayer::new(Arc::clone(&breaker));
    let service = ServiceBuilder::new().layer(layer).buffer(1).service(upstream.clone());
    let calls: Vec<_> = (0..4).map(|n| tokio::spawn(service.clone().oneshot(n))).collect();
    tokio::task::yield_now().await;
    trip(&breaker);
    assert!(is_rejection(&*timeout(SECOND, service.oneshot(9)).await.unwrap().unwrap_err()));
    upstream.fill(false);
    let mut sent = 0;
    for call in calls {
        sent += usize::from(timeout(SECOND, call).await.unwrap().unwrap().is_ok());
    }
    assert_eq!(sent, upstream.calls());
}

#[tokio::test(start_paused = true)]
async fn a_limit_inside_gives_no_place_to_calls_that_wait_or_are_rejected() {
    let (breaker, upstream) = (breaker(), Upstream::new());
    let layer = CircuitBreakerLayer::new(Arc::clone(&breaker));
    let service = ServiceBuilder::new().layer(layer).concurrency_limit(1).service(upstream.clone());
    trip(&breaker);
    advance(30 * SECOND).await;
    let probe = breaker.try_acquire().unwrap();
    let waiters: Vec<_> = (0..3).map(|n| tokio::spawn(service.clone().oneshot(n))).collect();
    until(|| breaker.snapshot().waiters == 3).await;
    probe.success();
    for waiter in waiters {
        timeout(SECOND, waiter).await.unwrap().unwrap().unwrap();
    }
    // A call whose circuit opens after it was ready gives its place back with its service.
    let mut readied = service.clone();
    readied.ready().await.unwrap();
    trip(&breaker);
    assert!(is_rejection(&*readied.call(1).await.unwrap_err()));
    drop(readied);
    breaker.reset();
    timeout(SECOND, service.oneshot(1)).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_limit_outside_counts_calls_that_wait_for_a_probe() {
    let (breaker, upstream) = (breaker(), Upstream::new());
    let layer = CircuitBreakerLayer::new(Arc::clone(&breaker));
    let service = ServiceBuilder::new().concurrency_limit(2).layer(layer).service(upstream);
    trip(&breaker);
    advance(30 * SECOND).await;
    let probe = breaker.try_acquire().unwrap();
    let waiters: Vec<_> = (0..3).map(|n| tokio::spawn(service.clone().oneshot(n))).collect();
    until(|| breaker.snapshot().waiters == 2).await;
    probe.success();
    for waiter in waiters {
        timeout(SECOND, waiter).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_shedder_outside_sheds_while_the_inner_service_is_not_ready() {
    let (breaker, upstream) = (breaker(), Upstream::new());
    let layer = CircuitBreakerLayer::new(Arc::clone(&breaker));
    let service = ServiceBuilder::new().load_shed().layer(layer).service(upstream.clone());
    upstream.fill(true);
    let error = service.clone().oneshot(1).await.unwrap_err();
    assert!(error.is::<tower::load_shed::error::Overloaded>());
    assert_eq!((breaker.state(), breaker.failure_count()), (CircuitState::Closed, 0));
    trip(&breaker);
    assert!(is_rejection(&*service.oneshot(1).await.unwrap_err()));
}

#[tokio::test(start_paused = true)]
async fn a_shedder_inside_fails_unless_it_is_said_to_be_neutral() {
    let upstream = Upstream::new();
    upstream.fill(true);
    let counting = breaker();
    let layer = CircuitBreakerLayer::new(Arc::clone(&counting));
    let service = ServiceBuilder::new().layer(layer).load_shed().service(upstream.clone());
    assert!(!is_rejection(&*service.oneshot(1).await.unwrap_err()));
    assert_eq!(counting.state(), CircuitState::Open);

    let forgiving = breaker();
    let layer =
        CircuitBreakerLayer::new(Arc::clone(&forgiving)).classify(|result: &Result<u32, BoxError>| match result {
            Err(error) if error.is::<tower::load_shed::error::Overloaded>() => Outcome::Neutral,
            Err(error) => Outcome::of_error(&**error),
            Ok(_) => Outcome::Success,
        });
    let service = ServiceBuilder::new().layer(layer).load_shed().service(upstream);
    assert!(!is_rejection(&*service.oneshot(1).await.unwrap_err()));
    assert_eq!((forgiving.state(), forgiving.failure_count()), (CircuitState::Closed, 0));
}
