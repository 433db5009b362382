//! The routes of clients and of operators.
//!
//! Not here: what becomes of a request below `/v1/`: `v1`.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};

use super::v1;
use crate::proxy::answer;
use crate::proxy::core::Core;
use crate::proxy::observe::health::{Health, HealthStatus};
use crate::proxy::request::is_authorized;
use crate::proxy::state::AppState;

/// The clients' routes, served by `core`.
pub(crate) fn of_clients(core: &Arc<Core>) -> Router {
    let state = Arc::clone(&core.app);
    let core = Arc::clone(core);
    let v1 = async move |request: Request| v1::serve(core.clone(), request, |answer| answer.map(Body::new)).await;
    let mut router = Router::new().route("/v1/{*path}", any(v1));
    if state.live().server.admin_listen.is_none() {
        router = with_health(router.route("/metrics", get(metrics_for_clients)));
    }
    finish(router, state)
}

/// The operators' routes.
pub(crate) fn of_operators(state: Arc<AppState>) -> Router {
    finish(with_health(Router::new().route("/metrics", get(metrics))), state)
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
    let health = Health::of(&state.circuit_breakers);
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
