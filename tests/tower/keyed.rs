//! A breaker for each key of the requests.

use std::borrow::Cow;
use std::sync::Arc;

use fusebox::tower::CircuitBreakerLayer;
use fusebox::tower::http::{Http, authority, host};
use fusebox::{CircuitBreakerRegistry, CircuitState, Config, is_rejection};
use http::{Request, Response};
use tower::{Layer, ServiceExt};

use crate::support::Upstream;

fn keys(cap: usize) -> Arc<CircuitBreakerRegistry> {
    let one = Config::builder().failure_threshold(1).build().unwrap();
    Arc::new(CircuitBreakerRegistry::with_config([""; 0], one).with_cap(cap))
}

fn parity(n: &u32) -> Cow<'_, str> {
    if n.is_multiple_of(2) { "even".into() } else { "odd".into() }
}

fn digits(n: &u32) -> Cow<'_, str> {
    n.to_string().into()
}

#[tokio::test(start_paused = true)]
async fn one_key_fails_and_the_others_pass() {
    let (breakers, upstream) = (keys(10), Upstream::new());
    let service = CircuitBreakerLayer::keyed(Arc::clone(&breakers), parity).layer(upstream.clone());
    upstream.fail(true);
    service.clone().oneshot(2).await.unwrap_err();
    upstream.fail(false);
    assert!(is_rejection(&*service.clone().oneshot(4).await.unwrap_err()));
    assert_eq!(service.oneshot(3).await.unwrap(), 3);
    assert_eq!(breakers.state("even"), Some(CircuitState::Open));
    assert_eq!((breakers.state("odd"), breakers.len()), (Some(CircuitState::Closed), 2));
}

#[tokio::test(start_paused = true)]
async fn a_key_for_which_there_is_no_room_passes_and_counts_for_nothing() {
    let (breakers, upstream) = (keys(2), Upstream::new());
    let service = CircuitBreakerLayer::keyed(Arc::clone(&breakers), digits).layer(upstream.clone());
    upstream.fail(true);
    for n in 0..5 {
        assert!(!is_rejection(&*service.clone().oneshot(n).await.unwrap_err()));
    }
    assert!(is_rejection(&*service.clone().oneshot(1).await.unwrap_err()));
    upstream.fail(false);
    assert_eq!(service.oneshot(4).await.unwrap(), 4);
    assert_eq!(breakers.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn strangers_keys_do_not_grow_the_registry_beyond_its_cap() {
    let (breakers, upstream) = (keys(100), Upstream::new());
    let service = CircuitBreakerLayer::keyed(Arc::clone(&breakers), digits).layer(upstream);
    for n in 0..10_000 {
        service.clone().oneshot(n).await.unwrap();
        assert!(breakers.len() <= 100);
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_is_a_key_however_it_is_written() {
    let breakers = keys(10);
    let layer = CircuitBreakerLayer::keyed(Arc::clone(&breakers), host::<()>).classify_with(Http);
    let service = layer.layer(tower::service_fn(async |request: Request<()>| {
        let status = if request.uri().path() == "/down" { 500 } else { 200 };
        Ok::<_, std::io::Error>(Response::builder().status(status).body(String::new()).unwrap())
    }));
    let uri = |uri: &str| Request::builder().uri(uri).body(()).unwrap();
    let with_header = |host: &str| Request::builder().uri("/").header("host", host).body(()).unwrap();
    assert_eq!(service.clone().oneshot(uri("http://A.Example:8080/down")).await.unwrap().status(), 500);
    for request in [uri("http://a.example/"), with_header("a.example"), with_header("A.EXAMPLE:443")] {
        assert!(is_rejection(&*service.clone().oneshot(request).await.unwrap_err()));
    }
    for request in [uri("http://b.example/"), with_header("[::1]:80"), with_header("[::1]"), uri("/")] {
        service.clone().oneshot(request).await.unwrap();
    }
    let mut names: Vec<_> = breakers.snapshots().into_iter().map(|snapshot| snapshot.name.to_string()).collect();
    names.sort();
    assert_eq!(names, ["", "[::1]", "a.example", "b.example"]);
}

#[test]
fn an_authority_has_the_port_and_no_password() {
    let uri = |uri: &str| authority(&Request::builder().uri(uri).body(()).unwrap()).into_owned();
    assert_eq!(uri("http://A.Example:8080/"), "a.example:8080");
    assert_eq!(uri("http://ada:p%40ss@a.example:8080/"), "a.example:8080");
    assert_eq!([uri("http://a.example/"), uri("http://[::1]:80/"), uri("/")], ["a.example", "[::1]:80", ""]);
    let with_header = Request::builder().uri("/").header("host", "A.EXAMPLE:443").body(()).unwrap();
    assert_eq!(authority(&with_header), "a.example:443");
}
