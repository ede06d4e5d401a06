//! Who is let in over TLS, and what the one who is not gets to read.

mod common;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use migrated_tcp::certs::{self, Host};
use migrated_tcp::{TcpTransport, TlsConfig};
use migrated_transport::{Endpoint, Gate, MigrationGate, Transport, TransportError};
use migrated_wire::{ChannelRole, Hello, MigrationId, PROTOCOL, Token};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

const HELLO: Hello = Hello {
    versions: PROTOCOL,
    role: ChannelRole::Control,
    migration: MigrationId([1; 16]),
    token: Token([2; 32]),
};
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What a caller gets that calls a destination; and whether the destination let anybody in.
fn call(
    from: &TcpTransport,
    to: &TcpTransport,
    server_name: Option<&str>,
) -> (Result<(), TransportError>, bool) {
    let mut listener = to.listen(LOOPBACK, 0..=0, HELLO.migration).unwrap();
    let endpoint = Endpoint { addr: listener.local_addr(), server_name: server_name.map(str::to_owned) };
    let hangup = listener.hangup();
    let gate: Arc<dyn Gate> = Arc::new(MigrationGate::new(HELLO.migration, HELLO.token, |_| Ok(())));
    let deadline = Instant::now() + Duration::from_secs(20);
    std::thread::scope(|scope| {
        let accepted = scope.spawn(move || listener.accept(&gate, deadline).is_ok());
        let result = from.connect_control(&endpoint, &HELLO, deadline).map(drop);
        if result.is_err() {
            hangup.hang_up();
        }
        (result, accepted.join().unwrap())
    })
}

/// The reason that a refused caller gets to read.
fn refused(from: &TcpTransport, to: &TcpTransport, server_name: Option<&str>) -> String {
    match call(from, to, server_name) {
        (Err(error @ TransportError::Tls { .. }), false) => error.to_string(),
        other => panic!("want an error of TLS, got {other:?}"),
    }
}

fn hosts(dir: &Path) {
    let host = |name: &str, reached_as: &[&str]| Host {
        name: name.to_owned(),
        reached_as: reached_as.iter().map(|name| (*name).to_owned()).collect(),
    };
    certs::init(dir, &[host("a", &["127.0.0.1"]), host("b", &["b.example"])]).unwrap();
}

fn tls(dir: &Path, host: &str) -> TcpTransport {
    TcpTransport::tls(common::config(dir, host))
}

#[test]
fn hosts_of_one_authority_meet_by_address_and_by_name() {
    let dir = tempfile::tempdir().unwrap();
    hosts(dir.path());
    let (a, b) = (tls(dir.path(), "a"), tls(dir.path(), "b"));
    for (from, to, name) in
        [(&b, &a, None), (&b, &a, Some("127.0.0.1")), (&a, &b, Some("b.example")), (&a, &b, Some("b"))]
    {
        assert!(matches!(call(from, to, name), (Ok(()), true)), "{name:?}");
    }
}

#[test]
fn another_name_is_not_accepted() {
    let dir = tempfile::tempdir().unwrap();
    hosts(dir.path());
    let (a, b) = (tls(dir.path(), "a"), tls(dir.path(), "b"));
    for (to, name, shown) in
        [(&b, None, "127.0.0.1"), (&b, Some("a"), "\"a\""), (&a, Some("b.example"), "b.example")]
    {
        let reason = refused(&a, to, name);
        assert!(reason.contains("for another host") && reason.contains(shown), "{reason}");
    }
    let reason = refused(&a, &b, Some("no name"));
    assert!(reason.contains("neither a DNS name"), "{reason}");
}

#[test]
fn another_authority_is_not_accepted_by_either_end() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    hosts(ours.path());
    hosts(theirs.path());
    let reason = refused(&tls(ours.path(), "b"), &tls(theirs.path(), "a"), None);
    let ca = ours.path().join("ca.pem");
    assert!(reason.contains("not signed by our CA") && reason.contains(ca.to_str().unwrap()), "{reason}");

    // The caller trusts the destination, but not the other way round.
    let cert = theirs.path().join("b.pem");
    let key = theirs.path().join("b.key");
    let half = TcpTransport::tls(TlsConfig::from_files(&ca, &cert, &key).unwrap());
    let reason = refused(&half, &tls(ours.path(), "a"), None);
    assert!(
        reason.contains("does not trust our certificate") && reason.contains(cert.to_str().unwrap()),
        "{reason}"
    );
}

