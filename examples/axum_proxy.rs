//! A proxy that asks one upstream and then the next: `cargo run --example axum_proxy`, then `curl 127.0.0.1:8080/`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use fusebox::CircuitBreaker;
use hyper_util::client::legacy::{Client, connect::HttpConnector};

struct Proxy {
    upstreams: Vec<CircuitBreaker>,
    client: Client<HttpConnector, axum::body::Body>,
}

async fn forward(State(proxy): State<Arc<Proxy>>, request: Request) -> Response {
    let mut retry_after = Duration::from_secs(1);
    for upstream in &proxy.upstreams {
        // A client that leaves drops this future, which is no failure of the upstream.
        let permit = match upstream.try_acquire() {
            Ok(permit) => permit.cancel_on_drop(),
            Err(rejection) => {
                retry_after = rejection.retry_after().unwrap_or(retry_after);
                continue;
            }
        };
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let uri: Uri = format!("http://{}{path}", upstream.name()).parse().expect("two valid parts");
        match proxy.client.get(uri).await {
            Ok(response) if response.status().is_server_error() => permit.failure("5xx", response.status()),
            Ok(response) => {
                permit.success();
                return response.into_response();
            }
            Err(error) => permit.failure("connection", error),
        }
    }
    let seconds = retry_after.as_millis().div_ceil(1000);
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, seconds.to_string())]).into_response()
}

/// Each upstream's name is its address.
fn app(upstreams: &[String]) -> axum::Router {
    let breaker = |name: &String| CircuitBreaker::new(name.as_str(), fusebox::Config::default());
    let client = Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let proxy = Proxy { upstreams: upstreams.iter().map(breaker).collect(), client };
    axum::Router::new().fallback(forward).with_state(Arc::new(proxy))
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    axum::serve(listener, app(&["127.0.0.1:8081".to_owned(), "127.0.0.1:8082".to_owned()])).await
}

#[cfg(test)]
#[path = "tests/axum_proxy.rs"]
mod tests;
