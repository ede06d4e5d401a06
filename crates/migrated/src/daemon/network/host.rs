//! What of the network is there on this host, looked at anew each time: interfaces come and go.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::PathBuf;

use rustix::thread::{CapabilitySet, capabilities};

use super::NetworkFault;

/// Most bridges that a refusal lists.
const LISTED: usize = 16;

/// Where the host's network is looked at.
#[derive(Clone, Debug)]
pub struct HostNetwork {
    /// The kernel's directory of interfaces.
    pub interfaces: PathBuf,
    /// The device that TAPs are made by.
    pub tun: PathBuf,
    /// Whether this process may make and change interfaces.
    pub is_permitted: fn() -> bool,
}

impl HostNetwork {
    /// The network that this process is in.
    pub fn of_system() -> Self {
        Self {
            interfaces: "/sys/class/net".into(),
            tun: "/dev/net/tun".into(),
            is_permitted: || {
                // Only a kernel without capabilities can't say; it then refuses by itself.
                capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
            },
        }
    }

    /// Why no TAP can be made.
    pub(super) fn tun_fault(&self) -> Option<NetworkFault> {
        match OpenOptions::new().read(true).write(true).open(&self.tun) {
            Ok(_) if (self.is_permitted)() => None,
            Ok(_) => Some(NetworkFault::NotPermitted),
            Err(e) => Some(NetworkFault::NoTun {
                device: self.tun.clone(),
                reason: e.to_string(),
                advice: match e.kind() {
                    ErrorKind::PermissionDenied => "run the daemon as root or let its user open the device",
                    _ => "load the driver: `modprobe tun`",
                },
            }),
        }
    }

    /// Why the bridge can't be used. One whose name can't be an interface's is a fault of the specification.
    pub(super) fn bridge_fault(&self, index: usize, host: &str, bridge: &str) -> Option<NetworkFault> {
        if !is_interface_name(bridge) || self.is_bridge(bridge) {
            return None;
        }
        let (host, bridge, there) = (host.to_owned(), bridge.to_owned(), self.list_bridges());
        Some(match self.is_interface(&bridge) {
            true => NetworkFault::NotABridge { index, host, bridge, there },
            false => NetworkFault::BridgeMissing { index, host, bridge, there },
        })
    }

    /// Why the TAP can't get that name.
    pub(super) fn tap_fault(&self, index: usize, host: &str, tap: &str) -> Option<NetworkFault> {
        let taken = is_interface_name(tap) && self.is_interface(tap);
        taken.then(|| NetworkFault::TapInUse { index, host: host.to_owned(), tap: tap.to_owned() })
    }

    fn is_interface(&self, name: &str) -> bool {
        self.interfaces.join(name).exists()
    }

    /// The kernel's bridges have a directory of their parameters.
    fn is_bridge(&self, name: &str) -> bool {
        self.interfaces.join(name).join("bridge").is_dir()
    }

    fn list_bridges(&self) -> String {
        let entries = std::fs::read_dir(&self.interfaces).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut bridges: Vec<_> = names.filter(|name| self.is_bridge(name)).collect();
        bridges.sort();
        let more = bridges.len().saturating_sub(LISTED);
        bridges.truncate(LISTED);
        match (bridges.is_empty(), more) {
            (true, _) => "none".into(),
            (false, 0) => bridges.join(", "),
            (false, more) => format!("{} and {more} more", bridges.join(", ")),
        }
    }
}

/// Whether the kernel would take it for an interface (`dev_valid_name`), and neither it nor anybody who reads it
/// for a pattern or for several words.
pub fn is_interface_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
    (1..=15).contains(&name.len()) && name.bytes().all(allowed) && !matches!(name, "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(faults: impl IntoIterator<Item = NetworkFault>) -> Vec<&'static str> {
        faults.into_iter().map(|fault| fault.code()).collect()
    }

    #[test]
    fn bridges_and_other_interfaces_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let host = HostNetwork { interfaces: root.path().into(), ..HostNetwork::of_system() };
        let fault =
            |bridge: &str| host.bridge_fault(3, "h", bridge).map(|fault| (fault.code(), fault.to_string()));
        let (code, says) = fault("br0").unwrap();
        assert!(code == "bridge_missing" && says.contains("which has none"), "{says}");
        for name in ["br0/bridge", "br1/bridge", "eth0"] {
            std::fs::create_dir_all(root.path().join(name)).unwrap();
        }
        assert_eq!(fault("br0"), None);
        let (code, says) = fault("eth0").unwrap();
        assert!(code == "not_a_bridge" && says.contains("h has br0, br1"), "{says}");
        let (_, says) = fault("br9").unwrap();
        assert!(says.starts_with("network 3") && says.contains("bridge@h=NAME"), "{says}");
        // Not a path into somewhere else.
        assert_eq!(fault("../x"), None);
        assert_eq!(codes(host.tap_fault(0, "h", "eth0")), ["tap_in_use"]);
        assert_eq!(codes(host.tap_fault(0, "h", "tap0")), Vec::<&str>::new());
    }

    #[test]
    fn a_host_without_tun_says_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let missing = HostNetwork { tun: root.path().join("tun"), ..HostNetwork::of_system() };
        let fault = missing.tun_fault().unwrap();
        assert!(fault.code() == "no_tun" && fault.to_string().contains("modprobe tun"), "{fault}");
        std::fs::write(&missing.tun, "").unwrap();
        let barred = HostNetwork { is_permitted: || false, ..missing.clone() };
        let fault = barred.tun_fault().unwrap();
        assert!(fault.code() == "no_tun" && fault.to_string().contains("CAP_NET_ADMIN"), "{fault}");
        assert_eq!(HostNetwork { is_permitted: || true, ..missing }.tun_fault(), None);
    }
}
