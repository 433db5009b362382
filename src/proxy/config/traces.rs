//! `[traces]`: where the spans of requests are sent.

use http::{HeaderName, Uri};

use super::Secret;
use super::section::{Section, Text};
use super::url::read_url;

/// `[traces]`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TracesConfig {
    /// The base URL of a collector that takes OTLP over HTTP: `/v1/traces` is added.
    pub endpoint: Uri,
    /// The share of requests that are traced, of those that bring no `traceparent` with them, which decides otherwise.
    pub sample: f64,
    /// The name of the service in the traces.
    pub service: String,
    /// Headers for the collector.
    pub headers: Vec<(HeaderName, Secret)>,
}

/// `is_there`: whether the file has the table.
pub(super) fn read_traces(mut section: Section<'_, '_>, is_there: bool) -> Option<TracesConfig> {
    if !is_there {
        return None;
    }
    let endpoint = read_url(&mut section, "endpoint", "headers");
    let mut sample = 1.0;
    if let Some(share) = section.share("sample") {
        sample = share;
    }
    let mut service = "fusebox".to_owned();
    if let Some(Text { shown, value }) = section.text("service", "a name") {
        if value.is_empty() {
            section.mistake("service", &shown, "a name");
        }
        service = value;
    }
    let mut headers = Vec::new();
    for (name, value, _) in section.secret_map("headers") {
        match (HeaderName::try_from(&*name), http::HeaderValue::try_from(&*value)) {
            (Ok(name), Ok(_)) if !value.is_empty() => headers.push((name, Secret::any(value))),
            _ => section.mistake(&format!("headers.{name}"), "invalid", "a header's name and its value"),
        }
    }
    if cfg!(not(feature = "otel")) {
        section.mistake("endpoint", "set", "no table [traces]: this build is without the feature \"otel\"");
    }
    section.finish();
    Some(TracesConfig { endpoint: endpoint?, sample, service, headers })
}
