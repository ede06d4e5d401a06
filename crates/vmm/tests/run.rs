//! Running, pausing and ending guests on KVM.

mod guest;

use std::sync::mpsc;

use guest::{
    COUNT, ECHO, PATIENCE, TRIPLE_FAULT, config, counter, pause, print, run, wait_for_progress, wait_until,
};
use migrated_guest::{Guest, GuestError, PausedGuest};
use migrated_testkit::require;
use migrated_vmm::{ClaimError, GuestEnd, PowerButtonError, RunState, Vm, VmmError};

#[test]
fn vcpus_run_stop_and_run_on() {
    require!(Kvm);
    for vcpus in [1, 2] {
        let vm = run(config(vcpus), COUNT);
        wait_for_progress(&vm, vcpus);
        vm.pause().unwrap();
        assert_eq!(vm.run_state(), RunState::Paused);
        let stopped: Vec<_> = (0..u64::from(vcpus)).map(|vcpu| counter(&vm, vcpu)).collect();
        vm.pause().unwrap();
        let still: Vec<_> = (0..u64::from(vcpus)).map(|vcpu| counter(&vm, vcpu)).collect();
        assert_eq!(stopped, still);
        vm.resume().unwrap();
        assert_eq!(vm.run_state(), RunState::Running);
        wait_for_progress(&vm, vcpus);
    }
}

#[test]
fn a_triple_fault_ends_the_guest_with_its_reason_and_keeps_the_console() {
    require!(Kvm);
    let vm = run(config(1), &[&print(b"last words")[..], TRIPLE_FAULT].concat());
    let (sender, ended) = mpsc::channel();
    vm.on_end(move |end| sender.send(end.clone()).unwrap());
    let end = ended.recv_timeout(PATIENCE).unwrap();
    let GuestEnd::Crashed(reason) = &end else { panic!("{end:?}") };
    assert!(reason.contains("vCPU 0") && reason.contains("triple fault"), "{reason}");
    assert_eq!(vm.run_state(), RunState::Crashed(reason.clone()));
    assert_eq!(vm.console().read_from(0, usize::MAX), (0, b"last words".to_vec()));

    assert!(matches!(vm.resume(), Err(GuestError::Gone(_))));
    assert!(matches!(vm.outgoing(), Err(ClaimError::Guest(GuestError::Gone(_)))));
    let (sender, told) = mpsc::channel();
    vm.on_end(move |end| sender.send(end.clone()).unwrap());
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), end);
}

#[test]
fn the_crash_of_one_vcpu_stops_the_others() {
    require!(Kvm);
    // `test edi, edi; jz count; cmp dword [0x8000], 0; je $-7; ud2; count:`
    let mut code =
        vec![0x85, 0xff, 0x74, 0x0b, 0x83, 0x3d, 0x00, 0x80, 0x00, 0x00, 0x00, 0x74, 0xf7, 0x0f, 0x0b];
    code.extend(COUNT);
    let vm = run(config(2), &code);
    wait_until("the crash", || matches!(vm.run_state(), RunState::Crashed(_)));
    assert!(counter(&vm, 0) > 0);
    // Closing the VM joins the vCPU that ran: it was told to stop.
    drop(vm);
}

#[test]
fn a_guest_resets_itself_by_keyboard_controller_and_by_acpi() {
    require!(Kvm);
    // `mov al, 0xfe; out 0x64, al; jmp $` and `mov dx, 0x606; mov al, 1; out dx, al; jmp $`
    let keyboard = &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe][..];
    let acpi = &[0x66, 0xba, 0x06, 0x06, 0xb0, 0x01, 0xee, 0xeb, 0xfe][..];
    for code in [keyboard, acpi] {
        let vm = run(config(1), code);
        let (sender, ended) = mpsc::channel();
        vm.on_end(move |end| sender.send(end.clone()).unwrap());
        assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), GuestEnd::Reset);
        assert_eq!(vm.run_state(), RunState::Reset);
    }
}

#[test]
fn a_guest_switches_itself_off_by_acpi() {
    require!(Kvm);
    // `mov dx, 0x604; mov ax, 0x3400; out dx, ax; jmp $`
    let vm = run(config(1), &[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef, 0xeb, 0xfe]);
    wait_until("the end", || vm.run_state() == RunState::ShutDown);
    assert_eq!(vm.press_power_button(), Err(PowerButtonError::NotRunning));
}

#[test]
fn the_guest_reads_what_is_typed() {
    require!(Kvm);
    let vm = run(config(1), ECHO);
    // More than the UART's FIFO holds.
    let typed: Vec<u8> = (0..200).collect();
    assert_eq!(vm.write_input(&typed), Ok(()));
    let answer: Vec<u8> = typed.iter().map(|byte| byte + 1).collect();
    while vm.console().end() < typed.len() as u64 {
        assert!(vm.console().wait_past(vm.console().end(), PATIENCE), "the guest fell silent");
    }
    assert_eq!(vm.console().read_from(0, usize::MAX), (0, answer));
}

#[test]
fn whoever_wants_the_guest_stopped_has_it_stopped() {
    require!(Kvm);
    let vm = run(config(1), COUNT);
    wait_for_progress(&vm, 1);

    // An owner's resume does not run what a migration holds.
    let paused = pause(&vm);
    vm.resume().unwrap();
    assert_eq!(vm.run_state(), RunState::Paused);
    // A failed migration does not run what the owner paused meanwhile.
    vm.pause().unwrap();
    let running = paused.resume().map_err(|refused| refused.error).unwrap();
    assert_eq!(vm.run_state(), RunState::Paused);
    vm.resume().unwrap();
    wait_for_progress(&vm, 1);

    // No second migration, until the first lets go.
    assert!(matches!(vm.outgoing(), Err(ClaimError::Busy)));
    drop(running);
    let paused = vm.outgoing().unwrap().pause().map_err(|refused| refused.error).unwrap();

    // Nobody runs what was given away.
    paused.retire();
    assert_eq!(vm.run_state(), RunState::Retired);
    for refused in [vm.resume(), vm.pause()] {
        assert!(matches!(refused, Err(GuestError::Gone(_))));
    }
    assert!(matches!(vm.outgoing(), Err(ClaimError::Guest(GuestError::Gone(_)))));
    assert_eq!(counter(&vm, 0), 0, "the RAM was given back to the host");
}

#[test]
fn impossible_numbers_of_vcpus_are_refused() {
    require!(Kvm);
    for vcpus in [0, 255, 300, 1_000_000] {
        let Err(VmmError::Vcpus { wanted, max }) = Vm::create(config(vcpus), |_, _| unreachable!()) else {
            panic!("{vcpus} vCPUs were taken");
        };
        assert!(wanted == vcpus && max > 0);
    }
}
