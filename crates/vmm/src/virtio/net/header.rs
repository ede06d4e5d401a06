//! What the header in front of a frame, `struct virtio_net_hdr_v1`, may ask for.

use migrated_kernel::TapOffloads;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::{MAX_FRAME, MIN_FRAME};

const FLAGS: usize = 0;
const GSO_TYPE: usize = 1;
/// Where the number of buffers that a received frame fills stands.
pub(super) const NUM_BUFFERS: std::ops::Range<usize> = 10..12;

const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const DATA_VALID: u8 = VIRTIO_NET_HDR_F_DATA_VALID as u8;
const ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;

/// What the driver may leave to this side of what it sends.
pub(super) fn from_guest(accepted: u64) -> TapOffloads {
    offloads(
        accepted,
        [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_ECN],
    )
}

/// What this side may leave to the driver of what it receives.
pub(super) fn to_guest(accepted: u64) -> TapOffloads {
    offloads(
        accepted,
        [VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_ECN],
    )
}

fn offloads(accepted: u64, features: [u32; 4]) -> TapOffloads {
    let [checksum, tso4, tso6, ecn] = features.map(|feature| accepted & (1 << feature) != 0);
    TapOffloads { checksum, tso4, tso6, ecn }
}

/// Whether a frame that the guest sends goes on. What the kernel checks itself is left to it: where the checksum
/// lies, how long segments are. It does not know what the driver accepted.
pub(super) fn may_be_sent(frame: &mut [u8], offloads: TapOffloads) -> bool {
    if !is_frame(frame) {
        return false;
    }
    // That its checksum is right is nothing to believe a guest.
    frame[FLAGS] &= NEEDS_CSUM;
    fits(frame, offloads)
}

/// Whether a frame that came in goes on: what the driver did not accept it can't take. That may be older than its
/// last reset, or come from another host.
pub(super) fn may_be_received(frame: &mut [u8], offloads: TapOffloads) -> bool {
    if !is_frame(frame) {
        return false;
    }
    frame[FLAGS] &= NEEDS_CSUM | if offloads.checksum { DATA_VALID } else { 0 };
    fits(frame, offloads)
}

fn is_frame(frame: &[u8]) -> bool {
    (MIN_FRAME..=MAX_FRAME).contains(&frame.len())
}

fn fits(frame: &[u8], offloads: TapOffloads) -> bool {
    let needs_checksum = frame[FLAGS] & NEEDS_CSUM != 0;
    let segments = match u32::from(frame[GSO_TYPE] & !ECN) {
        VIRTIO_NET_HDR_GSO_NONE => frame[GSO_TYPE] == 0,
        VIRTIO_NET_HDR_GSO_TCPV4 => needs_checksum && offloads.tso4,
        VIRTIO_NET_HDR_GSO_TCPV6 => needs_checksum && offloads.tso6,
        _ => false,
    };
    let marked = frame[GSO_TYPE] & ECN != 0;
    segments && (offloads.checksum || !needs_checksum) && (offloads.ecn || !marked)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: TapOffloads = TapOffloads { checksum: true, tso4: true, tso6: true, ecn: true };

    fn sent(flags: u8, gso: u8, offloads: TapOffloads) -> Option<u8> {
        let mut frame = [0; MIN_FRAME];
        (frame[FLAGS], frame[GSO_TYPE]) = (flags, gso);
        may_be_sent(&mut frame, offloads).then_some(frame[FLAGS])
    }

    #[test]
    fn what_was_not_accepted_does_not_pass() {
        let none = TapOffloads::default();
        assert_eq!(sent(0, 0, none), Some(0));
        assert_eq!(sent(NEEDS_CSUM, 0, none), None);
        assert_eq!(sent(NEEDS_CSUM, 0, ALL), Some(NEEDS_CSUM));
        for (gso, without) in [
            (1, TapOffloads { tso4: false, ..ALL }),
            (4, TapOffloads { tso6: false, ..ALL }),
            (0x81, TapOffloads { ecn: false, ..ALL }),
        ] {
            assert_eq!(sent(NEEDS_CSUM, gso, ALL), Some(NEEDS_CSUM), "{gso}");
            assert_eq!(sent(NEEDS_CSUM, gso, without), None, "{gso}");
            assert_eq!(sent(0, gso, ALL), None, "{gso}: segments need their checksums computed");
        }
        for gso in [2, 3, 5, 0x7f, 0x80, 0xff] {
            assert_eq!(sent(NEEDS_CSUM, gso, ALL), None, "{gso}");
        }
    }

    #[test]
    fn nobody_vouches_for_a_checksum_to_who_did_not_ask() {
        assert_eq!(sent(DATA_VALID | 4, 0, ALL), Some(0));
        let mut frame = [0; MIN_FRAME];
        frame[FLAGS] = DATA_VALID;
        assert!(may_be_received(&mut frame, ALL));
        assert_eq!(frame[FLAGS], DATA_VALID);
        assert!(may_be_received(&mut frame, TapOffloads::default()));
        assert_eq!(frame[FLAGS], 0);
    }

    #[test]
    fn too_short_and_too_long_is_no_frame() {
        for length in [0, MIN_FRAME - 1, MAX_FRAME + 1] {
            assert!(!may_be_sent(&mut vec![0; length], ALL), "{length}");
            assert!(!may_be_received(&mut vec![0; length], ALL), "{length}");
        }
        assert!(may_be_received(&mut vec![0; MAX_FRAME], ALL));
    }
}
