//! `[server]`: the settings for clients and operators.
//!
//! Not here: everything else in the file: `config::read`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderValue, Uri};

use super::certificates::read_tls;
use super::pem::read_certificates;
use super::read::MILLISECOND;
use super::section::{MAX_DURATION, Section, Text};
use super::token::read_tokens;
use super::{Network, ServerTls, Token, memory};

/// `[server]`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The certificate that clients are served with. `None`: they connect without TLS.
    pub tls: Option<ServerTls>,
    /// How many threads serve clients. Each has its own connections to the providers.
    pub cores: u64,
    /// Where operators have the admin API, its page, `/health`, `/ready` and `/metrics`. `None`: the last three are on
    /// the clients' port, and there is no admin API.
    pub admin_listen: Option<SocketAddr>,
    /// The certificate of `admin_listen`, and who may connect there. `None`: operators connect without TLS.
    pub admin_tls: Option<ServerTls>,
    /// Who uses the admin API must present one of these tokens.
    pub admin_tokens: Vec<Token>,
    /// Where circuits that are open, orders by hand and what is learnt outlast the process. `None`: nowhere.
    pub state_file: Option<PathBuf>,
    /// A client must present one of these tokens. If there are none, anybody may send requests.
    pub auth_tokens: Vec<Token>,
    /// Proxies that are believed when they say whom a request is from.
    pub trusted_proxies: Vec<Network>,
    /// Whether a client may choose the provider, by the header `x-fusebox-provider`.
    pub allow_provider_header: bool,
    /// The origins whose pages may read answers (CORS). `*` stands for any. Without one, no page of another origin can.
    pub cors_origins: Vec<HeaderValue>,
    /// A PEM file of certificate authorities that are trusted in addition to the public ones.
    pub ca_file: Option<PathBuf>,
    /// Whether each request is logged.
    pub access_log: bool,
    /// The file that requests are logged to. `None`: standard output.
    pub access_log_file: Option<PathBuf>,
    /// A longer request body is refused.
    pub max_body_bytes: u64,
    /// A longer request body is not held, and so can be sent to one provider only.
    pub replay_body_bytes: u64,
    /// A longer request body is held up to this all the same, if its model has not been found yet.
    pub search_body_bytes: u64,
    /// An answer that is not a stream is held until it is complete. A longer one is passed on while it comes.
    pub replay_answer_bytes: u64,
    /// A longer message of a WebSocket session ends it.
    pub max_message_bytes: u64,
    /// How many bytes of bodies and answers all requests together may hold. Beyond that a body is not held, and an
    /// answer is passed on while it comes. The default is a quarter of the memory of the machine, or of its control
    /// group.
    pub max_held_bytes: u64,
    /// The limit for the request line and the headers together.
    pub max_header_bytes: u64,
    /// How many headers a request may have.
    pub max_headers: u64,
    /// How many client connections may be open at one time. Further ones wait.
    pub max_connections: u64,
    /// How long a client may take to send its headers.
    pub header_timeout: Duration,
    /// How long a client may pause within its body. All pauses together may take this long, and a second more for each
    /// KiB.
    pub body_timeout: Duration,
    /// How long a client may read nothing of its answer.
    pub write_timeout: Duration,
    /// When the client of a stream gets the head of its answer, and comments, though there is no content yet. `None`:
    /// with the first content.
    pub heartbeat_after: Option<Duration>,
    /// The time between two of these comments.
    pub heartbeat: Duration,
    /// After SIGTERM, how long `/ready` answers 503 before connections are refused.
    pub drain_delay: Duration,
    /// How long requests in flight may take to finish after that.
    pub drain_limit: Duration,
}

/// The smallest `max_held_bytes`.
pub(super) const MIN_HELD_BYTES: u64 = 1 << 20;

impl ServerConfig {
    /// Whether operators have to show a token or a certificate.
    pub(crate) fn knows_its_operators(&self) -> bool {
        !self.admin_tokens.is_empty() || self.admin_tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            tls: None,
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64),
            admin_listen: None,
            admin_tls: None,
            admin_tokens: Vec::new(),
            state_file: None,
            auth_tokens: Vec::new(),
            trusted_proxies: Vec::new(),
            allow_provider_header: false,
            cors_origins: Vec::new(),
            ca_file: None,
            access_log: true,
            access_log_file: None,
            max_body_bytes: 512 << 20,
            replay_body_bytes: 8 << 20,
            search_body_bytes: 64 << 20,
            replay_answer_bytes: 1 << 20,
            max_message_bytes: 16 << 20,
            max_held_bytes: memory::of_this_process().map_or(1 << 30, |memory| memory / 4).max(MIN_HELD_BYTES),
            max_header_bytes: 64 << 10,
            max_headers: 100,
            max_connections: 10_000,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            heartbeat_after: None,
            heartbeat: Duration::from_secs(15),
            drain_delay: Duration::ZERO,
            drain_limit: Duration::from_secs(30),
        }
    }
}

