//! Who may call: tokens, certificates, and the configuration that asks for them.

use std::path::{Path, PathBuf};

use migrated_api::{MigrationState, VmList};
use serde_json::json;

use super::host::{Host, four_vcpus, problem};
use crate::certs;
use crate::client::{ApiClient, ApiClientError};
use crate::config::{ApiTls, PeerConfig};
use crate::tls::{ClientIdentity, client_config};

const TOKEN: &str = "0123456789abcdef";

fn token_file(dir: &Path, token: &str) -> PathBuf {
    let path = dir.join(format!("token-{}", token.len()));
    std::fs::write(&path, format!("{token}\n")).unwrap();
    path
}

fn with_token(name: &str, file: PathBuf) -> Host {
    Host::with(name, four_vcpus, move |config| {
        config.api.listen = Some("127.0.0.1:0".parse().unwrap());
        config.api.token_file = Some(file);
    })
}

#[test]
fn a_tcp_caller_needs_the_token_and_a_probe_does_not() {
    let files = tempfile::tempdir().unwrap();
    let host = with_token("a", token_file(files.path(), TOKEN));
    let url = host.url.clone().unwrap();
    let caller = |token| ApiClient::new(&url, token, None, None).unwrap();
    host.call(caller(Some(TOKEN)).get::<VmList>("/v1/vms")).unwrap();
    for token in
        [None, Some(""), Some("0123456789abcdeX"), Some("0123456789abcde"), Some("0123456789abcdef0")]
    {
        for path in ["/v1/vms", "/metrics", "/openapi.json", "/nothing"] {
            let refused = problem(host.call(caller(token).get::<serde_json::Value>(path)));
            assert_eq!((refused.status, refused.code.as_str()), (401, "unauthorized"), "{token:?} {path}");
        }
    }
    // It answers "ok", which is no JSON: but not with a problem.
    let probed = host.call(caller(None).get::<serde_json::Value>("/healthz")).unwrap_err();
    assert!(matches!(probed, ApiClientError::NotOurs { .. }), "{probed}");
}

#[test]
fn a_peer_shows_the_token_of_its_entry_and_a_wrong_one_fails_the_migration() {
    let files = tempfile::tempdir().unwrap();
    let b = with_token("b", token_file(files.path(), TOKEN));
    let url = b.url.clone().unwrap();
    let peer = |token_file| PeerConfig { url: url.clone(), token_file, ca: None, server_name: None };
    let wrong = token_file(files.path(), "another-token-of-enough-bytes");
    let short = token_file(files.path(), "short");
    let a = Host::with("a", four_vcpus, |config| {
        config.peers.insert("b".into(), peer(Some(token_file(files.path(), TOKEN))));
        config.peers.insert("wrong".into(), peer(Some(wrong)));
        config.peers.insert("short".into(), peer(Some(short)));
        config.peers.insert("none".into(), peer(None));
    });
    a.create("web", "").unwrap();
    let start =
        |to: &str| a.post::<migrated_api::MigrationRecord>("/v1/vms/web/migrations", &json!({ "to": to }));
    let ended = &[MigrationState::Completed, MigrationState::Failed];
    for to in ["wrong", "none"] {
        let failed = a.wait(&start(to).unwrap().id, ended);
        let error = failed.error.unwrap();
        assert_eq!(error.code, "peer_unauthorized", "{}", error.message);
    }
    assert_eq!(problem(start("short")).code, "peer_unknown");
    let completed = a.wait(&start("b").unwrap().id, ended);
    assert_eq!(completed.state, Some(MigrationState::Completed), "{:?}", completed.error);
}

#[test]
fn certificates_of_the_right_authority_are_let_in_and_no_others() {
    let files = tempfile::tempdir().unwrap();
    let make = |dir: &str| {
        let dir = files.path().join(dir);
        certs::make(&dir, &["host-a", "client"]).unwrap();
        dir
    };
    let (ours, others) = (make("ours"), make("others"));
    let host = Host::with("host-a", four_vcpus, |config| {
        config.api.listen = Some("127.0.0.1:0".parse().unwrap());
        config.api.tls = Some(ApiTls {
            cert: ours.join("host-a.pem"),
            key: ours.join("host-a.key"),
            ca: Some(ours.join("ca.pem")),
        });
    });
    let url = host.url.clone().unwrap();
    let ask = |ca: &Path, identity: Option<&Path>, name: &str| {
        let (cert, key) = identity.map(|dir| (dir.join("client.pem"), dir.join("client.key"))).unzip();
        let identity = cert.as_ref().zip(key.as_ref()).map(|(cert, key)| ClientIdentity { cert, key });
        let tls = client_config(&ca.join("ca.pem"), identity).unwrap();
        let client = ApiClient::new(&url, None, Some(tls), Some(name)).unwrap();
        host.call(client.get::<VmList>("/v1/vms"))
    };
    assert_eq!(ask(&ours, Some(&ours), "host-a").unwrap().vms, []);
    assert!(matches!(ask(&others, Some(&ours), "host-a"), Err(ApiClientError::Tls { .. })));
    assert!(matches!(ask(&ours, Some(&ours), "host-b"), Err(ApiClientError::Tls { .. })));
    // The server's refusal comes after the client's handshake, with the first answer.
    assert!(ask(&ours, Some(&others), "host-a").is_err());
    assert!(ask(&ours, None, "host-a").is_err());
    let plain = ApiClient::new(&url.replace("https", "http"), None, None, None).unwrap();
    assert!(host.call(plain.get::<VmList>("/v1/vms")).is_err());
    // Whatever came in between, the daemon serves.
    assert_eq!(ask(&ours, Some(&ours), "host-a").unwrap().vms, []);
}
