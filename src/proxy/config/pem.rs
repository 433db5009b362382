//! Certificates and keys in PEM files. A file is read when the configuration is checked, and again when it is applied.
//!
//! Not here: what they are for: `certificates`, `upstream::tls`.

use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::file::read_file;

/// Reads the certificates in a PEM file.
///
/// # Errors
///
/// What is wrong with the file, as a phrase that follows its name.
pub(crate) fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read_file(file).map_err(|error| format!("cannot be read: I/O error: {error}"))?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| format!("cannot be read: {error}"))?;
    if certificates.is_empty() { Err("holds no certificate".to_owned()) } else { Ok(certificates) }
}

/// Reads the private key in a PEM file.
///
/// # Errors
///
/// As [`read_certificates`], and never with a part of the file's text.
pub(super) fn read_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = read_file(file).map_err(|error| format!("cannot be read: I/O error: {error}"))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| "holds no private key".to_owned())
}
