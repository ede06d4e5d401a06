//! Tiny guests, a few bytes of 32-bit code each, and waiting for what they do.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod entropy;

use std::time::{Duration, Instant};

use migrated_guest::{Guest, IncomingGuest, PausedGuest, StateSection};
use migrated_vmm::boot::BootPlan;
use migrated_vmm::{IncomingVm, PausedVm, RunState, Vm, VmConfig};
use vm_memory::{Bytes, GuestAddress};

/// Where the code of all guests lies.
pub const CODE: u64 = 0x1000;
/// vCPU n counts in the 32-bit word at this address + 4n.
pub const COUNTERS: u64 = 0x8000;
/// Bytes of RAM that the guests get.
pub const RAM: u64 = 4 << 20;
/// Nothing that a test waits for takes as long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// `1: inc dword [edi*4 + 0x8000]; jmp 1b`; EDI is the vCPU's index.
pub const COUNT: &[u8] = &[0xff, 0x04, 0xbd, 0x00, 0x80, 0x00, 0x00, 0xeb, 0xf7];
/// Answers each byte with its successor: `0: mov dx, 0x3fd; 1: in al, dx; test al, 1; jz 1b;
/// mov dx, 0x3f8; in al, dx; inc al; out dx, al; jmp 0b`
pub const ECHO: &[u8] = &[
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xfe, 0xc0, 0xee,
    0xeb, 0xed,
];
/// `ud2`, without an IDT to go to.
pub const TRIPLE_FAULT: &[u8] = &[0x0f, 0x0b];

/// `mov dx, 0x3f8; mov al, byte; out dx, al` for each byte.
pub fn print(text: &[u8]) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    text.iter().for_each(|byte| code.extend([0xb0, *byte, 0xee]));
    code
}

/// A configuration with that many vCPUs.
pub fn config(vcpus: u32) -> VmConfig {
    VmConfig { vcpus, ..VmConfig::new("test", RAM) }
}

/// Runs `code` on all vCPUs of a new VM.
pub fn run(config: VmConfig, code: &[u8]) -> Vm {
    Vm::create(config, |memory, _| {
        memory.write_slice(code, GuestAddress(CODE)).unwrap();
        Ok(BootPlan { entry: CODE, start_info: 0, ap_entry: Some(CODE) })
    })
    .unwrap()
}

pub fn counter(vm: &Vm, vcpu: u64) -> u32 {
    vm.ram().memory().read_obj(GuestAddress(COUNTERS + 4 * vcpu)).unwrap()
}

/// Waits until `done`, and fails the test if that never comes.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} never came");
        std::thread::yield_now();
    }
}

/// Waits until every vCPU has counted on from where it is now.
pub fn wait_for_progress(vm: &Vm, vcpus: u32) {
    for vcpu in 0..u64::from(vcpus) {
        let before = counter(vm, vcpu);
        wait_until("progress", || counter(vm, vcpu) != before);
    }
}

pub fn pause(vm: &Vm) -> PausedVm {
    vm.outgoing().unwrap().pause().map_err(|refused| refused.error).unwrap()
}

/// Copies RAM and state into a new VM that has not started yet.
pub fn copy(paused: &mut PausedVm, config: VmConfig) -> (IncomingVm, Vec<StateSection>) {
    let sections = paused.save().unwrap();
    let mut incoming = Vm::incoming(config).unwrap();
    copy_ram(paused, &incoming);
    incoming.restore(sections.clone()).unwrap();
    (incoming, sections)
}

pub fn copy_ram(from: &PausedVm, to: &IncomingVm) {
    let mut bytes = vec![0u8; RAM as usize];
    from.ram().memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
    to.ram().memory().write_slice(&bytes, GuestAddress(0)).unwrap();
}

/// Moves a VM within this process; the source is retired.
pub fn migrate(vm: &Vm, config: VmConfig) -> Vm {
    let mut paused = pause(vm);
    let (incoming, _) = copy(&mut paused, config);
    paused.retire();
    let (running, _) = incoming.start().unwrap();
    let moved = running.vm().clone();
    assert_eq!(vm.run_state(), RunState::Retired);
    moved
}
