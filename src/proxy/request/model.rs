//! Finding the model that a request's body asks for, and replacing its name by the provider's own. A body is never
//! serialized again: only the name is replaced, and every other byte is passed on as it is.
//!
//! A body that a provider could read differently is refused, so that no client gets another model than the one that was
//! routed: Go reads `Model` as `model`, and forms are parsed leniently everywhere. This covers the part of a body that
//! is held. What comes after `replay_body_bytes` is passed on unread.
//!
//! Not here: which providers serve a model: `state`.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderValue;
use memchr::memmem;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::proxy::body::budget::FREE;
use crate::proxy::body::parts::Parts;

/// The format of a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Multipart { boundary: String },
}

impl Format {
    /// A form if the content type says so, and JSON otherwise: SDKs send JSON, and curl sends JSON under another type.
    ///
    /// # Errors
    ///
    /// If it is a form and its boundary is invalid.
    pub(crate) fn of(content_type: Option<&HeaderValue>) -> Result<Self, &'static str> {
        let Some(text) = content_type.and_then(|value| value.to_str().ok()) else { return Ok(Self::Json) };
        let mut parts = text.split(';').map(str::trim);
        if !parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("multipart/form-data")) {
            return Ok(Self::Json);
        }
        let parts = parts.filter_map(|part| part.split_once('='));
        let mut boundaries = parts.filter(|(name, _)| name.trim_end().eq_ignore_ascii_case("boundary"));
        let boundary = boundaries.next().map(|(_, value)| value.trim_start().trim_matches('"')).unwrap_or_default();
        // RFC 2046 section 5.1.1.
        if (1..=70).contains(&boundary.len()) && boundaries.next().is_none() {
            Ok(Self::Multipart { boundary: boundary.to_owned() })
        } else {
            Err("The content type must have exactly one boundary of 1 to 70 characters.")
        }
    }
}

/// A model's name and its place in the body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) model: String,
    /// Whether the request asks for a stream, as far as the body has been read.
    pub(crate) is_stream: bool,
    place: Range<usize>,
}

impl Named {
    /// By something else than a body.
    pub(crate) fn elsewhere(model: String) -> Self {
        Self { model, is_stream: false, place: 0..0 }
    }
}

/// Finds the model in a body, or in the beginning of one that is not `complete`. `None` if it is not there.
///
/// # Errors
///
/// A message for the client, if the body is invalid or ambiguous.
pub(crate) fn find(format: &Format, body: &[u8], complete: bool) -> Result<Option<Named>, String> {
    match format {
        Format::Json => find_in_json(body, complete),
        Format::Multipart { boundary } => find_in_form(body, boundary),
    }
}

/// The body with another name for the model. A long body is not copied.
pub(crate) fn rename(format: &Format, body: &Bytes, named: &Named, to: &str) -> Parts {
    let to = match format {
        Format::Json => Cow::Owned(serde_json::to_string(to).expect("a string can be written")),
        Format::Multipart { .. } => Cow::Borrowed(to),
    };
    if body.len() as u64 > FREE {
        let (before, after) = (body.slice(..named.place.start), body.slice(named.place.end..));
        return Parts::new([before, Bytes::from(to.into_owned()), after]);
    }
    let mut renamed = BytesMut::with_capacity(body.len() - named.place.len() + to.len());
    renamed.put_slice(&body[..named.place.start]);
    renamed.put_slice(to.as_bytes());
    renamed.put_slice(&body[named.place.end..]);
    renamed.freeze().into()
}

fn find_in_json(body: &[u8], complete: bool) -> Result<Option<Named>, String> {
    let mut found = Found::default();
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = json.deserialize_map(Finder(&mut found)).and_then(|()| json.end());
    let Found { model, is_stream } = found;
    match (read, model) {
        (Err(error), _) if complete || !error.is_eof() => {
            Err(format!("The body is not a JSON object with one 'model': {error}."))
        }
        (_, None) => Ok(None),
        (_, Some(raw)) => {
            let model = serde_json::from_str(raw.get()).map_err(|_| "The 'model' is not a string.".to_owned())?;
            // `raw` is a slice of `body`.
            let start = raw.get().as_ptr().addr() - body.as_ptr().addr();
            Ok(Some(Named { model, is_stream, place: start..start + raw.get().len() }))
        }
    }
}

#[derive(Default)]
struct Found<'de> {
    model: Option<&'de RawValue>,
    is_stream: bool,
}

