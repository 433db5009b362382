//! Which model a request's body asks for, and the same body with the provider's own name for it. A body is never written
//! anew: the name is cut out and replaced, everything else passes byte for byte.
//!
//! What a provider could read otherwise is refused, so that nobody gets another model than the one that was routed: Go reads
//! `Model` as `model`, and forms are read leniently everywhere. That holds for as much of a body as is kept; what comes after
//! `replay_body_bytes` is passed on unread.
//!
//! Not here: who serves a model: `state`.

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

/// How a body is written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Multipart { boundary: String },
}

impl Format {
    /// JSON unless it says that it is a form: SDKs send JSON, and curl says nothing of use.
    ///
    /// # Errors
    ///
    /// If it is a form and its boundary cannot be used.
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
            Err("The content type does not have one boundary of 1 to 70 characters.")
        }
    }
}

/// A model's name, and where in the body it stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) model: String,
    /// Whether the answer is to be a stream, as far as is known.
    pub(crate) is_stream: bool,
    place: Range<usize>,
}

/// Finds the model in a body, or in the beginning of one. `None`: there is none (yet).
///
/// # Errors
///
/// What is wrong with the body.
pub(crate) fn find(format: &Format, body: &[u8], complete: bool) -> Result<Option<Named>, String> {
    match format {
        Format::Json => find_in_json(body, complete),
        Format::Multipart { boundary } => find_in_form(body, boundary),
    }
}

/// The body with another name for the model. Of a long one nothing is copied.
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
            // `raw` is a part of `body`.
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

/// Keeps the model as soon as it comes by: of a body that is cut off later it is then known all the same. Two models are an
/// error: who reads the other one would serve another model than was routed.
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
                // Whatever else stands there is for the provider to refuse.
                Key::Stream => self.0.is_stream = map.next_value::<&RawValue>()?.get() == "true",
            }
        }
        Ok(())
    }
}

/// A key, compared where it stands.
enum Key {
    Model,
    /// What a reader that ignores case takes for it.
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

/// RFC 7578, as far as a field `model` goes.
fn find_in_form(body: &[u8], boundary: &str) -> Result<Option<Named>, String> {
    let delimiter = format!("\r\n--{boundary}");
    // Others end lines so, and would see parts that are not looked at here.
    let lenient = &delimiter.as_bytes()[1..];
    if memmem::find_iter(body, lenient).any(|at| at == 0 || body[at - 1] != b'\r') {
        return Err("The lines of the form do not end with CR LF.".to_owned());
    }
    let finder = memmem::Finder::new(&delimiter);
    let mut found = None;
    // The first delimiter may do without its line break.
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
            return Err("The form has a part without an empty line.".to_owned());
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

/// `head`: of a part, from behind its delimiter, the empty line included.
///
/// # Errors
///
/// If others could read it otherwise.
fn is_model(head: &[u8]) -> Result<bool, String> {
    const UNCLEAR: &str = "The form has a part whose 'content-disposition' is not clear.";
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
            // As a quoted text or as a token, and in no other way (RFC 6266 section 4.1).
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

/// The pieces of a header's value between semicolons, those in quotes left out.
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
    fn the_model_of_a_json_body_is_found_wherever_it_stands() {
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
    fn a_stream_is_asked_for_by_true_alone_and_whatever_else_stands_there_is_not_refused() {
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
    fn the_model_of_a_json_body_that_is_cut_off_is_found_if_it_came_before() {
        assert_eq!(json(r#"{"a":"b","model":"m","input":"xxxx"#, false), Ok(Some("m".into())));
        for body in [r#"{"a":"b","model":"m"#, r#"{"a":"b","#, "{", r#"{"input":"{\"model\":\"m\"}"#] {
            assert_eq!(json(body, false), Ok(None), "{body}");
        }
    }

    #[test]
    fn a_renamed_body_differs_in_nothing_but_the_name() {
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
    fn the_model_of_a_form_is_the_field_of_that_name_and_not_what_a_file_says() {
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
    fn a_form_without_a_model_or_with_its_end_still_to_come_names_none() {
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
    fn a_model_that_a_provider_could_read_otherwise_is_refused() {
        for body in [
            r#"{"model":"m","Model":"other"}"#,
            r#"{"MODEL":"other","model":"m"}"#,
            r#"{"Model":"other"}"#,
            r#"{"model":"m","\u004dodel":"other"}"#,
        ] {
            assert!(json(body, true).is_err() && json(&body[..body.len() - 1], false).is_err(), "{body}");
        }
        assert!(
            json(r#"{"model":"m","model":"other","input":"..."#, false).is_err(),
            "though its end is still to come"
        );
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
