//! Which headers are passed on, in each direction.
//!
//! Not here: headers that the gateway adds: `observe::facts`, and `upstream` for those of one provider.

use http::header::{self, HeaderMap, HeaderName};

/// RFC 9110 section 7.6.1; and `proxy-connection`, which is no hop-by-hop header but is treated as one everywhere.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Headers that identify an account. The client's account with the gateway must not reach a provider, and the gateway's
/// account with a provider must not reach a client.
fn is_credential(name: &str) -> bool {
    matches!(
        name,
        "authorization"
            | "x-api-key"
            | "api-key"
            | "x-goog-api-key"
            | "anthropic-api-key"
            | "openai-organization"
            | "openai-project"
    )
}

/// Headers that say where a request comes from, which proxies and browsers add for the server that they talk to. A
/// provider must not learn it, and some refuse a request because of it: one that has an `origin` is taken for a
/// browser's, and one with `cf-connecting-ip` for an attempt to get around the provider's own proxy.
fn tells_the_way(name: &str) -> bool {
    const BEGINNINGS: [&str; 8] =
        ["x-forwarded-", "cf-", "sec-", "fly-", "fastly-", "x-vercel-", "x-envoy-", "access-control-"];
    matches!(
        name,
        "forwarded"
            | "via"
            | "x-real-ip"
            | "x-client-ip"
            | "x-cluster-client-ip"
            | "x-original-forwarded-for"
            | "true-client-ip"
            | "cdn-loop"
            | "x-amzn-trace-id"
            | "x-amz-cf-id"
            | "origin"
            | "referer"
            | "dnt"
            | "upgrade-insecure-requests"
    ) || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// Headers that speak for a whole site, or set something in a browser. The gateway's site is not the provider's.
fn speaks_for_a_site(name: &str) -> bool {
    name.starts_with("access-control-")
        || matches!(
            name,
            "strict-transport-security"
                | "alt-svc"
                | "nel"
                | "report-to"
                | "reporting-endpoints"
                | "expect-ct"
                | "public-key-pins"
                | "clear-site-data"
                | "content-security-policy"
                | "content-security-policy-report-only"
                | "set-cookie"
                | "set-cookie2"
                | "www-authenticate"
        )
}

/// The gateway's own headers. Neither side may speak for it.
fn is_of_the_gateway(name: &str) -> bool {
    name.starts_with("x-fusebox-")
}

/// Removes the headers that concern only one connection, those that `connection` names, and those that identify an
/// account.
fn strip(headers: &mut HeaderMap, is_one_way: fn(&str) -> bool) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    // A message has fewer headers than there are names to look for.
    let is_stripped = |name: &&HeaderName| {
        let name = name.as_str();
        is_hop_by_hop(name) || is_credential(name) || is_of_the_gateway(name) || is_one_way(name)
    };
    let stripped: Vec<HeaderName> = headers.keys().filter(is_stripped).cloned().collect();
    for name in stripped.iter().chain(&named) {
        headers.remove(name);
    }
}

pub(crate) fn to_provider(headers: &mut HeaderMap) {
    // The gateway sets host and length itself, and has the body already, so that there is no `100 Continue` to expect.
    // It reads answers, for the ends of events and for quoted keys, so they must not be compressed.
    strip(headers, |name| {
        matches!(name, "accept-encoding" | "cookie" | "host" | "content-length" | "expect") || tells_the_way(name)
    });
}

/// The gateway sets an answer's length itself. If a provider gives both a length and chunks, the rest of a body could
/// be taken for the next answer (RFC 9112 section 6.3).
pub(crate) fn to_client(headers: &mut HeaderMap) {
    strip(headers, |name| name == "content-length" || speaks_for_a_site(name));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn headers_named_by_connection_are_hop_by_hop_too() {
        let mut headers =
            map(&[("connection", "close, X-Hop"), ("x-hop", "1"), ("transfer-encoding", "chunked"), ("accept", "*/*")]);
        headers.insert(header::CONTENT_LENGTH, "7".parse().unwrap());
        to_client(&mut headers);
        assert_eq!(headers, map(&[("accept", "*/*")]));
    }

    #[test]
    fn credentials_pass_in_neither_direction() {
        let secrets = [("authorization", "Bearer s"), ("x-api-key", "s"), ("openai-organization", "o")];
        let mut up = map(&secrets);
        to_provider(&mut up);
        let mut down = map(&secrets);
        down.insert(header::SET_COOKIE, "s=1".parse().unwrap());
        to_client(&mut down);
        assert!(up.is_empty() && down.is_empty(), "{up:?} {down:?}");
    }
}
