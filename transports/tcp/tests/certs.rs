//! Making certificates, reading them, and what goes wrong with either.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use migrated_tcp::certs::{self, CertsError, Host};
use migrated_tcp::{TlsConfig, TlsConfigError};

fn host(name: &str) -> Host {
    Host { name: name.to_owned(), reached_as: vec!["10.0.0.1".to_owned(), "a.example".to_owned()] }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_authority_and_hosts_are_made_and_keys_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let within = dir.path().join("not/yet/there");
    let files = certs::init(&within, &[host("a"), host("b")]).unwrap();
    let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["ca.pem", "ca.key", "a.pem", "a.key", "b.pem", "b.key"]);
    for file in &files {
        let secret = file.extension().unwrap() == "key";
        assert_eq!(mode(file), if secret { 0o600 } else { 0o644 }, "{}", file.display());
    }
    for name in ["a", "b"] {
        common::config(&within, name);
    }
}

#[test]
fn nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let taken = dir.path().join("b.key");
    fs::write(&taken, "precious").unwrap();
    match certs::init(dir.path(), &[host("a"), host("b")]) {
        Err(CertsError::Exists(path)) => assert_eq!(path, taken),
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read_to_string(&taken).unwrap(), "precious");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was written before the refusal");
}

#[test]
fn names_that_are_no_file_or_host_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for names in [&["../up"][..], &[""], &["."], &["ca"], &["a b"], &["ü"], &["-x"], &["a", "a"]] {
        let hosts: Vec<_> = names.iter().map(|name| host(name)).collect();
        let result = certs::init(dir.path(), &hosts);
        assert!(matches!(result, Err(CertsError::BadName(_))), "{names:?}: {result:?}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let result = certs::init(&file.join("below"), &[]);
    assert!(matches!(result, Err(CertsError::Unwritable { .. })), "{result:?}");
}

#[test]
fn wrong_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    certs::init(dir.path(), &[host("a")]).unwrap();
    let file = |name: &str| dir.path().join(name);
    let (ca, cert, key) = (file("ca.pem"), file("a.pem"), file("a.key"));
    let (missing, text, corrupt) = (file("missing.pem"), file("text.pem"), file("corrupt.pem"));
    fs::write(&text, "no certificate at all").unwrap();
    fs::write(&corrupt, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();

    let error = |ca: &PathBuf, cert: &PathBuf, key: &PathBuf| {
        let error = TlsConfig::from_files(ca, cert, key).expect_err("a wrong file");
        (error.to_string(), error)
    };
    for (ca, cert, key) in [(&missing, &cert, &key), (&ca, &missing, &key), (&ca, &cert, &missing)] {
        let (message, error) = error(ca, cert, key);
        assert!(
            matches!(error, TlsConfigError::Unreadable { .. }) && message.contains("missing.pem"),
            "{message}"
        );
    }
    for (ca, cert, key) in [(&text, &cert, &key), (&ca, &text, &key), (&ca, &cert, &text)] {
        let (message, error) = error(ca, cert, key);
        assert!(matches!(error, TlsConfigError::NotPem { .. }) && message.contains("text.pem"), "{message}");
    }
    // A certificate where a key should be is not a key.
    assert!(matches!(error(&ca, &cert, &cert).1, TlsConfigError::NotPem { wanted: "private key", .. }));
    for (ca, cert) in [(&corrupt, &cert), (&ca, &corrupt)] {
        let (message, error) = error(ca, cert, &key);
        assert!(
            matches!(error, TlsConfigError::Unusable { .. }) && message.contains("corrupt.pem"),
            "{message}"
        );
    }
    let (message, error) = error(&ca, &cert, &file("ca.key"));
    assert!(matches!(error, TlsConfigError::KeyMismatch { .. }) && message.contains("ca.key"), "{message}");
}
