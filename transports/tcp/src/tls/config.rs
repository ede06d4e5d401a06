use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};
use thiserror::Error;

/// How a host proves who it is and whom it trusts: TLS 1.3 with certificates at both ends.
#[derive(Clone)]
pub struct TlsConfig {
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
    pub(super) files: Arc<Files>,
}

/// Which files the configuration came from, so that errors can name them.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) ca: PathBuf,
    pub(super) cert: PathBuf,
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig").field("files", &self.files).finish_non_exhaustive()
    }
}

/// Why certificate files can't be used.
#[derive(Debug, Error)]
pub enum TlsConfigError {
    /// A file can't be read.
    #[error("can't read {}: {source}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A file holds no PEM of the wanted kind.
    #[error("{} holds no PEM {wanted} ({reason})", path.display())]
    NotPem {
        /// Which file.
        path: PathBuf,
        /// `certificate` or `private key`.
        wanted: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// A certificate or key parses as PEM but not as what it should be.
    #[error("{} can't be used: {reason}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What rustls said.
        reason: String,
    },
    /// The private key belongs to another certificate.
    #[error("the key in {} is not the one of the certificate in {}", key.display(), cert.display())]
    KeyMismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

impl TlsConfig {
    /// Reads PEM files: `ca` holds the certificates of the authorities whose hosts are trusted, `cert` this host's
    /// certificate (and intermediates after it), `key` its private key. One certificate serves both roles,
    /// so it needs serverAuth and clientAuth.
    ///
    /// # Errors
    /// [`TlsConfigError`] naming the file.
    pub fn from_files(ca: &Path, cert: &Path, key: &Path) -> Result<Self, TlsConfigError> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(ca)? {
            roots.add(authority).map_err(|error| unusable(ca, &error))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(cert)?;
        let private =
            PrivateKeyDer::from_pem_file(key).map_err(|error| not_pem(key, "private key", error))?;
        let own = |error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                TlsConfigError::KeyMismatch { cert: cert.to_owned(), key: key.to_owned() }
            }
            // The certificate is parsed before; what is left is the key.
            rustls::Error::InvalidCertificate(_) => unusable(cert, &error),
            _ => unusable(key, &error),
        };
        let provider = Arc::new(ring::default_provider());
        let client = only_tls13(ClientConfig::builder_with_provider(Arc::clone(&provider)))
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), private.clone_key())
            .map_err(own)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| TlsConfigError::Unusable { path: ca.to_owned(), reason: error.to_string() })?;
        let server = only_tls13(ServerConfig::builder_with_provider(provider))
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, private)
            .map_err(own)?;
        let files = Files { ca: ca.to_owned(), cert: cert.to_owned() };
        Ok(Self { client: Arc::new(client), server: Arc::new(server), files: Arc::new(files) })
    }
}

/// Both ends are ours, so nothing older needs to be spoken.
fn only_tls13<Side: rustls::ConfigSide>(
    builder: rustls::ConfigBuilder<Side, rustls::WantsVersions>,
) -> rustls::ConfigBuilder<Side, rustls::WantsVerifier> {
    builder.with_protocol_versions(&[&rustls::version::TLS13]).expect("ring has cipher suites of TLS 1.3")
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let wrong = |error| not_pem(path, "certificate", error);
    let all: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(wrong)?.collect::<Result<_, _>>().map_err(wrong)?;
    if all.is_empty() { Err(wrong(pem::Error::NoItemsFound)) } else { Ok(all) }
}

fn not_pem(path: &Path, wanted: &'static str, error: pem::Error) -> TlsConfigError {
    match error {
        pem::Error::Io(source) => TlsConfigError::Unreadable { path: path.to_owned(), source },
        other => TlsConfigError::NotPem { path: path.to_owned(), wanted, reason: other.to_string() },
    }
}

fn unusable(path: &Path, error: &rustls::Error) -> TlsConfigError {
    TlsConfigError::Unusable { path: path.to_owned(), reason: error.to_string() }
}
