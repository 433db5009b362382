//! Serving operators on a port of their own.
//!
//! Not here: what they are shown: `routes` and `admin`.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower::ServiceExt;
use tracing::debug;

use super::accept::{accept_unless, places};
use super::draining::{ConnectionSet, Drain};
use super::http1::http;
use super::routes;
use super::socket::{Socket, Transport};
use crate::proxy::admin::events;
use crate::proxy::answer;
use crate::proxy::request::client::Peer;
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
    // Its end ends the streams of events.
    let telling = JoinSet::from_iter([events::tell(Arc::clone(&state))]);
    while let Some((stream, place)) = accept_unless(&listener, &places, stop.as_mut()).await {
        let peer = stream.peer_addr().ok().map(Peer);
        let (state, router, timers) = (Arc::clone(&state), router.clone(), Arc::clone(&timers));
        connections.serve(async move |drain| {
            let served = match state.admin_certificates.acceptor() {
                None => serve_one(&state, router, &timers, stream, peer, &drain).await,
                Some(acceptor) => {
                    let handshake = timeout(state.live().server.header_timeout, acceptor.accept(stream));
                    match drain.unless_begun(handshake).await {
                        None => Ok(()),
                        Some(Ok(Ok(stream))) => serve_one(&state, router, &timers, stream, peer, &drain).await,
                        Some(Ok(Err(error))) => Err(error.into()),
                        Some(Err(late)) => Err(late.into()),
                    }
                }
            };
            if let Err(error) = served {
                debug!(error = %Chain(&*error), "an operator's connection ended early");
            }
            drop(place);
        });
    }
    drop(telling);
    state.pages.send_replace(Arc::from(""));
    let _ = timeout(PATIENCE, connections.end()).await;
}

async fn serve_one<T: Transport>(
    state: &AppState,
    router: Router,
    timers: &Arc<Timers>,
    stream: T,
    peer: Option<Peer>,
    drain: &Drain,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let service = service_fn(move |mut request: Request<Incoming>| {
        let router = router.clone();
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
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
    let connection = http(server, timers).serve_connection(socket, service).with_upgrades();
    Ok(drain.serve(pin!(connection)).await?)
}
