//! Serving the clients' connections that one core is given.
//!
//! Not here: what becomes of a request: `v1`.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Body;
use http::{Request, Response, Version, header};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::service::{HttpService, service_fn};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tower::ServiceExt;
use tracing::{debug, warn};

use super::cores::Accepted;
use super::draining::ConnectionSet;
use super::http1::http;
use super::routes;
use super::v1::{self, ClientBody};
use crate::proxy::answer;
use crate::proxy::core::Core;
use crate::proxy::observe::metrics::CloseReason;
use crate::proxy::request::has_a_host;
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
        let (http, socket) = http(&core.local().server, &core.timers, stream);
        let (has_asked, app) = (socket.has_asked(), Arc::clone(&core.app));
        let service = service(&core, &routers, socket.is_served());
        connections.serve(http.serve_connection(socket, service), move |ended| {
            if let Err(error) = ended {
                debug!(error = %Chain(&error), "a client's connection ended early");
                if let Some(reason) = close_reason(&error, has_asked.load(Ordering::Relaxed)) {
                    app.metrics.close(reason);
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

/// Why a connection ended early, or `None` if the client merely left, or was closed after a pause in which it asked for
/// nothing.
fn close_reason(error: &hyper::Error, has_asked: bool) -> Option<CloseReason> {
    let is_timeout = |error: &(dyn Error + 'static)| {
        error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
    };
    if error.is_parse_too_large() {
        Some(CloseReason::TooLarge)
    } else if error.is_parse() {
        Some(CloseReason::Malformed)
    } else if error.is_timeout() {
        has_asked.then_some(CloseReason::HeaderTimeout)
    } else {
        error.source().is_some_and(is_timeout).then_some(CloseReason::WriteTimeout)
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Either<ClientBody, Body>>, Infallible>> + Send>>;

#[derive(Clone)]
struct Routers {
    router: Router,
    /// For requests that a browser's page sends.
    pages: Router,
}

/// Answers as the router does, without the router's detours for requests below `/v1/`. The future is in a box that goes
/// with the request: otherwise an idle connection would keep the room for it.
fn service(
    core: &Arc<Core>,
    routers: &Routers,
    is_served: Arc<AtomicBool>,
) -> impl HttpService<Incoming, ResBody = Either<ClientBody, Body>, Error = Infallible, Future: Send> + Send + 'static {
    let (core, routers) = (Arc::clone(core), routers.clone());
    service_fn(move |request: Request<Incoming>| -> Answering {
        if !has_a_host(&request) {
            return Box::pin(async { Ok(routes::own(answer::invalid_host()).map(Either::Right)) });
        }
        is_served.store(request.version() == Version::HTTP_11, Ordering::Relaxed);
        let is_v1 = request.uri().path().strip_prefix("/v1/").is_some_and(|path| !path.is_empty());
        let is_a_pages = || !core.local().server.cors_origins.is_empty();
        if request.headers().contains_key(header::ORIGIN) && is_a_pages() {
            let router = routers.pages.clone();
            Box::pin(async move { Ok(router.oneshot(request.map(Body::new)).await?.map(Either::Right)) })
        } else if is_v1 {
            Box::pin(v1::serve(Arc::clone(&core), request, |answer| Ok(answer.map(Either::Left))))
        } else {
            let router = routers.router.clone();
            Box::pin(async move { Ok(router.oneshot(request.map(Body::new)).await?.map(Either::Right)) })
        }
    })
}
