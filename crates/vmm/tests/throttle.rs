//! vCPUs that write too much are held back, and no others; and nobody is once it is over.

mod guest;

use std::time::{Duration, Instant};

use guest::wait_until;
use migrated_guest::{Guest, PausedGuest, Throttle, TrackerKind, WriteAttribution};
use migrated_pages::PageSet;
use migrated_testkit::require;
use migrated_vmm::boot::load_workload;
use migrated_vmm::workload::{WorkloadCounters, read};
use migrated_vmm::{RunState, RunningVm, Vm, VmConfig};

/// Pages that the writer writes over and over.
const HOT_PAGES: u64 = 32_768;
/// Pages a second that it may.
const PACE: f64 = 20_000.0;

/// Two vCPUs, each with half of 256 MiB: the first writes as fast as it can, the second reads as fast as it can.
fn writer_and_reader(tracking: TrackerKind) -> Vm {
    let config = VmConfig { vcpus: 2, tracking, prefault: true, ..VmConfig::new("workload", 288 << 20) };
    let vm = Vm::create(config, |memory, boot| {
        let parameters = "hot=256M rate=max readers=1 check=0 content=zero pattern=seq";
        load_workload(memory, parameters, boot.vcpus, boot.tsc_khz)
    })
    .unwrap();
    wait_until("the workload", || counters(&vm).is_some_and(|counters| counters.total.running == 2));
    vm
}

fn counters(vm: &Vm) -> Option<WorkloadCounters> {
    read(vm.ram().memory())
}

fn slept(running: &RunningVm) -> [Duration; 2] {
    let vcpus = running.throttled().unwrap().vcpus;
    [vcpus[0].slept, vcpus[1].slept]
}

fn harvest(running: &mut RunningVm) -> u64 {
    let mut dirty = PageSet::empty(running.ram().layout());
    running.harvest(&mut dirty).unwrap()
}

/// Waits until the writer has written its working set twice over.
fn wait_for_writes(vm: &Vm) {
    let before = pages_written(vm);
    wait_until("the writer", || pages_written(vm) > before + 2 * HOT_PAGES);
}

/// By the vCPU that writes.
fn pages_written(vm: &Vm) -> u64 {
    counters(vm).map_or(0, |counters| counters.vcpus[0].pages_written)
}

/// Begins to track the guest, and throttles it when a harvest has told what it writes.
fn throttled(vm: &Vm) -> RunningVm {
    let mut running = vm.outgoing().unwrap();
    running.start_tracking().unwrap();
    wait_for_writes(vm);
    assert!(harvest(&mut running) >= HOT_PAGES);
    assert_eq!(slept(&running), [Duration::ZERO; 2], "nothing was throttled yet");
    running.throttle(Some(Throttle { pages_per_second: PACE, max_slowdown: 0.99 })).unwrap();
    // Once all pages are dirty the writer writes for free, until they are harvested. Not all the time: a reader
    // writes a few pages as well, which cost it something after each harvest.
    let mut harvested = pages_written(vm);
    wait_until("a rest", || {
        if pages_written(vm) > harvested + 2 * HOT_PAGES {
            harvest(&mut running);
            harvested = pages_written(vm);
        }
        slept(&running)[0] > Duration::from_millis(1)
    });
    running
}

#[test]
fn a_writer_is_held_back_and_a_reader_is_not() {
    require!(Kvm);
    for tracking in [TrackerKind::Log, TrackerKind::Ring] {
        let vm = writer_and_reader(tracking);
        let mut running = throttled(&vm);
        harvest(&mut running);
        let (before, since) = (slept(&running)[0], Instant::now());
        wait_until("rests", || slept(&running)[0] > before + Duration::from_millis(200));
        let pages = harvest(&mut running);
        // However long this thread had to wait for its turn meanwhile, and twice that for the throttle's.
        let allowed = HOT_PAGES / 4 + (2.0 * PACE * since.elapsed().as_secs_f64()) as u64;
        assert!(pages < allowed, "{tracking:?}: {pages} pages, {allowed} would be much");
        let throttled = running.throttled().unwrap();
        if throttled.attribution == WriteAttribution::FaultCounters {
            assert_eq!(throttled.vcpus[1].slept, Duration::ZERO, "{tracking:?}: the reader");
            let [writer, reader] = [throttled.vcpus[0].pages, throttled.vcpus[1].pages];
            assert!(writer > HOT_PAGES && reader < writer / 100, "{tracking:?}: {throttled:?}");
        }
        assert_eq!(counters(&vm).unwrap().total.errors, 0);
    }
}

#[test]
fn nothing_is_held_back_once_it_is_over_however_it_ends() {
    require!(Kvm);
    type End = fn(RunningVm) -> Option<RunningVm>;
    let ends: [(&str, End); 4] = [
        ("released", |mut running| {
            running.throttle(None).unwrap();
            Some(running)
        }),
        ("tracking stopped", |mut running| {
            running.stop_tracking().unwrap();
            Some(running)
        }),
        ("paused and resumed", |running| {
            let mut paused = running.pause().map_err(|refused| refused.error).unwrap();
            let mut dirty = PageSet::empty(paused.ram().layout());
            paused.harvest(&mut dirty).unwrap();
            assert_eq!(paused.harvest(&mut dirty).unwrap(), 0, "a vCPU that rested is paused like any other");
            Some(paused.resume().map_err(|refused| refused.error).unwrap())
        }),
        ("dropped", |running| {
            drop(running);
            None
        }),
    ];
    let vm = writer_and_reader(TrackerKind::Log);
    for (how, end) in ends {
        let running = end(throttled(&vm));
        let running = running.unwrap_or_else(|| vm.outgoing().unwrap());
        let before = slept(&running);
        wait_for_writes(&vm);
        assert_eq!(slept(&running), before, "{how}");
    }
}

#[test]
fn a_guest_that_ends_while_it_is_throttled_is_gone() {
    require!(Kvm);
    let vm = writer_and_reader(TrackerKind::Log);
    let running = throttled(&vm);
    vm.pause().unwrap();
    assert_eq!(vm.run_state(), RunState::Paused);
    vm.resume().unwrap();
    wait_for_writes(&vm);
    let ended = std::sync::Arc::downgrade(vm.console());
    drop((running, vm));
    assert!(ended.upgrade().is_none(), "nobody holds the VM any more");
}
