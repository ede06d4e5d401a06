//! A small certificate authority of one's own, for trying mutual TLS out.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use thiserror::Error;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the authority is valid: ten years.
const CA_LIFE: Duration = DAY.saturating_mul(3650);
/// How long a host's certificate is valid: a year and a month.
const HOST_LIFE: Duration = DAY.saturating_mul(397);

/// A host to make a certificate for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Name of the files, and first DNS name in the certificate: letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// Further DNS names and IP addresses by which the host is reached.
    pub reached_as: Vec<String>,
}

/// Why no certificates were made.
#[derive(Debug, Error)]
pub enum CertsError {
    /// A file is there already.
    #[error("{} exists; nothing was changed, choose another directory or remove it", .0.display())]
    Exists(PathBuf),
    /// A name that can't be a file's or a host's.
    #[error(
        "{0:?} is no host name: use letters, digits, '-', '_' and '.', and neither \"ca\" nor one name twice"
    )]
    BadName(String),
    /// A file can't be written.
    #[error("can't write {}: {source}", path.display())]
    Unwritable {
        /// Which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The library could not make a certificate.
    #[error("can't make a certificate for {name}: {reason}")]
    Generate {
        /// For whom.
        name: String,
        /// What the library said.
        reason: String,
    },
}

/// Makes an authority (`ca.pem`, `ca.key`) in `dir`, and a certificate with key (`<name>.pem`,
/// `<name>.key`) for each host; returns the files. Keys are readable by their owner only, ECDSA P-256.
/// A host is given its own two files and `ca.pem`; `ca.key` stays behind.
///
/// # Errors
/// [`CertsError`]; files that exist are never overwritten.
pub fn init(dir: &Path, hosts: &[Host]) -> Result<Vec<PathBuf>, CertsError> {
    let mut files = Vec::new();
    for (index, host) in hosts.iter().enumerate() {
        let twice = hosts[..index].iter().any(|other| other.name == host.name);
        if twice || host.name == "ca" || !is_file_name(&host.name) {
            return Err(CertsError::BadName(host.name.clone()));
        }
    }
    // All is made before anything is written, and all paths are looked at before the first.
    let (ca_pem, issuer) = authority()?;
    files.push((dir.join("ca.pem"), ca_pem, PUBLIC));
    files.push((dir.join("ca.key"), issuer.key().serialize_pem(), SECRET));
    for host in hosts {
        let (pem, key) = host_certificate(host, &issuer)?;
        files.push((dir.join(format!("{}.pem", host.name)), pem, PUBLIC));
        files.push((dir.join(format!("{}.key", host.name)), key.serialize_pem(), SECRET));
    }
    if let Some((taken, ..)) = files.iter().find(|(path, ..)| path.symlink_metadata().is_ok()) {
        return Err(CertsError::Exists(taken.clone()));
    }
    fs::create_dir_all(dir).map_err(|source| CertsError::Unwritable { path: dir.to_owned(), source })?;
    files.into_iter().map(|(path, text, mode)| write_new(&path, &text, mode).map(|()| path)).collect()
}

const PUBLIC: u32 = 0o644;
const SECRET: u32 = 0o600;

fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), CertsError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => CertsError::Exists(path.to_owned()),
            _ => CertsError::Unwritable { path: path.to_owned(), source },
        })
}

fn authority() -> Result<(String, Issuer<'static, KeyPair>), CertsError> {
    let failed = failed("the authority");
    let key = KeyPair::generate().map_err(failed)?;
    // A name of its own: certificates of two authorities that share one can't be told apart by their issuer.
    let random = key.public_key_raw().iter().rev().take(4).map(|byte| format!("{byte:02x}"));
    let name = format!("migrated CA {}", random.collect::<String>());
    let mut params = params(&name, Vec::new(), CA_LIFE).map_err(failed)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok((certificate.pem(), Issuer::new(params, key)))
}

fn host_certificate(host: &Host, issuer: &Issuer<'static, KeyPair>) -> Result<(String, KeyPair), CertsError> {
    let failed = failed(&host.name);
    let mut names = vec![host.name.clone()];
    names.extend(host.reached_as.iter().filter(|name| **name != host.name).cloned());
    let mut params = params(&host.name, names, HOST_LIFE).map_err(failed)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // A host is the source of one migration and the destination of another.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, issuer).map_err(failed)?;
    Ok((certificate.pem(), key))
}

fn params(common_name: &str, names: Vec<String>, life: Duration) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    // A day of grace for a host whose clock is behind.
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = (SystemTime::now() + life).into();
    Ok(params)
}

fn failed(name: &str) -> impl Fn(rcgen::Error) -> CertsError + Copy + '_ {
    move |error| CertsError::Generate { name: name.to_owned(), reason: error.to_string() }
}
