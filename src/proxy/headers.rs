//! Which headers pass, in each direction.

use axum::http::header::{self, HeaderMap, HeaderName};

/// RFC 9110 section 7.6.1, and `proxy-connection`, which is none but is treated so everywhere.
static HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What identifies an account: the client's with the gateway must not reach a provider, the gateway's with a provider must
/// not reach a client.
static CREDENTIALS: [HeaderName; 7] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
    HeaderName::from_static("anthropic-api-key"),
    HeaderName::from_static("openai-organization"),
    HeaderName::from_static("openai-project"),
];

/// Removes what concerns only one connection, the headers that `connection` names included.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

fn strip(headers: &mut HeaderMap, one_way: &[HeaderName]) {
    strip_hop_by_hop(headers);
    for name in CREDENTIALS.iter().chain(one_way) {
        headers.remove(name);
    }
}

pub(crate) fn to_provider(headers: &mut HeaderMap) {
    // The provider's own host, the body's own length; and the body is at hand, so there is nothing to expect.
    strip(headers, &[header::COOKIE, header::HOST, header::CONTENT_LENGTH, header::EXPECT]);
}

pub(crate) fn to_client(headers: &mut HeaderMap) {
    strip(headers, &[header::SET_COOKIE, header::WWW_AUTHENTICATE]);
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
