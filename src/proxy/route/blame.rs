//! What an error says about who is to blame: its status, its headers, and the words of its body. Providers say the same
//! in different ways, and the same status in different cases.
//!
//! Not here: an error inside a 200, which is read there and judged here: `inside`; what follows: `attempts`.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::proxy::later;
use crate::proxy::outcome::Outcome;

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blame {
    pub(crate) outcome: Outcome,
    /// How long the provider asks to wait.
    pub(crate) later: Option<Duration>,
    /// Whether it says that something was not found.
    pub(crate) is_not_found: bool,
}

impl Blame {
    /// Of an answer with this status, or of one that should have had it. `body` is empty where it could not be read.
    /// `has_model` is whether the request names a model.
    pub(crate) fn of(status: StatusCode, headers: &HeaderMap, body: &[u8], has_model: bool) -> Self {
        let said = Said::of(body);
        let by_status = Outcome::of(status);
        let outcome = match by_status {
            Outcome::Ok | Outcome::Redirected | Outcome::Protocol => by_status,
            _ if said.is_about_content() && !status.is_server_error() => Outcome::ClientError,
            // Whatever the status: 400 with Anthropic, 429 with OpenAI.
            _ if said.is_about_credit() => Outcome::NoCredit,
            _ if status.is_server_error() => by_status,
            // Google's status for it is 400.
            _ if said.is_about_the_key() => Outcome::KeyRefused,
            // The key may be good for everything else: this path needs another right.
            Outcome::KeyRefused if said.is_about_a_right() => Outcome::NotOffered,
            Outcome::KeyRefused | Outcome::ClientError | Outcome::NotOffered
                if has_model && said.is_about_the_model(status) =>
            {
                Outcome::UnknownModel
            }
            Outcome::ClientError if said.is_about_length() => Outcome::ContextLength,
            // It is about the path: any client could take the key out by asking for files that it has no right to.
            Outcome::KeyRefused if !has_model && status == StatusCode::FORBIDDEN => Outcome::NotOffered,
            _ => by_status,
        };
        let now = now();
        let later = match outcome {
            Outcome::RateLimited => later::retry_after(headers, body, now),
            Outcome::ServerError if matches!(status.as_u16(), 503 | 529) => later::said(headers, body, now),
            _ => None,
        };
        let outcome = if outcome == Outcome::ServerError && later.is_some() { Outcome::Later } else { outcome };
        let is_not_found = status == StatusCode::NOT_FOUND
            || status.is_client_error() && said.words_have(&["not_found", "notfound", "not_exist"]);
        Self { outcome, later, is_not_found }
    }
}

#[expect(clippy::disallowed_methods, reason = "a provider tells a time by the wall clock")]
pub(crate) fn now() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

/// A longer message is looked at up to here: it may quote what the client has sent.
const MAX_MESSAGE: usize = 1000;

/// The words of an error, in small letters.
#[derive(Default)]
struct Said {
    /// Its code, its type and the like.
    words: Vec<String>,
    /// For people.
    message: String,
}

impl Said {
    fn of(body: &[u8]) -> Self {
        let body = body.trim_ascii();
        if !body.starts_with(b"{") && !body.starts_with(b"[") {
            return Self::default();
        }
        let Ok(mut value) = serde_json::from_slice::<Value>(body) else { return Self::default() };
        // Google's answer to a request for a stream is an array.
        if let Value::Array(values) = &mut value {
            value = values.pop().unwrap_or_default();
        }
        let mut said = Self::default();
        said.read(&value);
        match value.get("error") {
            Some(Value::String(text)) => said.set_message(text),
            Some(error) => said.read(error),
            None => {}
        }
        said
    }

    fn read(&mut self, value: &Value) {
        for name in ["code", "type", "status", "reason"] {
            if let Some(Value::String(word)) = value.get(name) {
                self.words.push(word.chars().take(100).collect::<String>().to_ascii_lowercase());
            }
        }
        for detail in value.get("details").and_then(Value::as_array).into_iter().flatten() {
            if let Some(Value::String(reason)) = detail.get("reason") {
                self.words.push(reason.to_ascii_lowercase());
            }
        }
        // OpenRouter's word for a prompt that was moderated.
        if value.get("metadata").is_some_and(|metadata| metadata.get("flagged_input").is_some()) {
            self.words.push("content_filter".to_owned());
        }
        for name in ["message", "detail"] {
            if let Some(Value::String(text)) = value.get(name) {
                self.set_message(text);
            }
        }
    }

    fn set_message(&mut self, text: &str) {
        self.message = text.chars().take(MAX_MESSAGE).collect::<String>().to_ascii_lowercase();
    }

    fn words_have(&self, parts: &[&str]) -> bool {
        self.words.iter().any(|word| parts.iter().any(|part| word.contains(part)))
    }

    fn message_has(&self, parts: &[&str]) -> bool {
        parts.iter().any(|part| self.message.contains(part))
    }

