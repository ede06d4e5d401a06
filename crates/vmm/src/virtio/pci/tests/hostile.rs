//! Whatever a driver writes, in whatever order, and whatever a peer sends as state.

use std::sync::OnceLock;

use migrated_testkit::capability::Capability;
use proptest::prelude::*;
use proptest::sample::Index;
use vm_memory::{Bytes, GuestAddress};

use super::driver::{self, EVENT_IDX, VERSION_1};
use super::{Bench, RAM, RINGS};

#[derive(Clone, Debug)]
enum Step {
    Config(u8, Vec<u8>),
    Common(u64, Vec<u8>),
    Bar(u64, Vec<u8>),
    Read(u64, usize),
    Ring(u64, u32),
    Start(u64),
    Rings([u64; 3], u16),
    Notify(u16),
    Serve,
    Move,
}

/// Values that mean something here and there, and any others.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        prop::sample::select(vec![0, 1, 2, 3, 4, 8, 0xf, 16, 64, 0xffff, u64::MAX, 0x8000, 0x4000]),
        prop::sample::select(vec![RINGS, RINGS + 0x1000, RINGS + 0x2000, RAM as u64 - 16, 0xc000_0000]),
    ]
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    (value(), prop::sample::select(vec![1usize, 2, 4, 8])).prop_map(|(v, n)| v.to_le_bytes()[..n].to_vec())
}

fn dword() -> impl Strategy<Value = Vec<u8>> {
    (value(), prop::sample::select(vec![1usize, 2, 4])).prop_map(|(v, n)| v.to_le_bytes()[..n].to_vec())
}

/// Rings that mostly lie in RAM, and anyhow on each other.
fn ring() -> impl Strategy<Value = u64> {
    prop_oneof![4 => (0u64..0x280).prop_map(|at| RINGS + 0x10 * at), 1 => value()]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0u8..64, dword()).prop_map(|(dword, data)| Step::Config(dword * 4, data)),
        6 => (prop::sample::select((0..0x40u64).step_by(2).collect::<Vec<_>>()), data())
            .prop_map(|(offset, data)| Step::Common(offset, data)),
        1 => Just(Step::Common(0x14, vec![0xff])),
        2 => (0u64..0x8000, data()).prop_map(|(offset, data)| Step::Bar(offset, data)),
        1 => (0u64..0x8000, prop::sample::select(vec![1usize, 2, 4, 8])).prop_map(|(o, n)| Step::Read(o, n)),
        4 => (0u64..0x2800, any::<u32>()).prop_map(|(offset, value)| Step::Ring(offset, value)),
        2 => value().prop_map(Step::Start),
        2 => (prop::array::uniform3(ring()), prop::sample::select(vec![1u16, 2, 16, 64]))
            .prop_map(|(rings, size)| Step::Rings(rings, size)),
        2 => (0u16..4).prop_map(Step::Notify),
        4 => Just(Step::Serve),
        1 => Just(Step::Move),
    ]
}

fn take(bench: &mut Bench, step: &Step) {
    // By where the registers are in the beginning, wherever the driver has moved them since.
    const BAR: u64 = 0xc000_0000;
    let driver = bench.driver_at_first();
    let memory = bench.ram.guest.memory();
    match step {
        Step::Config(register, data) => driver.set_config(*register, data),
        Step::Common(offset, data) => driver.set_common(*offset, data),
        Step::Bar(offset, data) => driver.write(BAR + offset, data),
        Step::Read(offset, bytes) => {
            let mut data = [0; 8];
            driver.bus.read_memory(BAR + offset, &mut data[..*bytes]);
            driver.bus.read_port(0xcfc, &mut data[..*bytes]);
        }
        Step::Ring(offset, value) => drop(memory.write_obj(*value, GuestAddress(RINGS + offset))),
        Step::Start(features) => {
            driver.set_common(0x14, &[0]);
            driver.accept(*features & 0x3000_0020 | VERSION_1);
            driver.set_up_queue(0, RINGS);
            driver.add_status(driver::DRIVER_OK);
            driver.offer(RINGS, 0);
        }
        Step::Rings(rings, size) => {
            driver.set_common(0x14, &[0]);
            driver.accept(VERSION_1 | EVENT_IDX);
            driver.set_common(0x18, &size.to_le_bytes());
            for (register, ring) in [0x20, 0x28, 0x30].into_iter().zip(rings) {
                driver.set_common(register, &ring.to_le_bytes());
            }
            driver.set_common(0x1c, &1u16.to_le_bytes());
            driver.add_status(driver::DRIVER_OK);
        }
        Step::Notify(queue) => driver.notify(*queue),
        Step::Serve => bench.wake_and_serve(),
        Step::Move => {
            let state = bench.state();
            let other = Bench::new();
            other.copy_ram(bench);
            other.restore(&state).expect("what a device has saved can be restored");
            assert_eq!(other.state(), state);
            *bench = other;
        }
    }
}

/// A device that its driver uses, saved.
fn used() -> &'static [u8] {
    static USED: OnceLock<Vec<u8>> = OnceLock::new();
    USED.get_or_init(|| {
        let mut bench = Bench::new();
        bench.driver().start(VERSION_1 | EVENT_IDX, RINGS);
        bench.driver().offer(RINGS, 0);
        bench.wake_and_serve();
        bench.state()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_driver_breaks_more_than_its_own_device(steps in prop::collection::vec(step(), 1..60)) {
        if !Capability::Kvm.available_to_test() {
            return Ok(());
        }
        let mut bench = Bench::new();
        steps.iter().for_each(|step| take(&mut bench, step));
        // And a better driver finds a device that works.
        let driver = bench.driver_at_first();
        driver.set_config(0x10, &0xc000_0000u32.to_le_bytes());
        driver.set_config(4, &[6, 4]);
        driver.start(VERSION_1, RINGS);
        driver.offer(RINGS, 0);
        driver.notify(0);
        bench.serve();
        prop_assert_eq!(bench.driver().used(RINGS), driver::SIZE);
    }

    #[test]
    fn a_hostile_state_is_taken_or_refused_and_nothing_else(
        changes in prop::collection::vec(any::<(Index, u8)>(), 1..4), cut in any::<Index>(), whole in any::<bool>(),
    ) {
        if !Capability::Kvm.available_to_test() {
            return Ok(());
        }
        let mut state = used().to_vec();
        for (at, value) in changes {
            let at = at.index(state.len());
            state[at] = value;
        }
        if !whole {
            state.truncate(cut.index(state.len()));
        }
        let mut bench = Bench::new();
        if bench.restore(&state).is_ok() {
            let again = bench.state();
            let other = Bench::new();
            prop_assert_eq!(other.restore(&again), Ok(()));
            prop_assert_eq!(other.state(), again);
            bench.wake_and_serve();
        }
        bench.driver_at_first().set_config(0x10, &0xc000_0000u32.to_le_bytes());
        bench.driver_at_first().set_config(4, &[6, 4]);
        bench.driver().start(VERSION_1, RINGS);
        bench.driver().offer(RINGS, 0);
        bench.wake_and_serve();
        prop_assert_eq!(bench.driver().used(RINGS), driver::SIZE);
    }

    #[test]
    fn random_bytes_are_no_state(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if !Capability::Kvm.available_to_test() {
            return Ok(());
        }
        let _ = Bench::new().restore(&bytes);
    }
}
