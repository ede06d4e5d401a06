//! The workload guest on real KVM: it runs, and it notices what must not happen to its memory.

mod machine;

use std::time::{Duration, Instant};

use machine::Machine;
use migrated_testkit::{require, wait_until};
use migrated_vmm::workload::{FirstError, VcpuStatus, WorkloadCounters, counters_range, read_saved};

const MIB: usize = 1 << 20;
const RAM: [(u64, usize); 1] = [(0, 32 * MIB)];
const PAGE: u64 = 4096;
/// Guest-physical address of the first vCPU's counters.
const VCPU_COUNTERS: u64 = 0x3_1000;

#[test]
fn every_pattern_and_content_makes_passes_without_errors() {
    require!(Kvm);
    for (vcpus, pattern, content) in [
        (1, "seq", "random"),
        (1, "random", "compressible"),
        (1, "zipf", "constant"),
        (1, "seq", "zero"),
        (2, "seq", "constant"),
        (2, "random", "zero"),
        (2, "zipf", "random"),
        (2, "seq", "compressible"),
    ] {
        let cmdline =
            format!("hot=4M fill=4M rate=max check=max readonly=20 pattern={pattern} content={content}");
        let machine = Machine::start(&RAM, vcpus, &cmdline);
        let counters =
            machine.wait("3 passes of all", |c| c.total.passes >= 3 && c.total.checker_passes >= 3);
        assert_sound(&counters, &cmdline);
        assert!(counters.total.pages_read > 0 && counters.total.pages_written > counters.total.pages_read);
        assert_eq!((counters.hot_pages, counters.fill_pages), (1024, 1024));
        assert_eq!(machine.console(), "workload: running\r\n");
    }
}

#[test]
fn ram_above_the_hole_holds_pages_too() {
    require!(Kvm);
    let ram = [(0, 16 * MIB), (4 << 30, 48 * MIB)];
    let machine = Machine::start(&ram, 2, "hot=32M fill=16M rate=max check=max pattern=random");
    let counters = machine.wait("2 passes", |c| c.total.passes >= 2 && c.total.checker_passes >= 2);
    assert_sound(&counters, "RAM in two pieces");
    assert!(counters.fill_address >= 4 << 30);
}

#[test]
fn counters_that_were_saved_are_read_as_those_in_ram() {
    require!(Kvm);
    let machine = Machine::start(&RAM, 2, "hot=4M fill=4M rate=max");
    let before = machine.wait_running(2);
    let (address, length) = counters_range(2);
    let saved: Vec<u8> = (0..length / PAGE).flat_map(|page| machine.page(address + page * PAGE)).collect();
    let counters = read_saved(&saved).unwrap();
    assert_sound(&counters, "saved");
    assert_eq!((counters.hot_address, counters.tsc_khz), (before.hot_address, before.tsc_khz));
    assert!(counters.total.heartbeat >= before.total.heartbeat);
    assert_eq!(read_saved(&saved[..PAGE as usize]), None, "one page holds no vCPU's");
    assert_eq!(read_saved(&[]), None);
}

#[test]
fn an_idle_guest_writes_nothing_and_still_checks() {
    require!(Kvm);
    let machine = Machine::start(&RAM, 1, "hot=4M fill=8M rate=0 check=max");
    let counters = machine.wait("3 walks", |c| c.total.checker_passes >= 3);
    assert_sound(&counters, "idle");
    assert_eq!((counters.total.pages_written, counters.total.pages_read, counters.total.passes), (0, 0, 0));
}

#[test]
fn a_rate_is_kept() {
    require!(Kvm);
    let mut machine = Machine::start(&RAM, 2, "hot=1M rate=20000 check=0");
    let begin = machine.wait("a write", |c| c.total.pages_written > 0);
    machine.wait("5000 writes", |c| c.total.pages_written >= begin.total.pages_written + 5000);
    machine.stop();
    let end = machine.counters().unwrap();
    // The guest's own clock tells how long they took; no vCPU makes up for more than it lost in 10 ms.
    let ticks = end.vcpus[0].tsc - begin.vcpus[0].tsc;
    let written = end.vcpus[0].pages_written - begin.vcpus[0].pages_written;
    let allowed = ticks * 10_000 / (end.tsc_khz * 1000) + 100 + 1;
    assert!(written <= allowed, "{written} pages in {ticks} ticks, {allowed} allowed");
    assert_eq!(end.total.checker_passes, 0);
}

