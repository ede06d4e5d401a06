//! What the demo stands on: a directory, a network and two daemons.

use std::path::Path;

use anyhow::{Context, Result};
use migrated_api::TransportKind;
use migrated_netns::ADDRESSES;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::host::Host;
use super::network::Network;
use crate::certs;

/// Names of the two hosts.
const NAMES: [&str; 2] = ["host-a", "host-b"];
/// Port of their API, each in its own namespace.
const PORT: u16 = 8470;

/// Everything that was made for the demo. Dropped, as on a panic, it is removed as well, in this order:
/// daemons with their guests, the network that they use, the directory that they write to.
#[derive(Debug)]
pub struct Stage {
    hosts: [Host; 2],
    network: Network,
    dir: TempDir,
}

impl Stage {
    /// Makes everything and starts the daemons, which may not serve yet.
    pub fn set(link: Option<u64>, transport: TransportKind) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("migrated-demo-").tempdir();
        let dir = dir.context("can't make a directory for the demo's files")?;
        if transport == TransportKind::TcpTls {
            certs::make(dir.path(), &NAMES)?;
        }
        let network = Network::make(link)?;
        if matches!(network, Network::Namespaces(_)) {
            write_token(&token_file(dir.path()))?;
        }
        let start = |index: usize| -> Result<Host> {
            let config = toml::to_string(&config(dir.path(), &network, transport, index))?;
            Host::start(NAMES[index], dir.path(), &config, |program| network.command(index, program))
        };
        let hosts = [start(0)?, start(1)?];
        Ok(Self { hosts, network, dir })
    }

    /// The hosts.
    pub fn hosts(&mut self) -> &mut [Host; 2] {
        &mut self.hosts
    }

    /// Removes everything. Says what was left that should not have been, and what can't be removed.
    pub fn strike(mut self) -> Vec<String> {
        let mut problems: Vec<_> = self.hosts.iter_mut().flat_map(Host::stop).collect();
        problems.extend(self.network.remove());
        let path = self.dir.path().to_owned();
        if let Err(error) = self.dir.close() {
            problems.push(format!("can't remove {}: {error}", path.display()));
        }
        problems
    }
}

fn token_file(dir: &Path) -> std::path::PathBuf {
    dir.join("token")
}

fn write_token(path: &Path) -> Result<()> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    let token = migrated_wire::Token(secret).to_hex();
    migrated_control::write_atomic(path, token.as_bytes()).context("can't write the daemons' token")
}

/// A host's configuration. In namespaces the hosts reach each other's API over TCP, as real ones do; on
/// loopback over its Unix socket, for which no port has to be found.
fn config(dir: &Path, network: &Network, transport: TransportKind, index: usize) -> Value {
    let (name, peer) = (NAMES[index], NAMES[1 - index]);
    let mut config = json!({
        "name": name,
        "state_dir": dir.join(name),
        "api": { "socket": Host::socket(dir, name) },
        "migration": { "allow_plain_tcp": transport == TransportKind::Tcp },
        "peers": { peer: { "url": format!("unix:{}", Host::socket(dir, peer).display()) } },
    });
    if transport == TransportKind::TcpTls {
        config["migration"]["tls"] = json!({
            "ca": dir.join("ca.pem"),
            "cert": dir.join(format!("{name}.pem")),
            "key": dir.join(format!("{name}.key")),
        });
    }
    if matches!(network, Network::Namespaces(_)) {
        let at = |index| format!("{}:{PORT}", ADDRESSES[index]);
        config["api"]["listen"] = json!(at(index));
        config["api"]["token_file"] = json!(token_file(dir));
        config["peers"][peer] =
            json!({ "url": format!("http://{}", at(1 - index)), "token_file": token_file(dir) });
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HostConfig;

    #[test]
    fn a_daemon_takes_the_configuration_that_is_written_for_it() {
        let json = config(Path::new("/tmp/a \"dir\""), &Network::Loopback, TransportKind::TcpTls, 1);
        let config = HostConfig::parse(&toml::to_string(&json).unwrap()).unwrap();
        config.validate().unwrap();
        assert_eq!(config.name, "host-b");
        assert_eq!(config.peers["host-a"].url, "unix:/tmp/a \"dir\"/host-a.sock");
        assert_eq!(config.default_transport(), TransportKind::TcpTls);
        assert_eq!(config.migration.tls.unwrap().key, Path::new("/tmp/a \"dir\"/host-b.key"));
    }
}
