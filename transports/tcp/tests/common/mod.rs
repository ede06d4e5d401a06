//! Certificates for tests.

use std::path::Path;

use migrated_tcp::TlsConfig;

/// The configuration of `host` by its files in `dir`, as [`migrated_tcp::certs::init`] names them.
pub fn config(dir: &Path, host: &str) -> TlsConfig {
    let own = |ending: &str| dir.join(format!("{host}.{ending}"));
    TlsConfig::from_files(&dir.join("ca.pem"), &own("pem"), &own("key")).expect("a configuration")
}
