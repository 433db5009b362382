//! A hyper client behind a layer, with a breaker for each host: `cargo run -p fusebox-examples --bin hyper_client
//! http://127.0.0.1:8080/`.

use std::sync::Arc;
use std::time::Duration;

use fusebox::CircuitBreakerRegistry;
use fusebox::tower::http::{Http, authority};
use fusebox::tower::{CircuitBreakerLayer, error::BoxError};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::{ServiceBuilder, ServiceExt};

/// A registry with a cap, since the hosts come with the requests.
fn hosts() -> Arc<CircuitBreakerRegistry> {
    Arc::new(CircuitBreakerRegistry::default().with_cap(1000))
}

async fn get(hosts: &Arc<CircuitBreakerRegistry>, url: &str) -> Result<(StatusCode, Bytes), BoxError> {
    // In a service of your own, make it once and clone it. The timeout is inside of the breaker, so that a call that
    // takes too long is a failure.
    let client = ServiceBuilder::new()
        .layer(CircuitBreakerLayer::keyed(Arc::clone(hosts), authority::<Empty<Bytes>>).classify_with(Http))
        .timeout(Duration::from_secs(2))
        .service(Client::builder(TokioExecutor::new()).build_http());
    let answer = client.oneshot(Request::get(url).body(Empty::new())?).await?;
    let status = answer.status();
    // The call is judged when its body has ended: one that breaks off is a failure.
    Ok((status, answer.into_body().collect().await?.to_bytes()))
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let url = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:1/".to_owned());
    let hosts = hosts();
    for number in 1..=4 {
        match get(&hosts, &url).await {
            Ok((status, body)) => println!("{number}: {status}, {} bytes", body.len()),
            Err(error) => println!("{number}: {error}"),
        }
    }
}

#[cfg(test)]
#[path = "../tests/hyper_client.rs"]
mod tests;
