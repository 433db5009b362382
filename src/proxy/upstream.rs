//! Connections to one provider, and sending requests on them.
//!
//! Not here: breakers, and what an error means for them: `route`.
//!
//! Each core has connections of its own. An HTTP/1 connection (`http1`, by hyper's client) serves one request at a
//! time. The task that uses it polls it (`wake`), and between requests it waits in a stack (`idle`). An HTTP/2
//! connection (`http2`) serves many requests at once, and a task of its own polls it.

mod body;
mod hidden;
mod http1;
mod http2;
mod idle;
mod resolve;
mod session;
mod tls;
mod wake;

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Parts, PathAndQuery};
use http::{Request, Response, Uri, Version, request};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connection as _, HttpConnector};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tower::ServiceExt;
use tracing::debug;

use body::Loan;
use hidden::Hidden;
use http1::Http1;
use http2::{Http2, Http2Pool};
use idle::Idle;
use resolve::TooManyLookups;

pub(crate) use body::{RequestBody, UpstreamBody};
pub(crate) use resolve::Resolver;
pub use tls::SetupError;
pub(crate) use tls::Tls;

use super::config::{ProviderConfig, Secret};

/// Why a request got no answer.
#[derive(Debug)]
pub(crate) enum SendError {
    /// No connection could be made.
    Connect(Box<dyn Error + Send + Sync>),
    /// No connection could be made because this process or this machine has run out of something.
    Shortage(Box<dyn Error + Send + Sync>),
    /// No connection was made within this time.
    ConnectTimeout(Duration),
    /// The connection failed before the head of an answer came.
    Connection(hyper::Error),
    /// The same of a reused connection, after the provider may have worked on the request for this long.
    Cut(hyper::Error, Duration),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) | Self::Shortage(error) => Chain(&**error).fmt(f),
            Self::ConnectTimeout(limit) => write!(f, "no connection within {limit:?}"),
            Self::Connection(error) => Chain(error).fmt(f),
            Self::Cut(error, after) => write!(f, "{} after {after:?}", Chain(error)),
        }
    }
}

/// Shows an error with all its causes.
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

/// The byte stream of a connection.
type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

/// One provider's address, key and connections, for one core.
pub(crate) struct Upstream {
    /// The provider's name, for a header.
    pub(crate) name: HeaderValue,
    url: Uri,
    /// The path of the base URL, which includes the provider's own `/v1`.
    base: String,
    host: HeaderValue,
    /// The header that shows the key, with each of them.
    key_header: HeaderName,
    keys: Box<[HeaderValue]>,
    /// Other headers of the provider's own.
    headers: HeaderMap,
    query: Option<Secret>,
    /// What no answer may show.
    secrets: Vec<Hidden>,
    connect_timeout: Duration,
    /// How long it took to make the newest connection.
    connect_micros: AtomicU64,
    connector: HttpsConnector<HttpConnector<Resolver>>,
    /// A session begins over HTTP/1.1, whatever else is spoken.
    connector_for_sessions: HttpsConnector<HttpConnector<Resolver>>,
    /// Without TLS the two sides cannot negotiate the version.
    is_http2_only: bool,
    idle: Arc<Idle>,
    http2: Http2Pool,
}

