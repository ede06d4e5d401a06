use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use hyper::Method;
use migrated_api::VmList;
use tempfile::TempDir;

use crate::host::Host;
use crate::netns::Netns;

/// The bridge of each host, on which its guests are.
pub const BRIDGE: &str = "br0";
/// Addresses of the hosts on the link that guests move over.
const HOSTS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
const API_PORT: u16 = 7000;
/// The client's address among the guests.
const CLIENT: &str = "10.0.0.1/24";
/// The switch that joins both hosts' bridges and the client.
const SWITCH: &str = "switch";
const TOKEN: &str = "0123456789abcdef0123";

/// Two hosts that know each other, joined by a link over which guests move; the guests' network with a bridge on
/// each host and a switch in between; and a client at the switch.
pub struct Network {
    pub a: Host,
    pub b: Host,
    pub client: Netns,
    _root: TempDir,
}

impl Network {
    pub fn new() -> Self {
        static NETWORKS: AtomicU32 = AtomicU32::new(0);
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let netns = |what: &str| Netns::new(format!("mgd-{}-{number}{what}", std::process::id()));
        let (a, b, client) = (netns("a"), netns("b"), netns("c"));
        a.join(HOSTS[0], &b, HOSTS[1]);
        ip(&client, &["link", "add", SWITCH, "type", "bridge"]);
        ip(&client, &["address", "add", CLIENT, "dev", SWITCH]);
        ip(&client, &["link", "set", SWITCH, "up"]);
        for (host, port) in [(&a, "to-a"), (&b, "to-b")] {
            ip(host, &["link", "add", BRIDGE, "type", "bridge"]);
            ip(
                host,
                &["link", "add", "uplink", "type", "veth", "peer", "name", port, "netns", client.name()],
            );
            ip(host, &["link", "set", "uplink", "master", BRIDGE, "up"]);
            ip(host, &["link", "set", BRIDGE, "up"]);
            ip(&client, &["link", "set", port, "master", SWITCH, "up"]);
        }

        let root = tempfile::tempdir().unwrap();
        let token = root.path().join("token");
        std::fs::write(&token, TOKEN).unwrap();
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
        let start = |name, netns, own: usize, peer| {
            let dir = root.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("host.toml"), config(root.path(), name, own, peer)).unwrap();
            Host::new(name, netns, dir, format!("{}:{API_PORT}", HOSTS[own]).parse().unwrap())
        };
        let (a, b) = (start("a", a, 0, "b"), start("b", b, 1, "a"));
        Self { a, b, client, _root: root }
    }

    /// Gives a host an address among the guests.
    pub fn give_bridge(&self, host: &Host, address: &str) {
        ip(&host.netns, &["address", "add", &format!("{address}/24"), "dev", BRIDGE]);
    }

    /// Makes every link of the hosts a bad one, both ways: 10 ms later, and one packet in a hundred lost.
    pub fn degrade(&self) {
        for host in [&self.a, &self.b] {
            for link in ["wire", "uplink"] {
                run(
                    &host.netns,
                    "tc",
                    &["qdisc", "add", "dev", link, "root", "netem", "delay", "10ms", "loss", "1%"],
                );
            }
        }
        for port in ["to-a", "to-b"] {
            run(
                &self.client,
                "tc",
                &["qdisc", "add", "dev", port, "root", "netem", "delay", "10ms", "loss", "1%"],
            );
        }
    }
}

impl Drop for Network {
    /// What the guests said before a test failed.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for host in [&self.a, &self.b] {
            // A second panic would hide the first.
            let Ok(listed) = host.api.call(Method::GET, "/v1/vms", Vec::new()) else { continue };
            for vm in serde_json::from_slice::<VmList>(&listed.body).into_iter().flat_map(|list| list.vms) {
                let console = host.run(&["vm", "console", &vm.name]).stdout;
                eprintln!(
                    "--- console of {} on {}, {}\n{}",
                    vm.name,
                    host.name,
                    vm.state,
                    String::from_utf8_lossy(&console)
                );
            }
        }
    }
}

fn ip(netns: &Netns, args: &[&str]) {
    run(netns, "ip", args);
}

fn run(netns: &Netns, program: &str, args: &[&str]) {
    let output = netns.command(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

fn config(root: &Path, name: &str, own: usize, peer: &str) -> String {
    let (dir, token) = (root.join(name), root.join("token"));
    let mut text = String::new();
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
[peers.{peer}]
url = "http://{peer_address}:{API_PORT}"
token_file = {token:?}
"#,
        state = dir.join("state"),
        socket = dir.join("api.sock"),
        address = HOSTS[own],
        peer_address = HOSTS[1 - own],
    )
    .unwrap();
    text
}