    /// For what takes a key or a model out: further on a message may quote what the client has sent.
    fn message_begins(&self, texts: &[&str]) -> bool {
        texts.iter().any(|text| self.message.trim_start().starts_with(text))
    }

    /// The account has nothing left. A quota of requests in a minute, as Google's, is a rate limit.
    fn is_about_credit(&self) -> bool {
        self.words_have(&[
            "insufficient_quota",
            "insufficient_balance",
            "insufficient_credit",
            "insufficient_funds",
            "billing",
            "payment_required",
            "credit_balance",
            "account_deactivated",
        ]) || self.message_begins(&[
            "your credit balance is too low",
            "insufficient balance",
            "insufficient credit",
            "insufficient funds",
            "billing hard limit",
        ])
    }

    fn is_about_the_key(&self) -> bool {
        self.words_have(&["invalid_api_key", "api_key_invalid", "authentication_error", "invalid_authentication"])
    }

    /// A right that a key lacks, for this kind of request.
    fn is_about_a_right(&self) -> bool {
        self.words_have(&["insufficient_permission"])
            || self.message_has(&["missing scopes", "insufficient permissions for this operation"])
    }

    fn is_about_content(&self) -> bool {
        self.words_have(&["content_filter", "content_policy", "moderation", "responsibleaipolicyviolation"])
    }

    fn is_about_length(&self) -> bool {
        self.words_have(&["context_length", "context_window"])
            || self.message_has(&["maximum context length", "prompt is too long", "exceeds the context window"])
    }

