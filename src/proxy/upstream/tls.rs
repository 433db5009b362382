//! Which certificates the gateway trusts when it connects to a provider.
//!
//! Not here: clients' connections, which have no TLS.

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};

use crate::proxy::config::read_ca_file;

/// The trusted authorities.
pub(crate) struct Tls {
    pub(super) config: ClientConfig,
    /// Those of `ca_file`.
    own: Vec<CertificateDer<'static>>,
}

impl Tls {
    /// Whether connections that were made with the one may be used with the other.
    pub(crate) fn trusts_the_same(&self, other: &Self) -> bool {
        self.own == other.own
    }

    pub(crate) fn new(ca_file: Option<&Path>) -> Result<Self, SetupError> {
        let mut roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
        let mut own = Vec::new();
        if let Some(file) = ca_file {
            own = read_ca_file(file).map_err(|error| SetupError(format!("{}: {error}", file.display())))?;
            for certificate in &own {
                roots.add(certificate.clone()).map_err(|error| SetupError(format!("{}: {error}", file.display())))?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_details(provider, Arc::new(WallClock))
            .with_safe_default_protocol_versions()
            .map_err(|error| SetupError(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { config, own })
    }
}

/// rustls' own clock panics if the wall clock is set to before 1970. Without a time no certificate is valid, and
/// nothing panics.
#[derive(Debug)]
struct WallClock;

impl TimeProvider for WallClock {
    #[expect(clippy::disallowed_methods, reason = "certificates go by the wall clock")]
    fn current_time(&self) -> Option<UnixTime> {
        since_1970(SystemTime::now())
    }
}

fn since_1970(now: SystemTime) -> Option<UnixTime> {
    now.duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
}

/// The gateway cannot be set up as configured.
#[derive(Debug)]
pub struct SetupError(String);

impl SetupError {
    pub(crate) fn new(message: String) -> Self {
        Self(message)
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for SetupError {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_before_1970_gives_no_time_and_does_not_panic() {
        let second = Duration::from_secs(1);
        assert!(since_1970(UNIX_EPOCH - second).is_none());
        assert_eq!(since_1970(UNIX_EPOCH + second).map(|time| time.as_secs()), Some(1));
    }
}
