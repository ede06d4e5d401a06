//! Certificates from PEM files.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::config::ApiTls;

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(|| format!("can't read certificates from {}", path.display()))?;
    ensure!(!certificates.is_empty(), "{} has no certificate", path.display());
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path)
        .with_context(|| format!("can't read a private key from {}", path.display()))
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).with_context(|| format!("{} is no authority", path.display()))?;
    }
    Ok(roots)
}

/// What the API serves TLS with.
pub fn server_config(files: &ApiTls) -> Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match &files.ca {
        Some(ca) => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider()).build()?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let config = builder
        .with_single_cert(certificates(&files.cert)?, private_key(&files.key)?)
        .with_context(|| format!("{} and {} are no pair", files.cert.display(), files.key.display()))?;
    Ok(Arc::new(config))
}

/// A client's certificate and key.
#[derive(Clone, Copy, Debug)]
pub struct ClientIdentity<'a> {
    /// Certificate chain, leaf first.
    pub cert: &'a Path,
    /// The leaf's private key.
    pub key: &'a Path,
}

/// What to connect to an API with: trusts `ca` only.
pub fn client_config(ca: &Path, identity: Option<ClientIdentity<'_>>) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca)?);
    let config = match identity {
        Some(ClientIdentity { cert, key }) => builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .with_context(|| format!("{} and {} are no pair", cert.display(), key.display()))?,
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}
