use std::sync::Arc;

use migrated_kernel::{TapOffloads, VNET_HEADER};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::super::*;
use super::bench::{Bench, Cable, MAC, RAM, frame_to};
use crate::virtio::testing::{Interrupt, Ram};

const BROADCAST: [u8; 6] = [0xff; 6];

#[test]
fn a_frame_fills_one_buffer_or_as_many_as_it_needs() {
    let ram = Ram::new(RAM);
    let mut bench = Bench::new(&ram, &[]);
    let (short, long) = (frame_to(MAC, 100), frame_to(MAC, 3500));
    let mut places = bench.offer(&[40, 1460]);
    for _ in 0..3 {
        places.extend(bench.offer(&[1500]));
    }
    bench.cable.coming.lock().extend([short.clone(), long.clone()]);
    assert_eq!(bench.serve(RX), Served::All);
    assert_eq!(bench.given_back(RX), [100, 1500, 1500, 500]);
    assert_eq!(bench.interrupts.take(), [Interrupt::Queue(RX)], "one for both");

    let first = [bench.read(places[0], 40), bench.read(places[1], 60)].concat();
    assert_eq!((first[10], &first[VNET_HEADER..]), (1, &short[VNET_HEADER..]), "one buffer");
    let second =
        [bench.read(places[2], 1500), bench.read(places[3], 1500), bench.read(places[4], 500)].concat();
    assert_eq!((second[10], &second[VNET_HEADER..]), (3, &long[VNET_HEADER..]), "three buffers");
    for place in places {
        assert!(ram.writes.is_marked(place));
    }
}

#[test]
fn a_frame_without_room_waits_and_no_other_is_read_meanwhile() {
    let ram = Ram::new(RAM);
    let mut bench = Bench::new(&ram, &[]);
    bench.cable.coming.lock().extend([frame_to(MAC, 2000), frame_to(MAC, 70)]);
    bench.offer(&[1500]);
    assert_eq!(bench.serve(RX), Served::All);
    assert_eq!((bench.given_back(RX), bench.waits_for_frames()), (vec![], false));
    assert_eq!(bench.cable.coming.lock().len(), 1);
    bench.offer(&[1500]);
    bench.serve(RX);
    assert_eq!((bench.given_back(RX), bench.waits_for_frames()), (vec![1500, 500], false), "the other waits");
    bench.offer(&[1500]);
    bench.serve(RX);
    assert_eq!((bench.given_back(RX), bench.waits_for_frames()), (vec![70], true));
}

#[test]
fn the_driver_is_asked_to_notify_of_buffers_that_it_has_not_made_yet() {
    let ram = Ram::new(RAM);
    let mut bench = Bench::new(&ram, &[]);
    bench.queues[RX].set_event_idx(true);
    bench.cable.coming.lock().push_back(frame_to(MAC, 4000));
    bench.offer(&[1500]);
    bench.offer(&[1500]);
    bench.serve(RX);
    let event = GuestAddress(bench.queues[RX].used_ring() + 4 + 8 * u64::from(QUEUE_SIZES[RX]));
    assert_eq!(ram.memory.read_obj::<u16>(event).unwrap(), 2, "the third, since it knows of the first two");
}

#[test]
fn without_merging_a_frame_needs_a_buffer_of_its_own() {
    let ram = Ram::new(RAM);
    let mut bench = Bench::new(&ram, &[VIRTIO_NET_F_MRG_RXBUF]);
    bench.offer(&[12, 1000]);
    bench.offer(&[12, 1000]);
    bench.cable.coming.lock().extend([frame_to(MAC, 1500), frame_to(MAC, 1000)]);
    bench.serve(RX);
    assert_eq!(bench.given_back(RX), [1000], "the longer one is dropped, its buffer serves the other");
}

#[test]
fn one_that_no_buffers_can_hold_is_dropped() {
    let ram = Ram::new(RAM);
    let mut bench = Bench::new(&ram, &[]);
    bench.queues[RX].set_size(4);
    bench.cable.coming.lock().extend([frame_to(MAC, 5000), frame_to(MAC, 600)]);
    for _ in 0..4 {
        bench.offer(&[1000]);
    }
    bench.serve(RX);
    assert_eq!(bench.given_back(RX), [600]);
}

