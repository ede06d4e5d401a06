//! A guest finds a device and drives it by itself, through KVM.

mod guest;

use guest::entropy::{BUFFERS, SIZE, config, run, used};
use guest::{counter, migrate, wait_for_progress, wait_until};
use migrated_testkit::require;
use migrated_vmm::Vm;
use vm_memory::{Bytes, GuestAddress};

fn buffers(vm: &Vm) -> Vec<[u64; 8]> {
    let buffer = |n: u64| vm.ram().memory().read_obj(GuestAddress(BUFFERS + n * 0x1000)).unwrap();
    (0..SIZE.into()).map(buffer).collect()
}

#[test]
fn a_guest_gets_entropy_wherever_it_goes() {
    require!(Kvm);
    let mut vm = run();
    let mut seen = vec![0; 8];
    for _ in 0..5 {
        let before = used(&vm);
        wait_until("an answer", || used(&vm).wrapping_sub(before) > 2 * SIZE);
        wait_for_progress(&vm, 1);
        let word = |address| vm.ram().memory().read_obj::<u32>(GuestAddress(address)).unwrap();
        assert_eq!(word(0x8010), 0x1044_1af4, "virtio-rng, by configuration mechanism 1");
        assert_eq!(word(0x8014) as u8, 0xf, "the status that the driver has set");
        vm.pause().unwrap();
        let random: Vec<u64> = buffers(&vm).concat();
        assert!(random.iter().all(|word| *word != 0) && random[..8] != seen[..8], "it is not random");
        seen = random;
        vm.resume().unwrap();
        vm = migrate(&vm, config());
        assert!(counter(&vm, 0) > 0);
    }
}
