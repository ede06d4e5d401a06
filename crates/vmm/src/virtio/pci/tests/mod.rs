//! The transport as a driver sees it, on a VM of KVM's without a guest.

mod driver;
mod guest;
mod hostile;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use migrated_testkit::require;
use vm_memory::{Bytes, GuestAddress};

use crate::layout::PCI_WINDOW;
use crate::virtio::testing::Ram;
use crate::virtio::worker::Worker;
use crate::virtio::{DeviceError, DeviceKind, DeviceMemory, Devices, Queues, Served, VirtioDevice};
use crate::{HostKvm, host};
use driver::{ACKNOWLEDGE, DRIVER, DRIVER_OK, Driver, EVENT_IDX, FEATURES_OK, NEEDS_RESET, VERSION_1};

const RAM: usize = 1 << 20;
const RINGS: u64 = 0x1_0000;
const OWN_FEATURE: u64 = 1 << 5;

/// A device whose configuration can be written, and which answers requests with the lengths of their buffers, or
/// fails when it shall.
#[derive(Default)]
struct Echo {
    config: [u8; 8],
    active: Option<u64>,
    arrived: Arc<AtomicBool>,
    fails: Arc<AtomicBool>,
}

impl VirtioDevice for Echo {
    fn kind(&self) -> DeviceKind {
        DeviceKind { id: 0x2f, name: "echo", pci_class: 0xff_0000, version: 3 }
    }

    fn features(&self) -> u64 {
        OWN_FEATURE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 16]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = self.config.get(at).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            if let Some(to) = self.config.get_mut(at) {
                *to = *byte;
            }
        }
    }

    fn activate(&mut self, features: u64) {
        assert_eq!(self.active.replace(features), None, "once until a reset");
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn serve_queue(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<Served, DeviceError> {
        assert!(self.active.is_some());
        if self.fails.load(Ordering::Relaxed) {
            return Err(DeviceError::Request { queue, reason: "it shall fail" });
        }
        queues.serve(queue, |chain, memory| {
            let mut written = 0;
            for buffer in chain.writable() {
                let reason = "a buffer outside RAM";
                memory
                    .write_obj(buffer.len(), buffer.addr())
                    .map_err(|_| DeviceError::Request { queue, reason })?;
                written += 4;
            }
            Ok(written)
        })
    }

    fn arrived(&mut self, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        self.arrived.store(true, Ordering::Relaxed);
        queues.config_changed();
        Ok(())
    }

    fn save(&self) -> Vec<u8> {
        self.config.to_vec()
    }

    fn restore(&mut self, data: &[u8]) -> Result<(), String> {
        self.config = data.try_into().map_err(|_| format!("{} bytes of configuration", data.len()))?;
        Ok(())
    }
}

/// The device in slot 1 and its worker, which serves when told to.
struct Bench {
    ram: Ram,
    devices: Devices,
    worker: Worker,
    fails: Arc<AtomicBool>,
    arrived: Arc<AtomicBool>,
}

impl Bench {
    fn new() -> Self {
        let vm = HostKvm::open().unwrap().create_vm().unwrap();
        host::create_chips(&vm).unwrap();
        let ram = Ram::new(RAM);
        let memory = DeviceMemory::new(ram.guest.memory().clone(), ram.writes.clone());
        let echo = Echo::default();
        let (fails, arrived) = (echo.fails.clone(), echo.arrived.clone());
        let devices = Devices::on_bus(vec![Box::new(echo)], &vm, memory).unwrap();
        let worker = Worker::new(devices.functions[0].shared().clone());
        Self { ram, devices, worker, fails, arrived }
    }

    fn driver(&self) -> Driver<'_> {
        Driver::new(self.devices.bus(), self.ram.guest.memory(), 1)
    }

    /// Its driver, who believes that its registers are where they were in the beginning.
    fn driver_at_first(&self) -> Driver<'_> {
        Driver::at(self.devices.bus(), self.ram.guest.memory(), 1, PCI_WINDOW.start)
    }

    fn state(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.devices.functions[0].state()).unwrap()
    }

    fn restore(&self, state: &[u8]) -> Result<(), String> {
        let state = postcard::from_bytes(state).map_err(|error| error.to_string())?;
        self.devices.functions[0].restore(state)
    }

    fn copy_ram(&self, from: &Self) {
        let mut bytes = vec![0; RAM];
        from.ram.guest.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        self.ram.guest.memory().write_slice(&bytes, GuestAddress(0)).unwrap();
    }

    /// What the worker does when something has called it.
    fn serve(&mut self) {
        let ready = self.worker.wait().unwrap();
        self.worker.serve(&ready);
    }

    /// What the worker does when it is woken for whatever reason.
    fn wake_and_serve(&mut self) {
        self.devices.functions[0].shared().wake.signal();
        self.serve();
    }
}

