//! Which addresses the guest has, by what it says of itself.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::frames::{self, ARP, ICMPV6, IPV6, NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION};

/// Addresses that are kept of each kind: those that were used last.
const MAX: usize = 16;
/// ICMPv6 type of a router advertisement (RFC 4861, 4.2).
const ROUTER_ADVERTISEMENT: u8 = 134;

/// A guest's own addresses.
///
/// They are learnt from ARP and IPv6 neighbour discovery alone, which every host must speak before anybody can talk
/// to it. The source of any other packet proves nothing: a guest that is a router sends packets of all the world,
/// and announcing those addresses would draw the world's packets to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Addresses {
    ipv4: Vec<Ipv4Addr>,
    ipv6: Vec<Ipv6Addr>,
    /// It has said that it is a router, which its neighbours would take back if an announcement didn't say so.
    router: bool,
}

impl Addresses {
    /// Reads one frame that the guest with this MAC sends.
    pub(super) fn learn(&mut self, frame: &[u8], mac: [u8; 6]) {
        if frame.get(6..12) != Some(&mac) {
            return;
        }
        match frame.get(12..14).map(|kind| [kind[0], kind[1]]) {
            Some(ARP) => self.learn_arp(&frame[14..], mac),
            Some(IPV6) => self.learn_neighbour(&frame[14..]),
            _ => {}
        }
    }

    /// Who asks or answers names itself (RFC 826).
    fn learn_arp(&mut self, packet: &[u8], mac: [u8; 6]) {
        let Some(packet) = packet.first_chunk::<28>() else { return };
        let [_, _, _, _, _, _, _, _, sender @ ..] = packet;
        if packet[..6] == frames::ARP_ETHERNET_IPV4 && sender[..6] == mac {
            let address = Ipv4Addr::new(sender[6], sender[7], sender[8], sender[9]);
            if is_a_hosts(address) {
                note(&mut self.ipv4, address);
            }
        }
    }

    /// Neighbour discovery (RFC 4861, 4.2 to 4.4), without extension headers, as everybody sends it.
    fn learn_neighbour(&mut self, packet: &[u8]) {
        // Past the header of IPv6 comes that of ICMPv6, with the target's address at 8.
        let (Some(header), Some(message)) = (packet.first_chunk::<40>(), packet.get(40..48)) else { return };
        // Only a neighbour's packet has this hop limit.
        if header[6] != ICMPV6 || header[7] != 255 {
            return;
        }
        let address = |bytes: Option<&[u8; 16]>| bytes.map(|bytes| Ipv6Addr::from(*bytes));
        let source = address(header[8..].first_chunk());
        let own = match message[0] {
            NEIGHBOUR_ADVERTISEMENT => {
                self.router = message[4] & frames::FROM_ROUTER != 0;
                address(packet[48..].first_chunk())
            }
            ROUTER_ADVERTISEMENT => {
                self.router = true;
                source
            }
            NEIGHBOUR_SOLICITATION => source,
            _ => None,
        };
        if let Some(own) =
            own.filter(|own| !(own.is_unspecified() || own.is_multicast() || own.is_loopback()))
        {
            note(&mut self.ipv6, own);
        }
    }

    /// Frames that tell switches and neighbours where the guest is, each behind an empty header.
    pub(super) fn announcement(&self, mac: [u8; 6]) -> impl Iterator<Item = Vec<u8>> {
        let ipv4 = self.ipv4.iter().map(move |address| frames::gratuitous_arp(mac, *address));
        let ipv6 = self
            .ipv6
            .iter()
            .map(move |address| frames::unsolicited_advertisement(mac, *address, self.router));
        [frames::reverse_arp(mac)].into_iter().chain(ipv4).chain(ipv6)
    }

    /// Whether it can be what [`learn`](Self::learn) made.
    pub(super) fn is_bounded(&self) -> bool {
        self.ipv4.len() <= MAX && self.ipv6.len() <= MAX
    }
}

fn is_a_hosts(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_multicast() || address.is_broadcast() || address.is_loopback())
}

