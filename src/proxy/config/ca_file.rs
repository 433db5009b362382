//! The file of certificate authorities. It is read when the configuration is checked, and again when it is applied.
//!
//! Not here: which certificates are trusted: `upstream::tls`.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::file::read_file;

/// Reads the certificates in a PEM file.
///
/// # Errors
///
/// What is wrong with the file, as a phrase that follows its name.
pub(crate) fn read_ca_file(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read_file(file).map_err(|error| format!("cannot be read: I/O error: {error}"))?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| format!("cannot be read: {error}"))?;
    if certificates.is_empty() { Err("holds no certificate".to_owned()) } else { Ok(certificates) }
}
