//! The handshake of a WebSocket session (RFC 6455 section 4): what the client sends and gets, and what the provider
//! gets instead.
//!
//! Not here: the session itself: `edge::session`.

use std::ops::Range;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::proxy::answer::{self, Code};

/// For a request that cannot become a session.
pub(crate) const NOT_HTTP1: &str = "A WebSocket session begins with a GET over HTTP/1.1.";

/// What a page's script sends its key in, since it can set no header: an item of `sec-websocket-protocol`.
pub(super) const KEY_PROTOCOL: &str = "openai-insecure-api-key.";
/// The other items that name an account.
const ACCOUNT_PROTOCOLS: [&str; 3] = [KEY_PROTOCOL, "openai-organization.", "openai-project."];

/// All but the unreserved characters (RFC 3986 section 2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// The client's part of a handshake, apart from the request's head.
#[derive(Debug)]
pub(crate) struct Handshake {
    /// The subprotocols that the client offers, without its keys.
    protocols: Option<HeaderValue>,
    /// The answer to the client's `sec-websocket-key`.
    accept: HeaderValue,
    /// Where the model's name stands in the query.
    model: Option<Range<usize>>,
}

/// Whether a request asks for a WebSocket session.
#[inline]
pub(crate) fn is_asked_for<B>(request: &Request<B>) -> bool {
    let protocol = request.headers().get(header::UPGRADE);
    protocol.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The items of a header that is a list.
fn items(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|item| !item.is_empty())
}

/// The keys that a page has put among its protocols.
pub(super) fn keys(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    items(headers, header::SEC_WEBSOCKET_PROTOCOL).filter_map(|item| item.strip_prefix(KEY_PROTOCOL))
}

impl Handshake {
    /// Reads a request for a session, and the model that its query names. An error is the answer.
    pub(super) fn read(head: &request::Parts) -> Result<(Self, Option<String>), Box<Response<Bytes>>> {
        let invalid = |message: &str| Err(Box::new(invalid_session(message)));
        if head.version != Version::HTTP_11 || head.method != Method::GET {
            return invalid(NOT_HTTP1);
        }
        if !items(&head.headers, header::CONNECTION).any(|item| item.eq_ignore_ascii_case("upgrade")) {
            return invalid("The header 'connection' does not ask for an upgrade.");
        }
        if head.headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return invalid("The only supported 'sec-websocket-version' is 13.");
        }
        let mut keys = head.headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
        let (Some(key), None) = (keys.next(), keys.next()) else {
            return invalid("A WebSocket session begins with one 'sec-websocket-key'.");
        };
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).expect("base64 is visible ASCII");
        let is_an_account = |item: &&str| ACCOUNT_PROTOCOLS.iter().any(|start| item.starts_with(start));
        let protocols: Vec<_> =
            items(&head.headers, header::SEC_WEBSOCKET_PROTOCOL).filter(|item| !is_an_account(item)).collect();
        let protocols = (!protocols.is_empty()).then(|| HeaderValue::from_str(&protocols.join(", ")));
        let protocols = protocols.transpose().expect("parts of a header's value make one");
        let Ok(place) = model_in(head.uri.query().unwrap_or_default()) else {
            return invalid("The query names more than one 'model'.");
        };
        let named = place.clone().map(|place| {
            let query = head.uri.query().unwrap_or_default();
            percent_decode_str(&query[place]).decode_utf8_lossy().into_owned()
        });
        Ok((Self { protocols, accept, model: place }, named))
    }

    /// The request that a provider gets, which has its own name for the model, and the key that its answer must fit.
    pub(crate) fn to_provider(&self, head: &request::Parts, model: Option<&str>) -> (Request<()>, String) {
        let mut request = Request::new(());
        *request.headers_mut() = head.headers.clone();
        *request.uri_mut() = head.uri.clone();
        if let (Some(place), Some(model)) = (&self.model, model) {
            let query = head.uri.query().unwrap_or_default();
            let model = utf8_percent_encode(model, ENCODED);
            let path = format!("{}?{}{model}{}", head.uri.path(), &query[..place.start], &query[place.end..]);
            let path: PathAndQuery = path.parse().expect("an encoded name in a valid query");
            *request.uri_mut() = Uri::from(path);
        }
        let key = generate_key();
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, WEBSOCKET);
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key).expect("base64 is visible ASCII"));
        if let Some(protocols) = &self.protocols {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocols.clone());
        }
        (request, key)
    }

    /// The headers of an answer before a provider is asked. A client that has offered subprotocols would give up
    /// without one, so it gets the first.
    pub(crate) fn accept(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        self.to_client(&mut headers);
        let first = self.protocols.as_ref().and_then(|offered| offered.to_str().ok()?.split(',').next());
        if let Some(first) = first.and_then(|first| HeaderValue::from_str(first).ok()) {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, first);
        }
        headers
    }

    /// Turns the headers of a provider's good answer into those that the client gets.
    pub(crate) fn to_client(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, WEBSOCKET);
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, self.accept.clone());
        headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
    }
}

