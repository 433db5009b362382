//! Whether a path stays below the base it is appended to.
//!
//! Not here: anything else about URLs.

use percent_encoding::percent_decode_str;

/// One server decodes a path once, and a row of them that each do so is short.
const MAX_ROUNDS: usize = 5;

/// Whether a server, however it decodes the path, could take it to climb out of the provider's base, where the provider's
/// key must not be sent: dot segments (RFC 3986 section 5.2.4) behind any number of percent-encodings, with backslashes for
/// slashes, or with parameters (`..;x`); and bytes that are not UTF-8, such as overlong forms of a dot, or are control
/// characters. A path that is still encoded after a few rounds is refused, too: each round looks at all of it, and nobody
/// means that.
pub(crate) fn leaves_its_base(path: &str) -> bool {
    // Nothing here can stand for a dot, as in nearly every path.
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
    fn dots_within_a_name_stay() {
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
