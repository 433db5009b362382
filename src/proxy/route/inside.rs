//! An error inside a 200: some providers, and most gateways in front of them, have sent the status before they know.
//!
//! Not here: which event of a stream it stands in: `meaning`.

use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use memchr::memmem;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::blame::Blame;

/// What such an error says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inside {
    /// The status that would have said the same.
    pub(crate) status: StatusCode,
    /// The provider's own word for it, for logs.
    pub(crate) code: Box<str>,
    /// As a whole answer: JSON with an `error`.
    pub(crate) body: Bytes,
}

impl Inside {
    /// Whose fault it is, as of an answer that had its status.
    pub(crate) fn blame(&self, headers: &HeaderMap) -> Blame {
        Blame::of(self.status, headers, &self.body, true)
    }

    /// An error of which nothing can be read.
    pub(crate) fn unknown() -> Self {
        let body = Bytes::from_static(b"{\"error\":{\"message\":\"The provider sent an error without a message.\"}}");
        Self { status: StatusCode::BAD_GATEWAY, code: "unknown".into(), body }
    }

    /// `error` may be a text or an object. `None` if it says nothing, as in the answers that always have the field.
    fn of(error: &RawValue, as_is: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_str(error.get()).unwrap_or(Value::Bool(true));
        let words = match &value {
            nothing if is_nothing(nothing) => return None,
            Value::String(text) => vec![text.to_ascii_lowercase().replace(' ', "_")],
            Value::Object(fields) => {
                if fields.values().all(is_nothing) {
                    return None;
                }
                // In this order: OpenAI's type of a wrong key is `invalid_request_error`.
                let words = ["code", "type", "status"].into_iter().filter_map(|name| fields.get(name));
                words.filter_map(word).collect()
            }
            _ => Vec::new(),
        };
        let status = words.iter().find_map(|word| status_of(word)).unwrap_or(StatusCode::BAD_GATEWAY);
        let is_a_code = |word: &&String| {
            word.len() <= MAX_CODE && word.bytes().all(|it| it.is_ascii_alphanumeric() || b"_-.".contains(&it))
        };
        let code = words.iter().find(is_a_code).map_or("unknown", String::as_str).into();
        Some(Self { status, code, body: Bytes::copy_from_slice(as_is) })
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Number(number) => number.as_u64() == Some(0),
        Value::Bool(true) | Value::Object(_) => false,
    }
}

/// A longer word is a message, which may quote what should not be in a log.
const MAX_CODE: usize = 64;

fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.to_ascii_lowercase()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// What the words of an error stand for, as parts of them. The first row that fits counts.
const STATUSES: [(u16, &[&str]); 10] = [
    (402, &["insufficient_quota", "billing", "balance", "credit", "payment"]),
    (429, &["rate_limit", "ratelimit", "too_many_requests", "resource_exhausted", "throttl", "quota"]),
    (401, &["api_key", "authentication", "unauthorized", "unauthenticated"]),
    (403, &["permission", "forbidden", "access_denied"]),
    (404, &["not_found", "not_exist"]),
    (503, &["overload", "unavailable", "capacity"]),
    (504, &["timeout", "timed_out", "deadline"]),
    (500, &["server_error", "internal", "api_error"]),
    (413, &["too_large"]),
    (400, &["invalid", "context_length", "content_filter", "content_policy", "bad_request", "unsupported", "too_long"]),
];

fn status_of(word: &str) -> Option<StatusCode> {
    if let Ok(number) = word.parse() {
        return StatusCode::from_u16(number).ok().filter(|status| status.is_client_error() || status.is_server_error());
    }
    // OpenAI's types of a rate limit.
    if matches!(word, "requests" | "tokens") {
        return Some(StatusCode::TOO_MANY_REQUESTS);
    }
    let (status, _) = STATUSES.iter().find(|(_, parts)| parts.iter().any(|part| word.contains(part)))?;
    StatusCode::from_u16(*status).ok()
}

