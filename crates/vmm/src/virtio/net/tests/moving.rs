use std::net::{Ipv4Addr, Ipv6Addr};

use rustix::event::{PollFd, PollFlags, poll};
use virtio_bindings::virtio_net::VIRTIO_NET_F_GUEST_ANNOUNCE;
use vm_memory::Bytes;

use super::super::*;
use super::bench::{Bench, Cable, MAC, RAM, frame_to};
use crate::state::encode;
use crate::virtio::testing::{Interrupt, Ram};

const BROADCAST: [u8; 6] = [0xff; 6];

fn gratuitous() -> Vec<u8> {
    frames::gratuitous_arp(MAC, Ipv4Addr::new(10, 0, 0, 7))
}

/// Takes over on another card what one has saved.
fn move_to<'a>(ram: &'a Ram, state: &[u8], without: &[u32]) -> Bench<'a> {
    let mut bench = Bench::new(ram, without);
    let accepted = bench.net.accepted.unwrap();
    bench.net.reset();
    bench.net.restore(state).unwrap();
    bench.net.activate(accepted);
    bench
}

/// Waits for the announcement's timer and serves it; false when there is none.
fn repeat(bench: &mut Bench<'_>) -> bool {
    let mut watched = Vec::new();
    bench.net.watched(&mut watched);
    let Some(timer) = watched.iter().find(|watched| watched.token == TIMER) else { return false };
    poll(&mut [PollFd::new(&timer.fd, PollFlags::IN)], None).unwrap();
    bench.with(|net, queues| net.serve_host(TIMER, queues)).unwrap();
    true
}

#[test]
fn a_guest_that_arrived_is_announced_five_times_with_all_that_it_is() {
    let (here, there) = (Ram::new(RAM), Ram::new(RAM));
    let mut source = Bench::new(&here, &[]);
    source.send(&gratuitous(), 100);
    source.serve(TX);
    let mut bench = move_to(&there, &source.net.save(), &[]);
    bench.cable.coming.lock().push_back(frame_to(BROADCAST, 60));
    bench.with(|net, queues| net.arrived(queues)).unwrap();
    let announcement = [frames::reverse_arp(MAC), gratuitous()];
    assert_eq!(bench.cable.take_sent(), announcement);
    assert!(bench.cable.coming.lock().is_empty(), "what came before it was got elsewhere");
    assert_eq!(bench.config()[6], 3, "link up, announce");
    assert!(bench.interrupts.take().contains(&Interrupt::Config));
    for _ in 0..4 {
        assert!(repeat(&mut bench));
        assert_eq!(bench.cable.take_sent(), announcement);
    }
    assert!(!repeat(&mut bench), "then it is over");
}

#[test]
fn the_driver_says_that_it_has_announced_itself() {
    let ram = Ram::new(RAM);
    let mut bench = Bench::new(&ram, &[]);
    bench.with(|net, queues| net.arrived(queues)).unwrap();
    let wrong = [bench.command(&[3, 1]), bench.command(&[0, 0]), bench.command(&[3])];
    bench.serve(CTRL);
    for answer in wrong {
        assert_eq!(ram.memory.read_obj::<u8>(answer).unwrap(), 1);
    }
    assert_eq!(bench.config()[6], 3);
    let answer = bench.command(&[3, 0]);
    bench.serve(CTRL);
    assert_eq!(ram.memory.read_obj::<u8>(answer).unwrap(), 0);
    assert_eq!((bench.config()[6], bench.given_back(CTRL)), (1, vec![1; 4]));
    assert!(ram.writes.is_marked(answer.0));
}

#[test]
fn a_driver_that_can_not_is_not_asked() {
    let ram = Ram::new(RAM);
    let mut bench = Bench::new(&ram, &[VIRTIO_NET_F_GUEST_ANNOUNCE]);
    bench.with(|net, queues| net.arrived(queues)).unwrap();
    assert_eq!((bench.config()[6], bench.cable.take_sent().len()), (1, 1));
}

#[test]
fn the_first_packet_is_the_guests_own() {
    let ram = Ram::new(RAM);
    let mut bench = Bench::new(&ram, &[]);
    let handle = bench.net.handle();
    bench.send(&gratuitous(), 100);
    bench.serve(TX);
    assert_eq!(handle.first_packet(), None, "it came from nowhere");
    for own in [false, true] {
        bench.with(|net, queues| net.arrived(queues)).unwrap();
        let to = if own { MAC } else { BROADCAST };
        bench.cable.coming.lock().push_back(frame_to(to, 60));
        bench.offer(&[100]);
        bench.serve(RX);
        assert_eq!(handle.first_packet().is_some(), own);
    }
}