/// Keeps the model as soon as it is read, so that it is known even if the rest of the body is missing. Two models are
/// an error: a provider that reads the other one would serve another model than was routed.
struct Finder<'a, 'de>(&'a mut Found<'de>);

impl<'de> Visitor<'de> for Finder<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key()? {
            match key {
                Key::Other => drop(map.next_value::<IgnoredAny>()?),
                Key::Model if self.0.model.replace(map.next_value()?).is_some() => {
                    return Err(A::Error::duplicate_field("model"));
                }
                Key::Model => {}
                Key::OtherModel => {
                    return Err(A::Error::custom("a key differs from 'model' in the case of its letters only"));
                }
                // Any other value is left for the provider to refuse.
                Key::Stream => self.0.is_stream = map.next_value::<&RawValue>()?.get() == "true",
            }
        }
        Ok(())
    }
}

/// A key of the object, compared without a copy.
enum Key {
    Model,
    /// `model` in other letter case, which some parsers accept.
    OtherModel,
    Stream,
    Other,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl Visitor<'_> for Keys {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E: Error>(self, key: &str) -> Result<Key, E> {
                Ok(match key {
                    "model" => Key::Model,
                    "stream" => Key::Stream,
                    _ if key.eq_ignore_ascii_case("model") => Key::OtherModel,
                    _ => Key::Other,
                })
            }
        }
        deserializer.deserialize_identifier(Keys)
    }
}

/// Reads a form (RFC 7578) as far as its field `model`.
fn find_in_form(body: &[u8], boundary: &str) -> Result<Option<Named>, String> {
    let delimiter = format!("\r\n--{boundary}");
    // Some parsers accept LF alone as a line end, and would find parts that this one does not.
    let lenient = &delimiter.as_bytes()[1..];
    if memmem::find_iter(body, lenient).any(|at| at == 0 || body[at - 1] != b'\r') {
        return Err("The lines of a form must end with CR LF.".to_owned());
    }
    let finder = memmem::Finder::new(&delimiter);
    let mut found = None;
    // The first delimiter may come without a line break before it.
    let mut rest = if body.starts_with(&delimiter.as_bytes()[2..]) {
        delimiter.len() - 2
    } else {
        match finder.find(body) {
            Some(at) => at + delimiter.len(),
            None => return Ok(None),
        }
    };
    while let Some(length) = memmem::find(&body[rest..], b"\r\n\r\n") {
        let head = &body[rest..rest + length + 4];
        let start = rest + length + 4;
        let Some(end) = finder.find(&body[start..]).map(|length| start + length) else { break };
        if memmem::find(&body[rest..start], delimiter.as_bytes()).is_some() {
            return Err("The form has a part without an empty line after its headers.".to_owned());
        }
        if is_model(head)? {
            let model = std::str::from_utf8(&body[start..end]).map_err(|_| "The 'model' is not UTF-8.".to_owned())?;
            if found.replace(Named { model: model.to_owned(), is_stream: false, place: start..end }).is_some() {
                return Err("The form has more than one 'model'.".to_owned());
            }
        }
        rest = end + delimiter.len();
    }
    Ok(found)
}

/// Whether a part of a form is its field `model`. `head` begins after the part's delimiter and ends with the empty
/// line.
///
/// # Errors
///
/// A message for the client, if another parser could read the part differently.
fn is_model(head: &[u8]) -> Result<bool, String> {
    const UNCLEAR: &str = "The form has a part whose 'content-disposition' is ambiguous.";
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let parsed =
        memmem::find(head, b"\r\n").map(|line_end| httparse::parse_headers(&head[line_end + 2..], &mut headers));
    let Some(Ok(httparse::Status::Complete((_, headers)))) = parsed else {
        return Err("The form has a part whose headers cannot be read.".to_owned());
    };
    let mut dispositions = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("content-disposition"));
    let Some(disposition) = dispositions.next() else { return Ok(false) };
    let text = std::str::from_utf8(disposition.value).map_err(|_| UNCLEAR)?;
    if dispositions.next().is_some() {
        return Err(UNCLEAR.to_owned());
    }
    let (mut name, mut is_file) = (None, false);
    for parameter in Parameters(text).skip(1) {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let (key, value) = (key.trim(), value.trim());
        if key.eq_ignore_ascii_case("name") {
            // Only a quoted text without escapes, or a token, is accepted (RFC 6266 section 4.1).
            let plain = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
            if plain.contains(['\\', '"']) || name.replace(plain).is_some() {
                return Err(UNCLEAR.to_owned());
            }
        } else if key.to_ascii_lowercase().starts_with("name*") {
            return Err(UNCLEAR.to_owned());
        } else {
            is_file |= key.to_ascii_lowercase().starts_with("filename");
        }
    }
    match name {
        Some("model") if is_file => Err("The form's 'model' is a file.".to_owned()),
        Some("model") => Ok(true),
        Some(other) if other.trim().eq_ignore_ascii_case("model") => Err(UNCLEAR.to_owned()),
        _ => Ok(false),
    }
}