pub(super) fn read_server(mut section: Section<'_, '_>) -> ServerConfig {
    let mut server = ServerConfig::default();
    // A name that needs no question to anybody.
    let local = |text: &str| Some(SocketAddr::from(([127, 0, 0, 1], text.strip_prefix("localhost:")?.parse().ok()?)));
    let address = |text: &str| text.parse::<SocketAddr>().ok().or_else(|| local(text));
    let expected = "an address such as \"127.0.0.1:8080\"";
    if let Some(listen) = section.parse("listen", expected, address) {
        server.listen = listen;
    }
    section.count("cores", 1..=1024, &mut server.cores);
    server.admin_listen = section.parse("admin_listen", expected, address);
    if server.admin_listen == Some(server.listen) && server.listen.port() != 0 {
        section.mistake("admin_listen", &format!("\"{}\"", server.listen), "another address than server.listen");
    }
    server.admin_tls = read_tls(&mut section, "admin_tls");
    server.admin_tokens = read_tokens(&mut section, "admin_tokens");
    let is_open = !server.knows_its_operators();
    if let Some(admin) = server.admin_listen.filter(|admin| !admin.ip().is_loopback() && is_open) {
        // Whoever reaches it could isolate every provider.
        let expected = "a loopback address, or admin_tokens, or admin_tls with a client_ca";
        section.mistake("admin_listen", &format!("\"{admin}\""), expected);
    }
    for field in ["admin_tls", "admin_tokens"] {
        if section.has(field) && server.admin_listen.is_none() {
            section.warn(field, "has no effect without admin_listen");
        }
    }
    server.state_file = read_path(&mut section, "state_file");
    server.auth_tokens = read_tokens(&mut section, "auth_tokens");
    if server.auth_tokens.is_empty() && !server.listen.ip().is_loopback() {
        section.warn(
            "listen",
            "is not a loopback address and there are no auth_tokens: anybody who reaches it may send requests",
        );
    }
    server.tls = read_tls(&mut section, "tls");
    read_proxies(&mut section, &mut server.trusted_proxies);
    section.flag("allow_provider_header", &mut server.allow_provider_header);
    read_cors(&mut section, &mut server.cors_origins);
    if let Some(Text { shown, value }) = section.text("ca_file", "a path") {
        let file = PathBuf::from(value);
        if let Err(error) = read_certificates(&file) {
            section.mistake("ca_file", &format!("{shown}, which {error}"), "a PEM file with certificates");
        }
        server.ca_file = Some(file);
    }
    section.flag("access_log", &mut server.access_log);
    server.access_log_file = read_path(&mut section, "access_log_file");
    if section.has("access_log_file") && !server.access_log {
        section.warn("access_log_file", "has no effect, since access_log is false");
    }
    section.count("max_body_bytes", 1..=1 << 40, &mut server.max_body_bytes);
    section.count("replay_body_bytes", 1024..=1 << 30, &mut server.replay_body_bytes);
    section.count("search_body_bytes", 1024..=1 << 30, &mut server.search_body_bytes);
    section.count("replay_answer_bytes", 0..=1 << 30, &mut server.replay_answer_bytes);
    section.count("max_message_bytes", 1024..=1 << 30, &mut server.max_message_bytes);
    section.count("max_held_bytes", MIN_HELD_BYTES..=1 << 50, &mut server.max_held_bytes);
    section.count("max_header_bytes", 8 << 10..=1 << 20, &mut server.max_header_bytes);
    section.count("max_headers", 1..=10_000, &mut server.max_headers);
    section.count("max_connections", 1..=1_000_000, &mut server.max_connections);
    section.duration("header_timeout", MILLISECOND..=MAX_DURATION, &mut server.header_timeout);
    section.duration("body_timeout", MILLISECOND..=MAX_DURATION, &mut server.body_timeout);
    section.duration("write_timeout", MILLISECOND..=MAX_DURATION, &mut server.write_timeout);
    section.optional_duration("heartbeat_after", MILLISECOND..=MAX_DURATION, &mut server.heartbeat_after);
    section.duration("heartbeat", MILLISECOND..=MAX_DURATION, &mut server.heartbeat);
    if section.has("heartbeat") && server.heartbeat_after.is_none() {
        section.warn("heartbeat", "has no effect without heartbeat_after");
    }
    section.duration("drain_delay", Duration::ZERO..=MAX_DURATION, &mut server.drain_delay);
    section.duration("drain_limit", Duration::ZERO..=MAX_DURATION, &mut server.drain_limit);
    section.finish();
    server
}

fn read_cors(server: &mut Section<'_, '_>, origins: &mut Vec<HeaderValue>) {
    let (at, table) = server.table("cors");
    let mut section = Section::new("server.cors.".into(), at, table, server.report);
    let expected = "an origin such as \"https://app.example.com\", or \"*\"";
    for (index, Text { shown, value }) in section.texts("origins", expected).into_iter().enumerate() {
        // A browser sends scheme, host and port, and compares them as texts.
        let uri: Option<Uri> = value.parse().ok();
        let is_origin = uri.is_some_and(|uri| {
            uri.scheme().is_some() && uri.authority().is_some() && !value.ends_with('/') && uri.path() == "/"
        });
        let is_lower = value.bytes().all(|byte| !byte.is_ascii_uppercase());
        match HeaderValue::from_str(&value) {
            Ok(origin) if value == "*" || is_origin && is_lower && !value.contains(['?', '#', '@']) => {
                origins.push(origin);
            }
            _ => section.mistake(&format!("origins[{index}]"), &shown, expected),
        }
    }
    section.finish();
}

/// The path of a file that is to be written.
fn read_path(section: &mut Section<'_, '_>, field: &'static str) -> Option<PathBuf> {
    let Text { shown, value } = section.text(field, "a path")?;
    let path = PathBuf::from(value);
    let folder = path.parent().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    if path.is_dir() || path.file_name().is_none() || !folder.is_some_and(Path::is_dir) {
        section.mistake(field, &shown, "the path of a file, in a folder that exists");
    }
    Some(path)
}

fn read_proxies(section: &mut Section<'_, '_>, proxies: &mut Vec<Network>) {
    let expected = "an address or a network such as \"10.0.0.0/8\"";
    for (index, Text { shown, value }) in section.texts("trusted_proxies", expected).into_iter().enumerate() {
        match value.parse() {
            Ok(network) => proxies.push(network),
            Err(()) => section.mistake(&format!("trusted_proxies[{index}]"), &shown, expected),
        }
    }
}
