//! Devices of a VM that runs, pauses and moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use migrated_guest::{Guest, IncomingGuest, PausedGuest, TrackerKind};
use migrated_pages::PageSet;
use migrated_testkit::require;
use vm_memory::{Bytes, GuestAddress};

use super::driver::{self, Driver, EVENT_IDX, VERSION_1};
use crate::boot::{BootPlan, BootProtocol};
use crate::pci::PciBus;
use crate::{BalloonError, BalloonStatus, DeviceConfig, PausedVm, Vm, VmConfig};

const RAM: usize = 4 << 20;
const RINGS: u64 = 0x10_0000;
const CODE: u64 = 0x1000;
/// `1: jmp 1b`
const LOOP: [u8; 2] = [0xeb, 0xfe];
/// The page that the driver's thread writes.
const AVAILABLE: usize = RINGS as usize + 0x1000;

/// Nothing that a test waits for takes as long.
const PATIENCE: Duration = Duration::from_secs(60);

fn wait_until(what: &str, is: impl FnMut() -> bool) {
    migrated_testkit::wait_until(what, PATIENCE, is);
}

fn config(tracking: TrackerKind) -> VmConfig {
    VmConfig { devices: vec![DeviceConfig::Rng], tracking, ..VmConfig::new("test", RAM as u64) }
}

fn run(tracking: TrackerKind) -> Vm {
    boot(config(tracking))
}

fn boot(config: VmConfig) -> Vm {
    Vm::create(config, |memory, _| {
        memory.write_slice(&LOOP, GuestAddress(CODE)).unwrap();
        Ok(BootPlan { entry: CODE, protocol: BootProtocol::Pvh, info: 0, ap_entry: None })
    })
    .unwrap()
}

fn bus(vm: &Vm) -> Arc<PciBus> {
    vm.machine.hardware.devices.as_ref().unwrap().bus().clone()
}

fn ram(vm: &Vm) -> Vec<u8> {
    let mut bytes = vec![0; RAM];
    vm.ram().memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes[AVAILABLE..AVAILABLE + 0x1000].fill(0);
    bytes
}

fn pause(vm: &Vm) -> PausedVm {
    vm.outgoing().unwrap().pause().map_err(|refused| refused.error).unwrap()
}

