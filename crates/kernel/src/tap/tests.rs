use std::thread;
use std::time::Duration;

use migrated_netns::Pair;
use migrated_testkit::{require, wait_until};

use super::*;

/// A broadcast of an ethertype for local experiments, behind an empty header.
const FRAME: [u8; VNET_HEADER + 60] = {
    let mut frame = [0; VNET_HEADER + 60];
    let mut at = VNET_HEADER;
    while at < VNET_HEADER + 6 {
        frame[at] = 0xff;
        at += 1;
    }
    frame[VNET_HEADER + 6] = 0x02;
    frame[VNET_HEADER + 12] = 0x88;
    frame[VNET_HEADER + 13] = 0xb5;
    frame[VNET_HEADER + 59] = 0x5a;
    frame
};

fn ip(pair: &Pair, arguments: &str) -> String {
    let output = pair.command(0, "ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What opening says, inside.
fn refusal(pair: &Pair, name: Option<&str>, mtu: Option<u16>, bridge: Option<&str>) -> TapError {
    pair.enter(0, || Tap::open(name, mtu, bridge)).unwrap().unwrap_err()
}

fn receive(tap: &Tap) -> Vec<u8> {
    let mut frame = vec![0; 4096];
    let mut length = 0;
    wait_until("a frame arrives", Duration::from_secs(10), || {
        tap.receive(&mut frame).is_ok_and(|read| {
            length = read;
            true
        })
    });
    frame.truncate(length);
    frame
}

#[test]
fn frames_cross_a_bridge_and_the_host_sends_none() {
    require!(Netns);
    let pair = Pair::make(None).unwrap();
    ip(&pair, "link add br0 type bridge mcast_snooping 0");
    // The bridge would have a word to say as well.
    pair.enter(0, || std::fs::write("/proc/sys/net/ipv6/conf/br0/disable_ipv6", "1")).unwrap().unwrap();
    ip(&pair, "link set br0 up");
    let open = |name, mtu| Tap::open(name, mtu, Some("br0"));
    let (a, b) =
        pair.enter(0, || (open(None, Some(9000)).unwrap(), open(Some("guest-b"), None).unwrap())).unwrap();
    assert_eq!((a.name(), b.name()), ("mgt0", "guest-b"));
    assert!(ip(&pair, "link show mgt0").contains("mtu 9000"));
    assert!(ip(&pair, "link show guest-b").contains("master br0"));
    let addresses = ip(&pair, "-6 address show dev mgt0");
    assert!(addresses.is_empty(), "{addresses}");

    // A port may take a moment until it forwards.
    wait_until("both ports forward", Duration::from_secs(10), || {
        ip(&pair, "-d link show master br0").matches("state forwarding").count() == 2
    });
    a.send(&FRAME).unwrap();
    assert_eq!(receive(&b)[..10], FRAME[..10]);
    a.send(&FRAME).unwrap();
    assert_eq!(receive(&b)[VNET_HEADER..], FRAME[VNET_HEADER..], "nothing else came in between");
    let nothing = b.receive(&mut [0; 100]).unwrap_err();
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);

    a.set_offloads(TapOffloads { checksum: true, tso4: true, tso6: true, ecn: true }).unwrap();
    a.set_offloads(TapOffloads::default()).unwrap();
    let wrong = a.send(&[0xff; 40]).unwrap_err();
    assert_eq!(wrong.raw_os_error(), Some(libc::EINVAL), "a header that can't be");
    drop(b);
    assert!(!ip(&pair, "link show").contains("guest-b"), "it went with its descriptor");
}

#[test]
fn an_interface_that_is_removed_says_so() {
    require!(Netns);
    let pair = Pair::make(None).unwrap();
    let tap = pair.enter(0, || Tap::open(Some("gone"), None, None)).unwrap().unwrap();
    ip(&pair, "link delete gone");
    let mut frame = [0; 100];
    assert_eq!(tap.receive(&mut frame).unwrap_err().raw_os_error(), Some(libc::EBADFD));
    assert_eq!(tap.send(&FRAME).unwrap_err().raw_os_error(), Some(libc::EBADFD));
}

#[test]
fn refusals_name_what_to_do() {
    require!(Netns);
    let pair = Pair::make(None).unwrap();
    ip(&pair, "link add br0 type bridge mcast_snooping 0");
    for name in ["", "sixteen-letters-", "a/b", "a b", "a%d", "..", "tür"] {
        assert!(matches!(refusal(&pair, Some(name), None, None), TapError::Name { .. }), "{name}");
    }
    let busy = refusal(&pair, Some("br0"), None, None).to_string();
    assert!(busy.contains("ip link delete br0"), "{busy}");
    let _held = pair.enter(0, || Tap::open(Some("tap0"), None, None)).unwrap().unwrap();
    assert!(matches!(refusal(&pair, Some("tap0"), None, None), TapError::Busy { .. }));
    let missing = refusal(&pair, None, None, Some("br1")).to_string();
    assert!(missing.contains("ip link add br1 type bridge"), "{missing}");
    assert!(matches!(refusal(&pair, None, None, Some("veth0")), TapError::NotBridge { .. }));
    for mtu in [67, 65522] {
        assert!(
            matches!(refusal(&pair, None, Some(mtu), None), TapError::Mtu { mtu: refused } if refused == mtu)
        );
    }
    assert!(!ip(&pair, "link show").contains("mgt"), "a refused one leaves nothing");
    let _widest = pair.enter(0, || Tap::open(Some("widest"), Some(65521), None)).unwrap().unwrap();
    assert!(ip(&pair, "link show widest").contains("mtu 65521"));
}

#[test]
fn who_may_not_is_told_what_is_needed() {
    require!(Netns);
    let refused = thread::scope(|scope| {
        let without = || {
            let none = rustix::thread::CapabilitySets {
                effective: rustix::thread::CapabilitySet::empty(),
                permitted: rustix::thread::CapabilitySet::empty(),
                inheritable: rustix::thread::CapabilitySet::empty(),
            };
            rustix::thread::set_capabilities(None, none).unwrap();
            Tap::open(Some("mgt-none"), None, None).unwrap_err()
        };
        scope.spawn(without).join().unwrap()
    });
    assert!(refused.to_string().contains("CAP_NET_ADMIN"), "{refused}");
}

#[test]
fn nothing_counts_without_checksums() {
    let all = TapOffloads { checksum: true, tso4: true, tso6: true, ecn: true };
    assert_eq!(all.bits(), 0xf);
    assert_eq!(TapOffloads { checksum: false, ..all }.bits(), 0);
    assert_eq!(TapOffloads { tso4: false, tso6: false, ..all }.bits(), 1);
}
