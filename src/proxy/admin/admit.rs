//! Who may use the admin API: operators, and no page of another site that one of them looks at.
//!
//! Not here: what they may do: `api`.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::uri::Authority;
use http::{HeaderMap, StatusCode, header};
use serde_json::json;

use crate::proxy::answer;
use crate::proxy::request::shown_token;
use crate::proxy::state::AppState;

/// Who asks: the name of the token that was shown, if one has to be.
#[derive(Clone)]
pub(super) struct Operator(pub(super) Option<Box<str>>);

/// What a request is answered that is not carried out.
pub(super) struct Refused(pub(super) StatusCode, pub(super) String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, axum::Json(json!({"error": {"message": self.1}}))).into_response()
    }
}

/// Lets operators in, and nobody else: those who show a token, or those who connect from the machine itself. A page of
/// another site that an operator looks at may send requests as well, so it is kept out.
pub(super) async fn admit(State(app): State<Arc<AppState>>, mut request: Request, next: Next) -> Response {
    let server = &app.live().server;
    let headers = request.headers();
    if let Err(refused) = check_origin(headers) {
        return refused.into_response();
    }
    let operator = if server.admin_tokens.is_empty() {
        if !server.knows_its_operators()
            && let Err(refused) = check_host(&request)
        {
            return refused.into_response();
        }
        Operator(None)
    } else {
        let Some(token) = shown_token(&server.admin_tokens, headers) else {
            return answer::unauthorized().map(Body::from);
        };
        Operator(Some(server.admin_tokens[token].name.clone()))
    };
    request.extensions_mut().insert(operator);
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

/// A browser says where a page is from (RFC 6454), and no page can change that.
fn check_origin(headers: &HeaderMap) -> Result<(), Refused> {
    let text = |name| headers.get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
    let is_of_another = text(header::ORIGIN).is_some_and(|origin| {
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        host.is_empty() || Some(host) != text(header::HOST)
    });
    let is_said_to_be = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site" || site == "same-site");
    if is_of_another || is_said_to_be {
        return Err(Refused(StatusCode::FORBIDDEN, "Pages of other sites may not use the admin API.".to_owned()));
    }
    Ok(())
}

/// Without tokens, whoever reaches the port may use it. A page whose name was pointed at this machine after it was
/// loaded (DNS rebinding) reaches it, too, but by that name.
fn check_host(request: &Request) -> Result<(), Refused> {
    let host = request.headers().get(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let host = host.as_ref().map_or("", |host| host.host());
    let is_address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    if is_address || host == "localhost" || host.ends_with(".localhost") {
        return Ok(());
    }
    let message = "Without admin_tokens, the admin API is used by an address or as 'localhost', not by another name.";
    Err(Refused(StatusCode::FORBIDDEN, message.to_owned()))
}
