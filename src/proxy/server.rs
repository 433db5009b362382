//! State, routes and the accept loop.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, info, warn};

use super::attempt::Provider;
use super::config::GatewayConfig;
use super::upstream::{SetupError, Tls};
use super::{answer, forward, health};
use crate::{CircuitBreaker, CircuitBreakerRegistry};

const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// What every request needs: the providers and their breakers.
#[derive(Debug)]
pub struct AppState {
    /// One breaker per provider, by its name.
    pub circuit_breakers: Arc<CircuitBreakerRegistry>,
    by_model: BTreeMap<String, Vec<Arc<Provider>>>,
    drain_limit: Duration,
}

impl AppState {
    /// Prepares the providers. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// If `ca_file` cannot be used.
    pub fn new(config: &GatewayConfig) -> Result<Arc<Self>, SetupError> {
        let tls = Tls::new(config.server.ca_file.as_deref())?;
        let circuit_breakers = Arc::new(CircuitBreakerRegistry::default());
        let mut by_model: BTreeMap<String, Vec<Arc<Provider>>> = BTreeMap::new();
        let providers: Vec<_> = config
            .providers
            .iter()
            .map(|config| {
                let breaker = CircuitBreaker::new(config.name.as_str(), config.breaker.clone());
                Arc::new(Provider::new(config, circuit_breakers.insert_breaker(breaker), &tls))
            })
            .collect();
        for (model, candidates) in config.candidates() {
            by_model.insert(model.to_owned(), candidates.iter().map(|index| Arc::clone(&providers[*index])).collect());
        }
        Ok(Arc::new(Self { circuit_breakers, by_model, drain_limit: config.server.drain_limit }))
    }

    /// The providers of a model, in the order in which they are asked.
    pub(crate) fn candidates(&self, model: &str) -> Option<&[Arc<Provider>]> {
        self.by_model.get(model).map(Vec::as_slice)
    }
}

/// The clients' routes: `/v1/...` and `/health`.
pub fn create_router(state: Arc<AppState>) -> Router {
    let router = Router::new().route("/v1/models", get(models)).route("/v1/{*path}", any(forward::forward));
    finish(router, state)
}

/// The operators' routes: `/health`.
pub fn create_admin_router(state: Arc<AppState>) -> Router {
    finish(Router::new(), state)
}

fn finish(router: Router<Arc<AppState>>, state: Arc<AppState>) -> Router {
    router
        .route("/health", get(health::health))
        .fallback(answer::not_found)
        .method_not_allowed_fallback(answer::method_not_allowed)
        .with_state(state)
}

/// `GET /v1/models`.
async fn models(State(state): State<Arc<AppState>>) -> Response {
    let model = |(model, providers): (&String, &Vec<Arc<Provider>>)| {
        let owner = providers.first().map(|provider| &provider.name);
        json!({"id": model, "object": "model", "created": 0, "owned_by": owner})
    };
    let data: Vec<_> = state.by_model.iter().map(model).collect();
    axum::Json(json!({"object": "list", "data": data})).into_response()
}

/// Serves clients on `listener`, and operators on `admin`, until `shutdown` completes. Then no connection is accepted any
/// more, and requests in flight, streams included, have the configured `drain_limit` to finish. The admin port stays to the
/// end.
pub async fn run_server(
    state: Arc<AppState>,
    listener: TcpListener,
    admin: Option<TcpListener>,
    shutdown: impl Future<Output = ()>,
) {
    let drain_limit = state.drain_limit;
    let (drained, stop_admin) = tokio::sync::oneshot::channel::<()>();
    let admin = admin.map(|admin| {
        let router = create_admin_router(Arc::clone(&state));
        tokio::spawn(serve(router, admin, Duration::from_secs(1), async {
            // An error says that the sender is gone, which means the same.
            let _ = stop_admin.await;
        }))
    });
    serve(create_router(state), listener, drain_limit, shutdown).await;
    drop(drained);
    if let Some(admin) = admin {
        // It has nothing to lose but a panic's message, which has been printed.
        let _ = admin.await;
    }
}

async fn serve(router: Router, listener: TcpListener, drain_limit: Duration, shutdown: impl Future<Output = ()>) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let graceful = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let stream = tokio::select! {
            accepted = accept(&listener) => match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: connections that end will free some.
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut shutdown => break,
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a client's connection ended early");
            }
        });
    }
    drop(listener);
    info!(connections = graceful.count(), limit = ?drain_limit, "draining");
    if tokio::time::timeout(drain_limit, graceful.shutdown()).await.is_err() {
        warn!("requests were still in flight when the drain limit ended");
    }
}

async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    // With Nagle's algorithm a chunk of a stream waits for the acknowledgement of the one before, 40 ms.
    stream.set_nodelay(true)?;
    Ok(stream)
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
