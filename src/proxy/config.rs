//! `fusebox.toml`: read field by field, so that all mistakes are reported at once and each with its place.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{HeaderValue, Uri};
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::{Config, ConfigBuilder};

/// A breaker's times end there too.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Every mistake in a configuration, each with the field it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<String>);

impl ConfigErrors {
    /// One line per mistake: the field, the value unless it is a secret, and what would be right.
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

/// A string that never shows itself in logs, errors or pages.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself, for the one place that sends it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The whole configuration, checked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GatewayConfig {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where `/health` is served apart from the clients' port.
    pub admin_listen: Option<SocketAddr>,
    /// How long requests in flight may take to finish after SIGTERM.
    pub drain_limit: Duration,
    /// PEM file of certificate authorities that are trusted beside the public ones.
    pub ca_file: Option<PathBuf>,
    /// The providers, in the order in which they are asked.
    pub providers: Vec<ProviderConfig>,
}

/// One provider.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProviderConfig {
    /// Unique; what logs and health call it.
    pub name: String,
    /// The base that an SDK would take, `/v1` included.
    pub url: Uri,
    /// Sent as a bearer token.
    pub api_key: Option<Secret>,
    /// The models it serves, by the names that clients use.
    pub models: Vec<String>,
    /// How long the first piece of the body may take, connecting included, and how long the pause between two pieces.
    pub timeout: Duration,
    /// Its breaker.
    pub breaker: Config,
}

impl GatewayConfig {
    /// Reads and checks a file. Nothing is bound.
    ///
    /// # Errors
    ///
    /// Every mistake that could be found.
    pub fn from_file(path: &Path) -> Result<Self, ConfigErrors> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigErrors(vec![format!("{}: cannot be read: {error}", path.display())]))?;
        Self::from_toml(&text)
    }

    /// As [`from_file`](Self::from_file), with the text at hand. `${NAME}` in a secret is taken from the environment.
    ///
    /// # Errors
    ///
    /// Every mistake that could be found.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::proxy::GatewayConfig;
    ///
    /// let text = "[server]\nlisten = 'here'\n[[providers]]\nname = 'a'\nurl = 'ftp://a/v1'\nmodels = ['m']";
    /// let errors = GatewayConfig::from_toml(text).unwrap_err();
    /// assert_eq!(errors.mistakes(), [
    ///     "server.listen is \"here\", expected an address such as \"127.0.0.1:8080\"",
    ///     "providers[0].url is \"ftp://a/v1\", expected an http or https URL with a host",
    /// ]);
    /// ```
    pub fn from_toml(text: &str) -> Result<Self, ConfigErrors> {
        let root: Table = text.parse().map_err(|error: toml::de::Error| {
            // Without the offending line, which may hold a secret.
            let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
            ConfigErrors(vec![format!("line {line} is not valid TOML: {}", error.message().trim())])
        })?;
        let mut mistakes = Vec::new();
        let mut root = Section::new(String::new(), root, &mut mistakes);
        let server: Table = root.take("server", "a table").unwrap_or_default();
        let breaker: Table = root.take("breaker", "a table").unwrap_or_default();
        let providers: Vec<Table> = root.take("providers", "[[providers]] tables").unwrap_or_default();
        root.finish();

        let mut config = read_server(Section::new("server.".into(), server, &mut mistakes));
        let breaker = read_breaker(Section::new("breaker.".into(), breaker, &mut mistakes));
        let mut names = HashSet::new();
        for (index, provider) in providers.into_iter().enumerate() {
            let section = Section::new(format!("providers[{index}]."), provider, &mut mistakes);
            config.providers.extend(read_provider(section, &breaker, &mut names));
        }
        if mistakes.is_empty() { Ok(config) } else { Err(ConfigErrors(mistakes)) }
    }
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin_listen: None,
            drain_limit: Duration::from_secs(30),
            ca_file: None,
            providers: Vec::new(),
        }
    }
}

