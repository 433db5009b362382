//! Serving the clients' connections that one core is given.
//!
//! Not here: what becomes of a request: `v1`.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Body;
use http::{Request, Response, StatusCode, Version, header};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::cores::Accepted;
use super::draining::{Connection, ConnectionSet, Drain};
use super::http1::http;
use super::http2::{Http2, Watched};
use super::routes;
use super::session::{self, Slot};
use super::socket::{Socket, Transport};
use super::v1::{self, ClientBody};
use crate::proxy::answer;
use crate::proxy::config::ServerConfig;
use crate::proxy::core::Core;
use crate::proxy::observe::metrics::CloseReason;
use crate::proxy::protocol::Protocol;
use crate::proxy::request::client::Peer;
use crate::proxy::request::has_a_host;
use crate::proxy::request::session::is_asked_for;
use crate::proxy::upstream::Chain;

/// Serves connections, each with the limits of the configuration at its beginning, until no more can come and all have
/// ended, or until `stop`.
pub(crate) async fn serve(core: Arc<Core>, mut handed: mpsc::UnboundedReceiver<Accepted>, stop: oneshot::Receiver<()>) {
    let router = routes::of_clients(&core);
    let routers = Routers { pages: routes::of_pages(&core, router.clone()), router };
    let connections = ConnectionSet::default();
    while let Some(Accepted { stream, place }) = handed.recv().await {
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "a connection could not be taken over");
                continue;
            }
        };
        let peer = stream.peer_addr().ok().map(Peer);
        let client = Client { core: Arc::clone(&core), routers: routers.clone(), peer };
        connections.serve(async move |drain| {
            if let Err(Early { error, reason }) = client.serve(stream, &drain).await {
                debug!(error = %Chain(&*error), "a client's connection ended early");
                if let Some(reason) = reason {
                    client.core.app.metrics.close(reason);
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

/// A connection that ended early, and why; no reason if the client merely left, or was closed after a pause in which it
/// asked for nothing.
struct Early {
    error: Box<dyn Error + Send + Sync>,
    reason: Option<CloseReason>,
}

impl Early {
    /// Before it was known which protocol the client speaks.
    fn at_first(error: io::Error, has_asked: bool) -> Self {
        let is_timeout = error.kind() == io::ErrorKind::TimedOut && has_asked;
        Self { error: error.into(), reason: is_timeout.then_some(CloseReason::HeaderTimeout) }
    }

    /// A client that leaves before it has said anything only looks whether the port is open.
    fn of_tls(error: io::Error) -> Self {
        let has_left = error.kind() == io::ErrorKind::UnexpectedEof;
        Self { error: error.into(), reason: (!has_left).then_some(CloseReason::TlsHandshake) }
    }

    fn of_http(error: hyper::Error, has_asked: bool) -> Self {
        let is_timeout = |error: &(dyn Error + 'static)| {
            error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
        };
        let reason = if error.is_parse_too_large() {
            Some(CloseReason::TooLarge)
        } else if error.is_parse() {
            Some(CloseReason::Malformed)
        } else if error.is_timeout() {
            has_asked.then_some(CloseReason::HeaderTimeout)
        } else {
            error.source().is_some_and(is_timeout).then_some(CloseReason::WriteTimeout)
        };
        Self { error: error.into(), reason }
    }
}

/// What a connection is served with.
struct Client {
    core: Arc<Core>,
    routers: Routers,
    peer: Option<Peer>,
}

impl Client {
    async fn serve(&self, stream: TcpStream, drain: &Drain) -> Result<(), Early> {
        let local = self.core.local();
        let server = &local.server;
        if let Some(acceptor) = self.core.app.certificates.acceptor() {
            // What is larger than a connection without TLS is in a box.
            return Box::pin(self.over_tls(acceptor, stream, server, drain)).await;
        }
        let mut socket = Socket::new(stream, self.core.timers.timer(), server.write_timeout);
        let Some(begins) = drain.unless_begun(socket.begins_with_http2(server.header_timeout)).await else {
            return Ok(());
        };
        let has_asked = socket.has_asked();
        match begins {
            Ok(false) => {
                let slot = Slot::default();
                let connection = pin!(self.http1(server, socket, slot.clone()));
                drop(local);
                let ended = drain.serve(connection).await;
                ended.map_err(|error| Early::of_http(error, has_asked.load(Ordering::Relaxed)))?;
                slot.run(drain).await;
                Ok(())
            }
            Ok(true) => {
                let connection = pin!(self.http2(server, socket));
                drop(local);
                drain.serve(connection).await.map_err(|error| Early::of_http(error, true))
            }
            Err(error) => Err(Early::at_first(error, has_asked.load(Ordering::Relaxed))),
        }
    }

    async fn over_tls(
        &self,
        acceptor: TlsAcceptor,
        stream: TcpStream,
        server: &ServerConfig,
        drain: &Drain,
    ) -> Result<(), Early> {
        let handshake = timeout(server.header_timeout, acceptor.accept(stream));
        let stream = match drain.unless_begun(handshake).await {
            None => return Ok(()),
            Some(Ok(Ok(stream))) => stream,
            Some(Ok(Err(error))) => return Err(Early::of_tls(error)),
            Some(Err(late)) => return Err(Early::of_tls(late.into())),
        };
        let speaks_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let socket = Socket::new(stream, self.core.timers.timer(), server.write_timeout);
        if speaks_http2 {
            let connection = pin!(self.http2(server, socket));
            return drain.serve(connection).await.map_err(|error| Early::of_http(error, true));
        }
        let (has_asked, slot) = (socket.has_asked(), Slot::default());
        let connection = pin!(self.http1(server, socket, slot.clone()));
        let ended = drain.serve(connection).await;
        ended.map_err(|error| Early::of_http(error, has_asked.load(Ordering::Relaxed)))?;
        slot.run(drain).await;
        Ok(())
    }

    /// `slot` is where a session is put that the connection becomes.
    fn http1<T: Transport>(
        &self,
        server: &ServerConfig,
        socket: Socket<T>,
        slot: Slot,
    ) -> impl Connection + Send + use<T> {
        let service = service(&self.core, &self.routers, self.peer, socket.is_served(), Some(slot));
        http(server, &self.core.timers).serve_connection(socket, service).with_upgrades()
    }

    fn http2<T: Transport>(&self, server: &ServerConfig, socket: Socket<T>) -> impl Connection + Send + use<T> {
        let Core { app, timers, .. } = &*self.core;
        let (max_headers, service) =
            (server.max_headers, service(&self.core, &self.routers, self.peer, socket.is_served(), None));
        let service = service_fn(move |request: Request<Incoming>| -> WatchedAnswering {
            if request.headers().len() as u64 > max_headers {
                return Box::pin(async { Ok(too_many_headers().map(Either::Right).map(Watched)) });
            }
            let answer = service.call(request);
            Box::pin(async move { Ok(answer.await?.map(Watched)) })
        });
        Http2::new(app, timers, server, socket, service)
    }
}

type Answering<B = Either<ClientBody, Body>> = Pin<Box<dyn Future<Output = Result<Response<B>, Infallible>> + Send>>;
type WatchedAnswering = Answering<Watched<Either<ClientBody, Body>>>;

#[derive(Clone)]
struct Routers {
    router: Router,
    /// For requests that a browser's page sends.
    pages: Router,
}

/// As hyper answers for HTTP/1.
fn too_many_headers() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    response
}

/// Answers as the router does, without the router's detours for requests below `/v1/`. The future is in a box that goes
/// with the request: otherwise an idle connection would keep the room for it.
fn service(
    core: &Arc<Core>,
    routers: &Routers,
    peer: Option<Peer>,
    is_served: Arc<AtomicBool>,
    slot: Option<Slot>,
) -> impl Service<Request<Incoming>, Response = Response<Either<ClientBody, Body>>, Error = Infallible, Future = Answering>
+ Send
+ 'static
+ use<> {
    let (core, routers) = (Arc::clone(core), routers.clone());
    service_fn(move |mut request: Request<Incoming>| -> Answering {
        if !has_a_host(&request) {
            let protocol = Protocol::of(request.uri().path(), request.headers());
            let answer = protocol.own(answer::invalid_host(), None);
            return Box::pin(async { Ok(routes::own(answer).map(Either::Right)) });
        }
        is_served.store(request.version() == Version::HTTP_11, Ordering::Relaxed);
        let is_v1 = request.uri().path().strip_prefix("/v1/").is_some_and(|path| !path.is_empty());
        let is_session = is_asked_for(&request);
        if let (true, Some(slot)) = (is_session, &slot) {
            request.extensions_mut().insert(slot.clone());
        }
        let is_a_pages = || !core.local().server.cors_origins.is_empty();
        if request.headers().contains_key(header::ORIGIN) && is_a_pages() {
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            let router = routers.pages.clone();
            Box::pin(async move { Ok(router.oneshot(request.map(Body::new)).await?.map(Either::Right)) })
        } else if is_v1 && is_session {
            Box::pin(session::serve(Arc::clone(&core), peer, request, |answer| Ok(answer.map(Either::Left))))
        } else if is_v1 {
            Box::pin(v1::serve(Arc::clone(&core), peer, request, |answer| Ok(answer.map(Either::Left))))
        } else {
            let router = routers.router.clone();
            Box::pin(async move { Ok(router.oneshot(request.map(Body::new)).await?.map(Either::Right)) })
        }
    })
}
