//! The routes of the admin API. `docs/admin.openapi.json` describes them; a test compares the
//! two.
//!
//! Not here: who may use them: `admit`; what an order does: `state::by_hand`; the form of what is shown: `view` and
//! `shown`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{StatusCode, header};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;

use super::admit::{Operator, Refused, admit};
use super::view::{OrderView, View};
use super::{events, page, shown};
use crate::error::Escaped;
use crate::proxy::circuits::AnswerKind;
use crate::proxy::orders::{Given, Order};
use crate::proxy::request::client::Peer;
use crate::proxy::state::AppState;
use crate::proxy::state::by_hand::{Scope, Unknown};
use crate::proxy::wall_clock;

const OPENAPI: &str = include_str!("../../../docs/admin.openapi.json");

/// The longest body of a request.
const MAX_BODY: usize = 16 * 1024;
const BODY_LIMIT: Duration = Duration::from_secs(10);
/// The longest reason, in bytes.
const MAX_REASON: usize = 500;
/// The longest time that an order may be given for.
const MAX_ORDER: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// The admin API and its page.
pub(crate) fn router(app: &Arc<AppState>) -> Router<Arc<AppState>> {
    let api = Router::new()
        .route("/admin/v1/circuits", get(circuits))
        .route("/admin/v1/circuits/{*circuit}", post(order))
        .route("/admin/v1/reload", post(reload))
        .route("/admin/v1/config", get(config))
        .route("/admin/v1/events", get(async |State(app): State<Arc<AppState>>| events::listen(&app)))
        .route("/admin/v1/openapi.json", get(async || ([(header::CONTENT_TYPE, "application/json")], OPENAPI)))
        .layer(middleware::from_fn_with_state(Arc::clone(app), admit));
    let page = Router::new()
        .route("/", get(page::html))
        .route("/page.css", get(page::css))
        .route("/page.js", get(page::script));
    api.merge(page)
}

async fn circuits(State(app): State<Arc<AppState>>) -> Response {
    axum::Json(View::whole(&app)).into_response()
}

async fn config(State(app): State<Arc<AppState>>) -> Response {
    axum::Json(shown::config(&app.live())).into_response()
}

/// What a request to change a circuit says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    reason: Option<String>,
    /// How long the order holds.
    r#for: Option<String>,
    /// When it ends.
    until: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Give(Order),
    Release,
    Reset,
}

const ACTIONS: [(&str, Action); 4] = [
    ("isolate", Action::Give(Order::Isolate)),
    ("disable", Action::Give(Order::Disable)),
    ("release", Action::Release),
    ("reset", Action::Reset),
];

/// `POST /admin/v1/circuits/{provider}[/{model}[/{kind}]]/{action}`.
async fn order(State(app): State<Arc<AppState>>, request: Request) -> Result<Response, Refused> {
    let not_found = |message: String| Refused(StatusCode::NOT_FOUND, message);
    let path = request.uri().path().strip_prefix("/admin/v1/circuits/").unwrap_or_default();
    let parts: Vec<_> = path.split('/').map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned()).collect();
    let (circuit, action) = match &parts[..] {
        [circuit @ .., action] if (1..=3).contains(&circuit.len()) => (circuit, action),
        _ => {
            let message = "Expected /admin/v1/circuits/{provider}[/{model}[/{kind}]]/{action}.";
            return Err(not_found(message.to_owned()));
        }
    };
    let found = ACTIONS.iter().find(|(name, _)| name == action);
    let Some((name, action)) = found else {
        return Err(not_found(format!("The action is {action:?}, expected isolate, disable, release or reset.")));
    };
    let kind = circuit.get(2).map(|kind| {
        AnswerKind::parse(kind)
            .ok_or_else(|| not_found(format!("The kind is {kind:?}, expected whole, stream, count or session.")))
    });
    let scope = Scope { provider: &circuit[0], model: circuit.get(1).map(String::as_str), kind: kind.transpose()? };
    let (operator, peer) = who(&request);
    let wish = read(request).await?;
    let unknown = |unknown| {
        not_found(match unknown {
            Unknown::Provider => format!("There is no provider {:?}.", scope.provider),
            Unknown::Model => format!("{} does not serve the model {:?}.", scope.provider, scope.model.unwrap_or("")),
        })
    };
    let given = match action {
        Action::Give(order) => {
            let now = wall_clock::now();
            let until = wish.end(now)?;
            let reason = wish.reason.clone().ok_or_else(|| bad("reason is missing, expected why"))?;
            let given = Given { order: *order, reason, by: operator.0.as_deref().map(str::to_owned), at: now, until };
            app.give_order(scope, &given).map_err(unknown)?;
            Some(given)
        }
        Action::Release | Action::Reset if wish.r#for.is_some() || wish.until.is_some() => {
            return Err(bad("for and until belong to isolate and disable"));
        }
        Action::Release => {
            if app.release(scope).map_err(unknown)? == 0 {
                let message = "No order is in force there. A circuit that is open by itself is closed by reset.";
                return Err(Refused(StatusCode::CONFLICT, message.to_owned()));
            }
            None
        }
        Action::Reset => {
            app.reset(scope).map_err(unknown)?;
            None
        }
    };
    let (token, reason) = (operator.0.as_deref(), wish.reason.as_deref().map(Escaped).map(tracing::field::display));
    let model = scope.model.map(Escaped).map(tracing::field::display);
    let until = given.as_ref().and_then(|given| given.until);
    let until = until.map(wall_clock::timestamp).map(tracing::field::display);
    let (provider, kind) = (scope.provider, scope.kind.map(AnswerKind::as_str));
    info!(action = name, provider, model, kind, reason, until, token, peer, "an operator has changed a circuit");
    Ok(axum::Json(json!({
        "action": name,
        "provider": scope.provider,
        "model": scope.model,
        "kind": kind,
        "order": given.as_ref().map(OrderView::of),
    }))
    .into_response())
}

