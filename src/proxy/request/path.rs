//! Whether a path stays below the base that it is appended to.

use percent_encoding::percent_decode_str;

/// Each server on the way may decode a path once, and there are few of them.
const MAX_ROUNDS: usize = 5;

/// Whether any server could read the path as one outside of the provider's base, where the provider's key must not be
/// sent. That is so for dot segments (RFC 3986 section 5.2.4), however often they are percent-encoded, with backslashes
/// for slashes, or with parameters (`..;x`); for bytes that are not UTF-8, such as overlong forms of a dot; and for
/// control characters. A path that is still encoded after [`MAX_ROUNDS`] is refused as well: each round reads all of
/// it, and no client needs that.
pub(crate) fn leaves_its_base(path: &str) -> bool {
    // Nearly every path: it has no dot, and nothing that stands for one.
    if path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'.' | b'%')) {
        return false;
    }
    let mut path = path.to_owned();
    for _ in 0..MAX_ROUNDS {
        let leaves = path.split(['/', '\\']).any(|segment| {
            let name = segment.split(';').next().unwrap_or_default();
            matches!(name, "." | "..")
        });
        if leaves || path.chars().any(char::is_control) {
            return true;
        }
        let Ok(decoded) = percent_decode_str(&path).decode_utf8() else { return true };
        if decoded == path {
            return false;
        }
        path = decoded.into_owned();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::leaves_its_base;

    #[test]
    fn dot_segments_leave_the_base_in_any_encoding() {
        for path in [
            "/v1/../admin",
            "/v1/..",
            "/v1/./x",
            "/v1/%2e%2e/admin",
            "/v1/.%2E/admin",
            "/v1/%252e%252e/admin",
            "/v1/%25252e./admin",
            "/v1/x%2f..%2fadmin",
            "/v1/x%5c..%5cadmin",
            "/v1/x\\..\\admin",
            "/v1/..;a=b/admin",
            "/v1/..%3b/admin",
            "/v1/%c0%ae%c0%ae/admin",
            "/v1/x%00",
            "/v1/x%0d%0aadmin",
            // Encoded deeper than anybody decodes.
            "/v1/%252525252525x",
        ] {
            assert!(leaves_its_base(path), "{path}");
        }
    }

    #[test]
    fn dots_within_a_name_are_allowed() {
        for path in [
            "/v1/chat/completions",
            "/v1/models/gpt-4.1",
            "/v1/..x",
            "/v1/x..",
            "/v1/...",
            "/v1/100%",
            "/v1/%zz",
            "/v1/%E2%82%AC",
            "/v1/%2525x",
            "/v1//x",
        ] {
            assert!(!leaves_its_base(path), "{path}");
        }
    }
}
