//! Whom a request is from, where proxies stand between the client and the gateway.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::{FORWARDED, HeaderName};

use crate::proxy::config::Network;

/// Who is connected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A longer chain of proxies is not followed.
const MAX_HOPS: usize = 32;

/// The address of the client. `peer` is who is connected. If that is a trusted proxy, it is believed whom it names, and
/// so on: the client is the last one that is no trusted proxy. What comes before it in the header may be invented.
pub(crate) fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let peer = peer.to_canonical();
    if !is_trusted(peer) {
        return peer;
    }
    let follow = |hops: Vec<Option<IpAddr>>| {
        let mut client = peer;
        for hop in hops.into_iter().take(MAX_HOPS) {
            // Nobody knows whom a hop stands for that cannot be read.
            let Some(hop) = hop else { break };
            client = hop.to_canonical();
            if !is_trusted(client) {
                break;
            }
        }
        client
    };
    let (old, new) = (hops(headers, &X_FORWARDED_FOR, address), hops(headers, &FORWARDED, forwarded_for));
    match (old, new) {
        (hops, None) | (None, hops) => hops.map_or(peer, follow),
        // A proxy that writes one of them passes the other one on as the client has invented it.
        (Some(old), Some(new)) => {
            let (old, new) = (follow(old), follow(new));
            if old == new { old } else { peer }
        }
    }
}

/// The hops that a header names, the last one first. `None` if the header is not there.
fn hops(headers: &HeaderMap, name: &HeaderName, read: fn(&str) -> Option<IpAddr>) -> Option<Vec<Option<IpAddr>>> {
    let mut values: Vec<_> = headers.get_all(name).iter().collect();
    values.reverse();
    let elements = values.iter().flat_map(|value| value.to_str().unwrap_or("?").rsplit(','));
    let hops: Vec<_> = elements.take(MAX_HOPS).map(|element| read(element.trim())).collect();
    (!hops.is_empty()).then_some(hops)
}

/// An address, perhaps with a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))
}

/// That of an element such as `for="[2001:db8::1]:4711";proto=https` (RFC 7239 section 4).
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let (_, node) = pairs.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
    address(node.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(peer: &str, headers: &[(&HeaderName, &str)]) -> String {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()];
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| ((*name).clone(), HeaderValue::from_str(value).unwrap())).collect();
        client(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let header = [(&X_FORWARDED_FOR, "192.0.2.1")];
        assert_eq!(of("203.0.113.9", &header), "203.0.113.9");
        assert_eq!(of("10.1.1.1", &header), "192.0.2.1");
        assert_eq!(of("::ffff:10.1.1.1", &header), "192.0.2.1");
        assert_eq!(of("10.1.1.1", &[]), "10.1.1.1");
    }

    #[test]
    fn the_client_is_the_last_hop_that_is_no_trusted_proxy() {
        let chain = "1.1.1.1, 192.0.2.1, 10.0.0.7";
        assert_eq!(of("10.1.1.1", &[(&X_FORWARDED_FOR, chain)]), "192.0.2.1");
        assert_eq!(of("10.1.1.1", &[(&X_FORWARDED_FOR, "10.0.0.8, 10.0.0.7")]), "10.0.0.8", "all are proxies");
        assert_eq!(of("10.1.1.1", &[(&X_FORWARDED_FOR, "192.0.2.1, nonsense")]), "10.1.1.1");
        assert_eq!(of("10.1.1.1", &[(&X_FORWARDED_FOR, "192.0.2.1, nonsense, 10.0.0.7")]), "10.0.0.7");
    }

    #[test]
    fn both_headers_and_all_forms_of_an_address_are_read() {
        for (value, client) in [
            ("for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60"),
            ("For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("for=192.0.2.43, for=198.51.100.17", "198.51.100.17"),
            ("for=_hidden", "10.1.1.1"),
            ("for=unknown", "10.1.1.1"),
            ("proto=https", "10.1.1.1"),
        ] {
            assert_eq!(of("10.1.1.1", &[(&FORWARDED, value)]), client, "{value}");
        }
        for (value, client) in
            [("192.0.2.1:5000", "192.0.2.1"), ("[2001:db8::1]:5000", "2001:db8::1"), ("[2001:db8::1]", "2001:db8::1")]
        {
            assert_eq!(of("10.1.1.1", &[(&X_FORWARDED_FOR, value)]), client, "{value}");
        }
    }

    #[test]
    fn two_headers_that_differ_are_not_believed() {
        let headers = [(&X_FORWARDED_FOR, "192.0.2.1"), (&FORWARDED, "for=192.0.2.2")];
        assert_eq!(of("10.1.1.1", &headers), "10.1.1.1");
        let headers = [(&X_FORWARDED_FOR, "192.0.2.1"), (&FORWARDED, "for=192.0.2.1")];
        assert_eq!(of("10.1.1.1", &headers), "192.0.2.1");
    }
}
