//! Services that answer with `http::Response`, and bodies that are judged at their end.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::routing::get;
use axum::{Router, body::Body as AxumBody};
use fusebox::tower::CircuitBreakerLayer;
use fusebox::tower::http::JudgedBody;
use fusebox::{Cause, CircuitBreaker, CircuitState, is_rejection};
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full};
use tokio::time::advance;
use tower::{Layer, ServiceExt};

use crate::support::{SECOND, breaker, trip};

type Bytes = &'static [u8];

/// Pieces of a stream, and how it ends.
struct Pieces(Vec<io::Result<Bytes>>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready((!self.0.is_empty()).then(|| self.0.remove(0).map(Frame::data)))
    }
}

fn pieces(end: Option<io::Error>) -> Pieces {
    let whole: Vec<io::Result<Bytes>> = vec![Ok(b"one"), Ok(b"two")];
    Pieces(whole.into_iter().chain(end.map(Err)).collect())
}

/// What comes back through a breaker.
async fn asked<B>(breaker: &Arc<CircuitBreaker>, response: Response<B>) -> Response<JudgedBody<B>>
where
    B: Body<Error: std::fmt::Display> + Send + 'static,
{
    let mut response = Some(response);
    let service = tower::service_fn(move |()| std::future::ready(Ok::<_, io::Error>(response.take().unwrap())));
    let mut service = CircuitBreakerLayer::http(Arc::clone(breaker)).layer(NotCloned(service));
    service.ready().await.unwrap();
    tower::Service::call(&mut service, ()).await.unwrap()
}

/// The layer wants a service that can be cloned. Here it is not.
struct NotCloned<S>(S);

impl<S> Clone for NotCloned<S> {
    fn clone(&self) -> Self {
        unreachable!("a call on a closed circuit clones no service")
    }
}

impl<S: tower::Service<()>> tower::Service<()> for NotCloned<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: ()) -> S::Future {
        self.0.call(request)
    }
}

fn with_row(failures: u32) -> Arc<CircuitBreaker> {
    let breaker = Arc::new(CircuitBreaker::builder("upstream").failure_threshold(5).build().unwrap());
    for _ in 0..failures {
        breaker.try_acquire().unwrap().failure("5xx", "test");
    }
    breaker
}

#[tokio::test(start_paused = true)]
async fn a_status_counts_as_the_table_says() {
    for (status, row) in [(200, 0), (204, 0), (304, 0), (400, 2), (404, 2), (429, 2), (500, 3), (503, 3), (504, 3)] {
        let breaker = with_row(2);
        let response = asked(&breaker, Response::builder().status(status).body(Empty::<Bytes>::new()).unwrap()).await;
        assert_eq!((response.status().as_u16(), breaker.failure_count()), (status, row), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_says_when_to_come_back_is_left_alone_until_then() {
    for (status, retry_after, opens) in [
        (429, "7", true),
        (503, " 7 ", true),
        (500, "7", false),
        (200, "7", false),
        (429, "later", false),
        (429, "-7", false),
        (503, "0", false),
    ] {
        let breaker = with_row(0);
        let answer = Response::builder().status(status).header("retry-after", retry_after.trim());
        asked(&breaker, answer.body(Empty::<Bytes>::new()).unwrap()).await;
        assert_eq!(breaker.state() == CircuitState::Open, opens, "{status} {retry_after}");
        if opens {
            let rejection = breaker.try_acquire().unwrap_err();
            assert_eq!((rejection.cause(), rejection.retry_after()), (Some(Cause::Cooldown), Some(7 * SECOND)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_streamed_body_is_judged_at_its_end() {
    let breaker = with_row(2);
    let response = asked(&breaker, Response::new(pieces(None))).await;
    assert_eq!(breaker.failure_count(), 2, "not before its end");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "onetwo");
    assert_eq!(breaker.failure_count(), 0);

    let breaker = with_row(2);
    let response = asked(&breaker, Response::new(pieces(Some(io::Error::other("reset by peer"))))).await;
    assert_eq!(response.into_body().collect().await.unwrap_err().to_string(), "reset by peer");
    assert_eq!(breaker.failure_count(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_reads_is_a_success_and_one_that_is_half_read_is_nothing() {
    let breaker = with_row(2);
    drop(asked(&breaker, Response::new(pieces(None))).await);
    assert_eq!(breaker.failure_count(), 0);

    let breaker = with_row(2);
    let mut body = asked(&breaker, Response::new(pieces(None))).await.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    assert_eq!(breaker.failure_count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_probe_s_body_closes_the_circuit_at_its_end_and_hands_it_back_if_its_reader_leaves() {
    let breaker = breaker();
    trip(&breaker);
    advance(30 * SECOND).await;
    let service = tower::service_fn(async |()| Ok::<_, io::Error>(Response::new(pieces(None))));
    let service = CircuitBreakerLayer::http(Arc::clone(&breaker)).layer(service);
    let mut body = service.clone().oneshot(()).await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    assert!(breaker.snapshot().probe_in_flight);
    drop(body);
    assert_eq!((breaker.state(), breaker.snapshot().probe_in_flight), (CircuitState::HalfOpen, false));
    service.oneshot(()).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_body_keeps_its_length_and_its_end() {
    let breaker = breaker();
    let body = asked(&breaker, Response::new(Full::<Bytes>::new(b"four"))).await.into_body();
    assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(4), false));
    let body = asked(&breaker, Response::new(Empty::<Bytes>::new())).await.into_body();
    assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(0), true));
}

#[tokio::test(start_paused = true)]
async fn a_client_gets_an_error_and_a_server_answers() {
    let breaker = breaker();
    trip(&breaker);
    let down = tower::service_fn(async |()| Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())));
    let client = CircuitBreakerLayer::http(Arc::clone(&breaker)).layer(down);
    assert!(is_rejection(&*client.oneshot(()).await.unwrap_err()));

    let server = CircuitBreakerLayer::http(Arc::clone(&breaker)).answering().layer(down);
    advance(Duration::from_millis(500)).await;
    let response = server.clone().oneshot(()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "30");
    assert_eq!(response.headers()["content-length"], "0");
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());

    breaker.isolate("moved");
    let response = server.oneshot(()).await.unwrap();
    assert_eq!((response.status(), response.headers().get("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, None));
}

#[tokio::test(start_paused = true)]
async fn an_axum_router_shares_the_breaker_of_its_layer_over_all_routes() {
    let breaker = breaker();
    let app = Router::new()
        .route("/down", get(async || StatusCode::BAD_GATEWAY))
        .route("/up", get(async || "up"))
        .layer(CircuitBreakerLayer::http(Arc::clone(&breaker)).answering())
        .route("/outside", get(async || "outside"));
    let ask = async |path: &str| {
        let request = Request::get(path).body(AxumBody::empty()).unwrap();
        app.clone().oneshot(request).await.unwrap().status().as_u16()
    };
    assert_eq!([ask("/up").await, ask("/down").await, ask("/up").await, ask("/outside").await], [200, 502, 503, 200]);
    advance(30 * SECOND).await;
    assert_eq!([ask("/up").await, ask("/up").await], [200, 200]);
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn the_future_of_a_call_has_a_name_and_no_box() {
    fn named<S: tower::Service<()>>(_: &S) -> usize {
        size_of::<S::Future>()
    }
    let service = tower::service_fn(|()| std::future::ready(Ok::<_, io::Error>(())));
    let service = CircuitBreakerLayer::new(breaker()).layer(service);
    let mut call = pin!(service.clone().oneshot(()));
    assert!(named(&service) > 0 && crate::support::poll_once(call.as_mut()).is_some());
}
