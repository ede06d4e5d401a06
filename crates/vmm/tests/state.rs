//! State goes from one VM into another and the guest does not notice.

mod guest;

use std::sync::OnceLock;

use guest::{
    CODE, COUNT, COUNTERS, ECHO, PATIENCE, RAM, config, copy, copy_ram, counter, migrate, pause, run,
    wait_for_progress, wait_until,
};
use migrated_cpuid::{CpuidEntry, GuestCpu, Registers};
use migrated_guest::{Guest, GuestError, IncomingGuest, PausedGuest, StateSection};
use migrated_testkit::capability::Capability;
use migrated_testkit::require;
use migrated_vmm::boot::{BootPlan, BootProtocol};
use migrated_vmm::{InputRefused, PowerButtonError, RunState, Vm, VmConfig};
use proptest::prelude::*;
use proptest::sample::Index;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn counters_go_on_in_another_vm() {
    require!(Kvm);
    for vcpus in [1, 2] {
        let vm = run(config(vcpus), COUNT);
        wait_for_progress(&vm, vcpus);
        let mut paused = pause(&vm);
        let before: Vec<_> = (0..u64::from(vcpus)).map(|vcpu| counter(&vm, vcpu)).collect();
        let (incoming, _) = copy(&mut paused, config(vcpus));
        assert_eq!(incoming.vm().run_state(), RunState::Incoming);
        paused.retire();
        let (running, _) = incoming.start().unwrap();
        let moved = running.vm().clone();
        wait_for_progress(&moved, vcpus);
        for (vcpu, before) in (0..).zip(before) {
            assert!(counter(&moved, vcpu) > before, "vCPU {vcpu} began anew");
        }
    }
}

/// What a section says besides the time, which goes on.
fn timeless(sections: Vec<StateSection>) -> Vec<StateSection> {
    sections.into_iter().filter(|section| !["clock", "cpu-tsc", "pit"].contains(&&*section.id.kind)).collect()
}

#[test]
fn what_was_restored_is_saved_again() {
    require!(Kvm);
    let vm = run(config(2), COUNT);
    wait_for_progress(&vm, 2);
    assert_eq!(vm.write_input(b"typed ahead"), Ok(()));
    let mut paused = pause(&vm);
    let ids: Vec<_> = paused.save().unwrap().into_iter().map(|section| section.id).collect();
    assert_eq!(ids, vm.section_ids());

    let (incoming, sections) = copy(&mut paused, config(2));
    incoming.vm().pause().unwrap();
    let (running, _) = incoming.start().unwrap();
    let mut again = running.pause().map_err(|refused| refused.error).unwrap();
    let (mut first, mut second) = (timeless(sections), timeless(again.save().unwrap()));
    // The owner paused it in between, which its state says.
    assert_ne!(first.remove(0), second.remove(0));
    assert_eq!(first.len(), second.len());
    for (first, second) in first.iter().zip(&second) {
        assert_eq!(first, second, "{}", first.id);
    }
}

#[test]
fn a_guest_that_its_owner_paused_arrives_paused() {
    require!(Kvm);
    let vm = run(config(1), COUNT);
    wait_for_progress(&vm, 1);
    vm.pause().unwrap();
    let moved = migrate(&vm, config(1));
    assert_eq!(moved.run_state(), RunState::Paused);
    moved.resume().unwrap();
    wait_for_progress(&moved, 1);
}

/// Enables the power button's event, and clears each status that is not zero and writes it to the counter:
/// `mov dx, 0x602; mov ax, 0x100; out dx, ax; mov dx, 0x600; 1: in ax, dx; test ax, ax; jz 1b; out dx, ax;
/// mov [0x8000], ax; jmp 1b`, which begins with waiting until the counter is not 7: `0: cmp byte [0x8000], 7; je 0b`.
const BUTTON: &[u8] = &[
    0x66, 0xba, 0x02, 0x06, 0x66, 0xb8, 0x00, 0x01, 0x66, 0xef, 0xfe, 0x05, 0x04, 0x80, 0x00, 0x00, 0x80,
    0x3d, 0x00, 0x80, 0x00, 0x00, 0x07, 0x74, 0xf7, 0x66, 0xba, 0x00, 0x06, 0x66, 0xed, 0x66, 0x85, 0xc0,
    0x74, 0xf9, 0x66, 0xef, 0x66, 0xa3, 0x00, 0x80, 0x00, 0x00, 0xeb, 0xef,
];

