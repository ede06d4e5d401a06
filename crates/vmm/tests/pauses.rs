//! A guest that uses kvmclock is told of every pause, whoever made it.

mod guest;

use guest::{COUNT, config, migrate, run, wait_for_progress};
use migrated_guest::{Guest, PausedGuest};
use migrated_testkit::require;
use migrated_vmm::Vm;
use vm_memory::{Bytes, GuestAddress};

/// vCPU n has its `pvclock_vcpu_time_info` at this address + 64n.
const TIME_INFO: u64 = 0x9000;
/// Offset of the flags in it, and the one that says that the guest was stopped (PVCLOCK_GUEST_STOPPED).
const FLAGS: u64 = 29;
const STOPPED: u8 = 1 << 1;

/// `mov eax, edi; shl eax, 6; add eax, TIME_INFO | 1; xor edx, edx; mov ecx, MSR_KVM_SYSTEM_TIME_NEW; wrmsr`
#[rustfmt::skip]
const KVMCLOCK: [u8; 19] = [
    0x89, 0xf8, 0xc1, 0xe0, 0x06, 0x05, 0x01, 0x90, 0x00, 0x00, 0x31, 0xd2,
    0xb9, 0x01, 0x4d, 0x56, 0x4b, 0x0f, 0x30,
];

fn flags(vcpu: u64) -> GuestAddress {
    GuestAddress(TIME_INFO + 64 * vcpu + FLAGS)
}

/// Checks that both vCPUs were told, and forgets it as a guest does.
#[track_caller]
fn assert_told(vm: &Vm, how: &str) {
    wait_for_progress(vm, 2);
    for vcpu in 0..2 {
        let memory = vm.ram().memory();
        let told: u8 = memory.read_obj(flags(vcpu)).unwrap();
        assert_eq!(told & STOPPED, STOPPED, "{how}: vCPU {vcpu}");
        memory.write_obj(told & !STOPPED, flags(vcpu)).unwrap();
    }
}

#[test]
fn the_guest_is_told_of_every_pause() {
    require!(Kvm);
    let vm = run(config(2), &[&KVMCLOCK[..], COUNT].concat());
    wait_for_progress(&vm, 2);
    for vcpu in 0..2 {
        assert_eq!(vm.ram().memory().read_obj::<u8>(flags(vcpu)).unwrap() & STOPPED, 0, "nothing was paused");
    }
    vm.pause().unwrap();
    vm.resume().unwrap();
    assert_told(&vm, "its owner's");

    let paused = vm.outgoing().unwrap().pause().map_err(|refused| refused.error).unwrap();
    drop(paused.resume().map_err(|refused| refused.error).unwrap());
    assert_told(&vm, "a migration that failed");

    let moved = migrate(&vm, config(2));
    assert_told(&moved, "at the destination");
}