/// A driver that notifies the device as fast as it can, whatever becomes of the guest.
struct Busy {
    stop: Arc<AtomicBool>,
    notified: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Busy {
    /// `before` is what it does before each notification.
    fn start(vm: &Vm, before: fn(&Driver<'_>)) -> Self {
        let (stop, notified) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (vm, stopped, count) = (vm.clone(), stop.clone(), notified.clone());
        let thread = thread::spawn(move || {
            let bus = bus(&vm);
            let driver = Driver::new(&bus, vm.ram().memory(), 1);
            while !stopped.load(Ordering::Relaxed) {
                before(&driver);
                driver.notify(0);
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, notified, thread: Some(thread) }
    }

    /// Waits until the device was notified often again.
    fn goes_on(&self) {
        let before = self.notified.load(Ordering::Relaxed);
        wait_until("notifications", || self.notified.load(Ordering::Relaxed) > before + 1000);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn no_device_writes_ram_after_the_final_harvest_and_none_escapes_it() {
    require!(Kvm);
    for tracking in [TrackerKind::Log, TrackerKind::Ring] {
        let vm = run(tracking);
        let bus = bus(&vm);
        let driver = Driver::new(&bus, vm.ram().memory(), 1);
        driver.start(VERSION_1 | EVENT_IDX, RINGS);
        let busy = Busy::start(&vm, |driver| driver.offer(RINGS, driver.used(RINGS)));
        let used = || driver.used(RINGS);
        for _ in 0..20 {
            let begin = used();
            wait_until("the device to work", || used() != begin);
            let mut running = vm.outgoing().unwrap();
            running.start_tracking().unwrap();
            let mut copy = ram(&vm);
            let mut dirty = PageSet::empty(vm.ram().layout());
            running.harvest(&mut dirty).unwrap();
            let harvested = used();
            wait_until("the device to work", || used() != harvested);

            let mut paused = running.pause().map_err(|refused| refused.error).unwrap();
            paused.harvest(&mut dirty).unwrap();
            let state = paused.save().unwrap();
            let at_pause = ram(&vm);
            let stopped = used();
            busy.goes_on();
            assert!(ram(&vm) == at_pause, "a device wrote RAM of a paused guest");
            assert_eq!(used(), stopped);
            let of_devices = |sections: Vec<migrated_guest::StateSection>| {
                let mut sections = sections;
                sections.retain(|section| section.id.kind.starts_with("virtio") || section.id.kind == "pci");
                sections
            };
            assert_eq!(of_devices(paused.save().unwrap()), of_devices(state));

            for run in dirty.runs() {
                let (first, bytes) = (run.first as usize * 0x1000, run.count as usize * 0x1000);
                copy[first..first + bytes].copy_from_slice(&at_pause[first..first + bytes]);
            }
            assert!(copy == at_pause, "a device's write was not reported");
            let mut running = paused.resume().map_err(|refused| refused.error).unwrap();
            wait_until("the device to go on", || used() != stopped);
            running.stop_tracking().unwrap();
        }
    }
}

#[test]
fn a_reset_ends_a_devices_work_at_once_and_a_new_driver_finds_it_ready() {
    require!(Kvm);
    let vm = run(TrackerKind::Log);
    let bus = bus(&vm);
    let driver = Driver::new(&bus, vm.ram().memory(), 1);
    let busy = Busy::start(&vm, |_| {});
    for _ in 0..50 {
        driver.start(VERSION_1, RINGS);
        driver.offer(RINGS, 0);
        // The worker is about to serve, serving, or done.
        driver.reset();
        let at_reset = ram(&vm);
        busy.goes_on();
        assert!(ram(&vm) == at_reset, "a device that was reset wrote RAM");
    }
    driver.start(VERSION_1, RINGS);
    driver.offer(RINGS, 0);
    wait_until("the device to work", || driver.used(RINGS) == driver::SIZE);
}

/// Sets the local APIC's spurious-interrupt vector, which switches it on, as a guest would do.
fn switch_apic_on(vm: &Vm) {
    let vcpu = vm.machine.hardware.vcpus[0].lock();
    let mut apic = vcpu.get_lapic().unwrap();
    apic.regs[0xf1] |= 1;
    vcpu.set_lapic(&apic).unwrap();
}

/// Whether that interrupt waits in the local APIC.
fn is_requested(vm: &Vm, vector: usize) -> bool {
    let apic = vm.machine.hardware.vcpus[0].lock().get_lapic().unwrap();
    apic.regs[0x200 + vector / 32 * 0x10 + vector % 32 / 8] as u8 & 1 << (vector % 8) != 0
}

#[test]
fn interrupts_and_requests_on_their_way_arrive() {
    require!(Kvm);
    let vm = run(TrackerKind::Log);
    vm.pause().unwrap();
    switch_apic_on(&vm);
    let bus = bus(&vm);
    let driver = Driver::new(&bus, vm.ram().memory(), 1);
    driver.start(VERSION_1, RINGS);
    driver.msix_control(1 << 15);
    driver.set_vector(1, 0x51, false);
    driver.use_vectors(0, 1);
    driver.offer(RINGS, 0);
    driver.notify(0);
    vm.resume().unwrap();
    wait_until("the requests", || driver.used(RINGS) == driver::SIZE);

    let mut paused = pause(&vm);
    assert!(is_requested(&vm, 0x51), "whoever is out of the gate has sent its interrupts");
    // The driver offered more, and its notification gets lost with this process.
    driver.offer(RINGS, driver::SIZE);
    let sections = paused.save().unwrap();
    assert_eq!(sections.iter().map(|section| section.id.clone()).collect::<Vec<_>>(), vm.section_ids());
    assert!(vm.section_ids().iter().any(|id| id.to_string() == "virtio-rng/1 v1"));
    let mut incoming = Vm::incoming(config(TrackerKind::Log)).unwrap();
    assert_eq!(incoming.section_ids(), vm.section_ids());
    incoming.rehearse().unwrap();
    let mut bytes = vec![0; RAM];
    vm.ram().memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
    incoming.ram().memory().write_slice(&bytes, GuestAddress(0)).unwrap();
    incoming.restore(sections).unwrap();
    assert!(is_requested(incoming.vm(), 0x51));
    let (running, _) = incoming.start().unwrap();
    let bus = self::bus(running.vm());
    let moved = Driver::new(&bus, running.vm().ram().memory(), 1);
    wait_until("the requests whose notification was lost", || moved.used(RINGS) == 2 * driver::SIZE);
    paused.retire();
    assert_eq!(driver.used(RINGS), 0, "nobody serves what is left of it here");
}

#[test]
fn a_guest_hears_what_the_host_wants_of_its_ram_and_gives_it() {
    require!(Kvm);
    let spare: u64 = 4 << 20;
    let ram = Vm::BALLOON_LEAVES + spare;
    let vm = boot(VmConfig { devices: vec![DeviceConfig::Balloon], ..VmConfig::new("test", ram) });
    assert!(matches!(vm.set_balloon(spare).unwrap_err(), BalloonError::NoDriver));
    vm.pause().unwrap();
    switch_apic_on(&vm);
    let bus = bus(&vm);
    let driver = Driver::new(&bus, vm.ram().memory(), 1);
    driver.start(VERSION_1, RINGS);
    driver.msix_control(1 << 15);
    driver.set_vector(0, 0x52, false);
    driver.use_vectors(0, 1);
    assert!(matches!(vm.set_balloon(spare).unwrap_err(), BalloonError::NotRunning));
    vm.resume().unwrap();
    let refused = vm.set_balloon(spare + 1).unwrap_err();
    assert!(matches!(refused, BalloonError::TooLarge { most, .. } if most == spare), "{refused}");
    assert_eq!(vm.balloon().unwrap().target_bytes, 0, "a refusal asks for nothing");

    vm.set_balloon(spare).unwrap();
    assert_eq!(driver.read(driver.device), 1024u32.to_le_bytes());
    wait_until("the interrupt", || {
        vm.pause().unwrap();
        let is = is_requested(&vm, 0x52);
        vm.resume().unwrap();
        is
    });
    // Each buffer of the queue that inflates names other pages.
    let named = driver::BUFFER as u32 / 4;
    for buffer in 0..u32::from(driver::SIZE) {
        let memory = vm.ram().memory();
        memory.write_obj(0u32, GuestAddress(RINGS + 16 * u64::from(buffer) + 12)).unwrap();
        for n in 0..named {
            let at = RINGS + 0x3000 + 0x1000 * u64::from(buffer) + 4 * u64::from(n);
            memory.write_obj(4096 + named * buffer + n, GuestAddress(at)).unwrap();
        }
    }
    let given = u64::from(named) * u64::from(driver::SIZE) * 0x1000;
    driver.offer(RINGS, 0);
    driver.notify(0);
    wait_until("the pages to be taken", || driver.used(RINGS) == driver::SIZE);
    driver.write(driver.device + 4, &((given / 0x1000) as u32).to_le_bytes());
    let status = BalloonStatus { target_bytes: spare, actual_bytes: given, given_back_bytes: given };
    assert_eq!(vm.balloon(), Some(status));
}

#[test]
fn a_vm_without_devices_has_no_bus() {
    require!(Kvm);
    let vm = boot(VmConfig::new("test", RAM as u64));
    assert!(matches!(vm.set_balloon(0).unwrap_err(), BalloonError::None));
    assert!(vm.machine.hardware.devices.is_none());
    assert!(!vm.section_ids().iter().any(|id| id.kind == "pci"));
    let too_many = VmConfig { devices: vec![DeviceConfig::Rng; 32], ..VmConfig::new("test", RAM as u64) };
    let refused = Vm::create(too_many, |_, _| unreachable!()).unwrap_err().to_string();
    assert!(refused.contains("32 devices") && refused.contains("31"), "{refused}");
}
