//! With real TAPs on real bridges.

use std::fs;
use std::time::Duration;

use migrated_kernel::{Tap, VNET_HEADER};
use migrated_netns::Pair;
use migrated_testkit::{require, wait_until};

use super::super::*;
use super::bench::{Bench, MAC, RAM, frame_to};
use crate::virtio::testing::Ram;

fn ip(pair: &Pair, arguments: &str) -> String {
    let output = pair.command(0, "ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A bridge with a card on it, and another port at which to look.
fn bridged(pair: &Pair) -> (Net, Tap) {
    ip(pair, "link add br0 type bridge mcast_snooping 0");
    let quiet = "/proc/sys/net/ipv6/conf/br0/disable_ipv6";
    pair.enter(0, || fs::write(quiet, "1")).unwrap().unwrap();
    ip(pair, "link set br0 up");
    let config = NetworkConfig { mac: MAC, bridge: "br0".into(), tap: Some("guest".into()), mtu: None };
    let ports = || (Net::open(&config).unwrap(), Tap::open(Some("other"), None, Some("br0")).unwrap());
    let (net, other) = pair.enter(0, ports).unwrap();
    wait_until("both ports forward", Duration::from_secs(10), || {
        ip(pair, "-d link show master br0").matches("state forwarding").count() == 2
    });
    (net, other)
}

fn receive(tap: &Tap) -> Vec<u8> {
    let mut frame = vec![0; MAX_FRAME];
    let mut length = 0;
    wait_until("a frame arrives", Duration::from_secs(10), || {
        tap.receive(&mut frame).map(|read| length = read).is_ok()
    });
    frame.truncate(length);
    frame
}

#[test]
fn a_bridge_learns_where_the_guest_is_and_frames_go_both_ways() {
    require!(Netns);
    let pair = Pair::make(None).unwrap();
    let ram = Ram::new(RAM);
    let (net, other) = bridged(&pair);
    let mut bench = Bench::new(&ram, &[]);
    bench.net = net;
    let features = bench.net.features();
    bench.net.activate(features);

    bench.with(|net, queues| net.arrived(queues)).unwrap();
    assert_eq!(receive(&other)[VNET_HEADER..], frames::reverse_arp(MAC)[VNET_HEADER..]);
    let learnt = pair.command(0, "bridge").args(["fdb", "show", "br", "br0"]).output().unwrap();
    let learnt = String::from_utf8(learnt.stdout).unwrap();
    assert!(learnt.lines().any(|line| line.starts_with("52:54:00:00:00:07 dev guest")), "{learnt}");

    let mut out = frame_to([0x02, 0, 0, 0, 0, 9], 500);
    out[VNET_HEADER + 12..VNET_HEADER + 14].copy_from_slice(&[0x88, 0xb5]);
    bench.send(&out, 200);
    bench.serve(TX);
    assert_eq!(receive(&other)[VNET_HEADER..], out[VNET_HEADER..]);

    let mut back = out.clone();
    back[VNET_HEADER..VNET_HEADER + 12].rotate_left(6);
    other.send(&back).unwrap();
    let place = bench.offer(&[1500])[0];
    wait_until("the guest gets it", Duration::from_secs(10), || {
        bench.serve(RX);
        !bench.given_back(RX).is_empty()
    });
    assert_eq!(bench.read(place + VNET_HEADER as u64, 488), back[VNET_HEADER..]);
    assert!(bench.net.handle().first_packet().is_some());

    ip(&pair, "link delete guest");
    bench.serve(RX);
    assert_eq!(bench.config()[6] & 1, 0, "a pulled cable");
}

#[test]
fn a_bridge_that_is_missing_is_an_error_that_names_it() {
    require!(Netns);
    let pair = Pair::make(None).unwrap();
    let config = NetworkConfig { mac: MAC, bridge: "br7".into(), tap: None, mtu: None };
    let error = pair.enter(0, || Net::open(&config)).unwrap().unwrap_err().to_string();
    assert!(error.contains("br7"), "{error}");
}
