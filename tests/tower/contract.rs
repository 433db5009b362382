//! What tower promises of a service, and a breaker of a call.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use fusebox::tower::CircuitBreakerLayer;
use fusebox::tower::error::rejection;
use fusebox::{CircuitBreaker, CircuitState, RejectionReason, is_rejection};
use tokio::time::{advance, timeout};
use tower::{Layer, Service, ServiceExt};

use crate::support::{SECOND, Upstream, breaker, poll_once, trip, until};

#[tokio::test(start_paused = true)]
async fn an_answer_passes_and_an_error_opens_the_circuit() {
    let (breaker, upstream) = (breaker(), Upstream::new());
    let mut service = CircuitBreakerLayer::new(Arc::clone(&breaker)).layer(upstream.clone());
    assert_eq!(service.ready().await.unwrap().call(7).await.unwrap(), 7);
    upstream.fail(true);
    let error = service.ready().await.unwrap().call(7).await.unwrap_err();
    assert_eq!(error.downcast_ref::<std::io::Error>().unwrap().to_string(), "failing");
    assert_eq!(breaker.state(), CircuitState::Open);

    let error = service.ready().await.unwrap().call(7).await.unwrap_err();
    let told = rejection(&*error).unwrap();
    assert_eq!(
        (told.provider(), told.reason(), told.retry_after()),
        ("upstream", RejectionReason::Open, Some(30 * SECOND))
    );
    assert_eq!(error.to_string(), "upstream: the circuit is open (last error: error: failing), retry after 30s");
    assert_eq!(upstream.calls(), 2, "a rejected call never reaches the service");
}