#[test]
fn the_device_says_what_it_is_and_where_its_registers_are() {
    require!(Kvm);
    let bench = Bench::new();
    let driver = bench.driver();
    assert_eq!(driver.config(0), [0xf4, 0x1a, 0x6f, 0x10], "virtio's vendor, 0x1040 and the device");
    assert_eq!(driver.config::<1>(8), [1], "a modern revision");
    assert_eq!(driver.config::<1>(0x3d), [0], "no INTx");
    assert_eq!(driver.dword(0x10), 0xc000_0000, "the window's beginning");
    assert_eq!(driver.read::<4>(driver.isr), [0; 4]);
    assert_eq!(driver.common::<2>(0x12), 2u16.to_le_bytes(), "queues");
    for (queue, size) in [(0u16, 64u16), (1, 16), (2, 0), (u16::MAX, 0)] {
        driver.set_common(0x16, &queue.to_le_bytes());
        assert_eq!(driver.common(0x18), size.to_le_bytes(), "queue {queue}");
    }
    assert_eq!(driver.read::<4>(0xc000_8000), [0xff; 4], "beyond the BAR is nothing");
}

#[test]
fn features_are_agreed_on_or_not_at_all() {
    require!(Kvm);
    let bench = Bench::new();
    let driver = bench.driver();
    assert_eq!(driver.offered(), OWN_FEATURE | VERSION_1 | EVENT_IDX | 1 << 28);
    for refused in [0, OWN_FEATURE, VERSION_1 | 1, VERSION_1 | 1 << 40] {
        driver.reset();
        assert_eq!(driver.accept(refused), ACKNOWLEDGE | DRIVER, "{refused:#x}");
        assert_eq!(driver.add_status(DRIVER_OK), ACKNOWLEDGE | DRIVER, "nobody is ready without features");
    }
    assert_eq!(driver.accept(VERSION_1 | OWN_FEATURE), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(driver.accept(VERSION_1), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    driver.set_common(8, &0u32.to_le_bytes());
    assert_eq!(driver.common(0xc), (OWN_FEATURE as u32).to_le_bytes(), "agreed features stay");
}

#[test]
fn requests_are_served_and_interrupts_wait_behind_masks() {
    require!(Kvm);
    let mut bench = Bench::new();
    bench.driver().start(VERSION_1, RINGS);
    bench.driver().msix_control(1 << 15);
    bench.driver().set_vector(1, 0x51, true);
    bench.driver().use_vectors(0, 1);
    bench.driver().offer(RINGS, 0);
    bench.driver().notify(0);
    bench.serve();
    let driver = bench.driver();
    assert_eq!(driver.used(RINGS), driver::SIZE);
    assert_eq!(driver.read::<8>(driver.pending), [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((driver.read::<1>(driver.isr), driver.read::<1>(driver.isr)), ([1], [0]), "reading clears it");
    driver.set_vector(1, 0x51, false);
    assert_eq!(driver.read::<8>(driver.pending), [0; 8], "it was sent");
    driver.use_vectors(3, 0xfff0);
    let vectors = (driver.common::<2>(0x10), driver.common::<2>(0x1a));
    assert_eq!(vectors, ([0xff; 2], [0xff; 2]), "there are 3 vectors");
}

#[test]
fn a_failed_device_says_so_and_goes_on_after_a_reset() {
    require!(Kvm);
    let mut bench = Bench::new();
    bench.driver().start(VERSION_1, RINGS);
    let generation = bench.driver().common::<1>(0x15);
    bench.fails.store(true, Ordering::Relaxed);
    bench.driver().notify(0);
    bench.serve();
    let driver = bench.driver();
    assert_ne!(driver.status() & NEEDS_RESET, 0);
    assert_eq!(driver.read::<1>(driver.isr), [2], "a change of the configuration");
    assert_ne!(driver.common::<1>(0x15), generation);
    driver.add_status(DRIVER_OK);
    assert_ne!(driver.status() & NEEDS_RESET, 0, "only a reset helps");
    bench.fails.store(false, Ordering::Relaxed);
    bench.driver().offer(RINGS, 0);
    bench.wake_and_serve();
    assert_eq!(bench.driver().used(RINGS), 0, "it is served no more");
    bench.driver().start(VERSION_1, RINGS);
    bench.driver().offer(RINGS, 0);
    bench.driver().notify(0);
    bench.serve();
    assert_eq!(bench.driver().used(RINGS), driver::SIZE);
}

#[test]
fn rings_that_cannot_be_are_refused_when_they_are_enabled() {
    require!(Kvm);
    let bench = Bench::new();
    let driver = bench.driver();
    for (register, address) in
        [(0x20, RAM as u64 - 0x10), (0x28, 0xc000_0000), (0x30, u64::MAX - 3), (0x30, RAM as u64)]
    {
        driver.reset();
        driver.accept(VERSION_1);
        driver.set_up_queue(1, RINGS);
        driver.reset();
        driver.accept(VERSION_1);
        driver.set_common(0x16, &0u16.to_le_bytes());
        for (other, at) in [(0x20, RINGS), (0x28, RINGS + 0x1000), (0x30, RINGS + 0x2000)] {
            let at = if other == register { address } else { at };
            driver.set_common(other, &at.to_le_bytes());
        }
        driver.set_common(0x1c, &1u16.to_le_bytes());
        assert_eq!(driver.common::<2>(0x1c), [0; 2], "{address:#x}");
        assert_ne!(driver.status() & NEEDS_RESET, 0, "{address:#x}");
    }
    driver.reset();
    for size in [0u16, 3, 65, 128, 0x8000] {
        driver.set_common(0x18, &size.to_le_bytes());
        assert_eq!(driver.common(0x18), 64u16.to_le_bytes(), "size {size}");
    }
    driver.set_common(0x20, &0x1_0008u32.to_le_bytes());
    assert_eq!(driver.common(0x20), [0; 8], "descriptors are aligned to 16 bytes");
}

#[test]
fn registers_follow_their_bar() {
    require!(Kvm);
    let mut bench = Bench::new();
    bench.driver().set_config(4, &[0, 0]);
    assert_eq!(bench.driver().common::<4>(0), [0xff; 4], "memory is switched off");
    bench.driver().set_config(0x10, &0xd000_0000u32.to_le_bytes());
    bench.driver().set_config(4, &[6, 0]);
    let driver = bench.driver();
    assert_eq!(driver.read::<4>(0xc000_0000), [0xff; 4]);
    assert_eq!(driver.read::<2>(0xd000_0012), 2u16.to_le_bytes());
    driver.start(VERSION_1, RINGS);
    driver.offer(RINGS, 0);
    driver.notify(0);
    bench.serve();
    assert_eq!(bench.driver().used(RINGS), driver::SIZE);
}

#[test]
fn a_driver_that_cannot_map_the_bar_has_a_window() {
    require!(Kvm);
    let bench = Bench::new();
    let driver = bench.driver();
    let show = |offset: u64, bytes: u32| {
        driver.set_config(driver.window + 4, &[0]);
        driver.set_config(driver.window + 8, &((offset - 0xc000_0000) as u32).to_le_bytes());
        driver.set_config(driver.window + 12, &bytes.to_le_bytes());
    };
    show(driver.device, 4);
    driver.set_config(driver.window + 16, &[1, 2, 3, 4]);
    assert_eq!(driver.read(driver.device), [1, 2, 3, 4, 0, 0, 0, 0]);
    show(driver.device + 2, 2);
    assert_eq!(driver.config(driver.window + 16), [3, 4]);
    show(driver.device + 1, 4);
    driver.set_config(driver.window + 16, &[9; 4]);
    assert_eq!(driver.read(driver.device), [1, 2, 3, 4, 0, 0, 0, 0], "no driver asks for that");
}

#[test]
fn a_device_arrives_as_it_left_and_looks_for_what_it_missed() {
    require!(Kvm);
    let mut bench = Bench::new();
    let driver = bench.driver();
    driver.start(VERSION_1 | EVENT_IDX, RINGS);
    driver.write(driver.device, &[5; 8]);
    driver.msix_control(1 << 15);
    driver.set_vector(2, 0x52, true);
    driver.use_vectors(2, 1);
    driver.offer(RINGS, 0);
    driver.notify(0);
    bench.serve();
    // Offered, and the notification is lost.
    bench.driver().offer(RINGS, driver::SIZE);
    let state = bench.state();

    let mut other = Bench::new();
    other.copy_ram(&bench);
    other.restore(&state).unwrap();
    assert_eq!(other.state(), state);
    other.restore(&state).unwrap();
    assert_eq!(other.state(), state, "also when it was restored already");
    other.wake_and_serve();
    assert!(other.arrived.load(Ordering::Relaxed));
    assert_eq!(other.driver().used(RINGS), 2 * driver::SIZE);
    assert_eq!(other.driver().read::<1>(other.driver().pending), [6], "of its queue and its configuration");
    assert_eq!(other.driver().read(other.driver().device), [5; 8]);
    other.arrived.store(false, Ordering::Relaxed);
    other.wake_and_serve();
    assert!(!other.arrived.load(Ordering::Relaxed), "once");
}