#[test]
fn a_pressed_power_button_arrives_with_the_guest() {
    require!(Kvm);
    let vm = run(config(1), COUNT);
    assert_eq!(vm.press_power_button(), Err(PowerButtonError::Ignored));
    let vm = Vm::create(config(1), |memory, _| {
        memory.write_slice(BUTTON, GuestAddress(CODE)).unwrap();
        memory.write_obj(7u32, GuestAddress(COUNTERS)).unwrap();
        Ok(BootPlan { entry: CODE, protocol: BootProtocol::Pvh, info: 0, ap_entry: None })
    })
    .unwrap();
    wait_until("the button is enabled", || counter(&vm, 1) == 1);
    vm.press_power_button().unwrap();
    let moved = migrate(&vm, config(1));
    assert_eq!(vm.press_power_button(), Err(PowerButtonError::NotRunning));
    // It has not looked yet, and sees the button pressed; having cleared it, it sees no second press.
    moved.write_guest(GuestAddress(COUNTERS), &0u32.to_le_bytes()).unwrap();
    wait_until("the guest sees the button", || counter(&moved, 0) == 0x100);
    moved.write_guest(GuestAddress(COUNTERS), &0u32.to_le_bytes()).unwrap();
    moved.press_power_button().unwrap();
    wait_until("the guest sees it again", || counter(&moved, 0) == 0x100);
}

#[test]
fn an_unfinished_port_read_is_finished_before_the_state_is_saved() {
    require!(Kvm);
    // A guest that is stopped between taking a byte from the UART and having it in AL would ask for it
    // again where it goes on, and the byte would be gone. It is stopped many times while it echoes.
    let typed: Vec<u8> = (0..60_000u32).map(|n| (n % 251) as u8).collect();
    let mut vm = run(config(1), ECHO);
    assert_eq!(vm.write_input(&typed), Ok(()));
    let mut echoed = Vec::new();
    for _ in 0..60 {
        if echoed.len() == typed.len() {
            break;
        }
        assert!(vm.console().wait_past(echoed.len() as u64, PATIENCE), "the guest fell silent");
        let moved = migrate(&vm, config(1));
        echoed.extend(vm.console().read_from(echoed.len() as u64, usize::MAX).1);
        assert_eq!(vm.write_input(b"late"), Err(InputRefused::Leaving));
        vm = moved;
    }
    while vm.console().end() < typed.len() as u64 {
        assert!(vm.console().wait_past(vm.console().end(), PATIENCE), "the guest lost a byte");
    }
    echoed.extend(vm.console().read_from(echoed.len() as u64, usize::MAX).1);
    let expected: Vec<u8> = typed.iter().map(|byte| byte.wrapping_add(1)).collect();
    assert!(echoed == expected, "the guest lost, repeated or garbled a byte");
}

#[test]
fn input_is_refused_until_it_is_known_where_the_guest_goes_on() {
    require!(Kvm);
    let vm = run(config(1), ECHO);
    let mut paused = pause(&vm);
    assert_eq!(vm.write_input(b"a"), Ok(()));
    paused.save().unwrap();
    assert_eq!(vm.write_input(b"b"), Err(InputRefused::Leaving));
    let _running = paused.resume().unwrap();
    assert_eq!(vm.write_input(&[b'c'; 100_000]), Err(InputRefused::Full));
    assert_eq!(vm.write_input(b"d"), Ok(()));
    while vm.console().end() < 2 {
        assert!(vm.console().wait_past(vm.console().end(), PATIENCE), "the guest fell silent");
    }
    assert_eq!(vm.console().read_from(0, usize::MAX), (0, b"be".to_vec()));
}

#[test]
fn the_tsc_goes_on_and_never_back() {
    require!(Kvm);
    // `1: rdtsc; mov [0x8008], eax; mov [0x800c], edx; inc dword [0x8000]; jmp 1b`
    let code = [
        0x0f, 0x31, 0xa3, 0x08, 0x80, 0x00, 0x00, 0x89, 0x15, 0x0c, 0x80, 0x00, 0x00, 0xff, 0x05, 0x00, 0x80,
        0x00, 0x00, 0xeb, 0xeb,
    ];
    let mut vm = run(config(1), &code);
    wait_for_progress(&vm, 1);
    let tsc = |vm: &Vm| vm.ram().memory().read_obj::<u64>(GuestAddress(0x8008)).unwrap();
    for _ in 0..5 {
        vm.pause().unwrap();
        let before = tsc(&vm);
        vm.resume().unwrap();
        vm = migrate(&vm, config(1));
        wait_for_progress(&vm, 1);
        vm.pause().unwrap();
        let after = tsc(&vm);
        vm.resume().unwrap();
        let second = u64::from(vm.cpu().tsc_khz) * 1000;
        assert!(after > before && after - before < 60 * second, "{before} -> {after}");
    }
}

