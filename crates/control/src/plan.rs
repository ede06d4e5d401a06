use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use migrated_cpuid::GuestCpu;
use migrated_engine::{Compression, Mode, OnTimeout, Verify};
use migrated_pages::RamLayout;
use migrated_wire::{MigrationId, Token};
use serde::{Deserialize, Serialize};

use crate::{NetworkPlan, VmSpec, text};

/// How a VM process begins; its directory's `start.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmStart {
    /// Boot a new guest.
    Boot(Box<BootPlan>),
    /// Make an empty VM and wait for a guest to arrive.
    Incoming(Box<IncomingPlan>),
}

impl VmStart {
    /// What the VM is made of.
    #[must_use]
    pub const fn spec(&self) -> &VmSpec {
        match self {
            Self::Boot(plan) => &plan.spec,
            Self::Incoming(plan) => &plan.spec,
        }
    }
}

/// Everything that a VM process needs to boot a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootPlan {
    /// What the VM is made of.
    pub spec: VmSpec,
    /// Its network interfaces as this host makes them.
    #[serde(default)]
    pub networks: Vec<NetworkPlan>,
    /// The CPU that the guest gets: what its baseline comes to on this host.
    pub cpu: GuestCpu,
    /// `cpu` is not this host's, which only pretends to have it, for tests: the guest runs with what this
    /// host really gives, and is described as having `cpu`.
    #[serde(default)]
    pub simulated: bool,
    /// The guest was here before and has reset itself.
    #[serde(default)]
    pub again: bool,
}

/// What the destination must know of a guest to judge, before anything moves, whether it can run there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuestDescription {
    /// How guest RAM is cut into blocks.
    pub ram: RamLayout,
    /// Every piece of state that will be sent.
    pub sections: Vec<SectionRef>,
    /// The CPU as the guest sees it.
    pub cpu: GuestCpu,
    /// The guest only pretends to have that CPU, for tests: no real host may take it.
    #[serde(default)]
    pub simulated: bool,
}

/// Names one piece of guest state and the version of its layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectionRef {
    /// What the state is of, e.g. `vcpu`.
    pub kind: String,
    /// Which of several.
    pub instance: u32,
    /// Version of the section's layout.
    pub version: u32,
}

/// How bytes travel between the two VM processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum TransportKind {
    /// TCP in the clear: for links that are safe by other means.
    #[serde(rename = "tcp")]
    Tcp,
    /// TCP under mutually authenticated TLS 1.3.
    #[serde(rename = "tcp+tls")]
    TcpTls,
}

impl TransportKind {
    /// The name in the API, records and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::TcpTls => "tcp+tls",
        }
    }
}

impl std::fmt::Display for TransportKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for TransportKind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "tcp" => Ok(Self::Tcp),
            "tcp+tls" => Ok(Self::TcpTls),
            other => Err(format!("unknown transport {other:?}; there are `tcp` and `tcp+tls`")),
        }
    }
}

/// PEM files of a host's migration identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Certificates of the authorities that may sign a peer.
    pub ca: PathBuf,
    /// This host's certificate chain, leaf first.
    pub cert: PathBuf,
    /// The leaf's private key.
    pub key: PathBuf,
}

/// When a migration began, so that the VM process counts time from the request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartedAt {
    /// Wall clock at the request, in ms since the Unix epoch.
    pub unix_ms: u64,
    /// How much of the set-up the daemons have used by now, in ms.
    pub elapsed_ms: f64,
}

/// What a migration must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Longest time that the guest may stand still, in µs.
    pub max_downtime_us: u64,
    /// Longest time that the migration as a whole should take, in ms; `None` is no such goal.
    #[serde(default)]
    pub max_total_ms: Option<u64>,
    /// Most payload a second on all channels together, in bits per second; `None` is no limit.
    pub bandwidth_bps: Option<u64>,
    /// How long pre-copy may take, in ms.
    pub timeout_ms: u64,
    /// What happens then, or when it stalls before.
    pub on_timeout: OnTimeout,
    /// Most rounds over the dirty pages.
    pub max_iterations: u32,
    /// Whether `auto` may let the guest run before its pages are there.
    pub allow_postcopy: bool,
    /// How long to try to reconnect when the link is lost before the commit, in ms; 0 gives up at once.
    pub reconnect_window_ms: u64,
    /// Largest share of its time that a vCPU may be made to sleep, in percent; 0 is never.
    pub max_slowdown_percent: u8,
    /// Most pages sent ahead of a fault, for tests; `None` leaves it to the engine.
    #[serde(default)]
    pub prefetch_pages: Option<u64>,
}

impl From<Limits> for migrated_engine::Limits {
    fn from(limits: Limits) -> Self {
        Self {
            max_downtime: Duration::from_micros(limits.max_downtime_us),
            max_total: limits.max_total_ms.map(Duration::from_millis),
            timeout: Duration::from_millis(limits.timeout_ms),
            max_iterations: limits.max_iterations,
            on_timeout: limits.on_timeout,
            bandwidth_bps: limits.bandwidth_bps,
            allow_postcopy: limits.allow_postcopy,
            reconnect_window: Duration::from_millis(limits.reconnect_window_ms),
            max_slowdown_percent: limits.max_slowdown_percent,
            prefetch_pages: limits.prefetch_pages.unwrap_or(migrated_engine::PREFETCH_PAGES),
        }
    }
}