/// An authority with `ca.pem` in `dir`, for certificates that `certs::init` never makes.
fn authority(dir: &Path) -> Issuer<'static, KeyPair> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(dir.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    Issuer::new(params, key)
}

/// A certificate for 127.0.0.1 as host `name` in `dir`.
fn sign(dir: &Path, ca: &Issuer<'static, KeyPair>, name: &str, adjust: impl FnOnce(&mut CertificateParams)) {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    adjust(&mut params);
    let key = KeyPair::generate().unwrap();
    std::fs::write(dir.join(format!("{name}.pem")), params.signed_by(&key, ca).unwrap().pem()).unwrap();
    std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

#[test]
fn certificates_out_of_time_or_for_another_use_are_not_accepted_by_either_end() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(dir.path());
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    sign(dir.path(), &ca, "good", |_| ());
    sign(dir.path(), &ca, "old", |params| params.not_after = (now - hour).into());
    sign(dir.path(), &ca, "early", |params| params.not_before = (now + hour).into());
    sign(dir.path(), &ca, "mail", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
    });
    let good = tls(dir.path(), "good");
    for (name, as_server, as_client) in [
        ("old", "the peer's certificate has expired", "has expired"),
        ("early", "not valid yet", "not valid yet"),
        ("mail", "the peer's certificate is not accepted", "does not accept our certificate"),
    ] {
        let bad = tls(dir.path(), name);
        let reason = refused(&good, &bad, None);
        assert!(reason.contains(as_server), "{name} as destination: {reason}");
        let reason = refused(&bad, &good, None);
        assert!(
            reason.contains(as_client) && reason.contains(&format!("{name}.pem")),
            "{name} as source: {reason}"
        );
    }
}

#[test]
fn plain_and_tls_do_not_mix_and_say_so() {
    let dir = tempfile::tempdir().unwrap();
    hosts(dir.path());
    let (plain, tls) = (TcpTransport::plain(), tls(dir.path(), "a"));
    assert!(!plain.capabilities().secure && tls.capabilities().secure);
    let (result, accepted) = call(&tls, &plain, None);
    assert!(!accepted);
    let reason = result.unwrap_err().to_string();
    assert!(reason.contains("both hosts use the same transport"), "{reason}");
    let (result, accepted) = call(&plain, &tls, None);
    assert!(!accepted && matches!(result, Err(TransportError::Protocol { .. })), "{result:?}");
}

#[test]
fn a_caller_without_a_certificate_gets_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    hosts(dir.path());
    let to = tls(dir.path(), "a");
    let mut listener = to.listen(LOOPBACK, 0..=0, HELLO.migration).unwrap();
    let addr = listener.local_addr();
    let gate: Arc<dyn Gate> = Arc::new(MigrationGate::new(HELLO.migration, HELLO.token, |_| Ok(())));
    let hangup = listener.hangup();
    std::thread::scope(|scope| {
        let deadline = Instant::now() + Duration::from_secs(20);
        let accepted = scope.spawn(move || listener.accept(&gate, deadline).is_ok());
        let error = anonymous(dir.path(), addr).expect_err("an anonymous caller was answered");
        assert!(error.to_string().contains("CertificateRequired"), "{error}");
        hangup.hang_up();
        assert!(!accepted.join().unwrap());
    });
}

/// Says a correct hello over TLS, without a certificate of its own, and waits for an answer.
fn anonymous(dir: &Path, addr: SocketAddr) -> std::io::Result<u8> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    use std::io::{Read, Write};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::IpAddress(addr.ip().into());
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, std::net::TcpStream::connect(addr)?);
    stream.write_all(&HELLO.encode())?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    Ok(answer[0])
}
