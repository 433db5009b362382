//! A fleet's settings.

use std::error::Error;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::circle::Circle;
use super::member::Fleet;
use super::store::redis::Server;
use super::store::{Store, hub};
use crate::registry::CircuitBreakerRegistry;

/// What a replica makes of it when others say that an upstream fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// It suspects the upstream: its own next failure opens the circuit, unless a call succeeds first.
    #[default]
    Hint,
    /// The same; and if enough replicas say so, more than those who say that the upstream lives, the circuit opens
    /// without a failure here. Two replicas then look at once whether it is so.
    Quorum,
}

/// For how long a replica listens for objections before it opens a circuit on hearsay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Deliberate {
    /// Three times as long as half of the calls take, if that is known, and at least 50 ms. If that is more than a
    /// second, no circuit opens on hearsay. 150 ms if it is not known.
    #[default]
    Auto,
    /// So long.
    For(Duration),
}

/// How a replica takes part in a fleet. Changes nothing until [`join`](Self::join).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use fusebox::fleet::{FleetConfig, Mode};
///
/// let config = FleetConfig::redis("rediss://redis.example:6380")?.group("eu-west")?.mode(Mode::Quorum);
/// let config = config.password("from a file").timeout(Duration::from_millis(20))?;
/// assert!(FleetConfig::redis("http://redis.example").is_err());
/// # drop(config);
/// # Ok::<(), fusebox::fleet::FleetError>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct FleetConfig {
    place: Place,
    pub(super) group: String,
    pub(super) mode: Mode,
    pub(crate) quorum: u64,
    pub(crate) deliberate: Deliberate,
    pub(crate) timeout: Duration,
    pub(crate) lease: Option<Duration>,
    pub(crate) sync: Duration,
    pub(crate) share_account: bool,
}

#[derive(Clone, PartialEq)]
enum Place {
    Hub(hub::Hub),
    Redis { url: String, username: Option<String>, password: Option<String>, ca: Option<Vec<u8>> },
}

/// A setting that is out of its range, or a URL that names no server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetError {
    field: &'static str,
    problem: String,
}

impl FleetError {
    fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }

    /// The setting.
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// What it is, and what would be right. It never shows a URL, which may have a password.
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

impl fmt::Display for FleetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.problem)
    }
}

impl Error for FleetError {}

const CERTIFICATES: &str = "cannot be read, expected certificates in PEM";

/// What the settings may be.
pub(crate) mod ranges {
    use std::ops::RangeInclusive;
    use std::time::Duration;

    pub(crate) const QUORUM: RangeInclusive<u64> = 2..=1000;
    pub(crate) const DELIBERATE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(1);
    pub(crate) const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(10);
    pub(crate) const LEASE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
    pub(crate) const SYNC: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);
}

/// The longest name of a group.
const MAX_GROUP: usize = 64;

impl FleetConfig {
    fn at(place: Place) -> Self {
        Self {
            place,
            group: "default".to_owned(),
            mode: Mode::Hint,
            quorum: 2,
            deliberate: Deliberate::Auto,
            timeout: Duration::from_millis(50),
            lease: None,
            sync: Duration::from_secs(2),
            share_account: true,
        }
    }

    /// By Redis (6.2 or later) or Valkey: `redis://` or, with TLS, `rediss://`, then host, port and number of the
    /// database, such as `rediss://redis.example:6380/0`.
    ///
    /// # Errors
    ///
    /// If it is no such URL.
    pub fn redis(url: &str) -> Result<Self, FleetError> {
        let config = Self::at(Place::Redis { url: url.to_owned(), username: None, password: None, ca: None });
        config.store()?;
        Ok(config)
    }

    /// A place where nobody is.
    #[cfg(feature = "proxy")]
    pub(crate) fn nowhere() -> Self {
        Self::hub(&hub::Hub::new(Duration::ZERO))
    }

    /// Where the replicas meet, without a password.
    #[cfg(feature = "proxy")]
    pub(crate) fn shown(&self) -> String {
        let place = self.store().map(|store| store.shown()).unwrap_or_default();
        let mode = if self.mode == Mode::Quorum { "quorum" } else { "hint" };
        format!("{mode}, with the group {:?} at {place}", self.group)
    }

    /// Within this process.
    pub fn hub(hub: &hub::Hub) -> Self {
        Self::at(Place::Hub(hub.clone()))
    }

    /// Replicas of one group tell each other: those that reach the upstreams by the same way (an egress zone), or with
    /// the same account. Up to 64 letters, digits, `-`, `_` and `.`. Default `default`.
    ///
    /// # Errors
    ///
    /// For any other name.
    pub fn group(mut self, group: impl Into<String>) -> Result<Self, FleetError> {
        self.group = group.into();
        let is_fine = |char: char| char.is_ascii_alphanumeric() || "-_.".contains(char);
        if self.group.is_empty() || self.group.len() > MAX_GROUP || !self.group.chars().all(is_fine) {
            let problem = format!("is {:?}, expected 1 to {MAX_GROUP} letters, digits, '-', '_' or '.'", self.group);
            return Err(FleetError::new("group", problem));
        }
        Ok(self)
    }

    /// The name to log in with. Default: that of the URL.
    #[must_use]
    pub fn username(mut self, name: impl Into<String>) -> Self {
        if let Place::Redis { username, .. } = &mut self.place {
            *username = Some(name.into());
        }
        self
    }

