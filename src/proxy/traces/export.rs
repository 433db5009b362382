//! Sending spans to a collector, off the threads that serve clients: OTLP over HTTP, as protobuf.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::KeyValue;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanProcessor};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tracing::warn;

use crate::proxy::config::TracesConfig;
use crate::proxy::upstream::{SetupError, Tls};

/// How many spans wait to be sent. Further ones are lost.
const WAITING: usize = 16 * 1024;
/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// It has little to answer.
const MAX_ANSWER: usize = 1 << 20;

/// Sends spans.
pub(crate) struct Traces {
    processor: BatchSpanProcessor,
    /// The share of requests that are traced of those that bring no trace with them.
    pub(super) sample: f64,
}

impl Traces {
    /// Spans are sent by a thread of the SDK's, by way of this runtime.
    ///
    /// # Errors
    ///
    /// If the exporter cannot be made.
    pub(crate) fn start(config: &TracesConfig, tls: &Tls) -> Result<Self, SetupError> {
        let https =
            HttpsConnectorBuilder::new().with_tls_config(tls.config.clone()).https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(https);
        let headers: HashMap<_, _> =
            config.headers.iter().map(|(name, value)| (name.to_string(), value.expose().to_owned())).collect();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Sender { runtime: Handle::current(), client })
            .with_endpoint(format!("{}/v1/traces", config.endpoint.to_string().trim_end_matches('/')))
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(PATIENCE)
            .with_headers(headers)
            .build()
            .map_err(|error| SetupError::new(format!("traces: {error}")))?;
        let batches = BatchConfigBuilder::default().with_max_queue_size(WAITING).build();
        let mut processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let resource = Resource::builder_empty().with_service_name(config.service.clone());
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        processor.set_resource(&resource.with_attribute(version).build());
        Ok(Self { processor, sample: config.sample })
    }

    pub(super) fn send(&self, span: SpanData) {
        self.processor.on_end(span);
    }

    /// Sends what is left.
    pub(crate) async fn end(self: Arc<Self>) {
        let ended = tokio::task::spawn_blocking(move || self.processor.shutdown_with_timeout(PATIENCE / 2)).await;
        if let Ok(Err(error)) = ended {
            warn!(%error, "the last traces could not be sent");
        }
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").field("sample", &self.sample).finish_non_exhaustive()
    }
}

/// The SDK's thread has no runtime of its own.
#[derive(Debug)]
struct Sender {
    runtime: Handle,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let answer = async move {
            let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(head, body))
        };
        self.runtime.spawn(async { timeout(PATIENCE, answer).await? }).await?
    }
}
