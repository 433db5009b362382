//! When a provider says that it will take requests again.
//!
//! Not here: what follows from it: `route::blame` and `route::attempts`.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;
use jiff::{SignedDuration, Timestamp};
use memchr::memmem;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// In milliseconds. `OpenAI` and Azure send it beside `retry-after`, and their SDKs prefer it.
pub(crate) const RETRY_AFTER_MS: &str = "retry-after-ms";

/// How long an answer asks its reader to wait, from its headers and its body. `None` if it says nothing of it that can
/// be read. A time that has passed is zero.
///
/// These are read, and the longest counts:
/// - `retry-after`: seconds, with a fraction too, or a date (RFC 9110 section 10.2.3); and `retry-after-ms`, which
///   replaces it where both are sent;
/// - of each limit that is used up, as with `x-ratelimit-remaining-requests: 0`, its `x-ratelimit-reset-requests`: a
///   duration such as `6m0s`, seconds, or a time in seconds or milliseconds since 1970; and the same of Anthropic's
///   `anthropic-ratelimit-requests-reset`, which is an RFC 3339 time, and of all others that are called alike. If no
///   limit is said to be used up, and there is no `retry-after`, the first reset counts;
/// - Google's `RetryInfo` among the details of an error, such as `"retryDelay": "34.07s"`.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use fusebox::proxy::retry_after;
/// use http::HeaderMap;
///
/// let mut headers = HeaderMap::new();
/// headers.insert("x-ratelimit-remaining-tokens", "0".parse()?);
/// headers.insert("x-ratelimit-reset-tokens", "6m0s".parse()?);
/// assert_eq!(retry_after(&headers, b"", SystemTime::now()), Some(Duration::from_secs(360)));
/// assert_eq!(retry_after(&HeaderMap::new(), b"", SystemTime::now()), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn retry_after(headers: &HeaderMap, body: &[u8], now: SystemTime) -> Option<Duration> {
    said(headers, body, now).or_else(|| Resets::of(headers, now).first)
}

/// The same, without the reset of a limit that may not be used up.
pub(crate) fn said(headers: &HeaderMap, body: &[u8], now: SystemTime) -> Option<Duration> {
    told(headers, now).max(Resets::of(headers, now).of_used_up).max(retry_info(body))
}

/// Of an answer that is no error: how long until one of its limits, which the answer has used up, is reset.
pub(crate) fn used_up(headers: &HeaderMap, now: impl FnOnce() -> SystemTime) -> Option<Duration> {
    // Nearly every answer has room left, and the names are looked at alone.
    let is_zero = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        value.as_bytes() == b"0" && is_of_a_limit(name.as_str()) && name.as_str().contains("remaining")
    };
    let used_up = if headers.iter().any(is_zero) { Resets::of(headers, now()).of_used_up } else { None };
    used_up.filter(|reset| !reset.is_zero())
}

fn told(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let texts = |name: &str| headers.get_all(name).iter().filter_map(|value| value.to_str().ok().map(str::trim));
    let millis = texts(RETRY_AFTER_MS).filter_map(|text| seconds(number(text)? / 1e3)).max();
    millis.or_else(|| {
        let at = |text: &str| httpdate::parse_http_date(text).ok().map(|at| until(at, now));
        texts(RETRY_AFTER.as_str()).filter_map(|text| duration(text, now).or_else(|| at(text))).max()
    })
}

/// The times at which limits are reset.
struct Resets {
    /// The last one of those that are used up.
    of_used_up: Option<Duration>,
    /// The first one of all.
    first: Option<Duration>,
}

impl Resets {
    fn of(headers: &HeaderMap, now: SystemTime) -> Self {
        let mut resets = Self { of_used_up: None, first: None };
        for (name, value) in headers {
            let name = name.as_str();
            if !is_of_a_limit(name) || !name.contains("reset") {
                continue;
            }
            let Some(reset) = value.to_str().ok().and_then(|text| moment(text.trim(), now)) else { continue };
            let remaining = headers.get(name.replace("reset", "remaining"));
            if remaining.is_some_and(|remaining| remaining.to_str().ok().and_then(number) == Some(0.0)) {
                resets.of_used_up = resets.of_used_up.max(Some(reset));
            }
            resets.first = Some(resets.first.map_or(reset, |first| first.min(reset)));
        }
        resets
    }
}

