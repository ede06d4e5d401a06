//! A small authority and certificates for trying out `tcp+tls`. Not for keeping: its key lies beside it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// Makes `ca.pem` and `ca.key` in `dir`, and `HOST.pem` and `HOST.key` for each host's name.
pub fn make(dir: &Path, hosts: &[impl AsRef<str>]) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    let authority = authority()?;
    write(&dir.join("ca.pem"), &authority.pem())?;
    write(&dir.join("ca.key"), &authority.key().serialize_pem())?;
    for host in hosts {
        let host = host.as_ref();
        let key = KeyPair::generate()?;
        let certificate = host_params(host)?.signed_by(&key, &authority)?;
        write(&dir.join(format!("{host}.pem")), &certificate.pem())?;
        write(&dir.join(format!("{host}.key")), &key.serialize_pem())?;
    }
    Ok(())
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "migrated trial authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn host_params(host: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(vec![host.to_owned()])
        .with_context(|| format!("{host:?} is no host name or address"))?;
    params.distinguished_name.push(DnType::CommonName, host);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // A host is a server when it receives a guest and a client when it sends one.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// Writes a file that only its owner can read, and never over another one.
fn write(path: &Path, text: &str) -> Result<()> {
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written
        .with_context(|| format!("can't write {}; remove it first if it is to be replaced", path.display()))
}
