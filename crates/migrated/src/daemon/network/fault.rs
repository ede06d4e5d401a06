use std::path::PathBuf;

use migrated_api::Reason;
use migrated_control::{MacAddr, NetworkSpec};
use thiserror::Error;

/// Why a VM can't have a network interface, here or anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NetworkFault {
    /// More than a VM has room for.
    #[error("{0} network interfaces; a VM has {max} at most", max = NetworkSpec::MAX)]
    TooMany(usize),
    /// More exceptions than anybody has hosts.
    #[error("network {index} names {bridges} hosts in `bridges`; leave out those that have `bridge`")]
    TooManyBridges { index: usize, bridges: usize },
    /// The kernel would not take the name.
    #[error(
        "network {index}: {name:?} can't be an interface's name: 1 to 15 visible ASCII characters without `/`, `:` and \
         `%`"
    )]
    Name { index: usize, name: String },
    /// The kernel would not take it.
    #[error(
        "network {index}: a TAP can't have an MTU of {mtu} bytes; it must be {} to {}",
        NetworkSpec::MTU.start(), NetworkSpec::MTU.end()
    )]
    Mtu { index: usize, mtu: u16 },
    /// Two interfaces of the VM would be one on the wire.
    #[error(
        "network {index} has the address {mac} of another interface of this VM; give it its own, or none"
    )]
    MacTwice { index: usize, mac: MacAddr },
    /// Two interfaces of the VM would have one TAP.
    #[error("network {index} has the TAP {tap:?} of another interface of this VM; give it its own, or none")]
    TapTwice { index: usize, tap: String },
    /// Whoever made the VM did not choose one.
    #[error(
        "network {index} has no MAC address; the daemon that makes a VM chooses one, which travels with it"
    )]
    NoMac { index: usize },
    /// Another VM here has the address.
    #[error("network {index}: VM {vm} on this host has the address {mac}; one of the two must get another")]
    MacInUse { index: usize, mac: MacAddr, vm: String },
    /// Nothing of that name.
    #[error(
        "network {index}: there is no bridge {bridge:?} on {host}, which has {there}; make it there (`ip link add \
         {bridge} type bridge`), or name {host}'s at the VM's creation: `bridges` in the specification, \
         `--net bridge=…,bridge@{host}=NAME` on the command line"
    )]
    BridgeMissing { index: usize, host: String, bridge: String, there: String },
    /// Something else of that name.
    #[error(
        "network {index}: {bridge:?} on {host} is an interface but no bridge; {host} has {there}. Name one of them: \
         `bridges` in the specification, `--net bridge=…,bridge@{host}=NAME` on the command line"
    )]
    NotABridge { index: usize, host: String, bridge: String, there: String },
    /// An interface of that name is there.
    #[error(
        "network {index}: {host} has an interface {tap:?} already; remove it (`ip link delete {tap}`), choose another \
         name, or leave the name to the kernel"
    )]
    TapInUse { index: usize, host: String, tap: String },
    /// The device can't be opened.
    #[error("can't use {device} for TAPs: {reason}; {advice}", device = device.display())]
    NoTun { device: PathBuf, reason: String, advice: &'static str },
    /// The daemon may not make interfaces.
    #[error(
        "the daemon may not make TAPs: it needs CAP_NET_ADMIN; run it as root or grant it (systemd: AmbientCapabilities=)"
    )]
    NotPermitted,
}

impl NetworkFault {
    /// Stable and machine-readable.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooMany(_) => "too_many_networks",
            Self::TooManyBridges { .. } => "too_many_bridges",
            Self::Name { .. } => "invalid_interface_name",
            Self::Mtu { .. } => "invalid_mtu",
            Self::MacTwice { .. } | Self::MacInUse { .. } => "mac_in_use",
            Self::NoMac { .. } => "mac_missing",
            Self::BridgeMissing { .. } => "bridge_missing",
            Self::NotABridge { .. } => "not_a_bridge",
            Self::TapTwice { .. } | Self::TapInUse { .. } => "tap_in_use",
            Self::NoTun { .. } | Self::NotPermitted => "no_tun",
        }
    }

    /// As one of several reasons.
    pub fn to_reason(&self) -> Reason {
        Reason { code: self.code().to_owned(), detail: self.to_string() }
    }
}
