//! Routes and the accept loop.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::access_log::AccessLog;
use super::config::ServerConfig;
use super::record::ClientBody;
use super::state::AppState;
use super::{answer, forward, health};

/// The clients' routes: everything below `/v1/`, `/health` and `/ready`; `/metrics` where operators have no port of their own.
pub fn create_router(state: Arc<AppState>) -> Router {
    let v1 = async |State(state), request: Request| forward::v1(state, request).await.map(Body::new);
    let mut router = Router::new().route("/v1/{*path}", any(v1));
    if state.live().server.admin_listen.is_none() {
        router = router.route("/metrics", get(metrics_for_clients));
    }
    finish(router, state)
}

/// The operators' routes: `/health`, `/ready` and `/metrics`.
pub fn create_admin_router(state: Arc<AppState>) -> Router {
    finish(Router::new().route("/metrics", get(metrics)), state)
}

fn finish(router: Router<Arc<AppState>>, state: Arc<AppState>) -> Router {
    router
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .fallback(async || answer::finished(answer::not_found()))
        .method_not_allowed_fallback(async || answer::finished(answer::method_not_allowed()))
        .with_state(state)
}

async fn metrics(State(state): State<Arc<AppState>>) -> Response {
    let text = state.metrics.encode(&state.circuit_breakers, state.access_log().map_or(0, AccessLog::lost));
    (StatusCode::OK, [(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// Where clients have to show a token, it takes one to see who the providers are.
async fn metrics_for_clients(state: State<Arc<AppState>>, headers: HeaderMap) -> Response {
    if forward::is_authorized(&state.live().server.auth_tokens, &headers) {
        metrics(state).await
    } else {
        answer::finished(answer::unauthorized())
    }
}

/// Serves clients on `listener`, and operators on `admin`, until `shutdown` completes. Then `/ready` says no for
/// `drain_delay`; then no connection is accepted any more, and requests in flight, streams included, have `drain_limit` to
/// finish. The admin port stays to the end.
pub async fn run_server(
    state: Arc<AppState>,
    listener: TcpListener,
    admin: Option<TcpListener>,
    shutdown: impl Future<Output = ()>,
) {
    let (drained, stop_admin) = tokio::sync::oneshot::channel::<()>();
    let admin = admin.map(|admin| {
        let router = create_admin_router(Arc::clone(&state));
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let stop = async {
                // An error says that the sender is gone, which means the same.
                let _ = stop_admin.await;
            };
            let connections = accept_until(&state, router, admin, stop, Audience::Operators).await;
            let _ = tokio::time::timeout(Duration::from_secs(1), connections.shutdown()).await;
        })
    });
    let shutdown = async {
        shutdown.await;
        state.begin_drain();
        tokio::time::sleep(state.live().server.drain_delay).await;
    };
    let router = create_router(Arc::clone(&state));
    let connections = accept_until(&state, router, listener, shutdown, Audience::Clients).await;
    let limit = state.live().server.drain_limit;
    info!(connections = connections.count(), ?limit, "draining");
    if tokio::time::timeout(limit, connections.shutdown()).await.is_err() {
        warn!("requests were still in flight when the drain limit ended");
    }
    drop(drained);
    if let Some(admin) = admin {
        // It has nothing to lose but a panic's message, which has been printed.
        let _ = admin.await;
    }
}

/// Operators need few connections, and clients must not take them away.
const MAX_OPERATORS: usize = 256;

#[derive(Clone, Copy)]
enum Audience {
    Clients,
    Operators,
}

/// Returns the connections that are left. Each has the limits of the configuration at its beginning.
async fn accept_until(
    state: &Arc<AppState>,
    router: Router,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
    audience: Audience,
) -> GracefulShutdown {
    let graceful = GracefulShutdown::new();
    let max = match audience {
        Audience::Clients => usize::try_from(state.live().server.max_connections).unwrap_or(usize::MAX),
        Audience::Operators => MAX_OPERATORS,
    };
    let places = Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)));
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
            accept(&listener).await.map(|stream| (stream, place))
        };
        let (stream, place) = tokio::select! {
            accepted = accepted => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: connections that end will free some.
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut shutdown => return graceful,
        };
        let service = service(state, &router, audience);
        let connection = http(&state.live().server).serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        let counted = matches!(audience, Audience::Clients).then(|| Counted::new(state));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a client's connection ended early");
            }
            drop((counted, place));
        });
    }
}

/// As the router answers, without its boxes around a client's request to a model.
fn service(
    state: &Arc<AppState>,
    router: &Router,
    audience: Audience,
) -> impl HttpService<Incoming, ResBody = Either<ClientBody, Body>, Error = Infallible, Future: Send> + Send + 'static {
    let (state, router) = (Arc::clone(state), router.clone());
    service_fn(move |request: hyper::Request<Incoming>| {
        let is_v1 = matches!(audience, Audience::Clients)
            && request.uri().path().strip_prefix("/v1/").is_some_and(|path| !path.is_empty());
        let (state, router) = (Arc::clone(&state), (!is_v1).then(|| router.clone()));
        async move {
            match router {
                None => Ok(forward::v1(state, request).await.map(Either::Left)),
                Some(router) => Ok(router.oneshot(request.map(Body::new)).await?.map(Either::Right)),
            }
        }
    })
}

fn http(server: &ServerConfig) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(server.header_timeout);
    let bytes = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
    http.max_header_size(bytes(server.max_header_bytes));
    // Anything else than hyper's own limit costs an allocation for each request.
    if server.max_headers != ServerConfig::default().max_headers {
        http.max_headers(bytes(server.max_headers));
    }
    http
}

async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    // With Nagle's algorithm a chunk of a stream waits for the acknowledgement of the one before, 40 ms.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Counts a client's connection while it lasts.
struct Counted(Arc<AppState>);

impl Counted {
    fn new(state: &Arc<AppState>) -> Self {
        state.metrics.connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(state))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.metrics.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_to_a_client_has_no_delay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), accept(&listener));
        client.unwrap();
        assert!(accepted.unwrap().nodelay().unwrap());
    }
}
