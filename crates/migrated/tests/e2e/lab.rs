use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use migrated_testkit::wait_until;
use tempfile::TempDir;

use crate::host::{Host, MIGRATED, PATIENCE};
use crate::netns::Netns;

const API_PORT: u16 = 7000;

/// Two hosts, `a` and `b`, that know each other; plain TCP is allowed and certificates are there.
pub struct Lab {
    pub a: Host,
    pub b: Host,
    pub root: TempDir,
}

impl Lab {
    pub fn new() -> Self {
        Self::with("", "")
    }

    /// A lab whose host `b` tells sources these addresses.
    pub fn advertising(addresses: &[&str]) -> Self {
        Self::made("", "", addresses)
    }

    /// A lab whose hosts have these further lines at the end of their configurations, in which `{root}` is
    /// the directory with the secrets.
    pub fn with(more_of_a: &str, more_of_b: &str) -> Self {
        Self::made(more_of_a, more_of_b, &[])
    }

    fn made(more_of_a: &str, more_of_b: &str, advertised_by_b: &[&str]) -> Self {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = |host: &str| format!("mgd-{}-{number}{host}", std::process::id());
        let root = tempfile::tempdir().unwrap();
        make_secrets(root.path());
        let (a, b) = (Netns::new(name("a")), Netns::new(name("b")));
        a.join(ADDRESSES[0], &b, ADDRESSES[1]);
        let start = |name, netns, address: &str, peer, peer_address, more, advertise: &[&str]| {
            let dir = root.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            let more: &str = more;
            let more = more.replace("{root}", root.path().to_str().unwrap());
            let told = format!("[migration]\nadvertise = {advertise:?}");
            let config = config(root.path(), name, address, peer, peer_address) + &more;
            let config = config.replacen("[migration]", &told, 1);
            std::fs::write(dir.join("host.toml"), config).unwrap();
            Host::new(name, netns, dir, format!("{address}:{API_PORT}").parse().unwrap())
        };
        let a = start("a", a, ADDRESSES[0], "b", ADDRESSES[1], more_of_a, &[]);
        let b = start("b", b, ADDRESSES[1], "a", ADDRESSES[0], more_of_b, advertised_by_b);
        Self { a, b, root }
    }

    /// The named host and the other one.
    pub fn pair(&self, a_first: bool) -> (&Host, &Host) {
        if a_first { (&self.a, &self.b) } else { (&self.b, &self.a) }
    }

    /// Waits until no host holds anything of a guest that ended or left: no process, no directory.
    #[track_caller]
    pub fn await_tidy(&self) {
        for host in [&self.a, &self.b] {
            let what = format!("{} has a process and a directory for each VM listed and no other", host.name);
            wait_until(&what, PATIENCE, || {
                let vms = host.vms();
                let alive = vms.iter().filter(|vm| vm.pid.is_some()).count();
                host.vm_processes().len() == alive && host.vm_dirs() == vms.len()
            });
        }
    }
}

/// What the hosts' APIs want of callers over TCP.
pub const TOKEN: &str = "0123456789abcdef0123";
pub const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

fn make_secrets(root: &Path) {
    for (name, token) in [("token", TOKEN), ("wrong-token", "fedcba9876543210fedc")] {
        let file = root.join(name);
        std::fs::write(&file, token).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    make_certs(&root.join("certs"));
}

/// Certificates for both hosts by an authority of their own.
pub fn make_certs(dir: &Path) {
    let made = Command::new(MIGRATED).args(["certs", "init", "a", "b", "--dir"]).arg(dir).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

fn config(root: &Path, name: &str, address: &str, peer: &str, peer_address: &str) -> String {
    let mut text = String::new();
    let (certs, token) = (root.join("certs"), root.join("token"));
    let dir = root.join(name);
    write!(
        text,
        r#"
name = "{name}"
state_dir = {state:?}
[api]
socket = {socket:?}
listen = "{address}:{API_PORT}"
token_file = {token:?}
[migration]
allow_plain_tcp = true
[migration.tls]
ca = {ca:?}
cert = {cert:?}
key = {key:?}
[peers.{peer}]
url = "http://{peer_address}:{API_PORT}"
token_file = {token:?}
"#,
        state = dir.join("state"),
        socket = dir.join("api.sock"),
        ca = certs.join("ca.pem"),
        cert = certs.join(format!("{name}.pem")),
        key = certs.join(format!("{name}.key")),
    )
    .unwrap();
    text
}
