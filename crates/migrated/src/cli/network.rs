//! Network interfaces as people type and read them.

use migrated_api::{MacAddrError, NetworkSpec, VmSpec};

/// An interface: `bridge=br0,mac=52:54:00:12:34:56,tap=tap0,mtu=1500,bridge@HOST=br1`.
pub fn network(text: &str) -> Result<NetworkSpec, String> {
    let mut network = NetworkSpec::default();
    let (mut bridge, mut seen) = (None, Vec::new());
    for part in text.split(',') {
        let wrong =
            || format!("{part:?} is no part of a network; write e.g. bridge=br0,mac=52:54:00:12:34:56");
        let (key, value) = part.split_once('=').filter(|(_, value)| !value.is_empty()).ok_or_else(wrong)?;
        if seen.contains(&key) {
            return Err(format!("{key:?} is there twice"));
        }
        seen.push(key);
        match (key, key.strip_prefix("bridge@")) {
            ("bridge", _) => bridge = Some(value.to_owned()),
            (_, Some(host)) if !host.is_empty() => {
                network.bridges.insert(host.to_owned(), value.to_owned());
            }
            ("mac", _) => network.mac = Some(value.parse().map_err(|e: MacAddrError| e.to_string())?),
            ("tap", _) => network.tap = Some(value.to_owned()),
            ("mtu", _) => {
                let (least, most) = NetworkSpec::MTU.into_inner();
                let wrong = || format!("{value:?} is no MTU; it must be {least} to {most} bytes");
                let mtu = value.parse().ok().filter(|mtu| (least..=most).contains(mtu));
                network.mtu = Some(mtu.ok_or_else(wrong)?);
            }
            _ => {
                return Err(format!("{key:?} is not known; there are bridge, bridge@HOST, mac, tap and mtu"));
            }
        }
    }
    network.bridge = bridge.ok_or("it needs the host's bridge: bridge=NAME")?;
    Ok(network)
}

/// One interface in a line.
pub fn in_words(network: &NetworkSpec) -> String {
    let mut words = vec![network.bridge.clone()];
    words.extend(network.mac.map(|mac| mac.to_string()));
    words.extend(network.tap.as_ref().map(|tap| format!("TAP {tap}")));
    words.extend(network.mtu.map(|mtu| format!("MTU {mtu}")));
    words.extend(network.bridges.iter().map(|(host, bridge)| format!("{bridge} on {host}")));
    words.join(", ")
}

/// The bridges of all interfaces.
pub fn bridges(spec: &VmSpec) -> String {
    spec.network.iter().map(|network| network.bridge.as_str()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_read_in_any_order_and_told_again() {
        let typed = "mtu=9000,bridge@host-b=br1,tap=tap0,bridge=br0,mac=52:54:00:12:34:56";
        let read = network(typed).unwrap();
        assert_eq!(read.bridge_on("host-b"), "br1");
        assert_eq!(in_words(&read), "br0, 52:54:00:12:34:56, TAP tap0, MTU 9000, br1 on host-b");
        for mtu in [68, 65521] {
            assert_eq!(network(&format!("bridge=br0,mtu={mtu}")).unwrap().mtu, Some(mtu));
        }
        assert_eq!(
            network("bridge=br0").unwrap(),
            NetworkSpec { bridge: "br0".into(), ..Default::default() }
        );
    }

    #[test]
    fn what_is_no_interface_is_refused_in_words() {
        for (typed, says) in [
            ("", "is no part of a network"),
            ("br0", "is no part of a network"),
            ("bridge=", "is no part of a network"),
            ("bridge=br0,", "is no part of a network"),
            ("mac=52:54:00:12:34:56", "bridge=NAME"),
            ("bridge=br0,bridge=br1", "twice"),
            ("bridge=br0,bridge@=br1", "not known"),
            ("bridge=br0,vlan=3", "not known"),
            ("bridge=br0,mtu=65536", "no MTU"),
            ("bridge=br0,mtu=65522", "68 to 65521"),
            ("bridge=br0,mtu=67", "no MTU"),
            ("bridge=br0,mac=53:54:00:12:34:56", "group"),
            ("bridge=br0,mac=00:50:56:12:34:56", "vendors"),
        ] {
            let refused = network(typed).unwrap_err();
            assert!(refused.contains(says), "{typed}: {refused}");
        }
    }
}
