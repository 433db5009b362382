//! The configuration, checked. `fusebox.example.toml` documents every field.
//!
//! Not here: reading it: `config::read`; applying it: `state`.

mod certificates;
mod file;
mod fleet;
mod limits;
mod memory;
mod network;
mod pem;
mod read;
mod section;
mod sent;
mod server;
mod token;
mod traces;
mod url;
mod variables;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderName};
use http::{HeaderMap, HeaderValue, Uri};
use serde::Deserialize;
use strum::VariantArray;
use subtle::ConstantTimeEq;

pub use self::certificates::ServerTls;
pub(crate) use self::certificates::{BadFile, WallClock};
pub(crate) use self::file::read_file;
pub use self::limits::{Connections, Limits, Timeouts};
pub use self::network::Network;
pub(crate) use self::pem::read_certificates;
pub use self::server::ServerConfig;
pub use self::token::Token;
pub use self::traces::TracesConfig;
use super::protocol::{Protocol, Protocols};
use crate::error::Escaped;
use crate::fleet::FleetConfig;
use crate::{Config, silence};

/// The mistakes in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<String>);

impl ConfigErrors {
    /// One line for each mistake, in the order of the text: the place, the field, the value unless it is secret, and
    /// what is expected.
    pub fn mistakes(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

/// A text that is never shown in logs, errors or pages. Two secrets are compared in constant time.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// `None` if the text cannot be sent as a token in a header.
    pub(crate) fn new(text: String) -> Option<Self> {
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then_some(Self(text))
    }

    /// For a value that is checked elsewhere.
    pub(crate) fn any(text: String) -> Self {
        Self(text)
    }

    /// Takes the same time wherever the two differ. Only the length can be found out by timing.
    pub(crate) fn is(&self, other: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(other).into()
    }

    /// The value of a header that shows it.
    pub(crate) fn behind(&self, prefix: &str) -> HeaderValue {
        let mut value = HeaderValue::from_str(&format!("{prefix}{}", self.0)).expect("checked in the config");
        value.set_sensitive(true);
        value
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.is(other.0.as_bytes())
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The order in which the providers of a model are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Strategy {
    /// The order of the file.
    #[default]
    Priority,
    /// The lowest sum of input and output rate first. Equal sums keep the order of the file.
    Cheapest,
}

/// The whole configuration, checked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GatewayConfig {
    /// The settings for clients and operators.
    pub server: ServerConfig,
    /// The order in which providers are asked.
    pub strategy: Strategy,
    /// What becomes of a request that a provider has not answered.
    pub failover: FailoverConfig,
    /// How long a provider is not asked that asks to wait.
    pub cooldowns: Cooldowns,
    /// The replicas that tell each other what they find out. `None`: nobody is told.
    pub fleet: Option<FleetConfig>,
    /// Where traces are sent. `None`: nowhere.
    pub traces: Option<TracesConfig>,
    /// The providers, in the order of the file.
    pub providers: Vec<ProviderConfig>,
    warnings: Vec<String>,
}

/// `[failover]`: what becomes of a request that a provider has not answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailoverConfig {
    /// What a request does that has no provider to ask.
    pub when_all_open: WhenAllOpen,
    /// How often one request is sent at most. `None`: once to each provider that serves its model.
    pub max_attempts: Option<u64>,
    /// The names of the providers that are asked when another one's context is too short for a request.
    pub fallback_on_context_length: Vec<String>,
}

/// What a request does while all circuits that could let it pass are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WhenAllOpen {
    /// It becomes the probe of the circuit that reopens first, before that time, but not before the circuit has been
    /// open for a second.
    #[default]
    ProbeEarly,
    /// It is answered 503.
    Refuse,
}

/// `[cooldown]`: how long a model is not asked whose provider asks to wait, and a provider that refuses the key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cooldowns {
    /// If the provider does not say how long: 5 s, or `max` if that is less. It doubles, up to `max`, while it repeats.
    pub default: Duration,
    /// The longest one, whatever the provider says.
    pub max: Duration,
    /// After a key was refused, or an account was found empty. It doubles, up to six times as long, while it repeats.
    pub key: Duration,
}

impl Cooldowns {
    /// The longest one after a key was refused.
    pub(crate) fn key_max(&self) -> Duration {
        self.key * 6
    }
}

impl Default for Cooldowns {
    fn default() -> Self {
        Self { default: Duration::from_secs(5), max: Duration::from_secs(300), key: Duration::from_secs(300) }
    }
}

