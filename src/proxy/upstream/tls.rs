//! Which certificates the gateway trusts when it connects to a provider.
//!
//! Not here: the gateway's own certificate, for its clients: `config::certificates`.

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use crate::proxy::config::{WallClock, read_certificates};

/// The trusted authorities.
pub(crate) struct Tls {
    pub(crate) config: ClientConfig,
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
            own = read_certificates(file).map_err(|error| SetupError(format!("{}: {error}", file.display())))?;
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
