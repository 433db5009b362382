//! Serving operators on a port of their own.
//!
//! Not here: what they are shown: `routes`.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tower::ServiceExt;
use tracing::debug;

use super::accept::{accept_unless, places};
use super::draining::ConnectionSet;
use super::http1::http;
use super::routes;
use super::socket::Socket;
use crate::proxy::answer;
use crate::proxy::request::has_a_host;
use crate::proxy::state::AppState;
use crate::proxy::timers::Timers;
use crate::proxy::upstream::Chain;

/// How long connections in use may take to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Serves operators until the other end of `stop` is gone.
pub(crate) async fn serve(state: Arc<AppState>, listener: TcpListener, max: u64, stop: oneshot::Receiver<()>) {
    let connections = ConnectionSet::default();
    let places = places(max);
    let router = routes::of_operators(Arc::clone(&state));
    let timers = Arc::<Timers>::default();
    let mut stop = pin!(async {
        // An error says that the sender is gone, which means the same.
        let _ = stop.await;
    });
    while let Some((stream, place)) = accept_unless(&listener, &places, stop.as_mut()).await {
        let router = router.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let router = router.clone();
            async move {
                if has_a_host(&request) {
                    router.oneshot(request.map(Body::new)).await
                } else {
                    Ok(routes::own(answer::invalid_host()))
                }
            }
        });
        let server = &state.live().server;
        let socket = Socket::new(stream, timers.timer(), server.write_timeout);
        // So that it is of the same type as a client's.
        let connection = http(server, &timers).serve_connection(socket, service).with_upgrades();
        connections.serve(async move |drain| {
            if let Err(error) = drain.serve(pin!(connection)).await {
                debug!(error = %Chain(&error), "an operator's connection ended early");
            }
            drop(place);
        });
    }
    let _ = tokio::time::timeout(PATIENCE, connections.end()).await;
}