#[test]
fn what_the_driver_did_not_accept_it_does_not_get() {
    let ram = Ram::new(RAM);
    let mut bench = Bench::new(&ram, &[VIRTIO_NET_F_GUEST_CSUM]);
    assert!(!bench.cable.offloads.lock().checksum);
    let mut segment = frame_to(MAC, 3000);
    segment[..2].copy_from_slice(&[1, 1]);
    bench.cable.coming.lock().extend([segment, vec![0; 20], frame_to(MAC, 60)]);
    bench.offer(&[4000]);
    bench.serve(RX);
    assert_eq!(bench.given_back(RX), [60]);
}

#[test]
fn offloads_follow_the_driver() {
    let ram = Ram::new(RAM);
    let mut bench = Bench::new(&ram, &[]);
    let all = TapOffloads { checksum: true, tso4: true, tso6: true, ecn: true };
    assert_eq!(*bench.cable.offloads.lock(), all);
    bench.net.reset();
    bench.net.activate(1 << VIRTIO_NET_F_GUEST_CSUM);
    assert_eq!(*bench.cable.offloads.lock(), TapOffloads { checksum: true, ..TapOffloads::default() });
}

#[test]
fn frames_go_out_as_they_were_put_together() {
    let ram = Ram::new(RAM);
    let mut bench = Bench::new(&ram, &[VIRTIO_NET_F_HOST_TSO4]);
    let longest = frame_to(BROADCAST, MAX_FRAME);
    let mut segment = frame_to(BROADCAST, 4000);
    segment[..2].copy_from_slice(&[1, 1]);
    let sent =
        [(frame_to(BROADCAST, 60), 7), (segment, 4096), (longest, 1 << 14), (vec![0; MAX_FRAME + 1], 4096)];
    sent.iter().for_each(|(frame, piece)| bench.send(frame, *piece));
    assert_eq!(bench.serve(TX), Served::All);
    assert_eq!(bench.given_back(TX), [0; 4]);
    assert_eq!(bench.interrupts.take(), [Interrupt::Queue(TX)]);
    assert_eq!(bench.cable.take_sent(), [sent[0].0.clone(), sent[2].0.clone()], "and what can't go does not");
}

#[test]
fn a_busy_driver_and_a_busy_cable_take_turns_with_others() {
    let ram = Ram::new(RAM);
    let mut bench = Bench::new(&ram, &[]);
    for _ in 0..=BATCH {
        bench.send(&frame_to(BROADCAST, 60), 60);
        bench.offer(&[60]);
        bench.cable.coming.lock().push_back(frame_to(MAC, 60));
    }
    assert_eq!([bench.serve(TX), bench.serve(RX)], [Served::More; 2]);
    assert_eq!([bench.serve(TX), bench.serve(RX)], [Served::All; 2]);
    assert_eq!(bench.given_back(RX).len(), usize::from(BATCH) + 1);
}

#[test]
fn a_tap_that_somebody_removed_is_a_pulled_cable() {
    let ram = Ram::new(RAM);
    let mut bench = Bench::new(&ram, &[]);
    assert_eq!(bench.config(), [&MAC[..], &[1, 0, 0, 0, 0, 0], &[0; 4]].concat());
    *bench.cable.removed.lock() = true;
    bench.with(|net, queues| net.serve_host(TAP, queues)).unwrap();
    assert_eq!((bench.config()[6], bench.waits_for_frames()), (0, false));
    assert_eq!(bench.interrupts.take(), [Interrupt::Config]);
}

#[test]
fn an_mtu_is_told_where_there_is_one() {
    let with = Net::new(MAC, Some(9000), Cable::new()).unwrap();
    let mut config = [0; 4];
    with.read_config(10, &mut config);
    assert_eq!(config, [0x28, 0x23, 0, 0]);
    let without = Net::new(MAC, None, Cable::new()).unwrap();
    assert_eq!(with.features() ^ without.features(), 1 << VIRTIO_NET_F_MTU);
    let mut past = [1; 4];
    with.read_config(u64::MAX, &mut past);
    assert_eq!(past, [0; 4]);
}

#[test]
fn the_descriptors_that_it_waits_for_are_its_own() {
    let ram = Ram::new(RAM);
    let bench = Bench::new(&ram, &[]);
    let mut watched = Vec::new();
    bench.net.watched(&mut watched);
    let tokens: Vec<_> = watched.iter().map(|watched| watched.token).collect();
    assert_eq!(tokens, [WAKE, TAP], "no timer while nothing is announced");
    assert!(Arc::ptr_eq(&watched[1].fd, bench.cable.fd()));
}
