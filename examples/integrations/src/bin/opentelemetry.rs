//! The breakers in OpenTelemetry, by way of the `metrics` facade: `cargo run -p fusebox-examples --bin opentelemetry`.

use std::sync::Arc;
use std::time::Duration;

use fusebox::metrics::Publisher;
use fusebox::{CircuitBreakerRegistry, Config};
use metrics_exporter_opentelemetry::Recorder;
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};

type Error = Box<dyn std::error::Error>;

/// A recorder whose metrics go where the exporter sends them. `opentelemetry-otlp` has those for a collector.
fn recorder(exporter: InMemoryMetricExporter) -> (SdkMeterProvider, Recorder) {
    let reader = PeriodicReader::builder(exporter).with_interval(Duration::from_secs(10)).build();
    Recorder::builder("my-service").with_meter_provider(|provider| provider.with_reader(reader)).build()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let exporter = InMemoryMetricExporter::default();
    let (provider, recorder) = recorder(exporter.clone());
    metrics::set_global_recorder(recorder)?;
    let config = Config::builder().failure_threshold(1).totals(true).build()?;
    let breakers = Arc::new(CircuitBreakerRegistry::with_config(["search"], config));
    // A change of state is there at once, counts are there after a second.
    let publisher = tokio::spawn(Publisher::new(Arc::clone(&breakers)).publish_every(Duration::from_secs(1))?);

    breakers.get("search").expect("it was inserted").try_acquire()?.failure("5xx", 503);
    tokio::task::yield_now().await;
    provider.force_flush()?;
    println!("{:#?}", exporter.get_finished_metrics()?);
    publisher.abort();
    Ok(())
}

#[test]
fn what_is_published_reaches_the_exporter() -> Result<(), Error> {
    let exporter = InMemoryMetricExporter::default();
    let (provider, recorder) = recorder(exporter.clone());
    let breakers = Arc::new(CircuitBreakerRegistry::new(["search"]));
    breakers.get("search").unwrap().isolate("by hand");
    metrics::with_local_recorder(&recorder, || Publisher::new(breakers).publish());
    provider.force_flush()?;
    let seen = format!("{:?}", exporter.get_finished_metrics()?);
    assert!(seen.contains("fusebox_circuitbreaker_state") && seen.contains("isolated"), "{seen}");
    Ok(())
}
