//! A tonic client behind a layer, which judges by the status of gRPC: `cargo run -p fusebox-examples --bin
//! tonic_client http://127.0.0.1:50051`.

use std::sync::Arc;

use fusebox::tower::{CircuitBreaker, CircuitBreakerLayer, One, classify::ByFn};
use fusebox::{ConfigError, Outcome};
use tonic::transport::{Channel, Endpoint, Error};
use tonic::{Code, Status, body::Body};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::Layer;

type Answer = Result<http::Response<Body>, Error>;
type Guarded = CircuitBreaker<Channel, ByFn<fn(&Answer) -> Outcome>, One>;

/// A call that fails at once has its status in the headers. Other codes are the caller's fault, or are no fault.
fn judge(answer: &Answer) -> Outcome {
    let headers = match answer {
        Ok(response) => response.headers(),
        Err(error) => return Outcome::failure("connection", error),
    };
    match Status::from_header_map(headers) {
        Some(status) if matches!(status.code(), Code::Unavailable | Code::Internal | Code::DeadlineExceeded) => {
            Outcome::failure(format!("{:?}", status.code()), status.message())
        }
        Some(status) if status.code() != Code::Ok => Outcome::Neutral,
        Some(_) | None => Outcome::Success,
    }
}

/// Every client that is made of a clone of it shares the breaker.
fn guarded(server: &Endpoint) -> Result<Guarded, ConfigError> {
    let breaker = Arc::new(fusebox::CircuitBreaker::builder(server.uri().to_string()).build()?);
    let layer = CircuitBreakerLayer::new(breaker).classify(judge as fn(&Answer) -> Outcome);
    Ok(layer.layer(server.connect_lazy()))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:1".to_owned());
    let mut client = HealthClient::new(guarded(&Endpoint::from_shared(server)?)?);
    for number in 1..=4 {
        match client.check(HealthCheckRequest::default()).await {
            Ok(answer) => println!("{number}: {:?}", answer.into_inner().status()),
            Err(status) => println!("{number}: {status}"),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "../tests/tonic_client.rs"]
mod tests;
