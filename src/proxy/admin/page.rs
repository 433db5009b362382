//! The page at `/` of the operators' port. It has no data of its own: its script asks the admin API.

use axum::body::Body;
use axum::response::Response;
use http::HeaderValue;
use http::header::{self, HeaderName};

const HTML: &str = include_str!("page/page.html");
const CSS: &str = include_str!("page/page.css");
const JS: &str = include_str!("page/page.js");

/// Nothing but these files runs or is loaded, whatever a text contains, and no other page may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

pub(super) async fn html() -> Response {
    file("text/html; charset=utf-8", HTML)
}

pub(super) async fn css() -> Response {
    file("text/css; charset=utf-8", CSS)
}

pub(super) async fn script() -> Response {
    file("text/javascript; charset=utf-8", JS)
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let mut response = Response::new(Body::from(text));
    let headers: [(HeaderName, &'static str); 5] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_never_makes_markup_of_a_text() {
        assert!(HTML.len() + CSS.len() + JS.len() < 60 * 1024, "{}", HTML.len() + CSS.len() + JS.len());
        for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser", "srcdoc"] {
            assert!(!JS.contains(way), "{way}");
        }
        let outside = HTML.split("href=\"").chain(HTML.split("src=\"")).skip(1).filter(|it| it.starts_with("http"));
        assert_eq!(outside.count(), 0);
        assert!(!HTML.contains("style=") && !HTML.contains("onclick="), "the policy forbids both");
    }
}