/// The parts of a header's value between semicolons. Semicolons within quotes do not count.
struct Parameters<'a>(&'a str);

impl<'a> Iterator for Parameters<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.0.is_empty() {
            return None;
        }
        let (mut is_quoted, mut is_escaped) = (false, false);
        let end = self.0.bytes().position(|byte| {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' if is_quoted => is_escaped = true,
                b'"' => is_quoted = !is_quoted,
                b';' => return !is_quoted,
                _ => {}
            }
            false
        });
        let (parameter, rest) = match end {
            Some(end) => (&self.0[..end], &self.0[end + 1..]),
            None => (self.0, ""),
        };
        self.0 = rest;
        Some(parameter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_of(mut parts: Parts) -> Bytes {
        let mut all = BytesMut::new();
        while let Some(part) = parts.take() {
            all.put(part);
        }
        all.freeze()
    }

    fn json(body: &str, complete: bool) -> Result<Option<String>, String> {
        find(&Format::Json, body.as_bytes(), complete).map(|found| found.map(|named| named.model))
    }

    #[test]
    fn the_model_of_a_json_body_is_found_at_any_place() {
        for body in [
            r#"{"model":"m"}"#,
            r#" {"a":{"model":"x"},"model" : "m" ,"b":[1,{}]} "#,
            r#"{"model":"\u006d"}"#,
            r#"{"mod\u0065l":"m"}"#,
        ] {
            assert_eq!(json(body, true), Ok(Some("m".into())), "{body}");
        }
        for body in ["{}", r#"{"a":{"model":"x"}}"#] {
            assert_eq!(json(body, true), Ok(None), "{body}");
        }
        for body in
            ["", "x", "[]", r#""model""#, r#"{"model":3}"#, r#"{"model":"m""#, r#"{"model":"m","model":"m"}"#, "{}{}"]
        {
            assert!(json(body, true).is_err(), "{body}");
        }
    }

    #[test]
    fn only_true_asks_for_a_stream_and_no_other_value_is_refused() {
        let is_stream = |value: &str| {
            let body = format!("{{\"stream\":{value},\"model\":\"m\"}}");
            find(&Format::Json, body.as_bytes(), true).unwrap().unwrap().is_stream
        };
        assert!(is_stream("true"));
        for other in ["false", "null", "1", "-1", "1.5", "\"true\"", "\"\\u0074\"", "[true]", "{\"a\":[true]}"] {
            assert!(!is_stream(other), "{other}");
        }
    }

    #[test]
    fn the_model_of_a_json_body_that_is_cut_off_is_found_if_it_comes_before_the_cut() {
        assert_eq!(json(r#"{"a":"b","model":"m","input":"xxxx"#, false), Ok(Some("m".into())));
        for body in [r#"{"a":"b","model":"m"#, r#"{"a":"b","#, "{", r#"{"input":"{\"model\":\"m\"}"#] {
            assert_eq!(json(body, false), Ok(None), "{body}");
        }
    }

    #[test]
    fn a_renamed_body_differs_only_in_the_name() {
        let body = Bytes::from_static(b"{ \"x\" : [ 1.50 ],\n \"model\":  \"m\\u006d\", \"y\":\"\xc3\xa9\" }");
        let named = find(&Format::Json, &body, true).unwrap().unwrap();
        let renamed = rename(&Format::Json, &body, &named, "a \"b\"");
        assert_eq!(all_of(renamed), "{ \"x\" : [ 1.50 ],\n \"model\":  \"a \\\"b\\\"\", \"y\":\"é\" }");
    }

    const FORM: &str = "--xx\r\nContent-Disposition: form-data; name=\"file\"; filename=\"; name=\\\"model\\\"\"\r\n\
                        Content-Type: audio/wav\r\n\r\n\r\n--x\r\nname=\"model\"\r\n--xx\r\n\
                        content-disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--xx--\r\n";

    fn form() -> Format {
        Format::of(Some(&HeaderValue::from_static("multipart/form-data; charset=utf-8; Boundary=\"xx\""))).unwrap()
    }

    #[test]
    fn the_model_of_a_form_is_the_field_of_that_name_and_not_a_text_within_a_file() {
        let body = Bytes::from_static(FORM.as_bytes());
        let named = find(&form(), &body, true).unwrap().unwrap();
        assert_eq!(named.model, "whisper");
        let renamed = rename(&form(), &body, &named, "w");
        assert_eq!(all_of(renamed), FORM.replace("whisper", "w"));
        let long = FORM.replace("wav\r\n\r\n", &format!("wav\r\n\r\n{}", "x".repeat(20_000)));
        let body = Bytes::from(long.clone());
        let named = find(&form(), &body, true).unwrap().unwrap();
        let renamed = rename(&form(), &body, &named, "w");
        assert_eq!((renamed.len(), all_of(renamed)), (long.len() as u64 - 6, long.replace("whisper", "w").into()));
    }

    #[test]
    fn a_form_without_a_model_or_without_its_end_names_none() {
        let end = FORM.find("isper").unwrap();
        assert_eq!(find(&form(), &FORM.as_bytes()[..end], false), Ok(None));
        for body in [
            "",
            "--xx--\r\n",
            "--xx\r\n\r\nmodel\r\n--xx--",
            &FORM.replace("\"model\"\r\n\r\nw", "\"purpose\"\r\n\r\nw"),
        ] {
            assert_eq!(find(&form(), body.as_bytes(), true), Ok(None), "{body}");
        }
    }

    #[test]
    fn a_form_with_two_models_is_refused() {
        let twice = FORM.replace("--xx--", "--xx\r\ncontent-disposition: form-data; name=model\r\n\r\nother\r\n--xx--");
        assert!(find(&form(), twice.as_bytes(), true).is_err());
    }

    #[test]
    fn a_model_that_a_provider_could_read_differently_is_refused() {
        for body in [
            r#"{"model":"m","Model":"other"}"#,
            r#"{"MODEL":"other","model":"m"}"#,
            r#"{"Model":"other"}"#,
            r#"{"model":"m","\u004dodel":"other"}"#,
        ] {
            assert!(json(body, true).is_err() && json(&body[..body.len() - 1], false).is_err(), "{body}");
        }
        assert!(json(r#"{"model":"m","model":"other","input":"..."#, false).is_err(), "even before its end has come");
        for disposition in [
            "form-data; name*=utf-8''model",
            "form-data; name=\"mo\\del\"",
            "form-data; name=\"Model\"",
            "form-data; name=\"x\"; name=\"model\"",
            "form-data; name=\"model\"; filename=\"x\"",
            "form-data; name=\"model\"\r\nContent-Disposition: form-data; name=\"x\"",
            "form-data; name=\"x\"\r\n Bad Header: y",
        ] {
            let body = FORM.replace("form-data; name=\"model\"\r\n\r\nw", &format!("{disposition}\r\n\r\nw"));
            assert_ne!(body, FORM);
            assert!(find(&form(), body.as_bytes(), true).is_err(), "{disposition}");
        }
        for disposition in ["form-data; NAME=\"model\"", "form-data;name = model", "form-data; x=\";\"; name=model"] {
            let body = FORM.replace("form-data; name=\"model\"\r\n\r\nw", &format!("{disposition}\r\n\r\nw"));
            assert_eq!(find(&form(), body.as_bytes(), true).unwrap().unwrap().model, "whisper", "{disposition}");
        }
        for body in [FORM.replace("\r\n", "\n"), FORM.replacen("--xx\r\n", "--xx\r\nno header\r\n--xx\r\n", 1)] {
            assert!(find(&form(), body.as_bytes(), true).is_err(), "{body}");
        }
    }

    #[test]
    fn a_form_without_a_boundary_is_refused_and_everything_else_is_json() {
        for wrong in
            ["multipart/form-data", "multipart/form-data; boundary=\"\"", "multipart/form-data; boundary=a; boundary=b"]
        {
            assert!(Format::of(Some(&HeaderValue::from_static(wrong))).is_err(), "{wrong}");
        }
        for json in ["application/json", "text/plain; boundary=x", "application/x-www-form-urlencoded"] {
            assert_eq!(Format::of(Some(&HeaderValue::from_static(json))), Ok(Format::Json));
        }
        assert_eq!(Format::of(None), Ok(Format::Json));
    }
}
