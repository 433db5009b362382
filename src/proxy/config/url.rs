//! A base URL, of a provider or a collector of traces: which are valid, and which are probably not intended.
//!
//! Not here: what is put after it: `request::path`.

use std::net::IpAddr;

use http::Uri;

use super::section::{Section, Text};

/// `secret`: where the key is that must not be in it.
pub(super) fn read_url(section: &mut Section<'_, '_>, field: &'static str, secret: &str) -> Option<Uri> {
    let expected = "an http or https URL with a host";
    let text = section.text(field, expected);
    section.require(field, expected);
    let Text { shown, value } = text?;
    // It may hold a password, so it is not shown, whatever else is wrong with it.
    if value.contains('@') {
        section.mistake(field, "a URL with credentials", &format!("one without; the key belongs into {secret}"));
        return None;
    }
    if value.contains('?') {
        section.mistake(field, "a URL with a query", "a base URL");
        return None;
    }
    let uri: Option<Uri> = value.parse().ok();
    let uri = uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
    match &uri {
        None => section.mistake(field, &shown, expected),
        // The crate `http` accepts any number as a port. A connector would ignore it and send the key to port 80 or
        // 443.
        Some(uri) if uri.authority().is_some_and(|it| has_no_port(it.as_str())) => {
            section.mistake(field, &shown, "a URL with a port from 1 to 65535, or without one");
        }
        // Together with a client's path it must not exceed the longest URI.
        Some(_) if value.len() > 2048 => section.mistake(field, "too long", "at most 2048 characters"),
        Some(_) => {}
    }
    uri
}

/// Endpoints, which clients name in their paths: a base URL that ends in one is probably none.
const ENDPOINTS: [&str; 8] = [
    "/chat/completions",
    "/completions",
    "/responses",
    "/embeddings",
    "/messages",
    "/models",
    "/audio/transcriptions",
    "/images/generations",
];

/// Warns of a base URL that is probably none.
pub(super) fn warn_of_path(section: &mut Section<'_, '_>, uri: &Uri, has_query: bool) {
    let path = uri.path().trim_end_matches('/');
    let is_version = |part: &str| part.starts_with('v') && part[1..].starts_with(|c: char| c.is_ascii_digit());
    if let Some(endpoint) = ENDPOINTS.iter().find(|endpoint| path.ends_with(*endpoint)) {
        let base = path.strip_suffix(endpoint).unwrap_or_default();
        let message = format!(
            "ends in {endpoint}: requests for /v1/models would go to {path}/models; the base is {base:?} most likely"
        );
        section.warn("url", message);
    } else if !has_query && !path.split('/').any(is_version) {
        let message = format!("has no version: requests for /v1/models go to {path}/models; most providers have /v1");
        section.warn("url", message);
    }
}

/// Whether an authority has an invalid port.
fn has_no_port(authority: &str) -> bool {
    let port = authority.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.ends_with(']'));
    port.is_some_and(|port| !matches!(port.parse::<u16>(), Ok(1..)) || !port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether a host is in a private network, which plain http does not leave.
pub(super) fn is_private(host: &str) -> bool {
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
        // A name without a dot is a container's, or belongs to the local domain.
        Err(_) => {
            !host.contains('.')
                || [".local", ".internal", ".localhost", ".lan", ".home.arpa"].iter().any(|end| host.ends_with(end))
        }
    }
}
