//! The frames by which a guest's place in the network is announced. Each begins with an empty virtio header.

use std::net::{Ipv4Addr, Ipv6Addr};

use migrated_kernel::VNET_HEADER;

/// Ethertypes.
pub(super) const ARP: [u8; 2] = [0x08, 0x06];
pub(super) const IPV6: [u8; 2] = [0x86, 0xdd];
const RARP: [u8; 2] = [0x80, 0x35];
/// IPv6's number of ICMPv6.
pub(super) const ICMPV6: u8 = 58;
/// ICMPv6 types (RFC 4861, 4.3 and 4.4).
pub(super) const NEIGHBOUR_SOLICITATION: u8 = 135;
pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Flags of a neighbour advertisement.
pub(super) const FROM_ROUTER: u8 = 0x80;
const OVERRIDE: u8 = 0x20;
/// How ARP for IPv4 over Ethernet begins (RFC 826): the kinds and lengths of both addresses.
pub(super) const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
const RARP_REQUEST: [u8; 2] = [0, 3];

const BROADCAST: [u8; 6] = [0xff; 6];
/// ff02::1 and the Ethernet address that belongs to it (RFC 2464, 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// Shortest frame on a cable, without its checksum.
const MIN_LENGTH: usize = 60;

/// RARP's question for the address of `mac` (RFC 903), which nobody answers: it shows switches a frame of that MAC.
pub(super) fn reverse_arp(mac: [u8; 6]) -> Vec<u8> {
    let packet = [&ARP_ETHERNET_IPV4[..], &RARP_REQUEST, &mac, &[0; 4], &mac, &[0; 4]].concat();
    frame(BROADCAST, mac, RARP, &packet)
}

/// ARP's question for an address by its owner (RFC 5227, 2.3): who knows the address takes note of `mac`.
pub(super) fn gratuitous_arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let address = address.octets();
    let packet = [&ARP_ETHERNET_IPV4[..], &ARP_REQUEST, &mac, &address, &[0; 6], &address].concat();
    frame(BROADCAST, mac, ARP, &packet)
}

/// An answer that nobody asked for, to all (RFC 4861, 7.2.6), which replaces what they knew.
pub(super) fn unsolicited_advertisement(mac: [u8; 6], address: Ipv6Addr, router: bool) -> Vec<u8> {
    let flags = OVERRIDE | if router { FROM_ROUTER } else { 0 };
    // Option 2, of 8 bytes: the target's link-layer address.
    let message =
        [&[NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0][..], &address.octets(), &[2, 1], &mac].concat();
    let length = message.len() as u16;
    let between = [address.octets(), ALL_NODES.octets()].concat();
    let pseudo_header = [&between[..], &u32::from(length).to_be_bytes(), &[0, 0, 0, ICMPV6]].concat();
    let checksum = checksum(&[&pseudo_header[..], &message].concat()).to_be_bytes();
    let header = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[ICMPV6, 255], &between].concat();
    let packet = [&header[..], &message[..2], &checksum, &message[4..]].concat();
    frame(ALL_NODES_MAC, mac, IPV6, &packet)
}

fn frame(to: [u8; 6], from: [u8; 6], kind: [u8; 2], packet: &[u8]) -> Vec<u8> {
    let mut frame = [&[0; VNET_HEADER][..], &to, &from, &kind, packet].concat();
    frame.resize(frame.len().max(VNET_HEADER + MIN_LENGTH), 0);
    frame
}

/// The Internet's checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum >> 16) + (sum & 0xffff);
    !(((folded >> 16) + folded) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

    fn hex(frame: &[u8]) -> String {
        frame[VNET_HEADER..].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn each_is_as_its_rfc_has_it() {
        let rarp =
            "ffffffffffff 525400123456 8035 0001 0800 06 04 0003 525400123456 00000000 525400123456 00000000";
        assert_eq!(hex(&reverse_arp(MAC)), rarp.replace(' ', "") + &"00".repeat(18));
        let arp =
            "ffffffffffff 525400123456 0806 0001 0800 06 04 0001 525400123456 0a000007 000000000000 0a000007";
        assert_eq!(
            hex(&gratuitous_arp(MAC, Ipv4Addr::new(10, 0, 0, 7))),
            arp.replace(' ', "") + &"00".repeat(18)
        );
        let na = "333300000001 525400123456 86dd 60000000 0020 3a ff fe800000000000000000000000000007 \
                  ff020000000000000000000000000001 88 00 CSUM 20000000 fe800000000000000000000000000007 \
                  02 01 525400123456";
        let made = hex(&unsolicited_advertisement(MAC, "fe80::7".parse().unwrap(), false));
        let sum = made[112..116].to_owned();
        assert_eq!(made, na.replace(' ', "").replace("CSUM", &sum));
        let router = hex(&unsolicited_advertisement(MAC, "fe80::7".parse().unwrap(), true));
        assert_eq!(&router[116..124], "a0000000");
    }

    #[test]
    fn a_sum_over_what_was_sent_and_its_checksum_is_all_ones() {
        let frame = unsolicited_advertisement(MAC, "2001:db8::ffff:7".parse().unwrap(), true);
        let packet = &frame[VNET_HEADER + 14..];
        let pseudo_header = [&packet[8..40], &[0, 0, 0, 32, 0, 0, 0, ICMPV6], &packet[40..]].concat();
        assert_eq!(checksum(&pseudo_header), 0);
        // RFC 1071, 3.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
