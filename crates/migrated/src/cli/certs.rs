use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use super::output::Output;

#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// Make a small authority and a certificate for each host. For trying it out: its key lies beside it.
    Init(InitArgs),
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Directory for ca.pem, ca.key, and HOST.pem and HOST.key for each host.
    #[arg(long, default_value = "certs", value_name = "DIR")]
    dir: PathBuf,
    /// Names of the hosts, as their daemons are named (`name`, or `migration.server_name`).
    #[arg(required = true, value_name = "HOST")]
    hosts: Vec<String>,
}

pub fn run(output: Output, command: CertsCommand) -> Result<()> {
    let CertsCommand::Init(args) = command;
    std::fs::create_dir_all(&args.dir).with_context(|| format!("can't make {}", args.dir.display()))?;
    let authority = authority()?;
    write(&args.dir.join("ca.pem"), &authority.pem())?;
    write(&args.dir.join("ca.key"), &authority.key().serialize_pem())?;
    for host in &args.hosts {
        let key = KeyPair::generate()?;
        let certificate = host_params(host)?.signed_by(&key, &authority)?;
        write(&args.dir.join(format!("{host}.pem")), &certificate.pem())?;
        write(&args.dir.join(format!("{host}.key")), &key.serialize_pem())?;
    }
    output.value(&args.hosts, |hosts| {
        format!(
            "made an authority and certificates for {} in {}; on each host set in [migration.tls]\n\
             ca = \"ca.pem\", cert = \"HOST.pem\", key = \"HOST.key\" with their full paths",
            hosts.join(", "),
            args.dir.display()
        )
    })
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