    /// The password to log in with. Default: that of the URL.
    #[must_use]
    pub fn password(mut self, secret: impl Into<String>) -> Self {
        if let Place::Redis { password, .. } = &mut self.place {
            *password = Some(secret.into());
        }
        self
    }

    /// Certificates in PEM that the server's has to be signed by. Default: those that the system trusts.
    ///
    /// # Errors
    ///
    /// If they cannot be read.
    pub fn trusted_certificates(mut self, pem: impl Into<Vec<u8>>) -> Result<Self, FleetError> {
        let pem = pem.into();
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        if certificates.is_err() || certificates.is_ok_and(|all| all.is_empty()) {
            return Err(FleetError::new("trusted_certificates", CERTIFICATES));
        }
        if let Place::Redis { ca, .. } = &mut self.place {
            *ca = Some(pem);
        }
        self.store()?;
        Ok(self)
    }

    /// What to make of what others say. Default [`Mode::Hint`].
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// How many replicas have to say that an upstream fails before a circuit opens on hearsay, 2 to 1000. Default 2.
    ///
    /// # Errors
    ///
    /// For any other number.
    pub fn quorum(mut self, replicas: usize) -> Result<Self, FleetError> {
        self.quorum = u64::try_from(replicas).unwrap_or(u64::MAX);
        if !ranges::QUORUM.contains(&self.quorum) {
            return Err(FleetError::new("quorum", format!("is {replicas}, expected 2 to 1000")));
        }
        Ok(self)
    }

    /// For how long a replica listens for objections before it opens a circuit on hearsay. Default
    /// [`Deliberate::Auto`].
    ///
    /// # Errors
    ///
    /// For less than 1 ms, or more than 1 s.
    pub fn deliberate(mut self, how: Deliberate) -> Result<Self, FleetError> {
        if let Deliberate::For(time) = how {
            in_range("deliberate", time, &ranges::DELIBERATE)?;
        }
        self.deliberate = how;
        Ok(self)
    }

    /// For how long a call that would be the probe waits for the permission to be the only one. Default 50 ms.
    ///
    /// # Errors
    ///
    /// For less than 1 ms, or more than 10 s.
    pub fn timeout(mut self, time: Duration) -> Result<Self, FleetError> {
        in_range("timeout", time, &ranges::TIMEOUT)?;
        self.timeout = time;
        Ok(self)
    }

    /// For how long a replica may be the one that probes. Default: as long as a probe of its breaker may take.
    ///
    /// # Errors
    ///
    /// For less than 1 s, or more than an hour.
    pub fn lease(mut self, time: Duration) -> Result<Self, FleetError> {
        in_range("lease", time, &ranges::LEASE)?;
        self.lease = Some(time);
        Ok(self)
    }

    /// How often a replica says that it is there, and reads what stands. Default 2 s.
    ///
    /// # Errors
    ///
    /// For less than 100 ms, or more than a minute.
    pub fn sync(mut self, every: Duration) -> Result<Self, FleetError> {
        in_range("sync", every, &ranges::SYNC)?;
        self.sync = every;
        Ok(self)
    }

    /// Whether the replicas use the same account at the upstreams. Then a cooldown that one of them was told is one for
    /// all, and takes no second opinion. Default `true`.
    #[must_use]
    pub fn share_account(mut self, share: bool) -> Self {
        self.share_account = share;
        self
    }

    pub(super) fn store(&self) -> Result<Store, FleetError> {
        match &self.place {
            Place::Hub(hub) => Ok(Store::Hub(hub.clone())),
            Place::Redis { url, username, password, ca } => {
                let server = Server::new(url, username.as_deref(), password.as_deref(), ca.clone());
                // Not the error's text, which may have the URL.
                let expected = "is not the URL of a Redis, expected one such as redis://redis.example:6379/0";
                let problem = |_| match ca {
                    Some(_) => FleetError::new("trusted_certificates", CERTIFICATES),
                    None => FleetError::new("url", expected),
                };
                server.map(|server| Store::Redis(Arc::new(server))).map_err(problem)
            }
        }
    }

    /// Joins: from now on the breakers of the registry tell the others, and are told. Breakers that are added later
    /// take part, too. Dropping the result leaves the fleet.
    ///
    /// The store need not be reached: it is tried again and again, and each breaker does what it does alone until then.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, or in one whose timer or IO is not enabled.
    pub fn join(self, breakers: Arc<CircuitBreakerRegistry>) -> Fleet {
        self.join_circle(breakers)
    }

    pub(crate) fn join_circle(self, circle: Arc<dyn Circle>) -> Fleet {
        Fleet::start(self, circle)
    }
}

fn in_range(field: &'static str, time: Duration, range: &RangeInclusive<Duration>) -> Result<(), FleetError> {
    if range.contains(&time) {
        return Ok(());
    }
    let (least, most) = (range.start(), range.end());
    Err(FleetError::new(field, format!("is {time:?}, expected {least:?} to {most:?}")))
}

impl fmt::Debug for FleetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetConfig")
            .field("group", &self.group)
            .field("mode", &self.mode)
            .field("quorum", &self.quorum)
            .field("deliberate", &self.deliberate)
            .field("timeout", &self.timeout)
            .field("lease", &self.lease)
            .field("sync", &self.sync)
            .field("share_account", &self.share_account)
            .finish_non_exhaustive()
    }
}
