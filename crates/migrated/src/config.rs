//! A host's configuration: a TOML file, and the flags of `serve` that replace parts of it.
//! `host.example.toml` documents every key.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use migrated_api::{OnTimeout, TransportKind, Verify};
use migrated_control::{PortRange, TlsFiles};
use serde::Deserialize;

/// The commented example, which `serve --print-config` shows.
pub const EXAMPLE: &str = include_str!("../host.example.toml");

/// Most page channels of one migration.
pub const MAX_CHANNELS: u16 = 64;

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
}

/// `[migration]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MigrationConfig {
    /// Address on which guests are received.
    pub ip: Option<IpAddr>,
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
    /// How long pre-copy may take, in seconds.
    pub timeout_s: f64,
    /// What happens then.
    pub on_timeout: OnTimeout,
    /// Most rounds over the dirty pages.
    pub max_iterations: u32,
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

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            state_dir: "/var/lib/migrated".into(),
            api: ApiConfig::default(),
            guests: GuestsConfig::default(),
            migration: MigrationConfig::default(),
            peers: BTreeMap::new(),
        }
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            socket: "/run/migrated/api.sock".into(),
            socket_mode: "0660".into(),
            listen: None,
            token_file: None,
            tls: None,
        }
    }
}

impl Default for GuestsConfig {
    fn default() -> Self {
        Self { memory_limit_bytes: None, memory_reserve_bytes: 256 << 20 }
    }
}

impl Default for MigrationConfig {
    fn default() -> Self {
        Self {
            ip: None,
            // IANA's dynamic range starts here; 64 guests may come in at once.
            ports: (49152, 49215),
            allow_plain_tcp: false,
            server_name: None,
            tls: None,
            defaults: MigrationDefaults::default(),
        }
    }
}

impl Default for MigrationDefaults {
    fn default() -> Self {
        Self {
            max_downtime_ms: 300.0,
            timeout_s: 600.0,
            on_timeout: OnTimeout::Cancel,
            max_iterations: 30,
            bandwidth_bps: None,
            channels: None,
            verify: Verify::Off,
        }
    }
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
        ensure!(
            !self.migration_ip().is_unspecified(),
            "`migration.ip` is told to sources, so it must be an address of this host that they reach, not {}",
            self.migration_ip()
        );
        migration.defaults.validate()
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

    /// Address on which guests are received.
    pub fn migration_ip(&self) -> IpAddr {
        let of_api = self.api.listen.map(|listen| listen.ip());
        self.migration.ip.or(of_api).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
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
        ensure!(positive(self.timeout_s), "`migration.defaults.timeout_s` must be above 0");
        ensure!(self.max_iterations > 0, "`migration.defaults.max_iterations` must be above 0");
        ensure!(self.bandwidth_bps != Some(0), "`migration.defaults.bandwidth_bps` must be above 0");
        ensure!(
            self.channels.is_none_or(|n| (1..=MAX_CHANNELS).contains(&n)),
            "`migration.defaults.channels` must be 1 to {MAX_CHANNELS}"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example with every key that is commented out put in.
    fn whole_example() -> String {
        let uncommented = EXAMPLE.lines().map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.starts_with('[') || is_key(rest) => rest,
            _ => line,
        });
        uncommented.collect::<Vec<_>>().join("\n")
    }