impl Upstream {
    /// `cores` is how many cores share the limit for idle connections.
    pub(crate) fn new(config: &ProviderConfig, tls: &Tls, resolver: &Resolver, cores: u64) -> Self {
        let builder = || HttpsConnectorBuilder::new().with_tls_config(tls.config.clone()).https_or_http();
        let tcp = tcp(HttpConnector::new_with_resolver(resolver.clone()), config.timeouts.connect);
        let connector_for_sessions = builder().enable_http1().wrap_connector(tcp.clone());
        let connector = match config.http2 {
            Some(true) => builder().enable_http2().wrap_connector(tcp),
            Some(false) => builder().enable_http1().wrap_connector(tcp),
            None => builder().enable_all_versions().wrap_connector(tcp),
        };
        let keys = config.api_keys.iter().map(|key| key.behind(&config.key_prefix)).collect();
        let authority = config.url.authority().expect("checked in the config");
        let connections = &config.connections;
        let max_idle = usize::try_from(connections.max_idle.div_ceil(cores)).unwrap_or(usize::MAX);
        Self {
            name: HeaderValue::from_str(&config.name).expect("checked in the config"),
            host: HeaderValue::from_str(authority.as_str()).expect("an authority is visible ASCII"),
            base: config.url.path().trim_end_matches('/').to_owned(),
            url: config.url.clone(),
            key_header: config.key_header.clone(),
            keys,
            headers: config.headers.clone(),
            query: config.query.clone(),
            secrets: config.secrets.iter().map(Hidden::new).collect(),
            connect_timeout: config.timeouts.connect,
            connect_micros: AtomicU64::new(0),
            connector,
            connector_for_sessions,
            is_http2_only: config.http2 == Some(true),
            idle: Idle::new(max_idle, connections.idle_limit, connections.max_age),
            http2: Http2Pool::new(connections.max_age),
        }
    }

    /// Sends a request with the path `/v1/...` as the client sent it, and with one of the keys, by its place. Waits for
    /// the head of the answer.
    ///
    /// If a reused connection is closed at once, before any answer, that says nothing about the provider: it may have
    /// closed the idle connection while the request was on its way. The request is then sent once more, on a new
    /// connection, whatever its method (RFC 9110 section 9.2.2 leaves this to those who know the semantics; asking a
    /// model twice changes only the bill). If it is closed later, the provider has worked on the request, and the
    /// answer is cut. A body that can be sent only once is sent on a new connection from the start.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection that the request is on, or the stream if it is HTTP/2.
    pub(crate) async fn send(
        &self,
        head: &request::Parts,
        key: usize,
        body: RequestBody,
    ) -> Result<Response<UpstreamBody>, SendError> {
        behind_the_others().await;
        let can_be_sent_again = matches!(body, RequestBody::Whole(_));
        if let RequestBody::Whole(parts) = &body
            && let Some(connection) = self.rested()
        {
            let sent = Instant::now();
            match self.ask(connection, head, key, RequestBody::Whole(parts.clone())).await {
                Ok(response) => return Ok(response),
                Err(error) if is_an_answer(&error) => return Err(SendError::Connection(error)),
                Err(error) if sent.elapsed() > self.at_once() && !was_not_processed(&error) => {
                    return Err(SendError::Cut(error, sent.elapsed()));
                }
                Err(error) => debug!(host = ?self.host, error = %Chain(&error), "a reused connection was closed"),
            }
        }
        // In a box: most requests need no new connection, and the futures around this one would be as large as it.
        let connected = Box::pin(timeout(self.connect_timeout, self.connect(can_be_sent_again))).await;
        let connected = connected.map_err(|_| SendError::ConnectTimeout(self.connect_timeout))?;
        let connection = connected.map_err(|error| connect_error(error, self.connect_timeout))?;
        self.ask(connection, head, key, body).await.map_err(SendError::Connection)
    }

    /// A close that comes within this time after the request was sent was under way already. It takes less than a round
    /// trip to arrive, and making a connection takes more than one.
    fn at_once(&self) -> Duration {
        Duration::from_micros(self.connect_micros.load(Ordering::Relaxed)).clamp(AT_ONCE.0, AT_ONCE.1)
    }

    /// A connection that was used before, if one is free.
    fn rested(&self) -> Option<Connection> {
        self.idle.take().map(Connection::Http1).or_else(|| self.http2.take(None).map(Connection::Http2))
    }