#[test]
fn frames_that_waited_move_with_the_guest_in_order() {
    let (here, there) = (Ram::new(RAM), Ram::new(RAM));
    let mut source = Bench::new(&here, &[]);
    source.cable.coming.lock().push_back(frame_to(MAC, 100));
    source.serve(RX);
    source.net.handle().deliver(vec![frame_to(MAC, 101), frame_to(MAC, 102)]);
    let state = source.net.save();
    assert_eq!(source.net.save(), state, "reading changes nothing");

    let mut bench = move_to(&there, &state, &[]);
    assert_eq!(bench.net.save(), state);
    assert_eq!(bench.net.handle().deliver(vec![frame_to(MAC, 103)]), 1);
    bench.with(|net, queues| net.arrived(queues)).unwrap();
    bench.cable.coming.lock().push_back(frame_to(MAC, 104));
    for _ in 0..5 {
        bench.offer(&[200]);
    }
    bench.with(|net, queues| net.serve_host(WAKE, queues)).unwrap();
    assert_eq!(bench.given_back(RX), [100, 101, 102, 103, 104]);
}

#[test]
fn late_frames_go_from_card_to_card() {
    let (here, there) = (Ram::new(RAM), Ram::new(RAM));
    let source = Bench::new(&here, &[]);
    let handle = source.net.handle();
    source.cable.coming.lock().extend([frame_to(BROADCAST, 100), frame_to(MAC, 200), frame_to(MAC, 300)]);
    let lengths = |frames: &[Vec<u8>]| frames.iter().map(Vec::len).collect::<Vec<_>>();
    let first = handle.take_late(400);
    assert_eq!(lengths(&first), [100, 200]);
    let second = handle.take_late(400);
    assert_eq!(lengths(&second), [300], "what did not fit is not lost");
    source.cable.coming.lock().extend([frame_to(BROADCAST, 100), frame_to(MAC, 250)]);
    assert_eq!(lengths(&handle.take_late(400)), [250], "broadcasts now reach the guest where it is");

    let mut bench = Bench::new(&there, &[]);
    bench.offer(&[500]);
    bench.offer(&[500]);
    assert_eq!(bench.net.handle().deliver(first), 2);
    bench.with(|net, queues| net.serve_host(WAKE, queues)).unwrap();
    assert_eq!(bench.given_back(RX), [100, 200]);
}

#[test]
fn what_is_handed_over_is_bounded() {
    let ram = Ram::new(RAM);
    let bench = Bench::new(&ram, &[]);
    let handle = bench.net.handle();
    assert_eq!(handle.deliver(vec![vec![], vec![0; MIN_FRAME - 1], vec![0; MAX_FRAME + 1]]), 0);
    assert_eq!(handle.deliver(vec![vec![0; MIN_FRAME]; 5000]), 1000);
    handle.forget();
    assert!(handle.deliver(vec![vec![0; MAX_FRAME]; 1000]) < 1000);
    assert!(bench.net.save().len() < 1 << 20, "it fits a state section");
}

#[test]
fn the_state_of_another_card_is_refused() {
    let ram = Ram::new(RAM);
    let mut bench = Bench::new(&ram, &[]);
    let mut refusal = |data: &[u8]| bench.net.restore(data).unwrap_err();
    let other = Net::new([2, 0, 0, 0, 0, 1], Some(9000), Cable::new()).unwrap().save();
    assert!(refusal(&other).contains("MTU Some(9000)"), "{}", refusal(&other));
    assert!(refusal(&[]).contains("malformed"));
    let mut state = Bench::new(&ram, &[]).net.save();
    state.push(0);
    assert!(refusal(&state).contains("left over"));
    let made = |addresses: usize, waiting: usize, delivered: usize| {
        let ipv4 = vec![Ipv4Addr::LOCALHOST; addresses];
        let known = (ipv4, Vec::<Ipv6Addr>::new(), false);
        encode(&(MAC, None::<u16>, false, known, vec![0u8; waiting], vec![vec![0u8; 60]; delivered]))
    };
    assert!(refusal(&made(17, 0, 0)).contains("more addresses"));
    assert!(refusal(&made(0, MAX_FRAME + 1, 0)).contains("frames"));
    assert!(refusal(&made(0, 0, 1001)).contains("frames"));
    assert_eq!(bench.net.restore(&made(16, MAX_FRAME, 1000)), Ok(()));
}
