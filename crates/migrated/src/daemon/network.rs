//! A VM's network interfaces: what is wrong with them anywhere, what this host lacks for them, and how this
//! host makes them. All of it is found before a VM process starts, at a destination before anything moves.

mod fault;
mod host;

use std::collections::BTreeSet;

use migrated_api::Reason;
use migrated_control::{MacAddr, NetworkPlan, NetworkSpec, VmSpec};

pub use host::HostNetwork;

use super::vm::Vm;
use super::{Daemon, DaemonError, fill_random};
use fault::NetworkFault;
use host::is_interface_name;

/// Most hosts that may call their bridge otherwise.
const MAX_BRIDGES: usize = 256;

/// Everything about the interfaces that would be wrong on any host.
pub fn faults(spec: &VmSpec) -> Vec<Reason> {
    let mut faults = Vec::new();
    if spec.network.len() > NetworkSpec::MAX {
        faults.push(NetworkFault::TooMany(spec.network.len()));
    }
    let (mut macs, mut taps) = (BTreeSet::new(), BTreeSet::new());
    for (index, network) in interfaces(spec) {
        let names = network.bridges.values().chain([&network.bridge]).chain(&network.tap);
        let odd = names.filter(|name| !is_interface_name(name));
        faults.extend(odd.map(|name| NetworkFault::Name { index, name: name.clone() }));
        if network.bridges.len() > MAX_BRIDGES {
            faults.push(NetworkFault::TooManyBridges { index, bridges: network.bridges.len() });
        }
        if let Some(mtu) = network.mtu.filter(|mtu| !NetworkSpec::MTU.contains(mtu)) {
            faults.push(NetworkFault::Mtu { index, mtu });
        }
        if let Some(mac) = network.mac.filter(|mac| !macs.insert(*mac)) {
            faults.push(NetworkFault::MacTwice { index, mac });
        }
        if let Some(tap) = network.tap.as_ref().filter(|tap| !taps.insert(*tap)) {
            faults.push(NetworkFault::TapTwice { index, tap: tap.clone() });
        }
    }
    faults.iter().map(NetworkFault::to_reason).collect()
}

/// The interfaces that are looked at, with their numbers: a number too large is one fault, not thousands.
fn interfaces(spec: &VmSpec) -> impl Iterator<Item = (usize, &NetworkSpec)> {
    spec.network.iter().take(NetworkSpec::MAX).enumerate()
}

/// Addresses of `spec` that other VMs on this host have, which `vms` are.
pub fn macs_in_use<'a>(spec: &VmSpec, vms: impl Iterator<Item = &'a Vm> + Clone) -> Vec<Reason> {
    let mut faults = Vec::new();
    for (index, network) in interfaces(spec) {
        let Some(mac) = network.mac else { continue };
        let has_it = |vm: &&Vm| vm.spec.network.iter().any(|other| other.mac == Some(mac));
        let other = vms.clone().filter(|vm| vm.is_here()).find(has_it);
        faults.extend(other.map(|vm| NetworkFault::MacInUse { index, mac, vm: vm.spec.name.clone() }));
    }
    faults.iter().map(NetworkFault::to_reason).collect()
}

impl Daemon {
    /// Gives every interface that has no address one that no other VM here has.
    pub(super) fn choose_macs(&self, spec: &mut VmSpec) -> Result<(), DaemonError> {
        let mut taken: BTreeSet<MacAddr> = spec.network.iter().filter_map(|network| network.mac).collect();
        for vm in self.vms.lock().values() {
            taken.extend(vm.spec.network.iter().filter_map(|network| network.mac));
        }
        for network in spec.network.iter_mut().take(NetworkSpec::MAX).filter(|network| network.mac.is_none())
        {
            let mac = loop {
                let mut random = [0; 3];
                fill_random(&mut random)?;
                let mac = MacAddr::of_guest(random);
                if taken.insert(mac) {
                    break mac;
                }
            };
            network.mac = Some(mac);
        }
        Ok(())
    }

    /// How this host makes the interfaces of the VM `id`, and everything that it lacks for them.
    pub(super) fn plan_networks(&self, id: Option<&str>, spec: &VmSpec) -> (Vec<NetworkPlan>, Vec<Reason>) {
        let host = &self.config.name;
        let (mut plans, mut faults) = (Vec::new(), Vec::new());
        if !spec.network.is_empty() {
            faults.extend(self.ground.network.tun_fault());
        }
        let returning = id.map(|id| self.taps_left(id)).unwrap_or_default();
        for (index, network) in interfaces(spec) {
            let bridge = network.bridge_on(host);
            faults.extend(self.ground.network.bridge_fault(index, host, bridge));
            if let Some(tap) = network.tap.as_ref().filter(|tap| !returning.contains(*tap)) {
                faults.extend(self.ground.network.tap_fault(index, host, tap));
            }
            match network.mac {
                Some(mac) => plans.push(NetworkPlan {
                    mac,
                    bridge: bridge.to_owned(),
                    tap: network.tap.clone(),
                    mtu: network.mtu,
                }),
                None => faults.push(NetworkFault::NoMac { index }),
            }
        }
        (plans, faults.iter().map(NetworkFault::to_reason).collect())
    }

    /// TAPs of a guest that left this host, which go with its former process: whoever prepares for its return waits
    /// for that.
    fn taps_left(&self, id: &str) -> BTreeSet<String> {
        let vms = self.vms.lock();
        let former = vms.get(id).filter(|vm| !vm.is_here());
        former.map(|vm| named_taps(&vm.spec).cloned().collect()).unwrap_or_default()
    }
}

/// The TAPs that have a name on every host.
pub fn named_taps(spec: &VmSpec) -> impl Iterator<Item = &String> {
    spec.network.iter().filter_map(|network| network.tap.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(network: serde_json::Value) -> Vec<String> {
        let spec = serde_json::json!({
            "name": "g", "memory_bytes": 64 << 20, "boot": { "kind": "workload" }, "network": network,
        });
        let spec: VmSpec = serde_json::from_value(spec).unwrap();
        faults(&spec).into_iter().map(|reason| reason.code).collect()
    }

    #[test]
    fn interfaces_that_can_be_somewhere_are_accepted() {
        let good = serde_json::json!([
            { "bridge": "br0", "bridges": { "b": "br0.100" }, "tap": "tap-0", "mtu": 68 },
            { "bridge": "fifteen-bytes-x", "mac": "52:54:00:00:00:01", "mtu": 65521 },
        ]);
        assert_eq!(codes(good), Vec::<String>::new());
    }

    #[test]
    fn everything_that_is_wrong_with_them_is_named() {
        let mac = "52:54:00:00:00:01";
        let wrong = serde_json::json!([
            { "bridge": "", "bridges": { "b": "a/b" }, "tap": "sixteen-bytes-xy", "mtu": 67 },
            { "bridge": "..", "mac": mac, "tap": "t", "mtu": 65522 },
            { "bridge": "a b", "mac": mac, "tap": "t" },
        ]);
        let (name, mtu) = ("invalid_interface_name", "invalid_mtu");
        assert_eq!(codes(wrong), [name, name, name, mtu, name, mtu, name, "mac_in_use", "tap_in_use"]);
        let many = vec![serde_json::json!({ "bridge": "a:b" }); 9];
        assert_eq!(codes(many.into()), [&["too_many_networks"][..], &[name; 8]].concat());
        let bridges: serde_json::Map<_, _> = (0..257).map(|n| (format!("h{n}"), "br0".into())).collect();
        assert_eq!(codes(serde_json::json!([{ "bridge": "br0", "bridges": bridges }])), ["too_many_bridges"]);
    }
}
