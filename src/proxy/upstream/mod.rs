//! How a request reaches one provider: the only file that knows of connections. It knows nothing of breakers; what an
//! error means is for its caller to judge.
//!
//! Connections are HTTP/1.1, by hyper's client, one request at a time, and rest in a stack between requests.

mod http1;
mod idle;
mod tls;
mod wake;

use std::error::Error;
use std::fmt;
use std::io::{self, IoSlice};
use std::ops::ControlFlow;
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
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::ServiceExt;
use tracing::debug;

use http1::Http1;
use idle::Idle;

pub use tls::SetupError;
pub(crate) use tls::{Tls, read_ca_file};

use super::config::{ProviderConfig, Secret};
use super::pieces::Pieces;
use super::socket::write_pieces;
use super::upload::{Fault, Upload};

/// Shorter than the 5 s after which common servers (Node, uvicorn) close an idle connection themselves: one that is just
/// being closed costs a second try.
const IDLE_LIMIT: Duration = Duration::from_secs(4);
const MAX_IDLE: usize = 256;

/// A connection's bytes.
struct Stream(MaybeHttpsStream<TokioIo<TcpStream>>);

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        write_pieces(Pin::new(&mut self.0), cx, pieces)
    }
}

/// Frames that are there at once are handed on as one, up to this size: each that is handed on alone is a write of its own.
const MAX_MERGED: u64 = 16 << 10;

/// What a provider answers with. When it has been read, its connection can be used again.
pub(crate) struct UpstreamBody {
    body: Incoming,
    /// What comes after a frame that was handed on.
    ahead: Option<Result<Frame<Bytes>, hyper::Error>>,
    /// `None` once it has been read.
    loan: Option<Loan>,
}

/// A connection in use.
struct Loan {
    connection: Http1,
    idle: Arc<Idle>,
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { body, ahead, loan } = &mut *self;
        if let Some(frame) = ahead.take() {
            return Poll::Ready(Some(frame));
        }
        let Some(Loan { connection, .. }) = loan else { return Poll::Ready(None) };
        let mut pieces = Pieces::default();
        let mut is_over = false;
        let taken = connection.poll_frames(body, cx, |frame, body| {
            match frame {
                Some(Ok(frame)) if frame.is_data() => {
                    pieces.push(frame.into_data().unwrap_or_default());
                    if pieces.len() < MAX_MERGED && !body.is_end_stream() {
                        return ControlFlow::Continue(());
                    }
                }
                Some(other) => *ahead = Some(other),
                None => is_over = true,
            }
            ControlFlow::Break(())
        });
        if is_over && let Some(loan) = loan.take() {
            loan.end();
        }
        if pieces.len() > 0 {
            return Poll::Ready(Some(Ok(Frame::data(pieces.into_bytes()))));
        }
        taken.map(|()| ahead.take())
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_none() && (self.loan.is_none() || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        // One that was read to its known length has not been asked for its end.
        if self.body.is_end_stream()
            && let Some(loan) = self.loan.take()
        {
            loan.end();
        }
    }
}

impl Loan {
    /// The answer was read.
    fn end(self) {
        self.idle.put(self.connection);
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

/// One provider's address, key and connections, for one core.
pub(crate) struct Upstream {
    /// The provider's name, as a header has it.
    pub(crate) name: HeaderValue,
    url: Uri,
    host: HeaderValue,
    api_key: Option<Secret>,
    authorization: Option<HeaderValue>,
    connect_timeout: Duration,
    connector: HttpsConnector<HttpConnector>,
    idle: Arc<Idle>,
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
            name: HeaderValue::from_str(&config.name).expect("checked in the config"),
            host: HeaderValue::from_str(authority.as_str()).expect("an authority is visible ASCII"),
            url: config.url.clone(),
            api_key: config.api_key.clone(),
            authorization,
            connect_timeout: config.timeouts.connect,
            connector,
            idle: Idle::new(MAX_IDLE, IDLE_LIMIT),
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
            && let Some(mut connection) = self.idle.take()
        {
            match connection.send(self.request(head, RequestBody::Whole(bytes.clone()))).await {
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
        let response = connection.send(self.request(head, body)).await.map_err(SendError::Connection)?;
        Ok(self.lend(response, connection))
    }

    /// What a provider says about a request may quote its key.
    pub(crate) fn without_key(&self, body: Bytes) -> Bytes {
        let Some(key) = &self.api_key else { return body };
        key.strike_out(body)
    }

    async fn connect(&self) -> Result<Http1, Box<dyn Error + Send + Sync>> {
        let stream = self.connector.clone().oneshot(self.url.clone()).await?;
        Ok(Http1::new(Stream(stream)).await?)
    }

    fn lend(&self, response: Response<Incoming>, connection: Http1) -> Response<UpstreamBody> {
        let loan = Loan { connection, idle: Arc::clone(&self.idle) };
        response.map(|body| UpstreamBody { body, ahead: None, loan: Some(loan) })
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
