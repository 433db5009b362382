//! The routes of clients and of operators.
//!
//! Not here: what becomes of a request below `/v1/`: `v1`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode, request};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, ExposeHeaders};

use super::{session, v1};
use crate::proxy::admin;
use crate::proxy::answer;
use crate::proxy::core::Core;
use crate::proxy::observe::health::HealthStatus;
use crate::proxy::request::is_authorized;
use crate::proxy::request::session::is_asked_for;
use crate::proxy::state::AppState;

/// The clients' routes, served by `core`.
pub(crate) fn of_clients(core: &Arc<Core>) -> Router {
    let state = Arc::clone(&core.app);
    let core = Arc::clone(core);
    let v1 = async move |request: Request| {
        let peer = request.extensions().get().copied();
        if is_asked_for(&request) {
            return session::serve(core.clone(), peer, request, |answer| answer.map(Body::new)).await;
        }
        v1::serve(core.clone(), peer, request, |answer| answer.map(Body::new)).await
    };
    let mut router = Router::new().route("/v1/{*path}", any(v1));
    if state.live().server.admin_listen.is_none() {
        router = with_health(router.route("/metrics", get(metrics_for_clients)));
    }
    finish(router, state)
}

/// The clients' routes for pages of other origins (the Fetch standard, section 3.2): answers say that the page may read
/// them, and a browser's question whether it may send a request needs no token. Which origins may is read from the
/// configuration each time.
pub(crate) fn of_pages(core: &Arc<Core>, clients: Router) -> Router {
    let core = Arc::clone(core);
    let is_allowed = move |origin: &HeaderValue, _: &request::Parts| {
        core.local().server.cors_origins.iter().any(|allowed| allowed == "*" || allowed == origin)
    };
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(is_allowed))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(ExposeHeaders::list(EXPOSED.map(HeaderName::from_static)))
        .max_age(Duration::from_secs(600));
    clients.layer(layer)
}

/// What a page may read of an answer's headers.
const EXPOSED: [&str; 6] = [
    "retry-after",
    "x-request-id",
    "x-fusebox-provider",
    "x-fusebox-attempts",
    "x-fusebox-replay",
    "x-fusebox-provider-request-id",
];

/// The operators' routes.
pub(crate) fn of_operators(state: Arc<AppState>) -> Router {
    let router = admin::api::router(&state).route("/metrics", get(metrics));
    finish(with_health(router), state)
}

fn with_health(router: Router<Arc<AppState>>) -> Router<Arc<AppState>> {
    router.route("/health", get(health)).route("/ready", get(ready))
}

fn finish(router: Router<Arc<AppState>>, state: Arc<AppState>) -> Router {
    router
        .fallback(async || own(answer::not_found()))
        .method_not_allowed_fallback(async || own(answer::method_not_allowed()))
        .with_state(state)
}

/// An answer of the gateway's own, as axum wants it.
pub(crate) fn own(response: http::Response<Bytes>) -> Response {
    response.map(Body::from)
}

async fn health(State(state): State<Arc<AppState>>) -> Response {
    let health = state.health();
    let status = match health.status {
        HealthStatus::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
        HealthStatus::Ok | HealthStatus::Degraded => StatusCode::OK,
    };
    (status, axum::Json(health)).into_response()
}

/// Whether new requests are welcome. The circuits do not matter: a provider's outage must not take every gateway out of
/// service, since then nobody would answer for the other providers.
async fn ready(State(state): State<Arc<AppState>>) -> Response {
    if state.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response()
    } else {
        (StatusCode::OK, "ready\n").into_response()
    }
}

async fn metrics(State(state): State<Arc<AppState>>) -> Response {
    (StatusCode::OK, [(header::CONTENT_TYPE, "text/plain; version=0.0.4")], state.encode_metrics()).into_response()
}

/// If clients must send a token, a token is required here as well: the page names the providers.
async fn metrics_for_clients(state: State<Arc<AppState>>, headers: HeaderMap) -> Response {
    if is_authorized(&state.live().server.auth_tokens, &headers) {
        metrics(state).await
    } else {
        own(answer::unauthorized())
    }
}