/// Puts an address in front; the one that was used longest ago goes when there are too many.
fn note<T: PartialEq>(addresses: &mut Vec<T>, address: T) {
    match addresses.iter().position(|known| *known == address) {
        Some(at) => addresses[..=at].rotate_right(1),
        None => {
            addresses.truncate(MAX - 1);
            addresses.insert(0, address);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::virtio::net::VNET_HEADER;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    fn learnt(frames: &[Vec<u8>]) -> Addresses {
        let mut addresses = Addresses::default();
        frames.iter().for_each(|frame| addresses.learn(&frame[VNET_HEADER..], MAC));
        addresses
    }

    #[test]
    fn what_the_guest_announces_of_itself_is_learnt_and_announced_again() {
        let v4 = Ipv4Addr::new(10, 0, 0, 7);
        let v6: Ipv6Addr = "fe80::7".parse().unwrap();
        let said = [frames::gratuitous_arp(MAC, v4), frames::unsolicited_advertisement(MAC, v6, true)];
        let addresses = learnt(&said);
        assert_eq!(
            (&addresses.ipv4[..], &addresses.ipv6[..], addresses.router),
            (&[v4][..], &[v6][..], true)
        );
        let announced: Vec<_> = addresses.announcement(MAC).collect();
        assert_eq!(announced[1..], said);
        assert_eq!(announced[0], frames::reverse_arp(MAC));
    }

    #[test]
    fn others_addresses_and_no_addresses_are_not() {
        let of_another = frames::gratuitous_arp([2, 0, 0, 0, 0, 8], Ipv4Addr::new(10, 0, 0, 8));
        let mut forged = frames::gratuitous_arp(MAC, Ipv4Addr::new(10, 0, 0, 9));
        forged[VNET_HEADER + 22] ^= 1;
        let probe = frames::gratuitous_arp(MAC, Ipv4Addr::UNSPECIFIED);
        let mut routed = frames::unsolicited_advertisement(MAC, "2001:db8::1".parse().unwrap(), false);
        routed[VNET_HEADER + 21] = 254;
        let everybody = frames::unsolicited_advertisement(MAC, "ff02::1".parse().unwrap(), false);
        assert_eq!(learnt(&[of_another, forged, probe, routed, everybody]), Addresses::default());
    }

    #[test]
    fn a_solicitation_is_its_senders_and_a_probe_for_an_address_is_nobodys() {
        let v6: Ipv6Addr = "fe80::7".parse().unwrap();
        let mut asking = frames::unsolicited_advertisement(MAC, v6, false);
        asking[VNET_HEADER + 54] = NEIGHBOUR_SOLICITATION;
        assert_eq!(learnt(&[asking.clone()]).ipv6, [v6]);
        asking[VNET_HEADER + 22..VNET_HEADER + 38].fill(0);
        assert_eq!(learnt(&[asking]), Addresses::default());
    }

    #[test]
    fn the_last_used_are_kept() {
        let arp = |n: u8| frames::gratuitous_arp(MAC, Ipv4Addr::new(10, 0, 0, n));
        let mut said: Vec<_> = (1..=20).map(arp).collect();
        said.push(arp(5));
        said.push(arp(6));
        let addresses = learnt(&said);
        let last: Vec<u8> = addresses.ipv4.iter().map(|address| address.octets()[3]).collect();
        assert_eq!(last, [6, 5, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7]);
    }

    proptest! {
        #[test]
        fn any_frame_is_read(mut frame in prop::collection::vec(any::<u8>(), 0..120), kind in 0usize..3) {
            let mut addresses = Addresses::default();
            if frame.len() >= 14 {
                frame[6..12].copy_from_slice(&MAC);
                frame[12..14].copy_from_slice(&[ARP, IPV6, [0x08, 0x00]][kind]);
            }
            if kind == 1 && frame.len() > 54 {
                frame[20..22].copy_from_slice(&[ICMPV6, 255]);
                frame[54] = ROUTER_ADVERTISEMENT + frame[54] % 3;
            }
            addresses.learn(&frame, MAC);
            prop_assert!(addresses.is_bounded());
        }
    }
}
