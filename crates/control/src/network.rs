//! A VM's network interfaces: as its specification names them, and as one host makes them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One network interface of a VM: a virtio NIC on a TAP that is a port of a bridge of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NetworkSpec {
    /// The NIC's address: of one interface, locally administered, e.g. `52:54:00:12:34:56`. Left out, the daemon
    /// chooses one when it makes the VM, which keeps it on every host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub mac: Option<MacAddr>,
    /// The bridge that the TAP becomes a port of.
    pub bridge: String,
    /// The bridge on hosts where it is another one than `bridge`, by the host's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bridges: BTreeMap<String, String>,
    /// Name of the TAP on the host. Left out, the kernel finds a free one, `mgt0` and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Largest packet of the interface in bytes, without the Ethernet header, where it is not the kernel's 1500: 68 to
    /// 65521.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 68, maximum = 65521))]
    pub mtu: Option<u16>,
}

impl NetworkSpec {
    /// Most interfaces of one VM.
    pub const MAX: usize = 8;

    /// What an MTU may be, in bytes. The smallest packet that every IPv4 host must take whole (RFC 791) is the kernel's
    /// lower limit for an Ethernet interface; a TAP's upper limit is 65535 with the Ethernet header
    /// (drivers/net/tun.c).
    pub const MTU: RangeInclusive<u16> = 68..=65535 - 14;

    /// The bridge that holds on the host of that name.
    #[must_use]
    pub fn bridge_on(&self, host: &str) -> &str {
        self.bridges.get(host).unwrap_or(&self.bridge)
    }
}

/// One network interface as a host's VM process makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPlan {
    /// The NIC's address.
    pub mac: MacAddr,
    /// The bridge on this host.
    pub bridge: String,
    /// Name of the TAP; `None` lets the kernel find one.
    pub tap: Option<String>,
    /// The interface's MTU in bytes; `None` is the kernel's.
    pub mtu: Option<u16>,
}

/// The address of one Ethernet interface, which no vendor has given away: locally administered, not of a group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MacAddr([u8; 6]);

/// Why something is no [`MacAddr`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MacAddrError {
    /// It doesn't read as one.
    #[error("{0:?} is no MAC address; write six pairs of hex digits, e.g. 52:54:00:12:34:56")]
    Malformed(String),
    /// The first octet's bit 0 is set.
    #[error(
        "{0} is the address of a group of interfaces; its first octet must be even, e.g. 52:54:00:12:34:56"
    )]
    Group(String),
    /// The first octet's bit 1 is not set.
    #[error(
        "{0} is in the space that vendors give away; the second digit of a guest's address must be 2, 6, a or e, \
         e.g. 52:54:00:12:34:56"
    )]
    Vendor(String),
}

impl MacAddr {
    /// IEEE 802's bits of the first octet: I/G, the address is a group's; U/L, it is locally administered.
    const GROUP: u8 = 1;
    const LOCAL: u8 = 2;

    /// An address of those octets.
    ///
    /// # Errors
    /// [`MacAddrError`], when it is a group's or a vendor's.
    pub fn new(octets: [u8; 6]) -> Result<Self, MacAddrError> {
        if octets[0] & Self::GROUP != 0 {
            return Err(MacAddrError::Group(text(octets)));
        }
        if octets[0] & Self::LOCAL == 0 {
            return Err(MacAddrError::Vendor(text(octets)));
        }
        Ok(Self(octets))
    }

    /// An address in the block that QEMU and KVM guests use, 52:54:00.
    #[must_use]
    pub const fn of_guest([a, b, c]: [u8; 3]) -> Self {
        Self([0x52, 0x54, 0x00, a, b, c])
    }

    /// Its octets, as they go over the wire.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

fn text(octets: [u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(self.0))
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = MacAddrError;

    fn from_str(address: &str) -> Result<Self, MacAddrError> {
        let malformed = || MacAddrError::Malformed(address.to_owned());
        let mut octets = [0; 6];
        let mut parts = address.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(malformed)?;
            // `from_str_radix` takes a sign.
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        if parts.next().is_some() {
            return Err(malformed());
        }
        Self::new(octets)
    }
}

impl From<MacAddr> for String {
    fn from(address: MacAddr) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for MacAddr {
    type Error = MacAddrError;

    fn try_from(address: String) -> Result<Self, MacAddrError> {
        address.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_is_of_one_interface_and_of_no_vendor() {
        let parse = |address: &str| address.parse::<MacAddr>().map(|address| address.to_string());
        assert_eq!(parse("52:54:00:AB:cd:0f"), Ok("52:54:00:ab:cd:0f".into()));
        assert_eq!(parse("53:54:00:00:00:01"), Err(MacAddrError::Group("53:54:00:00:00:01".into())));
        assert_eq!(parse("ff:ff:ff:ff:ff:ff"), Err(MacAddrError::Group("ff:ff:ff:ff:ff:ff".into())));
        assert_eq!(parse("00:50:56:00:00:01"), Err(MacAddrError::Vendor("00:50:56:00:00:01".into())));
        for malformed in [
            "",
            ":",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5",
            "5254.0012.3456",
            "52-54-00-12-34-56",
            "+2:54:00:12:34:56",
            "52:54:00:12:34:5g",
            "52:54:00:12:34:56 ",
            "52:54:00:12:34:é",
        ] {
            assert_eq!(parse(malformed), Err(MacAddrError::Malformed(malformed.into())), "{malformed}");
        }
        assert_eq!(MacAddr::new(MacAddr::of_guest([1, 2, 3]).octets()), "52:54:00:01:02:03".parse());
    }

    #[test]
    fn a_host_may_call_its_bridge_otherwise() {
        let bridges = [("b".to_owned(), "br1".to_owned())].into();
        let network = NetworkSpec { bridge: "br0".into(), bridges, ..NetworkSpec::default() };
        assert_eq!([network.bridge_on("a"), network.bridge_on("b")], ["br0", "br1"]);
    }

    #[test]
    fn a_network_reads_from_json_and_refuses_what_it_does_not_know() {
        let read = |text: &str| serde_json::from_str::<NetworkSpec>(text).map_err(|e| e.to_string());
        let short = read(r#"{"bridge":"br0"}"#).unwrap();
        assert_eq!(short, NetworkSpec { bridge: "br0".into(), ..NetworkSpec::default() });
        assert_eq!(serde_json::to_string(&short).unwrap(), r#"{"bridge":"br0"}"#);
        assert!(read(r#"{"bridge":"br0","mac":"52:54"}"#).unwrap_err().contains("six pairs"));
        assert!(read(r#"{"bridge":"br0","vlan":3}"#).unwrap_err().contains("vlan"));
        assert!(read(r#"{"mac":"52:54:00:12:34:56"}"#).unwrap_err().contains("bridge"));
    }

    proptest! {
        #[test]
        fn text_is_an_address_exactly_when_it_comes_back(address in "\\PC{0,20}|([0-9a-f]{2}:){5}[0-9a-f]{2}") {
            if let Ok(parsed) = address.parse::<MacAddr>() {
                prop_assert_eq!(parsed.to_string(), address.to_lowercase());
            }
        }
    }
}
