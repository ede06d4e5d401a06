//! Two hosts on one machine: a daemon in each of two network namespaces.

mod client;
mod host;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use migrated_netns::{ADDRESSES, Pair};
use tempfile::TempDir;

pub use client::{Api, ApiError};
pub use host::Host;

/// Names of the two hosts.
const NAMES: [&str; 2] = ["a", "b"];
/// Port of their API, each in its own namespace.
const PORT: u16 = 8470;
/// Directory of their certificates.
const CERTIFICATES: &str = "certificates";

/// How a lab is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program `migrated`.
    pub binary: PathBuf,
    /// Rate of the link in bits a second; as fast as it goes without.
    pub rate: Option<u64>,
    /// Further lines at the end of both daemons' configurations.
    pub config: String,
    /// Whether both have certificates, so that guests can travel under TLS.
    pub certificates: bool,
}

/// The lab. Dropped, everything of it goes: daemons, guests, namespaces, files.
#[derive(Debug)]
pub struct Lab {
    /// The hosts.
    pub hosts: [Host; 2],
    /// The link between them.
    pub pair: Pair,
    /// Where everything that is written lies, until the lab goes.
    dir: TempDir,
}

impl Lab {
    /// Makes it and waits until both daemons serve.
    ///
    /// # Errors
    /// Not root, no `/dev/kvm`, no such program; or a daemon does not start, with what it said.
    pub fn new(plan: &Plan) -> Result<Self> {
        ensure!(plan.binary.is_file(), "there is no {}; {BUILD}", plan.binary.display());
        let dir = tempfile::Builder::new().prefix("migrated-lab-").tempdir()?;
        let pair = Pair::make(plan.rate)?;
        write_token(&dir.path().join("token"))?;
        if plan.certificates {
            certify(&plan.binary, dir.path())?;
        }
        let start = |index: usize| {
            let tls = if plan.certificates { tls(dir.path(), index) } else { String::new() };
            let config = config(dir.path(), index) + &tls + &plan.config;
            let file = dir.path().join(format!("{}.toml", NAMES[index]));
            std::fs::write(&file, config).with_context(|| format!("can't write {}", file.display()))?;
            Host::start(NAMES[index], dir.path(), pair.command(index, &plan.binary))
        };
        let mut hosts = [start(0)?, start(1)?];
        hosts.iter_mut().try_for_each(Host::await_ready)?;
        Ok(Self { hosts, pair, dir })
    }

    /// The host that a guest leaves in its `n`-th move (from 0), and the one that it comes to.
    #[must_use]
    pub fn ends(&self, n: usize) -> (&Host, &Host) {
        (&self.hosts[n % 2], &self.hosts[(n + 1) % 2])
    }

    /// A directory for whatever else is needed, which goes with the lab.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

const BUILD: &str = "build it with `cargo build --release -p migrated`, or name it with --binary";

/// The program `migrated` beside this one, as cargo builds both.
///
/// # Errors
/// The system does not say where this program is.
pub fn default_binary() -> Result<PathBuf> {
    let this = std::env::current_exe().context("can't find this program's file")?;
    Ok(this.with_file_name("migrated"))
}

/// Longest time for whatever a living host does.
pub const PATIENCE: Duration = Duration::from_secs(120);

fn write_token(path: &Path) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut secret = [0; 24];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut secret)?;
    let token: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(token.as_bytes())?)
}

/// Makes certificates for both hosts.
fn certify(binary: &Path, dir: &Path) -> Result<()> {
    let mut make = Command::new(binary);
    let made = make.args(["certs", "init", "--dir"]).arg(dir.join(CERTIFICATES)).args(NAMES).output();
    let made = made.with_context(|| format!("can't run {}", binary.display()))?;
    ensure!(made.status.success(), "can't make certificates: {}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

fn tls(dir: &Path, index: usize) -> String {
    let file = |name: &str| dir.join(CERTIFICATES).join(name);
    let (cert, key) = (file(&format!("{}.pem", NAMES[index])), file(&format!("{}.key", NAMES[index])));
    format!("[migration.tls]\nca = {:?}\ncert = {cert:?}\nkey = {key:?}\n", file("ca.pem"))
}

fn config(dir: &Path, index: usize) -> String {
    let (name, peer) = (NAMES[index], NAMES[1 - index]);
    let (own, other) = (ADDRESSES[index], ADDRESSES[1 - index]);
    let (state, token) = (dir.join(name), dir.join("token"));
    let socket = Host::socket(dir, name);
    format!(
        r#"
name = "{name}"
state_dir = {state:?}
[api]
socket = {socket:?}
listen = "{own}:{PORT}"
token_file = {token:?}
[migration]
allow_plain_tcp = true
[peers.{peer}]
url = "http://{other}:{PORT}"
token_file = {token:?}
"#
    )
}