#[test]
fn a_page_that_went_back_in_time_is_found() {
    require!(Kvm);
    for content in ["constant", "compressible", "random"] {
        let mut machine = Machine::start(&RAM, 1, &format!("hot=4M rate=max check=0 content={content}"));
        let hot = machine.wait_running(1).hot_address + 700 * PAGE;
        let before = machine.stop_outside(700, 1024);
        let old = machine.page(hot);
        machine.run();
        machine.wait("a pass", |c| c.total.passes > before.total.passes + 1);
        machine.stop_outside(700, 1024);
        machine.set_page(hot, &old);
        let error = first_error_after_run(&mut machine);
        assert_eq!((error.kind.as_str(), error.address), ("hot", hot), "{content}");
        assert!(error.found < error.expected, "{content}: {error:?}");
    }
}

#[test]
fn a_lost_page_is_found() {
    require!(Kvm);
    let mut machine = Machine::start(&RAM, 1, "hot=4M rate=max check=0 content=constant");
    let hot = machine.wait("a pass", |c| c.total.passes > 0).hot_address + 9 * PAGE;
    machine.stop_outside(9, 1024);
    machine.set_page(hot, &[0; 4096]);
    assert_eq!(first_error_after_run(&mut machine).kind, "hot");
}

#[test]
fn a_zero_page_that_is_none_is_found() {
    require!(Kvm);
    let mut machine = Machine::start(&RAM, 1, "hot=4M rate=0 check=max content=zero");
    let hot = machine.wait_running(1).hot_address;
    machine.stop();
    machine.store(hot + 5 * PAGE + 2048, 1);
    let error = first_error_after_run(&mut machine);
    assert_eq!((error.kind.as_str(), error.expected, error.found), ("hot", 0, 1));
}

#[test]
fn a_page_that_went_back_in_part_is_found() {
    require!(Kvm);
    let mut machine = Machine::start(&RAM, 1, "hot=1M rate=max check=max content=random");
    let hot = machine.wait_running(1).hot_address;
    let before = machine.stop_outside(0, 256);
    let old = machine.page(hot);
    machine.run();
    machine.wait("every line's turn", |c| c.total.passes > before.total.passes + 62);
    machine.stop_outside(0, 256);
    let mut page = machine.page(hot);
    page[2048..].copy_from_slice(&old[2048..]);
    page[4032..].copy_from_slice(&machine.page(hot)[4032..]);
    machine.set_page(hot, &page);
    let error = first_error_after_run(&mut machine);
    assert_eq!(error.kind, "hot");
    assert!((hot + 2048..hot + 4032).contains(&error.address), "{error:?}");
}

#[test]
fn generations_that_went_back_in_time_are_found() {
    require!(Kvm);
    let mut machine = Machine::start(&RAM, 1, "hot=4M rate=max check=0");
    let generations = machine.wait_running(1).generations_address;
    machine.stop();
    let old = machine.page(generations);
    let passes = machine.counters().unwrap().total.passes;
    machine.run();
    machine.wait("a pass", |c| c.total.passes > passes + 1);
    machine.stop();
    machine.set_page(generations, &old);
    let error = first_error_after_run(&mut machine);
    assert_eq!(error.kind, "hot");
    assert!(error.found > error.expected, "the page is newer than the table: {error:?}");
}

#[test]
fn pages_that_went_back_together_with_their_generations_are_found() {
    require!(Kvm);
    let mut machine = Machine::start(&RAM, 1, "hot=1M rate=max check=max");
    let counters = machine.wait_running(1);
    let pages = || (0..256).map(|n| counters.hot_address + n * PAGE).chain([counters.generations_address]);
    machine.stop();
    let old: Vec<_> = pages().map(|address| machine.page(address)).collect();
    let passes = machine.counters().unwrap().total.passes;
    machine.run();
    machine.wait("a pass", |c| c.total.passes > passes + 1);
    machine.stop();
    pages().zip(&old).for_each(|(address, page)| machine.set_page(address, page));
    machine.run();
    // The one page that was being written when all stopped may be found as well.
    machine.wait("an error", |c| c.vcpus[0].errors_of_kind.generations > 0);
}

#[test]
fn counters_that_went_back_in_time_are_found() {
    require!(Kvm);
    let mut machine = Machine::start(&RAM, 1, "hot=1M rate=max");
    machine.wait_running(1);
    machine.stop();
    let old = machine.page(VCPU_COUNTERS);
    let passes = machine.counters().unwrap().total.passes;
    machine.run();
    machine.wait("a pass", |c| c.total.passes > passes + 1);
    machine.stop();
    machine.set_page(VCPU_COUNTERS, &old);
    assert_eq!(first_error_after_run(&mut machine).kind, "counters");
}

