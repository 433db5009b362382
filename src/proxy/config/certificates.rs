//! The gateway's own certificate, as `[server.tls]` names it. The files are read when the configuration is checked,
//! when it is applied, and when they have changed.
//!
//! Not here: which connections use it: `certificates`, `edge`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::pki_types::UnixTime;
use rustls::server::{ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;

use super::pem::{read_certificates, read_key};
use super::section::{Section, Text};

/// `[server.tls]`: clients connect with TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerTls {
    /// A PEM file with the gateway's certificate, and those between it and the authority.
    pub cert: PathBuf,
    /// A PEM file with its private key.
    pub key: PathBuf,
    /// A PEM file of authorities. Only clients with a certificate of one of them may connect.
    pub client_ca: Option<PathBuf>,
}

/// How many clients may come back without a whole handshake.
const SESSIONS: usize = 10_240;

/// What is wrong with a file: the field that names it, and a phrase that follows its name.
pub(crate) struct BadFile {
    pub(crate) field: &'static str,
    pub(crate) file: PathBuf,
    pub(crate) why: String,
}

impl BadFile {
    fn of(field: &'static str, file: &Path) -> impl Fn(String) -> Self + Copy {
        move |why| Self { field, file: file.to_owned(), why }
    }
}

impl ServerTls {
    /// Reads the files.
    pub(crate) fn load(&self) -> Result<rustls::ServerConfig, BadFile> {
        let certificates = read_certificates(&self.cert).map_err(BadFile::of("cert", &self.cert))?;
        let key = read_key(&self.key).map_err(BadFile::of("key", &self.key))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_details(Arc::clone(&provider), Arc::new(WallClock))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())
            .map_err(BadFile::of("cert", &self.cert))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let bad = BadFile::of("client_ca", file);
                let mut roots = RootCertStore::empty();
                for certificate in read_certificates(file).map_err(bad)? {
                    roots.add(certificate).map_err(|error| bad(format!("cannot be used: {error}")))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| bad(format!("cannot be used: {error}")))?)
            }
        };
        let with_key = builder.with_single_cert(certificates, key);
        let mut config = with_key
            .map_err(|error| BadFile::of("key", &self.key)(format!("does not fit {}: {error}", self.cert.display())))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        Ok(config)
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()].into_iter().flatten().map(PathBuf::as_path)
    }
}

/// Reads `[server.tls]` or `[server.admin_tls]`, and its files.
pub(super) fn read_tls(server: &mut Section<'_, '_>, field: &'static str) -> Option<ServerTls> {
    let (at, table) = server.table(field);
    if !server.has(field) {
        return None;
    }
    let mut section = server.inner(&format!("{field}."), at, table);
    let [cert, key, client_ca] = ["cert", "key", "client_ca"].map(|field| section.text(field, "a path"));
    let expected = "a PEM file";
    for field in ["cert", "key"] {
        section.require(field, expected);
    }
    let path = |text: &Text| PathBuf::from(&text.value);
    let tls = cert.as_ref().zip(key.as_ref()).map(|(cert, key)| ServerTls {
        cert: path(cert),
        key: path(key),
        client_ca: client_ca.as_ref().map(path),
    });
    if let Some(Err(BadFile { field, why, .. })) = tls.as_ref().map(ServerTls::load) {
        let text = match field {
            "cert" => &cert,
            "key" => &key,
            _ => &client_ca,
        };
        let shown = text.as_ref().map_or("", |text| &text.shown);
        section.mistake(field, &format!("{shown}, which {why}"), expected);
    }
    section.finish();
    tls
}

/// rustls' own clock panics if the wall clock is set to before 1970. Without a time no certificate is valid, and
/// nothing panics.
#[derive(Debug)]
pub(crate) struct WallClock;

impl TimeProvider for WallClock {
    #[expect(clippy::disallowed_methods, reason = "certificates go by the wall clock")]
    fn current_time(&self) -> Option<UnixTime> {
        since_1970(SystemTime::now())
    }
}

fn since_1970(now: SystemTime) -> Option<UnixTime> {
    now.duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
}

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