/// One of the `[[providers]]`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ProviderConfig {
    /// Its unique name in logs, health and metrics.
    pub name: String,
    /// The base URL, as for an SDK: `/v1` is included.
    pub url: Uri,
    /// The protocols that it speaks.
    pub protocols: Protocols,
    /// The keys of which one is sent with each request. Several are used in turn.
    pub api_keys: Vec<Secret>,
    /// The header that a key is sent in.
    pub key_header: HeaderName,
    /// What stands before it there.
    pub key_prefix: String,
    /// Headers that are sent with each request. They replace the client's of the same names.
    pub headers: HeaderMap,
    /// What is added to the query of each request, encoded.
    pub query: Option<Secret>,
    /// What is struck out of its answers: the key, and what headers and query take from the environment.
    pub(crate) secrets: Vec<Secret>,
    /// The models that it serves: the clients' name for each, and the provider's.
    pub models: BTreeMap<String, String>,
    /// The price of a million input tokens.
    pub input_rate: Option<f64>,
    /// The price of a million output tokens.
    pub output_rate: Option<f64>,
    /// Whether it is asked over HTTP/2. `None`: if it is negotiated over TLS, otherwise not.
    pub http2: Option<bool>,
    /// The connections to it.
    pub connections: Connections,
    /// Its time limits.
    pub timeouts: Timeouts,
    /// How many requests it has at once.
    pub limits: Limits,
    /// The settings of its breaker.
    pub breaker: Config,
    /// When it counts as silent. `None`: never.
    pub silence: Option<silence::Config>,
}

impl GatewayConfig {
    /// Reads and checks a file of up to 8 MiB, for at most 10 s: it may be a pipe, or on a disk that does not answer.
    /// No port is bound.
    ///
    /// # Errors
    ///
    /// All mistakes that were found, each with file and line.
    pub fn from_file(path: &Path) -> Result<Self, ConfigErrors> {
        let text = file::read_file(path)
            .and_then(|text| String::from_utf8(text).map_err(|_| std::io::Error::other("it is not UTF-8")))
            .map_err(|error| ConfigErrors(vec![format!("{}: cannot be read: {error}", Escaped(path.display()))]))?;
        read::read(Some(path), &text).map_err(ConfigErrors)
    }

    /// As [`from_file`](Self::from_file), for a text. `${NAME}` in a value is replaced from the environment.
    ///
    /// # Errors
    ///
    /// All mistakes that were found, each with its line.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::proxy::GatewayConfig;
    ///
    /// let text = "[server]\nlisten = 'here'\n[[providers]]\nname = 'a'\nurl = 'ftp://a/v1'\nmodels = ['m']";
    /// let errors = GatewayConfig::from_toml(text).unwrap_err();
    /// assert_eq!(errors.mistakes(), [
    ///     "line 2: server.listen is \"here\", expected an address such as \"127.0.0.1:8080\"",
    ///     "line 5: providers[0].url is \"ftp://a/v1\", expected an http or https URL with a host",
    /// ]);
    /// ```
    pub fn from_toml(text: &str) -> Result<Self, ConfigErrors> {
        read::read(None, text).map_err(ConfigErrors)
    }

