//! What is sent to a provider with each request: its key, headers and query.
//!
//! Not here: sending them: `upstream`.

use http::header::{AUTHORIZATION, HeaderName};
use http::{HeaderMap, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::Secret;
use super::section::Section;
use crate::proxy::protocol::Protocols;

/// The gateway sets these headers itself, or they concern only one connection.
fn is_reserved(name: &str) -> bool {
    const RESERVED: [&str; 13] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "content-type",
        "content-encoding",
        "accept-encoding",
        "expect",
    ];
    RESERVED.contains(&name) || name.starts_with("x-fusebox-")
}

/// Anthropic's.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// One key, or several.
pub(super) fn read_keys(section: &mut Section<'_, '_>) -> Vec<Secret> {
    let one = section.secret("api_key");
    let several = section.secrets("api_keys");
    if section.has("api_key") && section.has("api_keys") {
        section.mistake("api_keys", "set", "one of api_key and api_keys");
    }
    for (index, key) in several.iter().enumerate() {
        if several[..index].contains(key) {
            section.mistake(&format!("api_keys[{index}]"), "there twice", "each key once");
        }
    }
    one.into_iter().chain(several).collect()
}

/// Where the key is sent, and what stands before it.
pub(super) fn read_key_header(section: &mut Section<'_, '_>, protocols: Protocols) -> (HeaderName, String) {
    let expected = "a header's name such as \"x-api-key\"";
    let name = |text: &str| HeaderName::try_from(text).ok().filter(|name| !is_reserved(name.as_str()));
    let usual = if protocols == Protocols::Anthropic { X_API_KEY } else { AUTHORIZATION };
    let header = section.parse("key_header", expected, name).unwrap_or(usual);
    let expected = "a text such as \"Bearer \", in visible ASCII and spaces";
    let is_sendable = |text: &str| text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    let prefix = section.parse("key_prefix", expected, |text| is_sendable(text).then(|| text.to_owned()));
    for field in ["key_header", "key_prefix"] {
        if section.has(field) && !section.has("api_key") && !section.has("api_keys") {
            section.mistake(field, "set", "an api_key as well");
        }
    }
    let prefix = prefix.unwrap_or_else(|| if header == AUTHORIZATION { "Bearer ".to_owned() } else { String::new() });
    (header, prefix)
}

/// A value from the environment that is shorter is no secret, and would be struck out of ordinary text.
const MIN_SECRET: usize = 8;

/// What has to be hidden of a value: its words, since a provider may quote a token without the scheme before it.
fn hidden_in(value: &str) -> impl Iterator<Item = Secret> {
    let words = value.split_ascii_whitespace().filter(|word| word.len() >= MIN_SECRET);
    words.filter_map(|word| Secret::new(word.to_owned()))
}

pub(super) fn read_headers(
    section: &mut Section<'_, '_>,
    key: Option<&HeaderName>,
    secrets: &mut Vec<Secret>,
) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value, is_secret) in section.secret_map("headers") {
        let field = format!("headers.{name}");
        let header = match HeaderName::try_from(&name) {
            Err(_) => {
                section.mistake(&field, "not a header's name", "one such as \"x-title\"");
                continue;
            }
            Ok(header) if is_reserved(header.as_str()) => {
                section.mistake(&field, "a header that the gateway sets itself", "another one");
                continue;
            }
            Ok(header) if key == Some(&header) => {
                section.mistake(&field, "the header of the api_key", "only one of the two");
                continue;
            }
            Ok(header) => header,
        };
        let is_sendable = !value.is_empty() && value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        match HeaderValue::from_str(&value) {
            Ok(mut sent) if is_sendable && !headers.contains_key(&header) => {
                sent.set_sensitive(is_secret);
                headers.insert(header, sent);
                if is_secret {
                    secrets.extend(hidden_in(&value));
                }
            }
            _ if is_sendable => section.mistake(&field, "there twice", "each header once"),
            _ => section.mistake(&field, "empty or cannot be sent in a header", "visible ASCII and spaces"),
        }
    }
    headers
}

pub(super) fn read_query(section: &mut Section<'_, '_>, secrets: &mut Vec<Secret>) -> Option<Secret> {
    /// All but the unreserved characters (RFC 3986 section 2.3).
    const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    let mut pairs = Vec::new();
    for (name, value, is_secret) in section.secret_map("query") {
        if name.is_empty() {
            section.mistake("query", "a table with an empty name", "a name for each value");
        }
        let (name, encoded) = (utf8_percent_encode(&name, ENCODED), utf8_percent_encode(&value, ENCODED).to_string());
        pairs.push(format!("{name}={encoded}"));
        if is_secret {
            secrets.extend(hidden_in(&value).chain(hidden_in(&encoded)));
        }
    }
    let query = pairs.join("&");
    if query.len() > 2048 {
        section.mistake("query", "too long", "at most 2048 characters");
        return None;
    }
    Secret::new(query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_value_are_hidden_and_short_ones_are_not() {
        let hidden: Vec<_> = hidden_in("Bearer a-long-token another-one").map(|it| it.expose().to_owned()).collect();
        assert_eq!(hidden, ["a-long-token", "another-one"]);
    }
}
