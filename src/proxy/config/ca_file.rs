//! The file of certificate authorities, read when it is checked and again when it is used.
//!
//! Not here: what is trusted: `upstream::tls`.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::file::read_file;

/// # Errors
///
/// What is wrong with it, to be read after its name.
pub(crate) fn read_ca_file(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read_file(file).map_err(|error| format!("cannot be read: I/O error: {error}"))?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| format!("cannot be read: {error}"))?;
    if certificates.is_empty() { Err("holds no certificate".to_owned()) } else { Ok(certificates) }
}