    async fn ask(
        &self,
        connection: Connection,
        head: &request::Parts,
        key: usize,
        body: RequestBody,
    ) -> hyper::Result<Response<UpstreamBody>> {
        let (response, loan) = match connection {
            Connection::Http1(mut connection) => {
                let response = connection.send(|| self.request(head, key, body, Version::HTTP_11)).await?;
                (response, Loan::Http1(connection, Arc::clone(&self.idle)))
            }
            Connection::Http2(mut connection) => {
                let response = connection.send(|| self.request(head, key, body, Version::HTTP_2)).await;
                if response.as_ref().is_err_and(|error| !is_an_answer(error)) {
                    self.http2.forget(&connection);
                }
                (response?, Loan::Http2 { _until_dropped: connection })
            }
        };
        Ok(response.map(|body| UpstreamBody::new(body, loan)))
    }

    /// `body` with stars in place of the secrets: a provider's answer may quote them.
    pub(crate) fn without_secrets(&self, body: Bytes) -> Bytes {
        self.secrets.iter().fold(body, |body, secret| secret.strike_out(body))
    }

    /// A provider's own words, for a log.
    pub(crate) fn showable(&self, text: &str) -> String {
        let text = self.without_secrets(Bytes::copy_from_slice(text.as_bytes()));
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Replaces the secrets in headers by stars: a provider may echo a request's headers.
    pub(crate) fn strike_out_secrets(&self, headers: &mut HeaderMap) {
        for secret in &self.secrets {
            for value in headers.values_mut() {
                if let Some(struck_out) = secret.strike_out_of(value) {
                    *value = struck_out;
                }
            }
        }
    }

    /// Makes a connection. If it `may_share`, an HTTP/2 connection that another request has made meanwhile is used as
    /// well, but not an older one, which may be as dead as the one before.
    async fn connect(&self, may_share: bool) -> Result<Connection, Box<dyn Error + Send + Sync>> {
        let begun = Instant::now();
        // If one HTTP/2 connection serves all requests, they do not all reconnect when it is lost.
        let _turn = self.http2.turn().await;
        if may_share && let Some(connection) = self.http2.take(Some(begun)) {
            return Ok(Connection::Http2(connection));
        }
        let dialled = Instant::now();
        let stream = self.connector.clone().oneshot(self.url.clone()).await?;
        let took = u64::try_from(dialled.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.connect_micros.store(took, Ordering::Relaxed);
        if self.is_http2_only || stream.connected().is_negotiated_h2() {
            return Ok(Connection::Http2(self.http2.connect(stream).await?));
        }
        self.http2.is_not_spoken();
        Ok(Connection::Http1(Http1::new(stream).await?))
    }

    fn request(&self, head: &request::Parts, key: usize, body: RequestBody, version: Version) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.headers_mut() = head.headers.clone();
        let mut target = Parts::default();
        target.path_and_query = Some(self.target(&head.uri));
        if version == Version::HTTP_2 {
            target.scheme = self.url.scheme().cloned();
            target.authority = self.url.authority().cloned();
        } else {
            request.headers_mut().insert(header::HOST, self.host.clone());
        }
        *request.uri_mut() = Uri::from_parts(target).expect("the parts of a URI");
        *request.version_mut() = version;
        for (name, value) in &self.headers {
            request.headers_mut().insert(name.clone(), value.clone());
        }
        if let Some(value) = self.keys.get(key) {
            request.headers_mut().insert(self.key_header.clone(), value.clone());
        }
        request
    }

    /// The path of the base URL, followed by what comes after `/v1` in the client's path, and the provider's own query,
    /// whose names replace the client's.
    fn target(&self, asked: &Uri) -> PathAndQuery {
        let asked = asked.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/v1"));
        if self.base == "/v1" && self.query.is_none() {
            return asked;
        }
        let below = asked.as_str().strip_prefix("/v1").unwrap_or(asked.as_str());
        let mut path = format!("{}{below}", self.base);
        if let Some(query) = &self.query {
            let own = query.expose();
            let name = |pair: &str| percent_decode_str(pair.split('=').next().unwrap_or_default()).collect::<Vec<_>>();
            let is_own = |pair: &&str| own.split('&').any(|own| name(own) == name(pair));
            let theirs = asked.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty() && !is_own(pair));
            path.truncate(path.find('?').unwrap_or(path.len()));
            let pairs: Vec<_> = theirs.chain([own]).collect();
            path = format!("{path}?{}", pairs.join("&"));
        }
        path.parse().expect("two valid paths of limited length make one")
    }
}