/// What an answer has in it, and what may be wrong with it.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    r#type: Option<&'a RawValue>,
    #[serde(borrow)]
    object: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    choices: Option<&'a RawValue>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

/// The error that a whole JSON answer consists of. An answer that has content as well is none, unless it says itself
/// that it failed.
pub(crate) fn of_answer(text: &[u8]) -> Option<Inside> {
    if !may_be_an_error(text) {
        return None;
    }
    if text.trim_ascii_start().starts_with(b"[") {
        // Google's answer to a request for a stream.
        let [only] = serde_json::from_slice::<Vec<&RawValue>>(text).ok()?[..] else { return None };
        return only.get().starts_with('{').then(|| of_answer(only.get().as_bytes())).flatten();
    }
    let answer: Answer<'_> = serde_json::from_slice(text).ok()?;
    let is = |field: Option<&RawValue>, value: &str| field.is_some_and(|field| field.get() == value);
    let Some(error) = answer.error else {
        // The error is the answer itself.
        let is_one = is(answer.r#type, "\"error\"") || is(answer.object, "\"error\"");
        return is_one.then(|| of_itself(text)).flatten();
    };
    let has = |field: Option<&RawValue>| field.is_some_and(|field| !matches!(field.get(), "[]" | "\"\"" | "{}"));
    let choices = answer.choices.filter(|choices| !has_failed(choices));
    let has_content = [choices, answer.output, answer.data, answer.content].into_iter().any(has);
    if has_content && !is(answer.status, "\"failed\"") {
        return None;
    }
    Inside::of(error, text)
}

/// Whether all choices of a chat ended with an error.
fn has_failed(choices: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Choice<'a> {
        #[serde(borrow)]
        finish_reason: Option<&'a RawValue>,
    }
    let choices: Vec<Choice<'_>> = serde_json::from_str(choices.get()).unwrap_or_default();
    let failed = |choice: &Choice<'_>| choice.finish_reason.is_some_and(|reason| reason.get() == "\"error\"");
    !choices.is_empty() && choices.iter().all(failed)
}

/// Whether a text has a field `error`, or names something so, and not only an `"error": null`. It is cheap where there
/// is none. In a text within JSON the quotes would be escaped.
fn may_be_an_error(text: &[u8]) -> bool {
    static NAME: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("\"error\""));
    NAME.find_iter(text).any(|at| {
        let rest = text[at + NAME.needle().len()..].trim_ascii_start();
        rest.strip_prefix(b":").is_none_or(|value| !value.trim_ascii_start().starts_with(b"null"))
    })
}

/// The parts of an event that may hold an error.
#[derive(Clone, Copy)]
pub(crate) struct Event<'a> {
    /// Of the event itself, empty if it has none.
    pub(crate) name: &'a [u8],
    /// Its `type`, or its `object`.
    pub(crate) kind: &'a str,
    pub(crate) error: Option<&'a RawValue>,
    pub(crate) response: Option<&'a RawValue>,
    pub(crate) data: &'a [u8],
}

