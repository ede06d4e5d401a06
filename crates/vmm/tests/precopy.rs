//! Pre-copy by hand: the dirty pages that KVM and the VMM report are all that was written.

mod guest;

use guest::{COUNT, config, counter, pause, run, wait_for_progress, wait_until};
use migrated_guest::{Guest, GuestRam, IncomingGuest, PausedGuest, TrackerKind};
use migrated_pages::{PageRun, PageSet};
use migrated_testkit::require;
use migrated_vmm::boot::load_workload;
use migrated_vmm::workload::{WorkloadCounters, read};
use migrated_vmm::{RunState, Vm, VmConfig};
use vm_memory::GuestAddress;

#[test]
fn exactly_the_written_pages_are_reported() {
    require!(Kvm);
    for vcpus in [1, 2] {
        let vm = run(config(vcpus), COUNT);
        wait_for_progress(&vm, vcpus);
        let mut running = vm.outgoing().unwrap();
        running.start_tracking().unwrap();
        wait_for_progress(&vm, vcpus);
        vm.write_guest(GuestAddress(0x2_0ffe), &[1, 2, 3]).unwrap();
        let mut paused = running.pause().map_err(|refused| refused.error).unwrap();

        let mut dirty = PageSet::empty(vm.ram().layout());
        assert_eq!(paused.harvest(&mut dirty).unwrap(), 3, "{vcpus} vCPUs");
        let runs: Vec<_> = dirty.runs().map(|run| (run.block.0, run.first, run.count)).collect();
        assert_eq!(runs, [(0, 0x8, 1), (0, 0x20, 2)], "{vcpus} vCPUs");
        assert_eq!(paused.harvest(&mut dirty).unwrap(), 0, "{vcpus} vCPUs: nobody wrote since");

        // A second attempt tracks anew.
        let mut running = paused.resume().map_err(|refused| refused.error).unwrap();
        running.start_tracking().unwrap();
        wait_for_progress(&vm, vcpus);
        let mut dirty = PageSet::empty(vm.ram().layout());
        running.harvest(&mut dirty).unwrap();
        assert_eq!(dirty.len(), 1, "{vcpus} vCPUs");
        running.stop_tracking().unwrap();
    }
}

#[test]
fn writes_outside_of_ram_are_refused() {
    require!(Kvm);
    let vm = run(config(1), COUNT);
    assert!(vm.write_guest(GuestAddress(guest::RAM - 1), &[1, 2]).is_err());
}

const WORKLOAD_RAM: u64 = 48 << 20;

fn workload_config(vcpus: u32, tracking: TrackerKind) -> VmConfig {
    VmConfig { vcpus, tracking, prefault: true, ..VmConfig::new("workload", WORKLOAD_RAM) }
}

fn counters(vm: &Vm) -> WorkloadCounters {
    read(vm.ram().memory()).expect("the workload guest is up")
}

/// Waits until each vCPU has checked some more of its memory.
fn wait_for_checks(vm: &Vm) {
    let before = counters(vm).total;
    wait_until("the workload's checks", || {
        let now = counters(vm).total;
        now.passes > before.passes && now.checker_passes > before.checker_passes
    });
}

fn copy_pages(pages: &PageSet, from: &GuestRam, to: &GuestRam) {
    for run in pages.runs() {
        from.slice(run).copy_to_volatile_slice(to.slice(run));
    }
}

/// The pages in which two guests' RAM differs.
fn differences(a: &GuestRam, b: &GuestRam) -> Vec<(u16, u64)> {
    let mut different = Vec::new();
    for (block, ram) in a.layout().ids().zip(a.layout().blocks()) {
        for first in 0..ram.pages {
            let page = PageRun { block, first, count: 1 };
            let bytes = |ram: &GuestRam| {
                let mut bytes = [0u8; 4096];
                ram.slice(page).copy_to(&mut bytes);
                bytes
            };
            if bytes(a) != bytes(b) {
                different.push((block.0, first));
            }
        }
    }
    different
}

/// Four rounds over a guest that writes all the time, then the rest while it is paused.
fn precopy(vm: &Vm, config: VmConfig) -> Vm {
    let mut incoming = Vm::incoming(VmConfig { cpu: Some(vm.cpu().clone()), ..config }).unwrap();
    let mut running = vm.outgoing().unwrap();
    running.start_tracking().unwrap();
    let mut pending = PageSet::full(vm.ram().layout());
    for _ in 0..4 {
        copy_pages(&pending, vm.ram(), incoming.ram());
        pending.clear();
        running.harvest(&mut pending).unwrap();
    }
    let mut paused = running.pause().map_err(|refused| refused.error).unwrap();
    paused.harvest(&mut pending).unwrap();
    copy_pages(&pending, vm.ram(), incoming.ram());
    assert_eq!(differences(vm.ram(), incoming.ram()), [], "dirty pages were missed");
    incoming.restore(paused.save().unwrap()).unwrap();
    paused.retire();
    let (running, _) = incoming.start().unwrap();
    running.vm().clone()
}

#[test]
fn the_workload_guest_moves_back_and_forth_and_finds_nothing_lost() {
    require!(Kvm);
    let kinds = [TrackerKind::Log, TrackerKind::Ring];
    for (vcpus, kind) in [1, 2].into_iter().flat_map(|vcpus| kinds.map(|kind| (vcpus, kind))) {
        let config = || workload_config(vcpus, kind);
        let mut vm = Vm::create(config(), |memory, boot| {
            load_workload(memory, "hot=8M fill=8M rate=max content=random", boot.vcpus, boot.tsc_khz)
        })
        .unwrap();
        wait_until("the workload", || {
            read(vm.ram().memory()).is_some_and(|counters| counters.total.running == vcpus)
        });
        for _ in 0..3 {
            wait_for_checks(&vm);
            vm = precopy(&vm, config());
        }
        wait_for_checks(&vm);
        let counters = counters(&vm);
        assert_eq!(counters.total.errors, 0, "{vcpus} vCPUs, {kind:?}: {counters:#?}");
        assert_eq!(counters.total.tsc_backward_steps, 0, "{vcpus} vCPUs, {kind:?}: {counters:#?}");
        assert_eq!(vm.run_state(), RunState::Running);
    }
}

#[test]
fn a_migration_that_fails_leaves_the_guest_as_it_was() {
    require!(Kvm);
    let vm = run(config(2), COUNT);
    let mut running = vm.outgoing().unwrap();
    for _ in 0..20 {
        running.start_tracking().unwrap();
        wait_for_progress(&vm, 2);
        let mut paused = running.pause().map_err(|refused| refused.error).unwrap();
        let stopped = counter(&vm, 0);
        paused.save().unwrap();
        assert_eq!(counter(&vm, 0), stopped, "saving runs nothing");
        running = paused.resume().map_err(|refused| refused.error).unwrap();
        wait_for_progress(&vm, 2);
    }
    drop(running);
    drop(pause(&vm));
    assert_eq!(vm.run_state(), RunState::Paused, "a migration that vanished while it held the guest");
}