/// `x-ratelimit-...`, `anthropic-ratelimit-...`, `ratelimit-...` and the like.
fn is_of_a_limit(name: &str) -> bool {
    name.contains("ratelimit-") || name.contains("rate-limit-")
}

/// A duration, or a point in time in one of the forms in use.
fn moment(text: &str, now: SystemTime) -> Option<Duration> {
    duration(text, now).or_else(|| {
        let since_1970 = text.parse::<Timestamp>().ok().map(Timestamp::as_duration);
        let at = since_1970.and_then(|it| SystemTime::UNIX_EPOCH.checked_add(it.try_into().ok()?));
        at.or_else(|| httpdate::parse_http_date(text).ok()).map(|at| until(at, now))
    })
}

/// Larger numbers of seconds are points in time: this one is in 2001.
const FIRST_TIME: f64 = 1e9;
/// And these are in milliseconds.
const FIRST_TIME_IN_MILLIS: f64 = 1e12;

/// A number of seconds, or a duration with units such as `6m0s` or `20ms`.
fn duration(text: &str, now: SystemTime) -> Option<Duration> {
    if let Some(number) = number(text) {
        let at = |seconds: f64| {
            let at = SystemTime::UNIX_EPOCH.checked_add(self::seconds(seconds)?);
            Some(at.map_or(Duration::MAX, |at| until(at, now)))
        };
        return match number {
            FIRST_TIME_IN_MILLIS.. => at(number / 1e3),
            FIRST_TIME.. => at(number),
            _ => seconds(number),
        };
    }
    let duration: SignedDuration = text.parse().ok()?;
    Some(Duration::try_from(duration).unwrap_or_default())
}

/// Nothing but digits, a sign and a point: other texts that are numbers for Rust are none for anybody else.
fn number(text: &str) -> Option<f64> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.".contains(&byte));
    if is_plain { text.parse().ok() } else { None }
}

/// A negative number is no time to wait. One that is too large is as long as can be.
fn seconds(number: f64) -> Option<Duration> {
    (!number.is_nan()).then(|| Duration::try_from_secs_f64(number.max(0.0)).unwrap_or(Duration::MAX))
}

fn until(at: SystemTime, now: SystemTime) -> Duration {
    at.duration_since(now).unwrap_or_default()
}