/// The error that an event of a stream is.
pub(crate) fn of_event(event: Event<'_>) -> Option<Inside> {
    let Event { name, kind, error, response, data } = event;
    if let Some(inside) = error.and_then(|error| Inside::of(error, data)) {
        return Some(inside);
    }
    if kind == "response.failed" {
        let failed = response.and_then(|response| serde_json::from_str::<Answer<'_>>(response.get()).ok());
        let inside = failed.and_then(|failed| of_part(failed.error?));
        return Some(inside.unwrap_or_else(Inside::unknown));
    }
    (name == b"error" || kind == "error").then(|| of_itself(data).unwrap_or_else(Inside::unknown))
}

/// An object that is an error, and has none.
fn of_itself(text: &[u8]) -> Option<Inside> {
    of_part(serde_json::from_slice(text).ok()?)
}

fn of_part(error: &RawValue) -> Option<Inside> {
    Inside::of(error, format!("{{\"error\":{}}}", error.get()).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_an_error_is_judged_by_its_code_as_by_a_status() {
        for (text, status, code) in [
            (r#"{"error":{"message":"m","type":"requests","code":"rate_limit_exceeded"}}"#, 429, "rate_limit_exceeded"),
            (r#"{"error":{"type":"tokens","code":null}}"#, 429, "tokens"),
            (r#"{"error":{"code":"insufficient_quota","type":"insufficient_quota"}}"#, 402, "insufficient_quota"),
            (r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#, 503, "overloaded_error"),
            (r#"{"error":{"code":"invalid_api_key","type":"invalid_request_error"}}"#, 401, "invalid_api_key"),
            (r#"{"error":{"code":"model_not_found","type":"invalid_request_error"}}"#, 404, "model_not_found"),
            (r#"{"error":{"code":null,"type":"invalid_request_error"}}"#, 400, "invalid_request_error"),
            (r#"{"error":{"code":"context_length_exceeded"}}"#, 400, "context_length_exceeded"),
            (r#"{"error":{"code":503,"message":"m"}, "choices": []}"#, 503, "503"),
            (r#"{"error":{"code":"429"}}"#, 429, "429"),
            (r#"{"error":{"status":"RESOURCE_EXHAUSTED","code":7}}"#, 429, "7"),
            (r#"{ "error" : "model 'x' not found" }"#, 404, "unknown"),
            (r#"{"error":true,"message":"m"}"#, 502, "unknown"),
            (r#"{"error":{"message":"it broke"}}"#, 502, "unknown"),
            (
                r#"{"object":"response","status":"failed","error":{"code":"server_error"},"output":[1]}"#,
                500,
                "server_error",
            ),
            (r#"{"type":"error","code":"server_error","message":"m"}"#, 500, "server_error"),
            (r#"{"object":"error","message":"m","type":"BadRequestError","code":400}"#, 400, "400"),
            (r#"[{"error":{"code":503,"status":"UNAVAILABLE"}}]"#, 503, "503"),
            (r#"{"error":{"code":502},"choices":[{"message":{"content":""},"finish_reason":"error"}]}"#, 502, "502"),
        ] {
            let inside = of_answer(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((inside.status.as_u16(), &*inside.code), (status, code), "{text}");
            let body: Value = serde_json::from_slice(&inside.body).unwrap();
            assert!(!body["error"].is_null(), "{body}");
        }
    }

    #[test]
    fn an_answer_with_content_or_with_an_error_that_says_nothing_is_none() {
        for text in [
            "",
            "not JSON with an \"error\"",
            r#"{"choices":[{"message":{"content":"the \"error\" is"}}]}"#,
            r#"{"error":null,"output":[]}"#,
            r#"{"error" : null, "x": 1}"#,
            r#"{"object":"fine_tuning.job","error":{"code":null,"message":null,"param":null}}"#,
            r#"{"object":"fine_tuning.job","error":{}}"#,
            r#"{"error":"","x":1}"#,
            r#"{"error":0,"x":1}"#,
            r#"{"error":[],"x":1}"#,
            r#"{"error":{"code":"","message":""},"x":1}"#,
            r#"[{"label":"error","score":0.9}]"#,
            r#"[{"error":{"code":1}},{"error":{"code":1}}]"#,
            r#"{"object":"list","data":[{"object":"error"}]}"#,
            r#"{"error":false}"#,
            r#"{"error":{"code":"x"},"choices":[{"message":{"content":"partly"}}]}"#,
            r#"{"data":[{"error":{"code":"x"}}]}"#,
            r#"{"choices":[{"logprobs":{"content":[{"token":"error"}]},"token":"error"}]}"#,
        ] {
            assert_eq!(of_answer(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_code_in_a_log_is_a_short_word_and_no_message() {
        let long = format!("{{\"error\":{{\"code\":\"{}\",\"type\":\"Incorrect key: sk-1\"}}}}", "x".repeat(65));
        assert_eq!(&*of_answer(long.as_bytes()).unwrap().code, "unknown");
    }
}