enum Connection {
    Http1(Http1),
    Http2(Http2),
}

/// Lets every other ready task run first. Requests that come together are all read before they are sent, so that a
/// provider on the same machine is woken once for several of them. That saves a twentieth of what a request costs.
async fn behind_the_others() {
    let mut has_waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Whether an error shows that the provider has seen the request, and that its connection was not merely closed: the
/// provider sent something that is not HTTP, or reset the stream with another code than `REFUSED_STREAM` (RFC 9113
/// section 8.7).
fn is_an_answer(error: &hyper::Error) -> bool {
    error.is_parse() || http2::reset_by_provider(error).is_some_and(|reason| reason != h2::Reason::REFUSED_STREAM)
}

/// Why a connection could not be made within `limit`.
fn connect_error(error: Box<dyn Error + Send + Sync>, limit: Duration) -> SendError {
    if is_own_shortage(&*error) {
        SendError::Shortage(error)
    } else if any_io_error(&*error, |error| error.kind() == io::ErrorKind::TimedOut) {
        // hyper's own limit expires first if this thread was held up beyond both limits.
        SendError::ConnectTimeout(limit)
    } else {
        SendError::Connect(error)
    }
}

/// The bounds of [`Upstream::at_once`]: from what a busy machine takes to the longest round trip on earth.
const AT_ONCE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// Whether an error says that the provider has not begun with the request: it was never sent, or the provider refused
/// its stream (RFC 9113 section 8.7).
fn was_not_processed(error: &hyper::Error) -> bool {
    error.is_canceled() || http2::reset_by_provider(error) == Some(h2::Reason::REFUSED_STREAM)
}

/// Whether a connection could not be made because this machine or this process has run out of descriptors, ports,
/// memory or threads. Then the provider has not even been asked.
fn is_own_shortage(error: &(dyn Error + 'static)) -> bool {
    // `EMFILE`, `ENFILE`, `EADDRNOTAVAIL`, `ENOBUFS`, `ENOMEM`; and `EAGAIN`, for a thread that cannot be started.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const SHORT: [i32; 6] = [24, 23, 99, 105, 12, 11];
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const SHORT: [i32; 6] = [24, 23, 49, 55, 12, 35];
    any_io_error(error, |error| {
        error.raw_os_error().is_some_and(|code| SHORT.contains(&code))
            || error.get_ref().is_some_and(<dyn Error + Send + Sync>::is::<TooManyLookups>)
    })
}

/// Whether an error, or one of its causes, is an I/O error of this kind. An error inside of an `io::Error` is not its
/// source, and is examined as well.
fn any_io_error(error: &(dyn Error + 'static), is_it: fn(&io::Error) -> bool) -> bool {
    std::iter::successors(Some(error), |error| (*error).source()).any(|error| {
        let io = error.downcast_ref::<io::Error>();
        io.is_some_and(is_it) || io.and_then(io::Error::get_ref).is_some_and(|inside| any_io_error(inside, is_it))
    })
}

/// If a host has several addresses, each gets a share of the time, and IPv4 does not wait for IPv6 (RFC 8305). A host
/// is looked up for each new connection.
fn tcp<R>(mut tcp: HttpConnector<R>, connect_timeout: Duration) -> HttpConnector<R> {
    tcp.enforce_http(false);
    // With Nagle's algorithm a small request waits for the acknowledgement of the one before.
    tcp.set_nodelay(true);
    // A little more than the gateway's own limit, so that the gateway's expires first if there is one address.
    tcp.set_connect_timeout(Some(connect_timeout + connect_timeout / 8));
    tcp
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
    use crate::proxy::body::parts::Parts;

    fn upstream(url: &str) -> Upstream {
        let config = format!("[[providers]]\nname = 'a'\nurl = '{url}'\nmodels = ['m']");
        let config = GatewayConfig::from_toml(&config).unwrap();
        Upstream::new(&config.providers[0], &Tls::new(None).unwrap(), &Resolver::new(), 1)
    }

    #[tokio::test]
    async fn a_connection_to_a_provider_has_no_delay() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = upstream(&format!("http://{}/v1", listener.local_addr().unwrap()));
        let stream = upstream.connector.clone().oneshot(upstream.url.clone()).await.unwrap();
        let hyper_rustls::MaybeHttpsStream::Http(stream) = stream else { panic!("no TLS was asked for") };
        assert!(stream.inner().nodelay().unwrap());
    }

    #[tokio::test]
    async fn a_host_is_looked_up_for_each_connection_and_all_its_addresses_are_tried() {
        use std::net::SocketAddr;

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // Of the first lookup's addresses only the last one listens. Of the second lookup's none does.
        let lookups = [&["[::1]:0", "127.0.0.2:0", "127.0.0.1:0"][..], &["127.0.0.2:0"]];
        let number = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let resolver = tower::service_fn(move |_| {
            let found = lookups[number.fetch_add(1, std::sync::atomic::Ordering::Relaxed)];
            async move { Ok::<_, std::io::Error>(found.iter().map(|address| address.parse::<SocketAddr>().unwrap())) }
        });
        let mut tcp = tcp(HttpConnector::new_with_resolver(resolver), Duration::from_secs(5));
        let url: Uri = format!("http://provider.test:{port}/v1").parse().unwrap();
        tcp.ready().await.unwrap();
        let stream = tower::Service::call(&mut tcp, url.clone()).await.unwrap();
        assert_eq!(stream.inner().peer_addr().unwrap(), listener.local_addr().unwrap());
        let error = tower::Service::call(&mut tcp, url).await.unwrap_err();
        assert!(Chain(&error).to_string().contains("refused"), "{}", Chain(&error));
    }

    #[tokio::test]
    async fn a_request_is_sent_after_all_other_ready_tasks_have_run() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let upstream = upstream(&format!("http://{}/v1", listener.local_addr().unwrap()));
        let (head, ()) = Request::post("/v1/chat/completions").body(()).unwrap().into_parts();
        let is_sent = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let sent = Arc::clone(&is_sent);
        let sending = tokio::spawn(async move {
            sent.store(true, std::sync::atomic::Ordering::Relaxed);
            upstream.send(&head, 0, RequestBody::Whole(Parts::default())).await.map(drop)
        });
        // It stands for another request that can be read, and runs when the first one has begun.
        tokio::spawn(async move {
            assert!(is_sent.load(std::sync::atomic::Ordering::Relaxed));
            assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody has connected");
            drop(listener);
        })
        .await
        .unwrap();
        assert!(matches!(sending.await.unwrap(), Err(SendError::Connect(_))));
    }

    #[test]
    fn a_shortage_is_recognized_however_deep_it_is_nested() {
        let code = |code| std::io::Error::from_raw_os_error(code);
        for short in [24, 23, 12] {
            assert!(is_own_shortage(&code(short)));
            assert!(is_own_shortage(&std::io::Error::other(code(short))));
            assert!(is_own_shortage(&std::io::Error::other(std::io::Error::other(code(short)))));
        }
        assert!(is_own_shortage(&std::io::Error::other(TooManyLookups)));
        assert!(!is_own_shortage(&code(111)) && !is_own_shortage(&std::io::Error::other("refused")));
    }

    #[test]
    fn the_path_below_v1_is_appended_to_the_base() {
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