#[test]
fn sections_that_do_not_fit_exactly_are_refused_by_name() {
    require!(Kvm);
    let vm = run(config(1), COUNT);
    wait_for_progress(&vm, 1);
    let mut paused = pause(&vm);
    let good = paused.save().unwrap();

    let refusal = |sections: Vec<StateSection>| {
        let mut incoming = Vm::incoming(config(1)).unwrap();
        copy_ram(&paused, &incoming);
        match incoming.restore(sections) {
            Err(GuestError::Section { section, .. }) => section,
            other => panic!("{other:?}"),
        }
    };
    for index in 0..good.len() {
        let name = good[index].id.to_string();
        let changed = |change: &dyn Fn(&mut Vec<StateSection>)| {
            let mut sections = good.clone();
            change(&mut sections);
            refusal(sections)
        };
        assert_eq!(changed(&|sections| drop(sections.remove(index))), name);
        assert_eq!(changed(&|sections| sections.push(sections[index].clone())), name);
        if good[index].id.kind != "cpu-xsave" {
            assert_eq!(changed(&|sections| sections[index].data.truncate(good[index].data.len() - 1)), name);
        }
        // An XSAVE area may be shorter than this host's, never longer; all others are exact.
        assert_eq!(changed(&|sections| sections[index].data.push(0)), name);
        let newer = changed(&|sections| sections[index].id.version += 1);
        assert!(newer.ends_with("v2"), "{newer}");
    }
    // A VM with another number of vCPUs has other sections.
    let mut two = Vm::incoming(config(2)).unwrap();
    assert!(matches!(two.restore(good), Err(GuestError::Section { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_hostile_state_is_taken_or_refused_and_nothing_else(changes in prop::collection::vec(any::<(Index, Index, u8)>(), 1..4)) {
        if !Capability::Kvm.available_to_test() {
            return Ok(());
        }
        static GOOD: OnceLock<Vec<StateSection>> = OnceLock::new();
        let mut sections = GOOD.get_or_init(|| pause(&run(config(1), COUNT)).save().unwrap()).clone();
        for (section, at, value) in changes {
            let section = section.index(sections.len());
            let data = &mut sections[section].data;
            let at = at.index(data.len());
            data[at] = value;
        }
        let restored = Vm::incoming(config(1)).unwrap().restore(sections);
        prop_assert!(matches!(restored, Ok(()) | Err(GuestError::Section { .. })), "{restored:?}");
    }
}

#[test]
fn an_interrupt_that_waits_is_delivered_at_the_destination() {
    require!(Kvm);
    // The guest switches the UART's receive interrupt on and never takes it: IRQ 4 stays latched in the
    // interrupt controllers, whose state must arrive as it left.
    // `mov dx, 0x3f9; mov al, 1; out dx, al` and count.
    let code = [&[0x66, 0xba, 0xf9, 0x03, 0xb0, 0x01, 0xee][..], COUNT].concat();
    let vm = run(config(1), &code);
    wait_for_progress(&vm, 1);
    vm.write_input(b"x").unwrap();
    let mut paused = pause(&vm);
    let master = |sections: &[StateSection]| {
        sections.iter().find(|s| s.id.kind == "irqchip" && s.id.instance == 0).unwrap().data.clone()
    };
    let sections = paused.save().unwrap();
    // kvm_pic_state follows chip_id and pad: last_irr, irr, ….
    assert_ne!(master(&sections)[9] & 1 << 4, 0, "IRQ 4 is pending at the source");
    let (incoming, _) = copy(&mut paused, config(1));
    incoming.vm().pause().unwrap();
    let (running, _) = incoming.start().unwrap();
    let mut again = running.pause().map_err(|refused| refused.error).unwrap();
    assert_eq!(master(&again.save().unwrap()), master(&sections));
}

#[test]
fn a_guest_keeps_the_cpu_it_was_made_with_or_is_refused() {
    require!(Kvm);
    let vm = run(config(1), COUNT);
    let cpu = vm.cpu().clone();
    let same = Vm::incoming(VmConfig { cpu: Some(cpu.clone()), ..config(1) }).unwrap();
    assert_eq!(same.vm().cpu(), &cpu);

    // A leaf that no host has.
    let mut foreign = cpu.clone();
    let registers = Registers { ecx: 1 << 9, ..Registers::default() };
    foreign.table.cpuid.insert(CpuidEntry { leaf: 0x8000_00fe, subleaf: None, registers }).unwrap();
    match Vm::incoming(VmConfig { cpu: Some(foreign), ..config(1) }) {
        Ok(vm) => assert_eq!(vm.vm().cpu().table.cpuid.get(0x8000_00fe, 0), Some(&registers)),
        Err(error) => assert!(error.to_string().contains("0x800000fe"), "{error}"),
    }

    // A frequency that this host has not.
    let fast = GuestCpu { tsc_khz: cpu.tsc_khz * 2, ..cpu };
    match Vm::incoming(VmConfig { cpu: Some(fast.clone()), ..config(1) }) {
        Ok(scaled) => assert_eq!(scaled.vm().cpu().tsc_khz, fast.tsc_khz),
        Err(error) => assert!(error.to_string().contains(&fast.tsc_khz.to_string()), "{error}"),
    }
}

#[test]
fn ram_is_zero_before_it_arrives() {
    require!(Kvm);
    let incoming = Vm::incoming(config(1)).unwrap();
    let mut bytes = vec![1u8; RAM as usize];
    incoming.ram().memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    wait_until("nothing to run", || incoming.vm().run_state() == RunState::Incoming);
}
