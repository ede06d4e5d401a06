//! A host's configuration: a TOML file, and the flags of `serve` that replace parts of it.
//! `host.example.toml` documents every key.

mod defaults;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use migrated_api::{OnTimeout, TransportKind, Verify};
use migrated_control::{PortRange, TlsFiles};
use migrated_cpuid::FeatureSet;
use migrated_engine::MAX_RECONNECT_WINDOW;
use serde::Deserialize;

/// The commented example, which `serve --print-config` shows.
pub const EXAMPLE: &str = include_str!("../host.example.toml");

/// Most page channels of one migration.
pub const MAX_CHANNELS: u16 = 64;

/// Most addresses that sources are told: each that doesn't answer costs a source seconds.
const MAX_ADVERTISED: usize = 16;

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// Name of this host.
    pub name: String,
    /// Directory for VMs and migration records.
    pub state_dir: PathBuf,
    /// The HTTP API.
    pub api: ApiConfig,
    /// What guests may use.
    pub guests: GuestsConfig,
    /// How guests move.
    pub migration: MigrationConfig,
    /// Hosts known by name.
    pub peers: BTreeMap<String, PeerConfig>,
    /// What only tests need.
    pub testing: TestingConfig,
}

/// `[api]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Path of the Unix socket.
    pub socket: PathBuf,
    /// Its permissions, octal.
    pub socket_mode: String,
    /// TCP address to serve on besides.
    pub listen: Option<SocketAddr>,
    /// File with the bearer token.
    pub token_file: Option<PathBuf>,
    /// TLS on the TCP address.
    pub tls: Option<ApiTls>,
}

/// `[api.tls]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiTls {
    /// Certificate chain, leaf first.
    pub cert: PathBuf,
    /// The leaf's private key.
    pub key: PathBuf,
    /// Authority that callers' certificates must come from; callers need none without it.
    pub ca: Option<PathBuf>,
}

/// `[guests]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuestsConfig {
    /// Most RAM of all guests together, in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// RAM left to the system, in bytes.
    pub memory_reserve_bytes: u64,
    /// CPU features that new guests don't get.
    pub hide_cpu_features: Vec<String>,
}

/// `[testing]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TestingConfig {
    /// Dump of the CPU that this host pretends to have.
    pub simulate_cpu: Option<PathBuf>,
    /// Most pages that are sent ahead of a page fault.
    pub prefetch_pages: Option<u64>,
}

/// `[migration]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MigrationConfig {
    /// Address on which guests are received.
    pub ip: Option<IpAddr>,
    /// Addresses of this host that sources are told.
    pub advertise: Vec<IpAddr>,
    /// First and last port for receiving.
    pub ports: (u16, u16),
    /// Whether guests may travel in the clear.
    pub allow_plain_tcp: bool,
    /// Name in this host's migration certificate.
    pub server_name: Option<String>,
    /// This host's migration identity.
    pub tls: Option<TlsFiles>,
    /// What a migration keeps to when the request doesn't say.
    pub defaults: MigrationDefaults,
}

/// `[migration.defaults]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MigrationDefaults {
    /// Longest downtime, in ms.
    pub max_downtime_ms: f64,
    /// Longest time that a migration as a whole should take, in ms.
    pub max_total_ms: Option<f64>,
    /// How long pre-copy may take, in seconds.
    pub timeout_s: f64,
    /// What happens then.
    pub on_timeout: OnTimeout,
    /// Most rounds over the dirty pages.
    pub max_iterations: u32,
    /// Whether `auto` may let a guest run before its pages are there.
    pub allow_postcopy: bool,
    /// How long to try to reconnect when the link is lost before the commit, in ms.
    pub reconnect_window_ms: u64,
    /// Largest share of its time that a vCPU may be made to sleep, in percent.
    pub max_slowdown_percent: u8,
    /// Most payload a second, in bits per second.
    pub bandwidth_bps: Option<u64>,
    /// Page channels.
    pub channels: Option<u16>,
    /// When memory is compared.
    pub verify: Verify,
}

/// `[peers.NAME]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// URL of its API.
    pub url: String,
    /// File with its bearer token.
    pub token_file: Option<PathBuf>,
    /// Authority that signed its certificate.
    pub ca: Option<PathBuf>,
    /// Name that its certificate carries.
    pub server_name: Option<String>,
}

