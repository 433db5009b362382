//! `[traces]`: where the spans of requests are sent.

use http::{HeaderName, Uri};

use super::Secret;
use super::section::{Section, Text};

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
    let expected = "an http or https URL with a host, such as \"http://127.0.0.1:4318\"";
    let endpoint = section.parse("endpoint", expected, |text| {
        let url: Uri = text.parse().ok()?;
        let is_usable =
            matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|it| !it.is_empty());
        let has_credentials = url.authority().is_some_and(|authority| authority.as_str().contains('@'));
        (is_usable && !has_credentials && url.query().is_none()).then_some(url)
    });
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
    if is_there {
        section.require("endpoint", expected);
        if cfg!(not(feature = "otel")) {
            section.mistake("endpoint", "set", "no table [traces]: this build is without the feature \"otel\"");
        }
    }
    section.finish();
    is_there.then_some(TracesConfig { endpoint: endpoint?, sample, service, headers })
}