/// Everything that a source's VM process needs to send its guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MigratePlan {
    /// The migration.
    #[serde(with = "text::migration_id")]
    pub migration: MigrationId,
    /// Id of the VM, for the record.
    pub vm: String,
    /// The destination as it was named, for the record and for asking what became of a commit.
    pub peer: String,
    /// How bytes travel.
    pub transport: TransportKind,
    /// Our identity, for a transport that authenticates.
    pub tls: Option<TlsFiles>,
    /// Where the destination's VM process listens.
    pub endpoints: Vec<SocketAddr>,
    /// Name that the destination's certificate must carry.
    pub server_name: Option<String>,
    /// The destination's one-shot secret.
    #[serde(with = "text::token")]
    pub token: Token,
    /// The epoch that the commit will carry.
    pub epoch: u64,
    /// How memory is moved.
    #[serde(default = "Mode::unnamed")]
    pub mode: Mode,
    /// Page channels; `None` lets the engine choose.
    pub channels: Option<u16>,
    /// What to keep to.
    pub limits: Limits,
    /// When the destination's memory is compared with ours.
    pub verify: Verify,
    /// Whether pages may be compressed.
    #[serde(default)]
    pub compression: Compression,
    /// When it began.
    pub started: StartedAt,
}

/// Another way to a host: its address, and the port where that is not the same there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherAddress {
    /// The address.
    pub ip: IpAddr,
    /// The port; `None` for the one that was told.
    pub port: Option<u16>,
}

impl OtherAddress {
    /// The whole address, where `told` was the one before.
    #[must_use]
    pub fn instead_of(self, told: SocketAddr) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(told.port()))
    }
}

impl std::str::FromStr for OtherAddress {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let alone = s.parse::<IpAddr>().map(|ip| Self { ip, port: None });
        let with_port = || s.parse::<SocketAddr>().map(|at| Self { ip: at.ip(), port: Some(at.port()) });
        alone.or_else(|_| with_port()).map_err(|_| {
            format!("{s:?} is no IP address, nor one with a port as in 192.0.2.1:7000 or [2001:db8::1]:7000")
        })
    }
}

/// Ports, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// First.
    pub first: u16,
    /// Last.
    pub last: u16,
}

impl PortRange {
    /// As a standard range.
    #[must_use]
    pub const fn range(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

/// Everything that a destination's VM process needs to receive a guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IncomingPlan {
    /// The migration.
    #[serde(with = "text::migration_id")]
    pub migration: MigrationId,
    /// Id of the VM, the same as at the source.
    pub vm: String,
    /// The one-shot secret that the source must show.
    #[serde(with = "text::token")]
    pub token: Token,
    /// The epoch that a commit must carry.
    pub epoch: u64,
    /// What the VM is made of.
    pub spec: VmSpec,
    /// Its network interfaces as this host makes them.
    #[serde(default)]
    pub networks: Vec<NetworkPlan>,
    /// CPU, RAM layout and state to expect.
    pub description: GuestDescription,
    /// The description's CPU is not this host's, which only pretends to have it, for tests; as in [`BootPlan`].
    #[serde(default)]
    pub simulated: bool,
    /// How bytes travel.
    pub transport: TransportKind,
    /// Our identity, for a transport that authenticates.
    pub tls: Option<TlsFiles>,
    /// Address to listen on.
    pub ip: IpAddr,
    /// Addresses that the source is told, with the port that is listened on; `ip` if there are none.
    #[serde(default)]
    pub advertise: Vec<IpAddr>,
    /// Ports to choose from.
    pub ports: PortRange,
    /// How memory is moved.
    #[serde(default = "Mode::unnamed")]
    pub mode: Mode,
    /// When our memory is compared with the source's.
    pub verify: Verify,
    /// Most page channels to accept.
    pub max_channels: u16,
    /// Where the committed epoch is recorded before the guest runs, see [`EpochRecord`](crate::EpochRecord).
    pub epoch_file: PathBuf,
    /// The source, for the record.
    pub peer: String,
    /// How long to wait for the source to connect and say what it brings, in ms. After that the process gives up and
    /// exits.
    pub patience_ms: u64,
    /// When it was prepared.
    pub started: StartedAt,
}

#[cfg(test)]
mod tests {
    use super::OtherAddress;

    #[test]
    fn another_address_may_leave_the_port_as_it_is() {
        let told = "10.0.0.1:7000".parse().unwrap();
        let instead = |s: &str| s.parse::<OtherAddress>().map(|via| via.instead_of(told).to_string());
        assert_eq!(instead("10.0.1.1").unwrap(), "10.0.1.1:7000");
        assert_eq!(instead("10.0.1.1:7001").unwrap(), "10.0.1.1:7001");
        assert_eq!(instead("::1").unwrap(), "[::1]:7000");
        assert_eq!(instead("[::1]:1").unwrap(), "[::1]:1");
        assert!(instead("host-b").unwrap_err().contains("host-b"));
        assert!(instead("10.0.1.1:99999").is_err());
    }
}
