//! Routes and the accept loop.
//!
//! Not here: what becomes of a request: `forward`.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::client_body::ClientBody;
use super::config::ServerConfig;
use super::cores::{Connection, Core, Cores};
use super::descriptors::Shares;
use super::drain::Connections;
use super::lines::LineWriter;
use super::metrics::Cut;
use super::socket::Socket;
use super::state::AppState;
use super::timers::{HyperTimer, Timers};
use super::upstream::Chain;
use super::{answer, forward, health, log};

/// The clients' routes: everything below `/v1/`; and `/health`, `/ready` and `/metrics` where operators have no port of their
/// own.
pub fn create_router(state: Arc<AppState>) -> Router {
    create_router_of(&Core::new(state))
}

fn create_router_of(core: &Arc<Core>) -> Router {
    let state = Arc::clone(&core.app);
    let core = Arc::clone(core);
    let v1 = async move |request: Request| forward::v1(core.clone(), request, |answer| answer.map(Body::new)).await;
    let mut router = Router::new().route("/v1/{*path}", any(v1));
    if state.live().server.admin_listen.is_none() {
        router = with_health(router.route("/metrics", get(metrics_for_clients)));
    }
    finish(router, state)
}

/// The operators' routes: `/health`, `/ready` and `/metrics`.
pub fn create_admin_router(state: Arc<AppState>) -> Router {
    finish(with_health(Router::new().route("/metrics", get(metrics))), state)
}

fn with_health(router: Router<Arc<AppState>>) -> Router<Arc<AppState>> {
    router.route("/health", get(health::health)).route("/ready", get(health::ready))
}

fn finish(router: Router<Arc<AppState>>, state: Arc<AppState>) -> Router {
    router
        .fallback(async || answer::finished(answer::not_found()))
        .method_not_allowed_fallback(async || answer::finished(answer::method_not_allowed()))
        .with_state(state)
}

async fn metrics(State(state): State<Arc<AppState>>) -> Response {
    let lost = state.access_log().map_or(0, LineWriter::lost);
    let live = state.live();
    let detectors = live.providers.iter().filter_map(|provider| Some((provider.name(), &**provider.silence.as_ref()?)));
    let text = state.metrics.encode(&state.circuit_breakers, detectors, lost, log::lost(), state.budget.held());
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
///
/// Clients are served by `cores` threads of their own; the runtime that this runs on accepts their connections.
///
/// # Cancel safety
///
/// Dropping it closes all connections at once.
///
/// # Errors
///
/// If the listener cannot be set up, the threads not be started, or the process may open too few files; then nobody was
/// served.
pub async fn run_server(
    state: Arc<AppState>,
    listener: TcpListener,
    admin: Option<TcpListener>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    widen_queue(&listener)?;
    let cores = Cores::start(&state, serve_clients)?;
    let shares = shares(&state)?;
    let (drained, stop_admin) = oneshot::channel::<()>();
    let admin =
        admin.map(|admin| tokio::spawn(serve_operators(Arc::clone(&state), admin, shares.operators, stop_admin)));
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
    if let Some(admin) = admin {
        // It has nothing to lose but a panic's message, which has been printed.
        let _ = admin.await;
    }
    Ok(())
}

/// Lets as many connections wait to be accepted as the system allows, and not the 128 that a listener of std or tokio has: one
/// that finds no room is tried again by its client's kernel a second later.
fn widen_queue(listener: &TcpListener) -> io::Result<()> {
    SockRef::from(listener).listen(i32::from(u16::MAX))
}

fn shares(state: &AppState) -> io::Result<Shares> {
    let ServerConfig { max_connections, cores, .. } = state.live().server;
    let shares = Shares::of_this_process(max_connections, cores)?;
    if shares.clients < max_connections {
        let taken = shares.clients;
        warn!(max_connections, taken, "fewer connections of clients are taken than server.max_connections");
    }
    Ok(shares)
}

fn places(max: u64) -> Arc<Semaphore> {
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)))
}

/// Until the other end of `stop` is gone.
async fn serve_operators(state: Arc<AppState>, listener: TcpListener, max: u64, stop: oneshot::Receiver<()>) {
    let connections = Connections::default();
    let places = places(max);
    let router = create_admin_router(Arc::clone(&state));
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
                    Ok(answer::finished(answer::invalid_host()))
                }
            }
        });
        let (http, socket) = http(&state.live().server, &timers, stream);
        connections.serve(http.serve_connection(socket, service), |ended| {
            if let Err(error) = ended {
                debug!(error = %Chain(&error), "an operator's connection ended early");
            }
            drop(place);
        });
    }
    let _ = tokio::time::timeout(Duration::from_secs(1), connections.end()).await;
}