impl HostConfig {
    /// Reads the file at `path`.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    /// Reads a configuration file's text. Its values are checked by [`validate`](Self::validate), after
    /// flags have replaced some.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(toml::from_str(text)?)
    }

    /// Checks what a type can't.
    pub fn validate(&self) -> Result<()> {
        ensure!(!self.name.is_empty() && self.name.len() <= 64, "`name` must have 1 to 64 bytes");
        self.socket_mode()?;
        let api = &self.api;
        let authenticated = api.token_file.is_some() || api.tls.as_ref().is_some_and(|tls| tls.ca.is_some());
        if let Some(listen) = api.listen {
            ensure!(
                authenticated,
                "the API would be open to everybody who reaches {listen}: set `api.token_file` \
                 (--token-file), or `[api.tls]` with `ca` for client certificates, or leave `api.listen` out"
            );
        }
        let migration = &self.migration;
        ensure!(
            migration.ports.0 <= migration.ports.1,
            "`migration.ports` must be [first, last], not {:?}",
            migration.ports
        );
        self.validate_addresses()?;
        self.hidden_features()?;
        migration.defaults.validate()
    }

    /// CPU features that new guests don't get.
    pub fn hidden_features(&self) -> Result<FeatureSet> {
        let faults = |errors: Vec<migrated_cpuid::BaselineError>| {
            let faults: Vec<_> = errors.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("`guests.hide_cpu_features`: {}", faults.join("; "))
        };
        FeatureSet::named(&self.guests.hide_cpu_features).map_err(faults)
    }

    /// Permissions of the API's Unix socket.
    pub fn socket_mode(&self) -> Result<u32> {
        match u32::from_str_radix(&self.api.socket_mode, 8) {
            Ok(mode) if mode <= 0o777 => Ok(mode),
            _ => bail!(
                "`api.socket_mode` must be octal permissions such as \"0660\", not {:?}",
                self.api.socket_mode
            ),
        }
    }

    /// Checks what sources will be told of where guests are received.
    fn validate_addresses(&self) -> Result<()> {
        let (ip, advertise) = (self.migration_ip(), &self.migration.advertise);
        if advertise.is_empty() {
            ensure!(
                !ip.is_unspecified(),
                "`migration.ip` is told to sources, so it must be an address of this host that they reach, not {ip}; \
                 or say in `migration.advertise` (--advertise) what they are told"
            );
            return Ok(());
        }
        ensure!(
            advertise.len() <= MAX_ADVERTISED,
            "`migration.advertise` has {} addresses; {MAX_ADVERTISED} are possible",
            advertise.len()
        );
        for (index, address) in advertise.iter().enumerate() {
            let wrong = |what: &str| format!("`migration.advertise` has {address}, {what}");
            let is_link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
            ensure!(
                !address.is_unspecified() && !address.is_multicast(),
                wrong("which no source can connect to")
            );
            ensure!(!is_link_local, wrong("which means another host on each link; use a routed address"));
            ensure!(!advertise[..index].contains(address), wrong("which is there twice"));
            ensure!(
                ip.is_ipv4() == address.is_ipv4() || ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                wrong(&format!(
                    "but guests are received on {ip}: leave `migration.ip` out, or set it to \"::\""
                ))
            );
        }
        Ok(())
    }

    /// Address on which guests are received: on all of this host when it is told which of them to tell sources.
    pub fn migration_ip(&self) -> IpAddr {
        let of_api = || self.api.listen.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |listen| listen.ip());
        let all = || match self.migration.advertise.iter().all(IpAddr::is_ipv4) {
            true => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            false => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        self.migration
            .ip
            .unwrap_or_else(|| if self.migration.advertise.is_empty() { of_api() } else { all() })
    }

    /// Ports for receiving.
    pub fn migration_ports(&self) -> PortRange {
        PortRange { first: self.migration.ports.0, last: self.migration.ports.1 }
    }

    /// Name in this host's migration certificate.
    pub fn server_name(&self) -> &str {
        self.migration.server_name.as_deref().unwrap_or(&self.name)
    }

    /// The identity to use for a transport, or what to configure to have one.
    pub fn transport(&self, transport: TransportKind) -> Result<Option<TlsFiles>, String> {
        match transport {
            TransportKind::Tcp if self.migration.allow_plain_tcp => Ok(None),
            TransportKind::Tcp => Err(format!(
                "{} does not allow guests to travel in the clear: set `migration.allow_plain_tcp = true` \
                 (--allow-plain-tcp) on both hosts, or use `tcp+tls`",
                self.name
            )),
            TransportKind::TcpTls => match &self.migration.tls {
                Some(files) => Ok(Some(files.clone())),
                None => Err(format!(
                    "{} has no certificates for `tcp+tls`: set `[migration.tls]`; `migrated certs init` makes some",
                    self.name
                )),
            },
        }
    }

    /// The transport to use when a request doesn't say.
    pub fn default_transport(&self) -> TransportKind {
        if self.migration.tls.is_none() && self.migration.allow_plain_tcp {
            TransportKind::Tcp
        } else {
            TransportKind::TcpTls
        }
    }
}

impl MigrationDefaults {
    fn validate(&self) -> Result<()> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        ensure!(positive(self.max_downtime_ms), "`migration.defaults.max_downtime_ms` must be above 0");
        ensure!(
            self.max_total_ms.is_none_or(positive),
            "`migration.defaults.max_total_ms` must be above 0; leave it out for none"
        );
        ensure!(positive(self.timeout_s), "`migration.defaults.timeout_s` must be above 0");
        ensure!(self.max_iterations > 0, "`migration.defaults.max_iterations` must be above 0");
        let longest = MAX_RECONNECT_WINDOW.as_millis() as u64;
        ensure!(
            self.reconnect_window_ms <= longest,
            "`migration.defaults.reconnect_window_ms` must be {longest} at most"
        );
        ensure!(
            self.max_slowdown_percent < 100,
            "`migration.defaults.max_slowdown_percent` must be 0 to 99: a vCPU that stands still looks dead"
        );
        ensure!(self.bandwidth_bps != Some(0), "`migration.defaults.bandwidth_bps` must be above 0");
        ensure!(
            self.channels.is_none_or(|n| (1..=MAX_CHANNELS).contains(&n)),
            "`migration.defaults.channels` must be 1 to {MAX_CHANNELS}"
        );
        Ok(())
    }
}