    /// What is valid but probably not intended: one line for each, with its place.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// The output of `fusebox check`.
impl fmt::Display for GatewayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use humantime::format_duration as time;
        self.fmt_server(f)?;
        for provider in &self.providers {
            let Timeouts { connect, first_byte, idle, total, .. } = provider.timeouts;
            let first_content = provider.timeouts.first_content();
            let breaker = &provider.breaker;
            let model = |(name, there): (&String, &String)| {
                let (name, there) = (Escaped(name), Escaped(there));
                if name.0 == there.0 { name.to_string() } else { format!("{name} (there {there})") }
            };
            let models: Vec<_> = provider.models.iter().map(model).collect();
            let key = match provider.api_keys.len() {
                0 => "none".to_owned(),
                1 => "set".to_owned(),
                keys => format!("{keys} of them, used in turn"),
            };
            let is_usual = provider.api_keys.is_empty() || provider.key_header == AUTHORIZATION;
            let sent = if is_usual { String::new() } else { format!(", sent as {}", provider.key_header) };
            writeln!(f, "\nprovider  {} at {}", provider.name, provider.url)?;
            match provider.protocols {
                Protocols::OpenAi => {}
                Protocols::Anthropic => writeln!(f, "  protocol   Anthropic's")?,
                Protocols::Both => writeln!(f, "  protocol   OpenAI's and Anthropic's")?,
            }
            writeln!(f, "  models     {}", models.join(", "))?;
            writeln!(f, "  api_key    {key}{sent}")?;
            if !provider.headers.is_empty() {
                let names: Vec<_> = provider.headers.keys().map(HeaderName::as_str).collect();
                writeln!(f, "  headers    {}", names.join(", "))?;
            }
            if let Some(query) = &provider.query {
                let names = query.expose().split('&').filter_map(|pair| pair.split('=').next());
                writeln!(f, "  query      {}", names.collect::<Vec<_>>().join(", "))?;
            }
            let limits = [
                ("connect", connect),
                ("first byte", first_byte),
                ("first content", first_content),
                ("idle", idle),
                ("total", total),
            ];
            let limits = limits.map(|(name, limit)| format!("{name} {}", time(limit)));
            writeln!(f, "  timeouts   {}", limits.join(", "))?;
            if let Some(places) = provider.limits.max_in_flight {
                writeln!(f, "  limits     {places} requests of a model at once")?;
            }
            let (failures, open_for) = (breaker.failure_threshold().unwrap_or_default(), time(breaker.open_for()));
            let ramp = match breaker.ramp() {
                Duration::ZERO => String::new(),
                ramp => format!(", then a ramp of {} from {}%", time(ramp), breaker.ramp_from()),
            };
            writeln!(f, "  breaker    opens after {failures} failures in a row, for {open_for}{ramp}")?;
            match provider.silence {
                None => writeln!(f, "  silence    is not detected")?,
                Some(silence) => {
                    let ceiling =
                        silence.ceiling().map_or(String::new(), |limit| format!(", or after {}", time(limit)));
                    writeln!(
                        f,
                        "  silence    opens at phi {}, not before {}{ceiling}",
                        silence.phi(),
                        time(silence.floor())
                    )?;
                }
            }
        }
        writeln!(f)?;
        for protocol in Protocol::VARIANTS {
            let of = if *protocol == Protocol::OpenAi {
                String::new()
            } else {
                format!(" in {}'s protocol", protocol.name())
            };
            for (model, providers) in self.candidates(*protocol) {
                let names: Vec<_> = providers.iter().map(|index| self.providers[*index].name.as_str()).collect();
                writeln!(f, "model     {}{of}: {}", Escaped(model), names.join(", then "))?;
            }
        }
        Ok(())
    }
}

impl GatewayConfig {
    fn fmt_server(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = &self.server;
        let with_tls = |tls: &Option<ServerTls>| match tls {
            None => "",
            Some(ServerTls { client_ca: None, .. }) => " with TLS",
            Some(_) => " with TLS, for clients with a certificate",
        };
        writeln!(f, "listen    {}{}", server.listen, with_tls(&server.tls))?;
        if let Some(admin) = server.admin_listen {
            writeln!(f, "admin     {admin}{}", with_tls(&server.admin_tls))?;
            match server.admin_tokens.len() {
                0 => writeln!(f, "operators anybody who reaches that address")?,
                tokens => writeln!(f, "operators with one of {tokens} tokens")?,
            }
        }
        if let Some(fleet) = &self.fleet {
            writeln!(f, "fleet     {}", fleet.shown())?;
        }
        if let Some(traces) = &self.traces {
            writeln!(f, "traces    {} of the requests to {}", traces.sample, traces.endpoint)?;
        }
        if let Some(file) = &server.state_file {
            writeln!(f, "state     kept in {}", Escaped(file.display()))?;
        }
        match server.auth_tokens.len() {
            0 => writeln!(f, "clients   anybody")?,
            tokens => writeln!(f, "clients   with one of {tokens} tokens")?,
        }
        if !server.cors_origins.is_empty() {
            let origins: Vec<_> = server.cors_origins.iter().filter_map(|origin| origin.to_str().ok()).collect();
            writeln!(f, "pages     of {}", origins.join(", "))?;
        }
        Ok(())
    }

    /// The positions of each model's providers that speak a protocol, in the order in which they are asked.
    pub(crate) fn candidates(&self, protocol: Protocol) -> BTreeMap<&str, Vec<usize>> {
        let mut candidates: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for index in self.order(protocol) {
            for model in self.providers[index].models.keys() {
                candidates.entry(model).or_default().push(index);
            }
        }
        candidates
    }

    /// The positions of all providers that speak a protocol, in the order in which they are asked.
    pub(crate) fn order(&self, protocol: Protocol) -> Vec<usize> {
        let speaks = |index: &usize| self.providers[*index].protocols.include(protocol);
        let mut order: Vec<usize> = (0..self.providers.len()).filter(speaks).collect();
        if self.strategy == Strategy::Cheapest {
            let rate = |index: &usize| {
                let provider = &self.providers[*index];
                provider.input_rate.unwrap_or_default() + provider.output_rate.unwrap_or_default()
            };
            order.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
        }
        order
    }
}