#[tokio::test(start_paused = true)]
async fn all_clones_and_all_services_of_a_layer_share_its_breaker() {
    let upstream = Upstream::new();
    let layer = CircuitBreakerLayer::new(breaker());
    let (first, second) = (layer.layer(upstream.clone()), layer.clone().layer(upstream.clone()));
    upstream.fail(true);
    assert!(!is_rejection(&*first.clone().oneshot(1).await.unwrap_err()));
    for service in [first, second] {
        assert!(is_rejection(&*service.oneshot(1).await.unwrap_err()));
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_the_way_the_service_that_was_ready_is_called() {
    // `Upstream` asserts it. First by one that is closed,
    let (breaker, upstream) = (breaker(), Upstream::new());
    let mut service = CircuitBreakerLayer::new(Arc::clone(&breaker)).layer(upstream.clone());
    service.ready().await.unwrap().call(1).await.unwrap();
    // one that is ready while its circuit closes again,
    trip(&breaker);
    let readied = service.ready().await.unwrap();
    breaker.reset();
    readied.call(1).await.unwrap();
    // one whose circuit opens after it was ready,
    service.ready().await.unwrap();
    trip(&breaker);
    service.call(1).await.unwrap_err();
    // which is ready still,
    breaker.reset();
    service.call(1).await.unwrap();
    // a probe,
    trip(&breaker);
    advance(30 * SECOND).await;
    service.ready().await.unwrap().call(1).await.unwrap();
    // and a call that waits for one.
    trip(&breaker);
    advance(30 * SECOND).await;
    let probe = breaker.try_acquire().unwrap();
    let mut waiting = pin!(service.ready().await.unwrap().call(1));
    assert!(poll_once(waiting.as_mut()).is_none());
    probe.success();
    waiting.await.unwrap();
    assert_eq!(upstream.calls(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_will_be_rejected_does_not_wait_for_the_inner_service() {
    let (breaker, upstream) = (breaker(), Upstream::new());
    let service = CircuitBreakerLayer::new(Arc::clone(&breaker)).layer(upstream.clone());
    upstream.fill(true);
    let mut waiting = pin!(service.clone().oneshot(1));
    assert!(poll_once(waiting.as_mut()).is_none());
    trip(&breaker);
    assert!(is_rejection(&*poll_once(pin!(service.oneshot(1))).unwrap().unwrap_err()));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_the_inner_service_is_woken_when_the_circuit_opens() {
    let (breaker, upstream) = (breaker(), Upstream::new());
    let service = CircuitBreakerLayer::new(Arc::clone(&breaker)).layer(upstream.clone());
    upstream.fill(true);
    let callers: Vec<_> = (0..3).map(|n| tokio::spawn(service.clone().oneshot(n))).collect();
    tokio::task::yield_now().await;
    trip(&breaker);
    for caller in callers {
        assert!(is_rejection(&*timeout(SECOND, caller).await.unwrap().unwrap().unwrap_err()));
    }
    // One that waited through an opening and a closing gets its turn.
    breaker.reset();
    let mut service = service;
    let mut ready = pin!(service.ready());
    assert!(poll_once(ready.as_mut()).is_none());
    upstream.fill(false);
    assert_eq!(ready.await.unwrap().call(7).await.unwrap(), 7);
}

/// Not ready, and its circuit opens while it says so.
#[derive(Clone)]
struct OpensMeanwhile(Arc<CircuitBreaker>);

impl Service<u32> for OpensMeanwhile {
    type Response = u32;
    type Error = std::io::Error;
    type Future = std::future::Pending<std::io::Result<u32>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.0.isolate("test");
        Poll::Pending
    }

    fn call(&mut self, _: u32) -> Self::Future {
        std::future::pending()
    }
}

#[tokio::test(start_paused = true)]
async fn a_circuit_that_opens_while_the_inner_service_is_asked_leaves_nobody_waiting() {
    let breaker = breaker();
    let service = CircuitBreakerLayer::new(Arc::clone(&breaker)).layer(OpensMeanwhile(breaker));
    assert!(is_rejection(&*poll_once(pin!(service.oneshot(1))).expect("nobody would wake it").unwrap_err()));
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_is_over_makes_no_service_ready_that_is_not() {
    let (breaker, upstream) = (breaker(), Upstream::new());
    let mut service = CircuitBreakerLayer::new(Arc::clone(&breaker)).layer(upstream.clone());
    upstream.fill(true);
    let mut ready = pin!(service.ready());
    assert!(poll_once(ready.as_mut()).is_none());
    trip(&breaker);
    breaker.reset();
    assert!(poll_once(ready.as_mut()).is_none());
    trip(&breaker);
    assert!(poll_once(ready.as_mut()).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_was_waited_for_waits_for_the_inner_service_then() {
    let (breaker, upstream) = (breaker(), Upstream::new());
    let service = CircuitBreakerLayer::new(Arc::clone(&breaker)).layer(upstream.clone());
    trip(&breaker);
    advance(30 * SECOND).await;
    let probe = breaker.try_acquire().unwrap();
    upstream.fill(true);
    let call = tokio::spawn(service.oneshot(7));
    until(|| breaker.snapshot().waiters == 1).await;
    probe.success();
    until(|| breaker.snapshot().waiters == 0).await;
    assert_eq!(upstream.calls(), 0);
    upstream.fill(false);
    assert_eq!(timeout(SECOND, call).await.unwrap().unwrap().unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn an_inner_service_that_will_not_be_ready_any_more_has_failed() {
    let (breaker, upstream) = (breaker(), Upstream::new());
    let mut service = CircuitBreakerLayer::new(Arc::clone(&breaker)).layer(upstream.clone());
    upstream.break_it();
    assert_eq!(service.ready().await.err().unwrap().to_string(), "broken");
    assert_eq!(breaker.state(), CircuitState::Open);
    assert!(is_rejection(&*service.ready().await.unwrap().call(1).await.unwrap_err()));
    // The probe finds out the same.
    advance(30 * SECOND).await;
    assert_eq!(service.ready().await.err().unwrap().to_string(), "broken");
    assert_eq!((breaker.state(), breaker.snapshot().failed_probe_count), (CircuitState::Open, 1));
}

#[tokio::test(start_paused = true)]
async fn of_a_thousand_calls_on_recovery_one_is_the_probe_and_the_others_get_its_result() {
    for heals in [true, false] {
        let (breaker, upstream) = (breaker(), Upstream::new());
        let service = CircuitBreakerLayer::new(Arc::clone(&breaker)).layer(upstream.clone());
        trip(&breaker);
        advance(30 * SECOND).await;
        upstream.hang(true);
        let calls: Vec<_> = (0..1000).map(|n| tokio::spawn(service.clone().oneshot(n))).collect();
        until(|| breaker.snapshot().waiters == 999).await;
        assert_eq!(upstream.calls(), 1);
        upstream.fail(!heals);
        upstream.hang(false);
        let mut passed = 0;
        for call in calls {
            passed += usize::from(call.await.unwrap().is_ok());
        }
        assert_eq!((passed, upstream.calls()), if heals { (1000, 1000) } else { (0, 1) });
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_caller_leaves_does_not_wedge_the_circuit() {
    for cancel in [false, true] {
        let (breaker, upstream) = (breaker(), Upstream::new());
        let layer = CircuitBreakerLayer::new(Arc::clone(&breaker));
        let layer = if cancel { layer.cancel_on_drop() } else { layer };
        let mut service = layer.layer(upstream.clone());
        trip(&breaker);
        advance(30 * SECOND).await;
        upstream.hang(true);
        let mut probe = Box::pin(service.ready().await.unwrap().call(1));
        assert!(poll_once(probe.as_mut()).is_none());
        assert!(breaker.snapshot().probe_in_flight);
        drop(probe);
        let state = if cancel { CircuitState::HalfOpen } else { CircuitState::Open };
        assert_eq!((breaker.state(), breaker.snapshot().probe_in_flight), (state, false));
        upstream.hang(false);
        advance(30 * SECOND).await;
        service.ready().await.unwrap().call(1).await.unwrap();
        assert_eq!(breaker.state(), CircuitState::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_never_polled_is_no_probe() {
    let (breaker, upstream) = (breaker(), Upstream::new());
    let mut service = CircuitBreakerLayer::new(Arc::clone(&breaker)).layer(upstream.clone());
    trip(&breaker);
    advance(30 * SECOND).await;
    drop(service.ready().await.unwrap().call(1));
    assert_eq!((breaker.state(), breaker.snapshot().failed_probe_count), (CircuitState::Open, 0));
    assert_eq!(upstream.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_success_from_before_the_opening_does_not_close_the_circuit() {
    let (breaker, upstream) = (breaker(), Upstream::new());
    let mut service = CircuitBreakerLayer::new(Arc::clone(&breaker)).layer(upstream.clone());
    upstream.hang(true);
    let slow = tokio::spawn(service.ready().await.unwrap().call(7));
    until(|| upstream.calls() == 1).await;
    trip(&breaker);
    advance(30 * SECOND).await;
    let probe = breaker.try_acquire().unwrap();
    upstream.hang(false);
    assert_eq!(slow.await.unwrap().unwrap(), 7);
    assert!(breaker.snapshot().probe_in_flight);
    probe.failure("5xx", "still down");
    assert_eq!(breaker.state(), CircuitState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_further_inside_that_rejects_is_no_failure() {
    let (outer, inner, upstream) = (breaker(), breaker(), Upstream::new());
    trip(&inner);
    let layers = (CircuitBreakerLayer::new(Arc::clone(&outer)), CircuitBreakerLayer::new(inner));
    let service = layers.0.layer(layers.1.layer(upstream));
    for _ in 0..3 {
        assert!(is_rejection(&*service.clone().oneshot(1).await.unwrap_err()));
    }
    assert_eq!((outer.state(), outer.failure_count()), (CircuitState::Closed, 0));
}

#[test]
fn the_service_gives_back_what_it_was_made_of() {
    let mut service = CircuitBreakerLayer::new(breaker()).layer(Upstream::new());
    service.get_mut().fill(true);
    assert_eq!(service.get_ref().calls(), 0);
    assert_eq!(service.into_inner().calls(), 0);
}
