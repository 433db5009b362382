//! How a request reaches one provider: the only file that knows of connections. It knows nothing of breakers; what an
//! error means is for its caller to judge.
//!
//! Connections are HTTP/1.1, by hyper's client, one request at a time, and rest in a stack between requests.

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::header::{self, HeaderValue};
use axum::http::uri::PathAndQuery;
use axum::http::{Request, Response, Uri, request};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::Instant;
use tower::ServiceExt;
use tracing::debug;

use super::config::{ProviderConfig, Secret};
use super::upload::{Fault, Upload};

/// Shorter than the 5 s after which common servers (Node, uvicorn) close an idle connection themselves: one that is just
/// being closed costs a second try.
const IDLE_LIMIT: Duration = Duration::from_secs(4);
const MAX_IDLE: usize = 256;

/// What a provider answers with. When it has been read, its connection can be used again.
pub(crate) struct UpstreamBody {
    // Dropped in this order: a body that has not been read to its end closes the connection.
    body: Incoming,
    _loan: Loan,
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What it is asked with.
pub(crate) enum RequestBody {
    Whole(Bytes),
    /// Can be sent only once.
    Upload(Box<Upload>),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        match &mut *self {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Upload(upload) => Pin::new(&mut **upload).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Upload(upload) => upload.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Upload(upload) => upload.size_hint(),
        }
    }
}

/// Whom to trust.
pub(crate) struct Tls {
    config: ClientConfig,
    own: Vec<CertificateDer<'static>>,
}

impl Tls {
    /// Connections that were made with the one may be used with the other.
    pub(crate) fn trusts_the_same(&self, other: &Self) -> bool {
        self.own == other.own
    }

    pub(crate) fn new(ca_file: Option<&Path>) -> Result<Self, SetupError> {
        let mut roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
        let mut own = Vec::new();
        if let Some(file) = ca_file {
            own = read_ca_file(file)?;
            for certificate in &own {
                roots.add(certificate.clone()).map_err(|error| SetupError(format!("{}: {error}", file.display())))?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| SetupError(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { config, own })
    }
}

pub(crate) fn read_ca_file(file: &Path) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let read = || CertificateDer::pem_file_iter(file)?.collect::<Result<Vec<_>, _>>();
    let certificates = read().map_err(|error| SetupError(format!("cannot be read: {error}")))?;
    if certificates.is_empty() { Err(SetupError("holds no certificate".into())) } else { Ok(certificates) }
}

/// The gateway cannot be set up as configured.
#[derive(Debug)]
pub struct SetupError(String);

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for SetupError {}

/// A request got no answer.
#[derive(Debug)]
pub(crate) enum SendError {
    /// No connection could be made.
    Connect(Box<dyn Error + Send + Sync>),
    /// None within so long.
    ConnectTimeout(Duration),
    /// The connection failed before the head of an answer was there.
    Connection(hyper::Error),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => Chain(&**error).fmt(f),
            Self::ConnectTimeout(limit) => write!(f, "no connection within {limit:?}"),
            Self::Connection(error) => Chain(error).fmt(f),
        }
    }
}

/// An error with its causes, which hold what an operator needs.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// One provider's address, key and connections.
pub(crate) struct Upstream {
    url: Uri,
    host: HeaderValue,
    api_key: Option<Secret>,
    authorization: Option<HeaderValue>,
    connect_timeout: Duration,
    connector: HttpsConnector<HttpConnector>,
    idle: Arc<Mutex<Vec<Idle>>>,
}

/// A connection in use.
struct Loan {
    connection: Option<Connection>,
    idle: Arc<Mutex<Vec<Idle>>>,
}

impl Drop for Loan {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take().filter(|connection| !connection.is_closed()) else { return };
        if connection.is_ready() {
            return rest(&self.idle, connection);
        }
        // The answer has arrived, but the task that reads it has not seen that yet.
        let idle = Arc::clone(&self.idle);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if connection.ready().await.is_ok() {
                    rest(&idle, connection);
                }
            });
        }
    }
}

fn rest(idle: &Mutex<Vec<Idle>>, connection: Connection) {
    let mut idle = idle.lock();
    let since = Instant::now();
    // The stack is in the order of their rest: what is too old lies at its bottom.
    let expired = idle.partition_point(|idle| since - idle.since >= IDLE_LIMIT);
    idle.drain(..expired);
    if idle.len() < MAX_IDLE {
        idle.push(Idle { connection, since });
    }
}