/// The longest `RetryInfo` among the details of an error.
fn retry_info(body: &[u8]) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        error: &'a RawValue,
    }
    memmem::find(body, b"retryDelay")?;
    // An answer to a request for a stream is an array.
    let text = body.trim_ascii();
    let text = text.strip_prefix(b"[").map_or(text, |inner| inner.strip_suffix(b"]").unwrap_or(inner));
    let answer: Answer<'_> = serde_json::from_slice(text).ok()?;
    let error: Value = serde_json::from_str(answer.error.get()).ok()?;
    let details = error.get("details")?.as_array()?.iter();
    let delays = details.filter_map(|detail| detail.get("retryDelay")?.as_str());
    delays.filter_map(|text| duration(text, SystemTime::UNIX_EPOCH)).max()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    /// 2026-01-01T00:00:00Z.
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    fn of(headers: &[(&'static str, &'static str)], body: &str) -> Option<f64> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        retry_after(&headers, body.as_bytes(), now()).map(|duration| duration.as_secs_f64())
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_what_has_passed_is_zero() {
        for (text, seconds) in [
            ("7", Some(7.0)),
            (" 7 ", Some(7.0)),
            ("1.5", Some(1.5)),
            ("0", Some(0.0)),
            ("-3", Some(0.0)),
            ("Thu, 01 Jan 2026 00:01:00 GMT", Some(60.0)),
            ("Thursday, 01-Jan-26 00:01:00 GMT", Some(60.0)),
            ("Thu Jan  1 00:01:00 2026", Some(60.0)),
            ("Wed, 31 Dec 2025 00:00:00 GMT", Some(0.0)),
            ("1767225630", Some(30.0)),
            ("20s", Some(20.0)),
            ("", None),
            ("soon", None),
            ("inf", None),
            ("NaN", None),
            ("1e3", None),
            ("--1", None),
        ] {
            assert_eq!(of(&[("retry-after", text)], ""), seconds, "{text:?}");
        }
        assert!(of(&[("retry-after", "99999999999999999999999999")], "").is_some(), "no panic");
    }

    #[test]
    fn milliseconds_replace_retry_after_where_both_are_sent() {
        assert_eq!(of(&[("retry-after-ms", "250"), ("retry-after", "1")], ""), Some(0.25));
        assert_eq!(of(&[("retry-after-ms", "soon"), ("retry-after", "1")], ""), Some(1.0));
    }

    #[test]
    fn a_limit_that_is_used_up_counts_in_every_form_of_its_reset() {
        for (text, seconds) in [
            ("1s", 1.0),
            ("6m0s", 360.0),
            ("20ms", 0.02),
            ("2m59.56s", 179.56),
            ("1h2m3s", 3723.0),
            ("12", 12.0),
            ("0.5", 0.5),
            ("1767225605", 5.0),
            ("1767225605000", 5.0),
            ("2026-01-01T00:00:09Z", 9.0),
            ("2026-01-01T01:00:09+01:00", 9.0),
            ("2026-01-01T00:00:09.5Z", 9.5),
            ("2025-12-31T00:00:00Z", 0.0),
        ] {
            let headers = [("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", text)];
            assert_eq!(of(&headers, ""), Some(seconds), "{text:?}");
            let headers = [("anthropic-ratelimit-tokens-remaining", "0"), ("anthropic-ratelimit-tokens-reset", text)];
            assert_eq!(of(&headers, ""), Some(seconds), "{text:?}");
        }
    }

    #[test]
    fn of_several_times_the_latest_one_of_what_is_used_up_counts() {
        let headers = [
            ("x-ratelimit-remaining-requests", "59"),
            ("x-ratelimit-reset-requests", "8.64s"),
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", "3s"),
        ];
        assert_eq!(of(&headers, ""), Some(3.0));
        assert_eq!(of(&[("retry-after", "5"), headers[2], headers[3]], ""), Some(5.0));
        assert_eq!(of(&[("retry-after", "1"), headers[2], headers[3]], ""), Some(3.0));
        assert_eq!(of(&[headers[1], headers[3]], ""), Some(3.0), "nothing says which limit was hit");
        assert_eq!(of(&[headers[1], ("retry-after", "1")], ""), Some(1.0));
        assert_eq!(of(&[("retry-after", "1"), ("retry-after", "4")], ""), Some(4.0));
    }

    #[test]
    fn googles_retry_info_is_read_from_the_details_of_an_error() {
        let body = r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[
            {"@type":"type.googleapis.com/google.rpc.QuotaFailure"},
            {"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"34.25s"}]}}"#;
        assert_eq!(of(&[], body), Some(34.25));
        assert_eq!(of(&[], &format!("[{body}]")), Some(34.25));
        assert_eq!(of(&[("retry-after", "60")], body), Some(60.0));
        for other in [r#"{"error":{"details":[{"retryDelay":7}]}}"#, "retryDelay", r#"{"retryDelay":"3s"}"#] {
            assert_eq!(of(&[], other), None, "{other}");
        }
    }

    #[test]
    fn a_good_answer_tells_only_of_limits_that_are_used_up() {
        let of = |headers: &[(&'static str, &'static str)]| {
            let headers: HeaderMap = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            used_up(&headers, now)
        };
        let zero = ("x-ratelimit-remaining-requests", "0");
        assert_eq!(of(&[zero, ("x-ratelimit-reset-requests", "2s")]), Some(Duration::from_secs(2)));
        assert_eq!(of(&[zero, ("x-ratelimit-reset-tokens", "2s")]), None);
        assert_eq!(of(&[zero, ("x-ratelimit-reset-requests", "0s")]), None);
        assert_eq!(of(&[("x-ratelimit-remaining-requests", "1"), ("x-ratelimit-reset-requests", "2s")]), None);
        assert_eq!(of(&[("retry-after", "5")]), None);
        assert_eq!(of(&[]), None);
    }
}