/// The request for a session is none, or not complete.
pub(crate) fn invalid_session(message: &str) -> Response<Bytes> {
    answer::invalid(StatusCode::BAD_REQUEST, Code::InvalidSession, None, message)
}

/// Whether a provider's answer begins the session that it was asked for with `key`.
pub(crate) fn is_accepted(headers: &HeaderMap, key: &str) -> bool {
    let accept = headers.get(header::SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
    accept == Some(derive_accept_key(key.as_bytes()).as_bytes())
        // None was offered, and what an extension has changed could not be read.
        && !headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS)
}

/// Where the value of `model` stands in a query. An error if there are two.
fn model_in(query: &str) -> Result<Option<Range<usize>>, ()> {
    let mut found = None;
    let mut at = 0;
    for pair in query.split('&') {
        if let Some((name, _)) = pair.split_once('=')
            && percent_decode_str(name).decode_utf8_lossy() == "model"
            && found.replace(at + name.len() + 1..at + pair.len()).is_some()
        {
            return Err(());
        }
        at += pair.len() + 1;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(query: &str, protocols: &'static str) -> request::Parts {
        let request = Request::get(format!("/v1/realtime{query}"))
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "WebSocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", protocols);
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_model_is_found_in_the_query_and_replaced_there() {
        for (query, named, there) in [
            ("?model=gpt-realtime", Some("gpt-realtime"), "?model=our-name"),
            ("?a=1&model=a%2Fb&b=2", Some("a/b"), "?a=1&model=our-name&b=2"),
            ("?intent=transcription", None, "?intent=transcription"),
            ("", None, ""),
            ("?model", None, "?model"),
            ("?xmodel=1", None, "?xmodel=1"),
        ] {
            let head = head(query, "realtime");
            let (handshake, found) = Handshake::read(&head).unwrap();
            assert_eq!(found.as_deref(), named, "{query}");
            let (request, _) = handshake.to_provider(&head, Some("our-name"));
            assert_eq!(request.uri().to_string(), format!("/v1/realtime{there}"));
        }
        assert!(Handshake::read(&head("?model=a&mod%65l=b", "x")).is_err());
    }

    #[test]
    fn the_keys_of_a_page_are_found_and_not_passed_on() {
        let head = head("", "realtime, openai-insecure-api-key.token, openai-project.p, openai-beta.realtime-v1");
        assert_eq!(keys(&head.headers).collect::<Vec<_>>(), ["token"]);
        let (handshake, _) = Handshake::read(&head).unwrap();
        let (request, _) = handshake.to_provider(&head, None);
        assert_eq!(request.headers()["sec-websocket-protocol"], "realtime, openai-beta.realtime-v1");
    }

    /// The example of RFC 6455 section 1.3.
    #[test]
    fn each_side_gets_the_answer_to_its_own_key() {
        let head = head("", "x");
        let (handshake, _) = Handshake::read(&head).unwrap();
        let mut headers = HeaderMap::new();
        handshake.to_client(&mut headers);
        assert_eq!(headers["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(is_accepted(&headers, "dGhlIHNhbXBsZSBub25jZQ=="));
        assert!(!is_accepted(&headers, "another"));
        let (request, key) = handshake.to_provider(&head, None);
        assert_eq!(request.headers()["sec-websocket-key"], key);
    }
}
