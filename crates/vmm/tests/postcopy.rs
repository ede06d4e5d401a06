//! Post-copy by hand: the guest runs at its destination while its RAM comes.

mod guest;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use guest::entropy;
use guest::{COUNT, COUNTERS, config, pause, run, wait_for_progress, wait_until};
use migrated_guest::{
    FaultStop, Guest, GuestRam, IncomingGuest, PageFault, PausedGuest, PostcopyRam, TrackerKind,
};
use migrated_pages::{BlockId, PAGE_SIZE, PageRun, PageSet};
use migrated_testkit::require;
use migrated_vmm::boot::load_workload;
use migrated_vmm::{RunState, Vm, VmConfig};

const ALL_RAM: BlockId = BlockId(0);

/// Brings pages over from the source's RAM.
fn bring(postcopy: &PostcopyRam, source: &GuestRam, run: PageRun) {
    let claim = postcopy.claim([run]);
    let mut slices = Vec::new();
    claim.slices(&mut slices);
    let mut first = run.first;
    for slice in slices {
        let part = PageRun { first, count: (slice.len() / PAGE_SIZE) as u64, ..run };
        source.slice(part).copy_to_volatile_slice(slice);
        first += part.count;
    }
    claim.place(&mut Vec::new()).unwrap();
}

/// A thread that reads faults. It ends with this value, whatever becomes of the test.
struct Reader<'scope> {
    stop: FaultStop,
    thread: Option<ScopedJoinHandle<'scope, Vec<PageFault>>>,
}

impl<'scope> Reader<'scope> {
    fn new(
        scope: &'scope thread::Scope<'scope, '_>,
        postcopy: &PostcopyRam,
        mut each: impl FnMut(PageFault) + Send + 'scope,
    ) -> Self {
        let mut reader = postcopy.faults().unwrap();
        let stop = reader.stop_handle();
        let thread = scope.spawn(move || {
            let (mut all, mut faults) = (Vec::new(), Vec::new());
            while reader.next(Duration::ZERO, &mut faults).unwrap() {
                all.extend(&faults);
                faults.drain(..).for_each(&mut each);
            }
            all
        });
        Self { stop, thread: Some(thread) }
    }

