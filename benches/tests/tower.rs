//! What users of tower ask of a breaker's layer (tower#855), done by ours and by a peer: where the peer's answer is
//! another one, that is what this asserts of it.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fusebox::tower::CircuitBreakerLayer;
use fusebox::{CircuitBreaker, CircuitState, is_rejection};
use tokio::sync::oneshot;
use tower::{Layer, Service, ServiceExt};
use tower_resilience_circuitbreaker::CircuitBreakerLayer as PeerLayer;

const OPEN_FOR: Duration = Duration::from_millis(20);

type Reply = oneshot::Receiver<Result<(), std::io::Error>>;
type Answer = Pin<Box<dyn Future<Output = Result<(), std::io::Error>> + Send>>;

/// A call ends when its sender says how.
fn upstream() -> impl Service<Reply, Response = (), Error = std::io::Error, Future = Answer> + Clone + Send + Sync {
    tower::service_fn(|reply: Reply| -> Answer { Box::pin(async { reply.await.expect("it is told") }) })
}

fn ours(open_for: Duration) -> (Arc<CircuitBreaker>, CircuitBreakerLayer) {
    let settings = CircuitBreaker::builder("upstream").failure_threshold(1).open_for(open_for);
    let breaker = Arc::new(settings.build().expect("valid settings"));
    (Arc::clone(&breaker), CircuitBreakerLayer::new(breaker))
}

fn peer(open_for: Duration) -> PeerLayer {
    let builder = PeerLayer::builder().consecutive_failures(1).permitted_calls_in_half_open(1);
    builder.wait_duration_in_open(open_for).build().expect("a valid layer")
}

fn failed() -> Reply {
    told(Err(std::io::Error::other("down")))
}

fn told(result: Result<(), std::io::Error>) -> Reply {
    let (sender, reply) = oneshot::channel();
    sender.send(result).expect("it is there");
    reply
}

/// Until the open time has passed, by asking again and again.
async fn until_open_time_is_over(is_over: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !is_over() {
        assert!(start.elapsed() < Duration::from_mins(1), "the open time does not pass");
        tokio::task::yield_now().await;
    }
}

/// As axum does it: `layer` is called for each route.
#[tokio::test]
async fn services_of_one_layer_share_its_circuit() {
    let (_, layer) = ours(Duration::from_mins(1));
    let (first, second) = (layer.layer(upstream()), layer.layer(upstream()));
    first.oneshot(failed()).await.unwrap_err();
    assert!(is_rejection(&*second.oneshot(told(Ok(()))).await.unwrap_err()));

    let layer = peer(Duration::from_mins(1));
    let (first, second) = (layer.layer(upstream()), layer.layer(upstream()));
    first.oneshot(failed()).await.unwrap_err();
    assert!(second.oneshot(told(Ok(()))).await.is_ok(), "the peer's second service has a circuit of its own");
}

/// An upstream whose calls hang, so that it is ready for no other call.
#[derive(Clone)]
struct Full;

impl Service<Reply> for Full {
    type Response = ();
    type Error = std::io::Error;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Poll::Pending
    }

    fn call(&mut self, _: Reply) -> Answer {
        Box::pin(pending())
    }
}

/// The wedge: calls wait for an upstream that hangs, and then the circuit opens.
#[tokio::test]
async fn a_call_that_waits_for_a_full_upstream_is_rejected_when_the_circuit_opens() {
    let (breaker, layer) = ours(Duration::from_mins(1));
    let waiting = tokio::spawn(layer.layer(Full).oneshot(told(Ok(()))));
    tokio::task::yield_now().await;
    breaker.try_acquire().unwrap().failure("timeout", "");
    assert!(is_rejection(&*waiting.await.unwrap().unwrap_err()));

    let builder = PeerLayer::builder().consecutive_failures(1).wait_duration_in_open(Duration::from_mins(1));
    let (layer, handle) = builder.build_with_handle().expect("a valid layer");
    let waiting = tokio::spawn(layer.layer(Full).oneshot(told(Ok(()))));
    tokio::task::yield_now().await;
    handle.force_open().await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(handle.is_open() && !waiting.is_finished(), "nobody wakes the peer's caller");
    waiting.abort();
}

/// The stale success: a call from before the opening ends while the probe is under way.
#[tokio::test]
async fn a_success_from_before_the_opening_does_not_decide_for_the_probe() {
    let (breaker, layer) = ours(OPEN_FOR);
    let mut service = layer.layer(upstream());
    let (slow, reply) = oneshot::channel();
    let stale = tokio::spawn(service.ready().await.unwrap().call(reply));
    tokio::task::yield_now().await;
    service.ready().await.unwrap().call(failed()).await.unwrap_err();
    until_open_time_is_over(|| breaker.would_allow()).await;
    let (probe, reply) = oneshot::channel();
    let probing = tokio::spawn(service.ready().await.unwrap().call(reply));
    until_open_time_is_over(|| breaker.snapshot().probe_in_flight).await;
    slow.send(Ok(())).unwrap();
    stale.await.unwrap().unwrap();
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
    probe.send(Err(std::io::Error::other("still down"))).unwrap();
    probing.await.unwrap().unwrap_err();
    assert_eq!(breaker.state(), CircuitState::Open);
}

/// The same of the peer: the stale success closes its circuit, and its probe fails into a closed one.
#[tokio::test]
async fn a_success_from_before_the_opening_closes_the_peers_circuit() {
    let builder = PeerLayer::builder().consecutive_failures(1).permitted_calls_in_half_open(1);
    let (layer, handle) = builder.wait_duration_in_open(OPEN_FOR).build_with_handle().expect("a valid layer");
    let mut service = layer.layer(upstream());
    let (slow, reply) = oneshot::channel();
    let stale = tokio::spawn(service.ready().await.unwrap().call(reply));
    tokio::task::yield_now().await;
    service.ready().await.unwrap().call(failed()).await.unwrap_err();
    assert!(handle.is_open());
    let start = std::time::Instant::now();
    let (probing, _probe) = loop {
        assert!(start.elapsed() < Duration::from_mins(1), "the open time does not pass");
        let (probe, reply) = oneshot::channel();
        let probing = tokio::spawn(layer.layer(upstream()).oneshot(reply));
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        if !probing.is_finished() {
            break (probing, probe);
        }
    };
    assert_eq!(handle.state(), tower_resilience_circuitbreaker::CircuitState::HalfOpen);
    slow.send(Ok(())).unwrap();
    stale.await.unwrap().unwrap();
    assert_eq!(handle.state(), tower_resilience_circuitbreaker::CircuitState::Closed);
    probing.abort();
}