fn read_server(mut section: Section<'_>) -> GatewayConfig {
    let mut config = GatewayConfig::default();
    if let Some(listen) = section.address("listen") {
        config.listen = listen;
    }
    config.admin_listen = section.address("admin_listen");
    if config.admin_listen == Some(config.listen) && config.listen.port() != 0 {
        section.mistake("admin_listen", &format!("\"{}\"", config.listen), "another address than server.listen");
    }
    section.timeout("drain_limit", &mut config.drain_limit);
    config.ca_file = section.take("ca_file", "a path");
    if let Some(file) = &config.ca_file
        && let Err(error) = super::upstream::read_ca_file(file)
    {
        section.mistake("ca_file", &format!("\"{}\", which {error}", file.display()), "a PEM file with certificates");
    }
    section.finish();
    config
}

/// A client should not wait as long as a library's caller may, nor should the gateway hold any number of them.
fn read_breaker(mut section: Section<'_>) -> ConfigBuilder {
    let mut builder = Config::builder().wait_limit(Duration::from_secs(10)).max_waiters(1000);
    let count = |value: &Value| u32::try_from(value.as_integer()?).ok();
    if let Some(failures) = section.parse("failure_threshold", "a whole number, 1 to 1023", count) {
        builder = section.checked(builder.clone().failure_threshold(failures), builder);
    }
    if let Some(duration) = section.duration("open_for") {
        builder = section.checked(builder.clone().open_for(duration), builder);
    }
    section.finish();
    builder
}

fn read_provider(
    mut section: Section<'_>,
    breaker: &ConfigBuilder,
    names: &mut HashSet<String>,
) -> Option<ProviderConfig> {
    let name: Option<String> = section.require("name", "a string");
    if let Some(name) = &name {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            section.mistake("name", &format!("{name:?}"), "visible ASCII without spaces");
        } else if !names.insert(name.clone()) {
            section.mistake("name", &format!("{name:?}"), "a name that no other provider has");
        }
    }
    let url = section.url("url");
    let api_key = section.secret("api_key");
    let models: Option<Vec<String>> = section.require("models", "an array of strings");
    if let Some(models) = &models {
        let mut seen = HashSet::new();
        if models.is_empty() || models.iter().any(|model| model.is_empty() || !seen.insert(model)) {
            section.mistake("models", &format!("{models:?}"), "at least one name, none empty, none twice");
        }
    }
    let mut timeout = Duration::from_secs(60);
    section.timeout("timeout", &mut timeout);
    section.finish();

    // By then the gateway itself has given the probe up.
    let breaker = breaker.clone().probe_lease((timeout + Duration::from_secs(1)).min(MAX_TIMEOUT));
    let breaker = breaker.build().expect("each setting was checked");
    Some(ProviderConfig { name: name?, url: url?, api_key, models: models?, timeout, breaker })
}

/// A table that is emptied field by field; what is left at the end is unknown.
struct Section<'a> {
    path: String,
    table: Table,
    known: Vec<&'static str>,
    mistakes: &'a mut Vec<String>,
}

impl<'a> Section<'a> {
    fn new(path: String, table: Table, mistakes: &'a mut Vec<String>) -> Self {
        Self { path, table, known: Vec::new(), mistakes }
    }

    fn mistake(&mut self, field: &str, is: &str, expected: &str) {
        self.mistakes.push(format!("{}{field} is {is}, expected {expected}", self.path));
    }

    /// `new`, or `old` where a setting of it is out of its range.
    fn checked(&mut self, new: ConfigBuilder, old: ConfigBuilder) -> ConfigBuilder {
        match new.clone().build() {
            Ok(_) => new,
            Err(error) => {
                self.mistake(error.field(), error.value(), error.expected());
                old
            }
        }
    }

    fn value(&mut self, field: &'static str) -> Option<Value> {
        self.known.push(field);
        self.table.remove(field)
    }

    fn take<T: DeserializeOwned>(&mut self, field: &'static str, expected: &str) -> Option<T> {
        let value = self.value(field)?;
        // What is no single value may hold a secret.
        let is = if value.is_table() || value.is_array() { value.type_str().to_owned() } else { value.to_string() };
        value.try_into().map_err(|_: toml::de::Error| self.mistake(field, &is, expected)).ok()
    }

    fn require<T: DeserializeOwned>(&mut self, field: &'static str, expected: &str) -> Option<T> {
        if !self.table.contains_key(field) {
            self.known.push(field);
            self.mistake(field, "missing", expected);
            return None;
        }
        self.take(field, expected)
    }