type Connection = SendRequest<RequestBody>;

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Upstream {
    pub(crate) fn new(config: &ProviderConfig, tls: &Tls) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        // With Nagle's algorithm a small request waits for the acknowledgement of the one before.
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.config.clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let authorization = config.api_key.as_ref().map(Secret::bearer);
        let authority = config.url.authority().expect("checked in the config");
        Self {
            host: HeaderValue::from_str(authority.as_str()).expect("an authority is visible ASCII"),
            url: config.url.clone(),
            api_key: config.api_key.clone(),
            authorization,
            connect_timeout: config.timeouts.connect,
            connector,
            idle: Arc::default(),
        }
    }

    /// Sends a request, `/v1/...` as the client sent it, and waits for the head of the answer.
    ///
    /// On a connection that was used before, a close that comes instead of an answer says nothing about the provider: it
    /// may have closed it for being idle while the request was on its way. The request then goes once more, on a new
    /// connection, whatever its method (RFC 9110 section 9.2.2 leaves this to who knows the semantics; asking a model twice
    /// changes nothing but a bill). A body that can be sent only once goes on a new connection from the start.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection that the request is on.
    pub(crate) async fn send(
        &self,
        head: &request::Parts,
        body: RequestBody,
    ) -> Result<Response<UpstreamBody>, SendError> {
        if let RequestBody::Whole(bytes) = &body
            && let Some(mut connection) = self.take_idle()
        {
            match connection.send_request(self.request(head, RequestBody::Whole(bytes.clone()))).await {
                Ok(response) => return Ok(self.lend(response, connection)),
                // That was an answer, if not one of HTTP.
                Err(error) if error.is_parse() => return Err(SendError::Connection(error)),
                Err(error) => debug!(host = ?self.host, error = %Chain(&error), "a reused connection was closed"),
            }
        }
        // In a box: most requests need none, and all that await this one would be as large as it.
        let connected = Box::pin(tokio::time::timeout(self.connect_timeout, self.connect())).await;
        let mut connection =
            connected.map_err(|_| SendError::ConnectTimeout(self.connect_timeout))?.map_err(SendError::Connect)?;
        let response = connection.send_request(self.request(head, body)).await.map_err(SendError::Connection)?;
        Ok(self.lend(response, connection))
    }

    /// What a provider says about a request may quote its key.
    pub(crate) fn without_key(&self, body: Bytes) -> Bytes {
        let Some(key) = &self.api_key else { return body };
        key.strike_out(body)
    }

    async fn connect(&self) -> Result<Connection, Box<dyn Error + Send + Sync>> {
        let stream = self.connector.clone().oneshot(self.url.clone()).await?;
        let (sender, connection) = http1::handshake(stream).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(error = %Chain(&error), "a provider's connection ended early");
            }
        });
        Ok(sender)
    }

    fn lend(&self, response: Response<Incoming>, connection: Connection) -> Response<UpstreamBody> {
        let loan = Loan { connection: Some(connection), idle: Arc::clone(&self.idle) };
        response.map(|body| UpstreamBody { body, _loan: loan })
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        loop {
            let Idle { connection, since } = idle.pop()?;
            if connection.is_ready() && since.elapsed() < IDLE_LIMIT {
                return Some(connection);
            }
        }
    }

    fn request(&self, head: &request::Parts, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = self.target(&head.uri);
        *request.headers_mut() = head.headers.clone();
        request.headers_mut().insert(header::HOST, self.host.clone());
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        request
    }

    /// The path of the base, which ends in the provider's own `/v1`, and what follows the gateway's.
    fn target(&self, asked: &Uri) -> Uri {
        let asked = asked.path_and_query().map_or("", PathAndQuery::as_str);
        let below = asked.strip_prefix("/v1").unwrap_or(asked);
        let path = format!("{}{below}", self.url.path().trim_end_matches('/'));
        path.parse().expect("two valid paths of limited length make one")
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("url", &self.url).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::GatewayConfig;

    fn upstream(url: &str) -> Upstream {
        let config = format!("[[providers]]\nname = 'a'\nurl = '{url}'\nmodels = ['m']");
        let config = GatewayConfig::from_toml(&config).unwrap();
        Upstream::new(&config.providers[0], &Tls::new(None).unwrap())
    }

    #[tokio::test]
    async fn a_connection_to_a_provider_has_no_delay() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = upstream(&format!("http://{}/v1", listener.local_addr().unwrap()));
        let stream = upstream.connector.clone().oneshot(upstream.url.clone()).await.unwrap();
        let hyper_rustls::MaybeHttpsStream::Http(stream) = stream else { panic!("no TLS was asked for") };
        assert!(stream.inner().nodelay().unwrap());
    }

    #[test]
    fn what_follows_v1_is_put_behind_the_base() {
        for (base, asked, target) in [
            ("http://a/v1", "/v1/chat/completions", "/v1/chat/completions"),
            ("http://a/v1/", "/v1/chat/completions?x=1", "/v1/chat/completions?x=1"),
            ("http://a/openai/deployments/x", "/v1/embeddings", "/openai/deployments/x/embeddings"),
            ("http://a", "/v1/embeddings", "/embeddings"),
        ] {
            assert_eq!(upstream(base).target(&asked.parse().unwrap()), target);
        }
    }
}
