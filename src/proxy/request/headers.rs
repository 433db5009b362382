//! Which headers pass, in each direction.
//!
//! Not here: headers that the gateway adds: `record`.

use http::header::{self, HeaderMap, HeaderName};

/// RFC 9110 section 7.6.1, and `proxy-connection`, which is none but is treated so everywhere.
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

/// What identifies an account: the client's with the gateway must not reach a provider, the gateway's with a provider must
/// not reach a client.
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

/// Removes what concerns only one connection, the headers that `connection` names included, and what identifies an account.
fn strip(headers: &mut HeaderMap, is_one_way: fn(&str) -> bool) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    // There are fewer headers than names to look for.
    let is_stripped = |name: &&HeaderName| {
        let name = name.as_str();
        is_hop_by_hop(name) || is_credential(name) || is_one_way(name)
    };
    let stripped: Vec<HeaderName> = headers.keys().filter(is_stripped).cloned().collect();
    for name in stripped.iter().chain(&named) {
        headers.remove(name);
    }
}

pub(crate) fn to_provider(headers: &mut HeaderMap) {
    // The provider's own host, the body's own length; the body is at hand, so there is nothing to expect; and what comes back
    // is looked at, for the ends of events and for quoted keys, which takes answers that are not compressed.
    strip(headers, |name| matches!(name, "accept-encoding" | "cookie" | "host" | "content-length" | "expect"));
}

/// How long an answer is is for the gateway to say: a provider that says it twice, by a length and by chunks, would have the
/// rest of a body taken for the next answer (RFC 9112 section 6.3).
pub(crate) fn to_client(headers: &mut HeaderMap) {
    strip(headers, |name| matches!(name, "content-length" | "set-cookie" | "www-authenticate"));
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