/// The next connection, and its place among those there may be.
async fn accept_unless(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    mut shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    loop {
        let accepted = async {
            let place = Arc::clone(places).acquire_owned().await.expect("it is never closed");
            accept(listener).await.map(|stream| (stream, place))
        };
        tokio::select! {
            accepted = accepted => match accepted {
                Ok(accepted) => return Some(accepted),
                Err(error) => {
                    // Out of file descriptors, most likely: connections that end will free some.
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            () = &mut shutdown => return None,
        }
    }
}

/// Serves the connections that one core is given, each with the limits of the configuration at its beginning, until there are
/// no more to come and all have ended, or until `stop`.
pub(crate) async fn serve_clients(
    core: Arc<Core>,
    mut handed: mpsc::UnboundedReceiver<Connection>,
    stop: oneshot::Receiver<()>,
) {
    let router = create_router_of(&core);
    let connections = Connections::default();
    while let Some(Connection { stream, place }) = handed.recv().await {
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "a connection could not be taken over");
                continue;
            }
        };
        let (http, socket) = http(&core.local().server, &core.timers, stream);
        let (has_asked, app) = (socket.has_asked(), Arc::clone(&core.app));
        connections.serve(http.serve_connection(socket, service(&core, &router)), move |ended| {
            if let Err(error) = ended {
                debug!(error = %Chain(&error), "a client's connection ended early");
                if let Some(reason) = Cut::of(&error, has_asked.load(Ordering::Relaxed)) {
                    app.metrics.cut(reason);
                }
            }
            drop(place);
        });
    }
    tokio::select! {
        () = connections.end() => {}
        _ = stop => {}
    }
}

impl Cut {
    /// Why a connection ended early, if that was the client's doing and more than to leave. One that has asked for nothing may
    /// be silent for a while, and is then closed.
    fn of(error: &hyper::Error, has_asked: bool) -> Option<Self> {
        let is_timeout = |error: &(dyn Error + 'static)| {
            error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
        };
        if error.is_parse_too_large() {
            Some(Self::TooLarge)
        } else if error.is_parse() {
            Some(Self::Malformed)
        } else if error.is_timeout() {
            has_asked.then_some(Self::HeaderTimeout)
        } else {
            error.source().is_some_and(is_timeout).then_some(Self::WriteTimeout)
        }
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Either<ClientBody, Body>>, Infallible>> + Send>>;

/// As the router answers, without its detours for a client's request to a model. In a box that is gone when the request is: an
/// idle connection would keep the room for it.
fn service(
    core: &Arc<Core>,
    router: &Router,
) -> impl HttpService<Incoming, ResBody = Either<ClientBody, Body>, Error = Infallible, Future: Send> + Send + 'static {
    let (core, router) = (Arc::clone(core), router.clone());
    service_fn(move |request: hyper::Request<Incoming>| -> Answering {
        if !has_a_host(&request) {
            return Box::pin(async { Ok(answer::finished(answer::invalid_host()).map(Either::Right)) });
        }
        let is_v1 = request.uri().path().strip_prefix("/v1/").is_some_and(|path| !path.is_empty());
        if is_v1 {
            Box::pin(forward::v1(Arc::clone(&core), request, |answer| Ok(answer.map(Either::Left))))
        } else {
            let router = router.clone();
            Box::pin(async move { Ok(router.oneshot(request.map(Body::new)).await?.map(Either::Right)) })
        }
    })
}

/// Whether there is one host, or none where the protocol has none.
fn has_a_host<B>(request: &hyper::Request<B>) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.is_empty() || Authority::try_from(host.as_bytes()).is_ok(),
        (None, _) => request.version() < Version::HTTP_11,
        (Some(_), Some(_)) => false,
    }
}

/// Of what a client sends, as long as nobody has read it. hyper's own limit is 400 KiB, for each connection.
const MAX_BUFFERED: u64 = 64 << 10;

/// hyper's own limit.
const USUAL_HEADERS: u64 = 100;

fn http(server: &ServerConfig, timers: &Arc<Timers>, stream: TcpStream) -> (http1::Builder, Socket) {
    let mut http = http1::Builder::new();
    http.timer(HyperTimer(Arc::clone(timers))).header_read_timeout(server.header_timeout);
    let bytes = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
    http.max_header_size(bytes(server.max_header_bytes));
    http.max_buf_size(bytes(server.max_header_bytes.max(MAX_BUFFERED)));
    // Any limit that is set costs an allocation for each request.
    if server.max_headers != USUAL_HEADERS {
        http.max_headers(bytes(server.max_headers));
    }
    (http, Socket::new(stream, timers.timer(), server.write_timeout))
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
