//! An axum server that asks an upstream with reqwest behind a layer, and shows its circuit to Prometheus:
//! `cargo run -p fusebox-examples --bin axum_metrics`, then `curl 127.0.0.1:8080/search` and `/metrics`.

use std::sync::Arc;
use std::time::Duration;

use axum::{Router, http::StatusCode, routing::get};
use fusebox::{CircuitBreakerRegistry, Config, metrics::Publisher, tower::CircuitBreakerLayer};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

type Error = Box<dyn std::error::Error>;

async fn search(client: reqwest::Client, upstream: String) -> Result<String, StatusCode> {
    let answer = async { client.get(upstream).send().await?.error_for_status()?.text().await };
    answer.await.map_err(|_| StatusCode::BAD_GATEWAY)
}

fn app(upstream: String, prometheus: PrometheusHandle) -> Result<Router, Error> {
    let config = Config::builder().failure_threshold(3).open_for(Duration::from_secs(10)).totals(true).build()?;
    let breakers = Arc::new(CircuitBreakerRegistry::with_config(["search"], config));
    let layer = CircuitBreakerLayer::http(breakers.insert("search")).answering();
    let client = reqwest::Client::builder().timeout(Duration::from_secs(2)).build()?;
    let publisher = Arc::new(Publisher::new(breakers));
    let page = async move || {
        publisher.publish();
        prometheus.render()
    };
    Ok(Router::new()
        .route("/search", get(move || search(client.clone(), upstream.clone())))
        .layer(layer)
        .route("/metrics", get(page)))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let upstream = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:8081/".to_owned());
    let app = app(upstream, PrometheusBuilder::new().install_recorder()?)?;
    Ok(axum::serve(tokio::net::TcpListener::bind("127.0.0.1:8080").await?, app).await?)
}

#[tokio::test]
async fn the_circuit_opens_after_three_failures_and_the_page_says_so() -> Result<(), Error> {
    use tower::ServiceExt;
    // Nobody listens there.
    let app = app("http://127.0.0.1:1/".to_owned(), PrometheusBuilder::new().install_recorder()?)?;
    let ask = |path| app.clone().oneshot(http::Request::get(path).body(axum::body::Body::empty()).unwrap());
    for status in [502, 502, 502, 503] {
        assert_eq!(ask("/search").await?.status(), status);
    }
    let page = axum::body::to_bytes(ask("/metrics").await?.into_body(), 100_000).await?;
    let page = std::str::from_utf8(&page)?;
    for row in ["state{name=\"search\",state=\"open\"} 1", "not_permitted_calls_total{name=\"search\"} 1"] {
        assert!(page.contains(&format!("fusebox_circuitbreaker_{row}")), "{page}");
    }
    Ok(())
}