#[test]
fn a_flipped_bit_of_the_fill_is_found() {
    require!(Kvm);
    let mut machine = Machine::start(&RAM, 2, "hot=1M fill=8M rate=0 check=max");
    let fill = machine.wait_running(2).fill_address + 1999 * PAGE + 8;
    machine.stop();
    let good = machine.load(fill);
    machine.store(fill, good ^ (1 << 33));
    let error = first_error_after_run(&mut machine);
    assert_eq!((error.kind.as_str(), error.address), ("fill", fill));
    assert_eq!((error.expected, error.found), (good, good ^ (1 << 33)));
    // It was made good, so it is not counted again.
    let walks = machine.counters().unwrap().total.checker_passes;
    let later = machine.wait("2 walks", |c| c.total.checker_passes >= walks + 2);
    assert_eq!(later.total.errors, 1);
}

#[test]
fn a_tsc_that_steps_backward_is_counted() {
    require!(Kvm);
    let mut machine = Machine::start(&RAM, 2, "hot=1M rate=1000");
    machine.wait("a pass", |c| c.total.passes > 0);
    machine.stop();
    // Some KVMs show a guest the host's own TSC, so it is the guest's memory of it that is set ahead.
    let last = VCPU_COUNTERS + PAGE + 16;
    machine.store(last, machine.load(last) + (1 << 40));
    machine.run();
    let counters = machine.wait("a step", |c| c.total.tsc_backward_steps > 0);
    assert_eq!((counters.vcpus[0].tsc_backward_steps, counters.vcpus[1].tsc_backward_steps), (0, 1));
    assert!(counters.vcpus[1].tsc_backward_largest_us > 0);
    // It goes on writing, by the new time.
    let passes = counters.vcpus[1].passes;
    machine.wait("a pass", |c| c.vcpus[1].passes > passes);
}

#[test]
fn a_pause_is_seen_as_a_gap_until_a_later_moment_is_asked_about() {
    require!(Kvm);
    let mut machine = Machine::start(&RAM, 2, "hot=1M rate=1000");
    // A vCPU that is stopped before its first look at the clock sees no gap.
    let first = machine.wait_running(2);
    machine.wait("rounds", |c| c.vcpus.iter().zip(&first.vcpus).all(|(c, b)| c.heartbeat > b.heartbeat + 1));
    machine.stop();
    let before = machine.counters().unwrap();
    let paused_at = before.vcpus.iter().map(|vcpu| vcpu.tsc).max().unwrap();
    let since = Instant::now();
    let pause = Duration::from_millis(50);
    wait_until("the pause is long enough", Duration::from_secs(60), || since.elapsed() >= pause);
    machine.run();
    // The round in which a vCPU was stopped had looked at the clock already.
    machine.wait("rounds", |c| c.vcpus.iter().zip(&before.vcpus).all(|(c, b)| c.heartbeat > b.heartbeat + 1));
    machine.stop();
    let after = machine.counters().unwrap();
    for vcpu in &after.vcpus {
        assert!(vcpu.gap_since(paused_at) >= 50_000, "{vcpu:#?}");
        assert!(vcpu.longest_gap_us >= vcpu.gap_since(paused_at));
        assert_eq!(vcpu.gap_since(vcpu.tsc), 0);
    }
}

#[test]
fn an_exception_is_reported_and_stops_the_vcpu() {
    require!(Kvm);
    let mut machine = Machine::start(&RAM, 2, "hot=1M rate=1000");
    machine.wait_running(2);
    machine.stop();
    let nowhere = 0x80_0000_0000;
    machine.set_rip(1, nowhere);
    machine.run();
    let counters = machine.wait("a fault", |c| c.total.faulted > 0);
    assert_eq!(counters.vcpus[1].status, VcpuStatus::Faulted { vector: 14, rip: nowhere });
    machine.wait("the other vCPU's rounds", |c| c.vcpus[0].heartbeat > counters.vcpus[0].heartbeat);
    machine.wait_console("stopped by exception 000000000000000e at 0000008000000000");
}

/// Runs a stopped machine until it has found something wrong.
fn first_error_after_run(machine: &mut Machine) -> FirstError {
    machine.run();
    let found = |c: &WorkloadCounters| c.vcpus.iter().find_map(|vcpu| vcpu.first_error.clone());
    let counters = machine.wait("an error", |c| found(c).is_some());
    assert!(counters.total.errors > 0);
    found(&counters).unwrap()
}

fn assert_sound(counters: &WorkloadCounters, context: &str) {
    let total = counters.total;
    assert_eq!(
        (total.errors, total.faulted, total.tsc_backward_steps),
        (0, 0, 0),
        "{context}: {counters:#?}"
    );
}