    /// The faults that were reported.
    fn end(mut self) -> Vec<PageFault> {
        self.stop.stop();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

const WORKLOAD_RAM: u64 = 48 << 20;

fn workload_config(vcpus: u32, prefault: bool) -> VmConfig {
    VmConfig { vcpus, prefault, tracking: TrackerKind::Log, ..VmConfig::new("workload", WORKLOAD_RAM) }
}

fn workload(vcpus: u32, prefault: bool) -> Vm {
    let vm = Vm::create(workload_config(vcpus, prefault), |memory, boot| {
        load_workload(memory, "hot=8M fill=8M rate=max content=random", boot.vcpus, boot.tsc_khz)
    })
    .unwrap();
    wait_until("the workload", || vm.workload().is_some_and(|counters| counters.total.running == vcpus));
    vm
}

/// Waits until each vCPU has checked some more of its memory.
fn wait_for_checks(vm: &Vm) {
    wait_until("the workload's counters", || vm.workload().is_some());
    let before = vm.workload().unwrap().total;
    wait_until("the workload's checks", || {
        let now = vm.workload().unwrap().total;
        now.passes > before.passes && now.checker_passes > before.checker_passes
    });
}

/// Half of RAM goes ahead while the guest writes; then it runs at the destination, and the rest is brought
/// as it asks for it and, at the same time, from one end to the other.
fn postcopy(vm: &Vm, config: VmConfig) -> Vm {
    let mut incoming = Vm::incoming(VmConfig { cpu: Some(vm.cpu().clone()), ..config }).unwrap();
    incoming.postcopy_support().unwrap();
    let mut prepared = incoming.prepare_postcopy().unwrap();
    let mut running = vm.outgoing().unwrap();
    running.start_tracking().unwrap();
    let mut stale = PageSet::full(vm.ram().layout());
    let pages = vm.ram().layout().total_pages();
    for first in (0..pages).step_by(256) {
        let run = PageRun { block: ALL_RAM, first, count: 128 };
        vm.ram().slice(run).copy_to_volatile_slice(prepared.staging().slice(run));
        stale.remove(run);
    }
    let mut dirty = PageSet::empty(vm.ram().layout());
    running.harvest(&mut dirty).unwrap();
    prepared.unmap(&dirty).unwrap();
    let mut paused = running.pause().map_err(|refused| refused.error).unwrap();
    paused.harvest(&mut dirty).unwrap();
    stale.union(&dirty);
    let expected = stale.len();
    let postcopy = incoming.arm_postcopy(prepared, &stale).unwrap();
    assert_eq!(postcopy.missing().count(), expected);

    thread::scope(|scope| {
        let source = vm.ram();
        let reader = Reader::new(scope, &postcopy, {
            let postcopy = &postcopy;
            move |fault| bring(postcopy, source, PageRun { block: fault.block, first: fault.page, count: 1 })
        });
        incoming.restore(paused.save().unwrap()).unwrap();
        let (running, _) = incoming.start().unwrap();
        // The guest runs on what it asks for before anything else comes.
        wait_for_checks_to_begin(running.vm());
        postcopy.map_present().unwrap();
        for run in stale.runs() {
            for first in (run.first..run.first + run.count).step_by(64) {
                let count = 64.min(run.first + run.count - first);
                bring(&postcopy, source, PageRun { first, count, ..run });
            }
        }
        // The reader may still have one in its hands.
        wait_until("the last page", || postcopy.missing().count() == 0);
        postcopy.finish().unwrap();
        let faults = reader.end();
        assert!(!faults.is_empty() && faults.iter().all(|fault| stale.contains(fault.block, fault.page)));
        paused.retire();
        running.vm().clone()
    })
}

fn wait_for_checks_to_begin(vm: &Vm) {
    wait_until("the workload's counters", || vm.workload().is_some());
    let before = vm.workload().unwrap().total.heartbeat;
    wait_until("the workload's next rounds", || vm.workload().unwrap().total.heartbeat > before + 100);
}

#[test]
fn the_workload_guest_moves_by_postcopy_and_finds_nothing_lost() {
    require!(Kvm, Userfaultfd);
    for (vcpus, prefault) in [(1, false), (2, true), (2, false)] {
        let mut vm = workload(vcpus, true);
        for _ in 0..3 {
            wait_for_checks(&vm);
            vm = postcopy(&vm, workload_config(vcpus, prefault));
        }
        wait_for_checks(&vm);
        let counters = vm.workload().unwrap();
        assert_eq!(counters.total.errors, 0, "{vcpus} vCPUs: {counters:#?}");
        assert_eq!(counters.total.tsc_backward_steps, 0, "{vcpus} vCPUs: {counters:#?}");
        assert_eq!(vm.run_state(), RunState::Running);
    }
}

/// The guest runs elsewhere and gets what it asks for, but for the pages that are `withheld`. `during` has the VM when
/// a vCPU waits for such a page, its RAM, and the source's.
fn while_it_waits(
    vm: &Vm,
    config: VmConfig,
    withheld: impl Fn(u64) -> bool + Sync,
    during: impl FnOnce(Vm, &PostcopyRam, &GuestRam),
) {
    let mut paused = pause(vm);
    let mut incoming = Vm::incoming(VmConfig { cpu: Some(vm.cpu().clone()), ..config }).unwrap();
    let prepared = incoming.prepare_postcopy().unwrap();
    let postcopy = incoming.arm_postcopy(prepared, &PageSet::full(vm.ram().layout())).unwrap();
    let (asked, withheld) = (AtomicU64::new(0), &withheld);
    thread::scope(|scope| {
        let reader = Reader::new(scope, &postcopy, {
            let (asked, postcopy, source) = (&asked, &postcopy, vm.ram());
            move |fault| match withheld(fault.page) {
                true => drop(asked.fetch_add(1, Ordering::Relaxed)),
                false => bring(postcopy, source, PageRun { block: fault.block, first: fault.page, count: 1 }),
            }
        });
        incoming.restore(paused.save().unwrap()).unwrap();
        let (running, _) = incoming.start().unwrap();
        wait_until("the vCPU's fault", || asked.load(Ordering::Relaxed) > 0);
        let moved = running.vm().clone();
        drop(running);
        during(moved, &postcopy, vm.ram());
        assert!(reader.end().iter().any(|fault| withheld(fault.page)));
    });
    paused.retire();
}

fn bring_all(postcopy: &PostcopyRam, source: &GuestRam) {
    PageSet::full(source.layout()).runs().for_each(|run| bring(postcopy, source, run));
    postcopy.finish().unwrap();
}

#[test]
fn a_guest_that_waits_for_a_page_can_be_paused_and_goes_on_when_it_comes() {
    require!(Kvm, Userfaultfd);
    let vm = workload(2, true);
    let hot = vm.workload().unwrap();
    let hot = hot.hot_address / 4096..hot.hot_address / 4096 + hot.hot_pages;
    while_it_waits(
        &vm,
        workload_config(2, true),
        |page| hot.contains(&page),
        |vm, postcopy, source| {
            for _ in 0..5 {
                vm.pause().unwrap();
                assert_eq!(vm.run_state(), RunState::Paused);
                vm.resume().unwrap();
            }
            assert!(postcopy.missing().contains(ALL_RAM, hot.start));
            bring_all(postcopy, source);
            wait_for_checks(&vm);
            assert_eq!(vm.workload().unwrap().total.errors, 0);
        },
    );
}

#[test]
fn what_a_guest_says_of_itself_is_not_waited_for() {
    require!(Kvm, Userfaultfd);
    let vm = workload(2, true);
    // The second vCPU's counters.
    let withheld = |page| page == 0x3_2000 / 4096;
    while_it_waits(&vm, workload_config(2, true), withheld, |vm, postcopy, source| {
        assert_eq!(vm.workload(), None);
        bring_all(postcopy, source);
        wait_for_checks(&vm);
        assert_eq!(vm.workload().unwrap().total.errors, 0);
    });
}

#[test]
fn a_guest_that_waits_for_a_page_can_be_ended() {
    require!(Kvm, Userfaultfd);
    // In guest mode.
    let vm = workload(1, true);
    let hot = vm.workload().unwrap().hot_address / 4096;
    while_it_waits(&vm, workload_config(1, true), |page| page >= hot, |vm, _, _| drop(vm));
    // Perhaps in the middle of an instruction that KVM emulates, depending on the host.
    let vm = run(config(1), COUNT);
    wait_for_progress(&vm, 1);
    let counters = COUNTERS / PAGE_SIZE as u64;
    while_it_waits(&vm, config(1), |page| page == counters, |vm, _, _| drop(vm));
}

#[test]
fn a_device_that_waits_for_a_page_goes_on_when_it_comes_or_is_ended() {
    require!(Kvm, Userfaultfd);
    // Only the device touches a request's buffer.
    let withheld = |page| page == entropy::BUFFERS / PAGE_SIZE as u64;
    let vm = entropy::run();
    wait_until("an answer", || entropy::used(&vm) > 0);
    while_it_waits(&vm, entropy::config(), withheld, |vm, postcopy, source| {
        bring_all(postcopy, source);
        let used = entropy::used(&vm);
        wait_until("answers", || entropy::used(&vm).wrapping_sub(used) > 2 * entropy::SIZE);
    });
    let vm = entropy::run();
    wait_until("an answer", || entropy::used(&vm) > 0);
    while_it_waits(&vm, entropy::config(), withheld, |vm, _, _| drop(vm));
}

#[test]
fn restoring_state_may_need_a_page_that_has_not_come() {
    require!(Kvm, Userfaultfd);
    const CLOCK: u64 = 0x9000;
    // `mov ecx, MSR_KVM_SYSTEM_TIME_NEW; mov eax, CLOCK + 1; xor edx, edx; wrmsr`, and count.
    let switch_clock_on =
        [0xb9, 0x01, 0x4d, 0x56, 0x4b, 0xb8, 0x01, 0x90, 0x00, 0x00, 0x31, 0xd2, 0x0f, 0x30];
    let vm = run(config(1), &[&switch_clock_on[..], COUNT].concat());
    wait_for_progress(&vm, 1);
    let mut paused = pause(&vm);
    let mut incoming = Vm::incoming(config(1)).unwrap();
    let prepared = incoming.prepare_postcopy().unwrap();
    let postcopy = incoming.arm_postcopy(prepared, &PageSet::full(vm.ram().layout())).unwrap();
    thread::scope(|scope| {
        let (source, held) = (vm.ram(), &postcopy);
        let reader = Reader::new(scope, &postcopy, move |fault| {
            bring(held, source, PageRun { block: fault.block, first: fault.page, count: 1 });
        });
        incoming.restore(paused.save().unwrap()).unwrap();
        let (running, _) = incoming.start().unwrap();
        wait_for_progress(running.vm(), 1);
        for run in PageSet::full(source.layout()).runs() {
            bring(&postcopy, source, run);
        }
        postcopy.finish().unwrap();
        let pages: Vec<_> = reader.end().iter().map(|fault| fault.page * PAGE_SIZE as u64).collect();
        assert!(pages.contains(&CLOCK), "KVM wrote the guest's clock: {pages:x?}");
    });
    paused.retire();
}
