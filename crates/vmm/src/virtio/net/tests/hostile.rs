use proptest::prelude::*;
use virtio_queue::QueueT;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::super::*;
use super::bench::Bench;
use crate::virtio::testing::Ram;

const SMALL_RAM: usize = 1 << 20;
const PAGE: usize = 4096;

/// A descriptor that may be anything, but more often than not points into RAM.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![4 => 0u64..(SMALL_RAM as u64), 1 => any::<u64>()];
    let length = prop_oneof![4 => 0u32..5000, 1 => any::<u32>()];
    (address, length, 0u16..8, 0u16..300)
}

#[derive(Clone, Debug)]
enum Step {
    /// The driver writes a descriptor table, and an index into its available ring.
    Descriptors(usize, Vec<(u64, u32, u16, u16)>),
    Available(usize, u16, Vec<u16>),
    Frame(Vec<u8>),
    Late(Vec<Vec<u8>>),
    Serve(usize),
    Host(usize),
    Arrive,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let frame = || prop::collection::vec(any::<u8>(), 0..3000);
    prop_oneof![
        2 => (0usize..3, prop::collection::vec(descriptor(), 1..20)).prop_map(|(q, d)| Step::Descriptors(q, d)),
        3 => (0usize..3, 0u16..40, prop::collection::vec(0u16..24, 1..20))
            .prop_map(|(q, idx, ring)| Step::Available(q, idx, ring)),
        2 => frame().prop_map(Step::Frame),
        1 => prop::collection::vec(frame(), 0..4).prop_map(Step::Late),
        4 => (0usize..3).prop_map(Step::Serve),
        2 => (0usize..3).prop_map(Step::Host),
        1 => Just(Step::Arrive),
        1 => Just(Step::Reset),
    ]
}

/// What a driver or the host does, past all of the device's own writes.
fn act(bench: &mut Bench<'_>, step: Step) {
    let memory = bench.ram.guest.memory().clone();
    match step {
        Step::Descriptors(queue, descriptors) => {
            let table = bench.queues[queue].desc_table();
            for (at, (address, length, flags, next)) in (0u64..).zip(descriptors) {
                let descriptor = RawDescriptor::from(Descriptor::new(address, length, flags, next));
                memory.write_obj(descriptor, GuestAddress(table + 16 * at)).unwrap();
            }
        }
        Step::Available(queue, index, ring) => {
            let available = bench.queues[queue].avail_ring();
            memory.write_obj(index, GuestAddress(available + 2)).unwrap();
            for (at, head) in (0u64..).zip(ring) {
                memory.write_obj(head, GuestAddress(available + 4 + 2 * at)).unwrap();
            }
        }
        Step::Frame(frame) => bench.cable.coming.lock().push_back(frame),
        Step::Late(frames) => drop(bench.net.handle().deliver(frames)),
        Step::Serve(queue) => drop(bench.try_serve(queue)),
        Step::Host(token) => drop(bench.with(|net, queues| net.serve_host(token, queues))),
        Step::Arrive => drop(bench.with(|net, queues| net.arrived(queues))),
        Step::Reset => {
            let features = bench.net.features();
            bench.net.reset();
            bench.net.activate(features);
        }
    }
}

fn contents(ram: &Ram) -> Vec<u8> {
    let mut bytes = vec![0; SMALL_RAM];
    let region = ram.guest.memory().iter().next().unwrap();
    assert_eq!(region.len() as usize, SMALL_RAM);
    ram.guest.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_a_driver_does_every_write_is_marked_and_the_state_moves(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let ram = Ram::new(SMALL_RAM);
        let mut bench = Bench::new(&ram, &[]);
        for step in steps {
            let drivers = matches!(step, Step::Descriptors(..) | Step::Available(..));
            let before = contents(&ram);
            act(&mut bench, step);
            let after = contents(&ram);
            for (page, (old, new)) in (0..).zip(before.chunks(PAGE).zip(after.chunks(PAGE))) {
                prop_assert!(drivers || old == new || ram.writes.is_marked(page * PAGE as u64), "page {page}");
            }
            prop_assert!(bench.cable.take_sent().iter().all(|frame| (MIN_FRAME..=MAX_FRAME).contains(&frame.len())));
        }
        let state = bench.net.save();
        prop_assert!(bench.net.restore(&state).is_ok());
        prop_assert_eq!(bench.net.save(), state);
    }

    #[test]
    fn any_state_is_taken_or_refused(data in prop::collection::vec(any::<u8>(), 0..200)) {
        let ram = Ram::new(SMALL_RAM);
        let mut bench = Bench::new(&ram, &[]);
        if bench.net.restore(&data).is_ok() {
            bench.serve(RX);
        }
    }
}
