//! The gateway as its embedders see it: its routes, and serving them.
//!
//! Not here: connections: `edge`.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::certificates::Certificates;
use super::config::ServerConfig;
use super::core::Core;
use super::edge::accept::{accept_unless, places, widen_queue};
use super::edge::cores::Cores;
use super::edge::descriptors::Shares;
use super::edge::{clients, operators, routes};
use super::keeper::Keeper;
use super::replica;
use super::state::AppState;
#[cfg(feature = "otel")]
use super::traces::export::Traces;

/// The clients' routes: everything below `/v1/`; and `/health`, `/ready` and `/metrics` if operators have no port of
/// their own.
///
/// The server that it is put into has to check the `host` header, as [`run_server`] does (RFC 9112 section 3.2).
pub fn create_router(state: Arc<AppState>) -> Router {
    routes::of_clients(&Core::new(state))
}

/// The operators' routes: the admin API and its page, `/health`, `/ready` and `/metrics`. Figures of every second, the
/// transitions and the ends of orders need [`run_server`].
///
/// Without `admin_tokens`, whoever reaches these routes may change circuits: serve them on a loopback address, or
/// behind something that knows its clients.
pub fn create_admin_router(state: Arc<AppState>) -> Router {
    routes::of_operators(state)
}

/// Serves clients on `listener`, and operators on `admin`, until `shutdown` completes. Then `/ready` answers 503 for
/// `drain_delay`. After that no connection is accepted any more, and requests in flight, streams included, have
/// `drain_limit` to finish. The admin port is served to the end.
///
/// Clients are served by `cores` threads of their own. The runtime that this future runs on accepts their connections.
///
/// # Cancel safety
///
/// Dropping it closes all connections at once.
///
/// # Errors
///
/// If the listener cannot be set up, the threads cannot be started, or the process may open too few files. Then nobody
/// was served.
pub async fn run_server(
    state: Arc<AppState>,
    listener: TcpListener,
    admin: Option<TcpListener>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let shares = shares(&state)?;
    widen_queue(&listener)?;
    Certificates::watch(Arc::downgrade(&state), |state: &AppState| [&state.certificates, &state.admin_certificates])?;
    #[cfg(feature = "otel")]
    let traces = start_traces(&state)?;
    let keeper = Keeper::new(&state);
    let fleet = replica::join(&state);
    let cores = Cores::start(&state, clients::serve)?;
    // They end with this function.
    let mut beside = JoinSet::new();
    beside.spawn({
        let state = Arc::clone(&state);
        async move { state.chronicle.follow().await }
    });
    beside.spawn({
        let state = Arc::clone(&state);
        async move { state.end_orders().await }
    });
    let (drained, stop_admin) = oneshot::channel::<()>();
    let admin =
        admin.map(|admin| tokio::spawn(operators::serve(Arc::clone(&state), admin, shares.operators, stop_admin)));
    let keeper = keeper.map(Arc::new);
    if let Some(keeper) = &keeper {
        let keeper = Arc::clone(keeper);
        beside.spawn(async move { keeper.run().await });
    }
    let shutdown = async {
        shutdown.await;
        state.begin_drain();
        tokio::time::sleep(state.live().server.drain_delay).await;
    };
    let places = places(shares.clients);
    let mut shutdown = pin!(shutdown);
    while let Some((stream, place)) = accept_unless(&listener, &places, shutdown.as_mut()).await {
        cores.hand_over(stream, place);
    }
    drop(listener);
    let limit = state.live().server.drain_limit;
    info!(connections = state.metrics.connections.load(Ordering::Relaxed), ?limit, "draining");
    if !cores.drain(limit).await {
        warn!("requests were still in flight when the drain limit ended");
    }
    drop(drained);
    drop(beside);
    drop(fleet);
    #[cfg(feature = "otel")]
    if let Some(traces) = traces {
        traces.end().await;
    }
    if let Some(keeper) = keeper {
        keeper.end().await;
    }
    if let Some(admin) = admin {
        // An error says that it panicked, which has been logged.
        let _ = admin.await;
    }
    Ok(())
}

/// `None` if the configuration names no collector.
#[cfg(feature = "otel")]
fn start_traces(state: &AppState) -> io::Result<Option<Arc<Traces>>> {
    let Some(config) = &state.traces_started_with else { return Ok(None) };
    let traces = Arc::new(Traces::start(config, &state.live().tls).map_err(io::Error::other)?);
    // It is served once.
    let _ = state.traces.set(Arc::clone(&traces));
    Ok(Some(traces))
}

fn shares(state: &AppState) -> io::Result<Shares> {
    let ServerConfig { max_connections, cores, .. } = state.live().server;
    let shares = Shares::of_this_process(max_connections, cores)?;
    if shares.clients < max_connections {
        let taken = shares.clients;
        warn!(max_connections, taken, "fewer client connections are accepted than server.max_connections");
    }
    Ok(shares)
}
