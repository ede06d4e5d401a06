//! Certificates for tests, and the rig of TCP+TLS.

use std::path::Path;

use migrated_tcp::certs::{self, Host};
use migrated_tcp::{TcpTransport, TlsConfig};
use migrated_transport::conformance::{Link, Rig, Via};
use migrated_transport::memory::Cut;
use migrated_transport::{Endpoint, Transport};
use tempfile::TempDir;

pub struct Tls {
    transport: TcpTransport,
    /// The files are read once; the directory is kept for error messages that name them.
    pub dir: TempDir,
}

impl Tls {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let host = Host { name: "host-a".to_owned(), reached_as: vec!["127.0.0.1".to_owned()] };
        certs::init(dir.path(), &[host]).expect("certificates");
        let transport = TcpTransport::tls(config(dir.path(), "ca.pem", "host-a"));
        Self { transport, dir }
    }
}

pub fn config(dir: &Path, ca: &str, host: &str) -> TlsConfig {
    let own = |ending: &str| dir.join(format!("{host}.{ending}"));
    TlsConfig::from_files(&dir.join(ca), &own("pem"), &own("key")).expect("a configuration")
}

impl Rig for Tls {
    fn transport(&self) -> &dyn Transport {
        &self.transport
    }

    fn server_name(&self) -> Option<String> {
        Some("host-a".to_owned())
    }

    /// Each link with a client that has no session to resume, so that all handshakes are of one length.
    fn link(&self, to: &Endpoint, cut: Option<Cut>) -> Link<'_> {
        let fresh = TcpTransport::tls(config(self.dir.path(), "ca.pem", "host-a"));
        Link::through_proxy(Via::Own(Box::new(fresh)), to, cut)
    }

    /// A handshake has one ECDSA signature in each direction, of 70 to 72 bytes as a rule.
    fn slack(&self) -> u64 {
        8
    }
}
