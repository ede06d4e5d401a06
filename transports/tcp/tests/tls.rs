//! TCP+TLS passes what every transport must.

mod common;

use migrated_tcp::TcpTransport;
use migrated_tcp::certs::{self, Host};
use migrated_transport::conformance::{Link, Rig, Via};
use migrated_transport::memory::Cut;
use migrated_transport::{Endpoint, Transport};
use tempfile::TempDir;

struct Tls {
    transport: TcpTransport,
    /// Where the certificates are.
    dir: TempDir,
}

impl Tls {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let host = Host { name: "host-a".to_owned(), reached_as: vec!["127.0.0.1".to_owned()] };
        certs::init(dir.path(), &[host]).expect("certificates");
        let transport = TcpTransport::tls(common::config(dir.path(), "host-a"));
        Self { transport, dir }
    }
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
        let fresh = TcpTransport::tls(common::config(self.dir.path(), "host-a"));
        Link::through_proxy(Via::Own(Box::new(fresh)), to, cut)
    }

    /// A handshake has one ECDSA signature in each direction, of 70 to 72 bytes as a rule.
    fn slack(&self) -> u64 {
        8
    }
}

migrated_transport::conformance_tests!(Tls::new());