    fn is_key(line: &str) -> bool {
        let name = line.split_once(" = ").map(|(name, _)| name);
        name.is_some_and(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    }

    fn error(text: &str) -> String {
        let checked = HostConfig::parse(text).and_then(|config| config.validate());
        format!("{:#}", checked.unwrap_err())
    }

    #[test]
    fn the_example_shows_the_defaults() {
        assert_eq!(HostConfig::parse(EXAMPLE).unwrap(), HostConfig::default());
        HostConfig::default().validate().unwrap();
    }

    #[test]
    fn the_example_shows_every_key_and_each_is_one() {
        let config = HostConfig::parse(&whole_example()).unwrap();
        config.validate().unwrap();
        // Everything that is nothing by default is something here.
        let tls = config.api.tls.unwrap();
        assert!(tls.ca.is_some() && config.api.listen.is_some() && config.api.token_file.is_some());
        assert!(config.guests.memory_limit_bytes.is_some());
        assert!(config.migration.ip.is_some() && config.migration.server_name.is_some());
        assert!(config.migration.tls.is_some());
        assert!(
            config.migration.defaults.bandwidth_bps.is_some() && config.migration.defaults.channels.is_some()
        );
        let peer = &config.peers["host-b"];
        assert!(peer.token_file.is_some() && peer.ca.is_some() && peer.server_name.is_some());
    }

    #[test]
    fn unknown_keys_are_refused_at_every_level() {
        for text in [
            "colour = 1",
            "[api]\ncolour = 1",
            "[api.tls]\ncert = \"a\"\nkey = \"b\"\ncolour = 1",
            "[guests]\ncolour = 1",
            "[migration]\ncolour = 1",
            "[migration.defaults]\ncolour = 1",
            "[migration.tls]\nca = \"a\"\ncert = \"a\"\nkey = \"b\"\ncolour = 1",
            "[peers.b]\nurl = \"http://b\"\ncolour = 1",
        ] {
            assert!(error(text).contains("unknown field `colour`"), "{text}: {}", error(text));
        }
    }

    #[test]
    fn an_open_door_is_refused_and_a_locked_one_is_not() {
        let listen = "[api]\nlisten = \"127.0.0.1:1\"\n";
        assert!(error(listen).contains("token_file"), "{}", error(listen));
        let tls = format!("{listen}[api.tls]\ncert = \"a\"\nkey = \"b\"\n");
        assert!(error(&tls).contains("client certificates"), "{}", error(&tls));
        HostConfig::parse(&format!("{tls}ca = \"c\"\n")).unwrap().validate().unwrap();
        HostConfig::parse(&format!("{listen}token_file = \"t\"\n")).unwrap().validate().unwrap();
    }

    #[test]
    fn values_that_cant_be_are_refused_by_name() {
        for (text, name) in [
            ("name = \"\"", "`name`"),
            ("[api]\nsocket_mode = \"rw\"", "socket_mode"),
            ("[api]\nsocket_mode = \"1777\"", "socket_mode"),
            ("[migration]\nports = [2, 1]", "ports"),
            ("[migration]\nip = \"0.0.0.0\"", "migration.ip"),
            ("[migration.defaults]\nmax_downtime_ms = 0", "max_downtime_ms"),
            ("[migration.defaults]\ntimeout_s = nan", "timeout_s"),
            ("[migration.defaults]\nchannels = 65", "channels"),
            ("[migration.defaults]\nbandwidth_bps = 0", "bandwidth_bps"),
            ("[migration.defaults]\nmax_iterations = 0", "max_iterations"),
            ("[migration.defaults]\non_timeout = \"pray\"", "on_timeout"),
        ] {
            assert!(error(text).contains(name), "{text}: {}", error(text));
        }
        let unspecified = "[api]\nlisten = \"0.0.0.0:1\"\ntoken_file = \"t\"";
        assert!(error(unspecified).contains("migration.ip"), "{}", error(unspecified));
    }

    #[test]
    fn guests_are_received_where_the_api_is_unless_told_otherwise() {
        let ip = |text: &str| HostConfig::parse(text).unwrap().migration_ip().to_string();
        assert_eq!(ip(""), "127.0.0.1");
        assert_eq!(ip("[api]\nlisten = \"10.0.0.1:1\""), "10.0.0.1");
        assert_eq!(ip("[api]\nlisten = \"10.0.0.1:1\"\n[migration]\nip = \"10.0.1.1\""), "10.0.1.1");
    }
}