    /// That the provider does not know the model. A model that cannot do what was asked for is known: any client could
    /// take it out by asking for the wrong thing.
    fn is_about_the_model(&self, status: StatusCode) -> bool {
        const WORDS: [&str; 6] = [
            "model_not_found",
            "deploymentnotfound",
            "deployment_not_found",
            "unknown_model",
            "model_not_exist",
            "invalid_model",
        ];
        if self.words_have(&WORDS) {
            return true;
        }
        // Anthropic's message of a `not_found_error` is `model: its-name`.
        let names_it = self.message_begins(&["model:", "model not exist"]);
        let misses_it = ["not found", "not exist", "not deployed", "no such model", "unknown model"];
        let is_missing = self.message_has(&misses_it);
        let is_its_subject = self.message_begins(&[
            "model",
            "the model",
            "no such model",
            "unknown model",
            "deployment",
            "the deployment",
        ]);
        // OpenRouter's.
        let name = self.message.strip_suffix("is not a valid model id").map(str::trim);
        status == StatusCode::NOT_FOUND && (names_it || is_missing && is_its_subject)
            || status == StatusCode::BAD_REQUEST && self.message_begins(&["model not exist"])
            || status == StatusCode::BAD_REQUEST && name.is_some_and(|name| !name.contains(char::is_whitespace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, body: &str) -> Outcome {
        Blame::of(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.as_bytes(), true).outcome
    }

    #[test]
    fn an_exhausted_account_is_the_keys_fault_whatever_its_status() {
        for (status, body) in [
            (
                429,
                r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","code":"insufficient_quota"}}"#,
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the Anthropic API."}}"#,
            ),
            (402, ""),
            (
                402,
                r#"{"error":{"message":"Insufficient Balance","type":"unknown_error","code":"invalid_request_error"}}"#,
            ),
            (403, r#"{"error":{"code":"billing_not_active"}}"#),
            (500, r#"{"error":{"code":"insufficient_quota"}}"#),
            (429, r#"{"error":{"type":"billing_hard_limit_reached"}}"#),
        ] {
            assert_eq!(of(status, body), Outcome::NoCredit, "{status} {body}");
        }
        let per_minute = r#"{"error":{"code":429,"message":"You exceeded your current quota, please check your plan and billing details.","status":"RESOURCE_EXHAUSTED"}}"#;
        assert_eq!(of(429, per_minute), Outcome::RateLimited);
        assert_eq!(of(429, r#"{"error":{"code":"token_quota_exceeded"}}"#), Outcome::RateLimited);
    }

    #[test]
    fn a_refused_key_is_known_by_status_or_by_word() {
        for (status, body) in [
            (401, ""),
            (401, "<html>"),
            (403, r#"{"error":{"type":"permission_error"}}"#),
            (
                400,
                r#"{"error":{"code":400,"message":"API key not valid.","status":"INVALID_ARGUMENT","details":[{"reason":"API_KEY_INVALID"}]}}"#,
            ),
            (400, r#"{"error":{"code":"invalid_api_key"}}"#),
        ] {
            assert_eq!(of(status, body), Outcome::KeyRefused, "{status} {body}");
        }
    }

    #[test]
    fn no_client_can_take_a_key_or_a_model_out_by_what_it_asks_for() {
        for (status, body, outcome) in [
            (
                403,
                r#"{"error":{"code":403,"message":"flagged","metadata":{"flagged_input":"x"}}}"#,
                Outcome::ClientError,
            ),
            (400, r#"{"error":{"code":"content_filter"}}"#, Outcome::ClientError),
            (
                401,
                r#"{"error":{"message":"You have insufficient permissions for this operation. Missing scopes: api.files.write"}}"#,
                Outcome::NotOffered,
            ),
            (404, "", Outcome::NotOffered),
            (404, r#"{"detail":"Not Found"}"#, Outcome::NotOffered),
            (
                404,
                r#"{"error":{"message":"Invalid URL (POST /v1/x)","type":"invalid_request_error"}}"#,
                Outcome::NotOffered,
            ),
            (
                404,
                r#"{"error":{"message":"This is a chat model and not supported in the v1/completions endpoint.","param":"model"}}"#,
                Outcome::NotOffered,
            ),
            (404, r#"{"error":{"message":"No such File object: model x not found"}}"#, Outcome::NotOffered),
            (
                400,
                r#"{"error":{"message":"Invalid value: 'insufficient balance'.","param":"role"}}"#,
                Outcome::ClientError,
            ),
            (400, r#"{"error":{"message":"Invalid value: x is not a valid model id"}}"#, Outcome::ClientError),
            (405, "", Outcome::NotOffered),
            (501, "", Outcome::NotOffered),
            (
                400,
                r#"{"error":{"message":"the model 'x' not found in the prompt","type":"invalid_request_error"}}"#,
                Outcome::ClientError,
            ),
            (422, r#"{"detail":[{"msg":"field required"}]}"#, Outcome::ClientError),
        ] {
            assert_eq!(of(status, body), outcome, "{status} {body}");
        }
    }

    #[test]
    fn what_a_request_without_a_model_is_refused_takes_no_key_and_no_model_out() {
        let of = |status: StatusCode, body: &[u8]| Blame::of(status, &HeaderMap::new(), body, false).outcome;
        assert_eq!(of(StatusCode::FORBIDDEN, b"{}"), Outcome::NotOffered);
        assert_eq!(of(StatusCode::NOT_FOUND, br#"{"error":{"code":"model_not_found"}}"#), Outcome::NotOffered);
        assert_eq!(of(StatusCode::UNAUTHORIZED, b"{}"), Outcome::KeyRefused, "a key that is wrong is wrong for all");
    }

    #[test]
    fn an_unknown_model_is_known_by_its_code_or_by_the_message_of_a_404() {
        for (status, body) in [
            (
                404,
                r#"{"error":{"message":"The model `x` does not exist or you do not have access to it.","type":"invalid_request_error","code":"model_not_found"}}"#,
            ),
            (403, r#"{"error":{"code":"model_not_found"}}"#),
            (404, r#"{"type":"error","error":{"type":"not_found_error","message":"model: claude-x"}}"#),
            (
                404,
                r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}"#,
            ),
            (404, r#"{"error":"model 'x' not found"}"#),
            (404, r#"{"object":"error","message":"The model `x` does not exist.","type":"NotFoundError","code":404}"#),
            (404, r#"{"error":{"message":"Model not found, inaccessible, and/or not deployed","code":"NOT_FOUND"}}"#),
            (400, r#"{"error":{"message":"Model Not Exist","type":"invalid_request_error"}}"#),
            (400, r#"{"error":{"message":"x/y is not a valid model ID","code":400}}"#),
            (400, r#"{"object":"error","message":"Invalid model: x","type":"invalid_model","code":"1500"}"#),
        ] {
            assert_eq!(of(status, body), Outcome::UnknownModel, "{status} {body}");
        }
    }

    #[test]
    fn a_context_that_is_too_long_is_known_by_code_or_message() {
        for (status, body) in [
            (400, r#"{"error":{"code":"context_length_exceeded","message":"..."}}"#),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens"}}"#,
            ),
            (400, r#"{"message":"This model's maximum context length is 4096 tokens.","type":"BadRequestError"}"#),
        ] {
            assert_eq!(of(status, body), Outcome::ContextLength, "{status} {body}");
        }
    }

    #[test]
    fn a_503_or_529_that_says_when_to_come_back_is_no_breakage_and_any_other_is() {
        let of = |status: u16, name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            let blame = Blame::of(StatusCode::from_u16(status).unwrap(), &headers, b"", true);
            (blame.outcome, blame.later.map(|later| later.as_secs()))
        };
        for status in [503, 529] {
            assert_eq!(of(status, "retry-after", "7"), (Outcome::Later, Some(7)));
            assert_eq!(of(status, "retry-after", "soon"), (Outcome::ServerError, None));
            assert_eq!(of(status, "x-ratelimit-reset-requests", "7"), (Outcome::ServerError, None));
        }
        assert_eq!(of(500, "retry-after", "7"), (Outcome::ServerError, None));
        assert_eq!(of(429, "retry-after", "7"), (Outcome::RateLimited, Some(7)));
        assert_eq!(of(429, "x", "7"), (Outcome::RateLimited, None));
        assert_eq!(of(401, "retry-after", "7"), (Outcome::KeyRefused, None));
    }
}