    fn parse<T>(&mut self, field: &'static str, expected: &str, parse: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        let value = self.value(field)?;
        let parsed = parse(&value);
        if parsed.is_none() {
            self.mistake(field, &value.to_string(), expected);
        }
        parsed
    }

    fn address(&mut self, field: &'static str) -> Option<SocketAddr> {
        self.parse(field, "an address such as \"127.0.0.1:8080\"", |value| value.as_str()?.parse().ok())
    }

    fn duration(&mut self, field: &'static str) -> Option<Duration> {
        let parse = |value: &Value| humantime::parse_duration(value.as_str()?).ok();
        self.parse(field, "a duration such as \"30s\" or \"500ms\"", parse)
    }

    fn timeout(&mut self, field: &'static str, timeout: &mut Duration) {
        match self.duration(field) {
            Some(duration) if duration.is_zero() || duration > MAX_TIMEOUT => {
                self.mistake(field, &format!("{duration:?}"), "more than 0 and up to 24h");
            }
            Some(duration) => *timeout = duration,
            None => {}
        }
    }

    fn url(&mut self, field: &'static str) -> Option<Uri> {
        let text: String = self.require(field, "an http or https URL with a host")?;
        // Whatever else is wrong with it, it may hold a password and is not shown.
        if text.contains('@') {
            self.mistake(field, "a URL with credentials", "them in api_key");
            return None;
        }
        if text.contains('?') {
            self.mistake(field, "a URL with a query", "the base that an SDK takes");
            return None;
        }
        let uri: Option<Uri> = text.parse().ok();
        let uri = uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
        match &uri {
            None => self.mistake(field, &format!("{text:?}"), "an http or https URL with a host"),
            // Together with a client's path it must stay within what a URI may be.
            Some(_) if text.len() > 2048 => self.mistake(field, "too long", "at most 2048 characters"),
            Some(_) => {}
        }
        uri
    }

    /// Fills in `${NAME}` from the environment. The value is never shown.
    fn secret(&mut self, field: &'static str) -> Option<Secret> {
        let value = self.value(field)?;
        let Some(mut rest) = value.as_str() else {
            self.mistake(field, value.type_str(), "a string such as \"${NAME}\"");
            return None;
        };
        let mut secret = String::new();
        while let Some((before, after)) = rest.split_once("${") {
            let Some((name, after)) = after.split_once('}') else {
                self.mistake(field, "\"${\" without \"}\"", "\"${NAME}\"");
                return None;
            };
            let Ok(value) = std::env::var(name) else {
                self.mistake(field, &format!("\"${{{name}}}\", which is not set"), "that environment variable");
                return None;
            };
            secret.extend([before, &value]);
            rest = after;
        }
        secret.push_str(rest);
        let usable = !secret.is_empty() && secret.trim() == secret && HeaderValue::from_str(&secret).is_ok();
        if !usable {
            self.mistake(field, "empty or cannot be sent in a header", "visible characters");
        }
        usable.then_some(Secret(secret))
    }

    fn finish(&mut self) {
        let unknown: Vec<String> = self.table.keys().cloned().collect();
        for field in unknown {
            let expected = format!("one of {}", self.known.join(", "));
            self.mistake(&field, "unknown", &expected);
        }
    }
}

/// The plan, for `fusebox check`.
impl fmt::Display for GatewayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "listen    {}", self.listen)?;
        if let Some(admin) = self.admin_listen {
            writeln!(f, "admin     {admin}")?;
        }
        for provider in &self.providers {
            let breaker = &provider.breaker;
            let key = if provider.api_key.is_some() { "set" } else { "none" };
            writeln!(f, "\nprovider  {} at {}", provider.name, provider.url)?;
            writeln!(f, "  models     {}", provider.models.join(", "))?;
            writeln!(f, "  api_key    {key}")?;
            writeln!(f, "  timeout    {:?}", provider.timeout)?;
            writeln!(
                f,
                "  breaker    opens after {} failures in a row, for {:?}",
                breaker.failure_threshold(),
                breaker.open_for()
            )?;
        }
        if self.providers.is_empty() {
            writeln!(f, "no providers: every request will be answered 404")?;
        }
        Ok(())
    }
}