fn who(request: &Request) -> (Operator, Option<String>) {
    let operator = request.extensions().get().cloned().unwrap_or(Operator(None));
    (operator, request.extensions().get().map(|Peer(peer)| peer.to_string()))
}

fn bad(message: &str) -> Refused {
    Refused(StatusCode::BAD_REQUEST, message.to_owned())
}

/// Reads a body, which may be empty.
async fn read(request: Request) -> Result<Wish, Refused> {
    let kind = request.headers().get(header::CONTENT_TYPE).cloned();
    let body = tokio::time::timeout(BODY_LIMIT, to_bytes(request.into_body(), MAX_BODY)).await;
    let late = |_| Refused(StatusCode::REQUEST_TIMEOUT, "The body did not come within 10 s.".to_owned());
    let long = |_| Refused(StatusCode::PAYLOAD_TOO_LARGE, format!("The body is longer than {MAX_BODY} bytes."));
    let body = body.map_err(late)?.map_err(long)?;
    if body.is_empty() {
        return Ok(Wish::default());
    }
    let is_json = kind.is_some_and(|kind| {
        let essence = kind.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        essence.eq_ignore_ascii_case(b"application/json")
    });
    if !is_json {
        return Err(Refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "The body's content-type is not application/json.".to_owned(),
        ));
    }
    let wish: Wish = serde_json::from_slice(&body).map_err(|error| bad(&format!("The body is invalid: {error}.")))?;
    let length = wish.reason.as_ref().map_or(1, String::len);
    if !(1..=MAX_REASON).contains(&length) {
        return Err(bad(&format!("reason has {length} bytes, expected 1 to {MAX_REASON}")));
    }
    Ok(wish)
}

impl Wish {
    fn end(&self, now: SystemTime) -> Result<Option<SystemTime>, Refused> {
        let expected = "1s to 366days";
        let end = match (&self.r#for, &self.until) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => return Err(bad("for and until are both there, expected one of them")),
            (Some(text), None) => {
                let length = humantime::parse_duration(text);
                let length =
                    length.map_err(|_| bad(&format!("for is {text:?}, expected a duration such as \"30m\"")))?;
                if !(Duration::from_secs(1)..=MAX_ORDER).contains(&length) {
                    return Err(bad(&format!("for is {text:?}, expected {expected}")));
                }
                now + length
            }
            (None, Some(text)) => {
                let end = text.parse::<jiff::Timestamp>();
                let wrong = "expected a time such as \"2030-01-31T12:00:00Z\"";
                let end = end.map_err(|_| bad(&format!("until is {text:?}, {wrong}")))?;
                SystemTime::UNIX_EPOCH + Duration::try_from(end.as_duration()).unwrap_or_default()
            }
        };
        match end.duration_since(now) {
            Ok(left) if left <= MAX_ORDER => Ok(Some(end)),
            _ => Err(bad(&format!("until is {}, expected {expected} from now", wall_clock::timestamp(end)))),
        }
    }
}

/// `POST /admin/v1/reload`.
async fn reload(State(app): State<Arc<AppState>>, request: Request) -> Result<Response, Refused> {
    let (operator, peer) = who(&request);
    let Some(file) = app.file().map(ToOwned::to_owned) else {
        let message = "The gateway was not started with a configuration file.";
        return Err(Refused(StatusCode::CONFLICT, message.to_owned()));
    };
    let Ok(place) = Arc::clone(&app.reloading).try_acquire_owned() else {
        return Err(Refused(StatusCode::CONFLICT, "A reload is under way.".to_owned()));
    };
    info!(token = operator.0.as_deref(), peer, "an operator has asked for a reload");
    let reload = tokio::task::spawn_blocking(move || {
        let _place = place;
        app.reload_from(&file)
    });
    let failed = |_| Refused(StatusCode::INTERNAL_SERVER_ERROR, "The reload has failed.".to_owned());
    let (status, mistakes, warnings): (_, Vec<String>, Vec<String>) = match reload.await.map_err(failed)? {
        Ok(warnings) => (StatusCode::OK, Vec::new(), warnings),
        Err(mistakes) => (StatusCode::UNPROCESSABLE_ENTITY, mistakes, Vec::new()),
    };
    let body: Value = json!({"applied": status == StatusCode::OK, "mistakes": mistakes, "warnings": warnings});
    Ok((status, axum::Json(body)).into_response())
}
