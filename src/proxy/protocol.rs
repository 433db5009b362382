//! The protocols that clients and providers speak, and what differs between them: who can answer whom, and how the
//! gateway's own errors look. Nothing is translated from one into the other.
//!
//! Not here: the pieces of a stream: `route::meaning`; the words of an error: `route::blame`.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use strum::{EnumCount, VariantArray};

use super::answer::Code;

/// The protocol of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
pub(crate) enum Protocol {
    /// `OpenAI`'s, and everything that is not known to be another one's.
    OpenAi,
    /// Anthropic's.
    Anthropic,
}

/// The protocols that a provider speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Protocols {
    /// `OpenAI`'s.
    #[default]
    OpenAi,
    /// Anthropic's: messages.
    Anthropic,
    /// Both, below the same base URL and with the same key.
    Both,
}

impl Protocols {
    pub(crate) fn include(self, protocol: Protocol) -> bool {
        match self {
            Self::OpenAi => protocol == Protocol::OpenAi,
            Self::Anthropic => protocol == Protocol::Anthropic,
            Self::Both => true,
        }
    }
}

/// Anthropic requires the header in each request, and its SDKs send it.
pub(crate) const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");
/// The only version since 2023. Newer features are asked for by `anthropic-beta`.
pub(crate) const USUAL_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

/// What both protocols have at the same paths.
const IN_BOTH: [&str; 2] = ["/v1/models", "/v1/files"];

/// Whether a path is `path` or below it.
fn is_within(asked: &str, path: &str) -> bool {
    asked.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Protocol {
    /// The path tells. Where both have one, the header tells that Anthropic's SDKs send.
    #[inline]
    pub(crate) fn of(path: &str, headers: &HeaderMap) -> Self {
        let is_anthropics = is_within(path, "/v1/messages")
            || path == "/v1/complete"
            || IN_BOTH.iter().any(|both| is_within(path, both)) && headers.contains_key(ANTHROPIC_VERSION);
        if is_anthropics { Self::Anthropic } else { Self::OpenAi }
    }

    /// Whose it is, as people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "OpenAI",
            Self::Anthropic => "Anthropic",
        }
    }

    /// A model, as this protocol lists it. When it was made is not known.
    pub(crate) fn model(self, name: &str, provider: &str) -> Value {
        match self {
            Self::OpenAi => json!({"id": name, "object": "model", "created": 0, "owned_by": provider}),
            Self::Anthropic => {
                json!({"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"})
            }
        }
    }

    /// A list of all of them.
    pub(crate) fn models(self, models: &[Value]) -> Value {
        match self {
            Self::OpenAi => json!({"object": "list", "data": models}),
            Self::Anthropic => {
                let id = |model: Option<&Value>| model.map_or(Value::Null, |model| model["id"].clone());
                let (first, last) = (id(models.first()), id(models.last()));
                json!({"data": models, "first_id": first, "last_id": last, "has_more": false})
            }
        }
    }

    /// An error as this protocol has it. `error` is in `OpenAI`'s form, and `status` the one that it is sent with.
    pub(crate) fn error(self, error: Value, status: StatusCode, id: Option<&str>) -> Value {
        if self == Self::OpenAi {
            return error;
        }
        let field = |name| error["error"][name].as_str().unwrap_or_default();
        let code = field("code");
        let refused: &str = Code::ProviderRefused.into();
        // It is the gateway's key that was refused, and not the client's.
        let kind = if code == refused { "api_error" } else { kind_of(status) };
        json!({
            "type": "error",
            "error": {"type": kind, "message": field("message"), "code": code},
            "request_id": id,
        })
    }

    /// The same of a whole answer of the gateway's own.
    pub(crate) fn own(self, answer: Response<Bytes>, id: Option<&HeaderValue>) -> Response<Bytes> {
        let status = answer.status();
        if self == Self::OpenAi || status.is_success() {
            return answer;
        }
        let (head, body) = answer.into_parts();
        let body = match serde_json::from_slice(&body) {
            Ok(error) => self.error(error, status, id.and_then(|id| id.to_str().ok())).to_string().into(),
            Err(_) => body,
        };
        Response::from_parts(head, body)
    }
}

/// Anthropic's types of errors, <https://docs.anthropic.com/en/api/errors>.
fn kind_of(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        _ => "api_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_tells_the_protocol_and_the_header_only_where_both_have_the_path() {
        let with = HeaderMap::from_iter([(ANTHROPIC_VERSION, USUAL_VERSION)]);
        for (path, without, by_header) in [
            ("/v1/messages", Protocol::Anthropic, Protocol::Anthropic),
            ("/v1/messages/count_tokens", Protocol::Anthropic, Protocol::Anthropic),
            ("/v1/messages/batches/b/results", Protocol::Anthropic, Protocol::Anthropic),
            ("/v1/complete", Protocol::Anthropic, Protocol::Anthropic),
            ("/v1/messagesx", Protocol::OpenAi, Protocol::OpenAi),
            ("/v1/chat/completions", Protocol::OpenAi, Protocol::OpenAi),
            ("/v1/models", Protocol::OpenAi, Protocol::Anthropic),
            ("/v1/models/m", Protocol::OpenAi, Protocol::Anthropic),
            ("/v1/files/f", Protocol::OpenAi, Protocol::Anthropic),
            ("/v1/threads/t/messages", Protocol::OpenAi, Protocol::OpenAi),
        ] {
            assert_eq!(Protocol::of(path, &HeaderMap::new()), without, "{path}");
            assert_eq!(Protocol::of(path, &with), by_header, "{path}");
        }
    }

    #[test]
    fn an_error_of_the_gateway_has_the_type_that_anthropics_sdks_know() {
        let of = |status: u16, code: &str| {
            let error = json!({"error": {"message": "m", "type": "server_error", "code": code}});
            let status = StatusCode::from_u16(status).unwrap();
            Protocol::Anthropic.error(error, status, Some("id"))
        };
        assert_eq!(
            of(503, "providers_unavailable"),
            json!({
                "type": "error",
                "error": {"type": "overloaded_error", "message": "m", "code": "providers_unavailable"},
                "request_id": "id",
            })
        );
        for (status, code, kind) in [
            (400, "invalid_model", "invalid_request_error"),
            (401, "invalid_api_key", "authentication_error"),
            (401, "provider_refused", "api_error"),
            (404, "model_not_found", "not_found_error"),
            (405, "method_not_allowed", "invalid_request_error"),
            (413, "body_too_long", "request_too_large"),
            (502, "provider_unreachable", "api_error"),
            (504, "provider_timeout", "timeout_error"),
        ] {
            assert_eq!(of(status, code)["error"]["type"], kind, "{status} {code}");
        }
    }
}
