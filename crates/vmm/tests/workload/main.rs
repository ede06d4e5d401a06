//! The workload guest on real KVM: it runs, and it notices what must not happen to its memory.

mod machine;

use machine::Machine;
use migrated_testkit::require;
use migrated_vmm::workload::WorkloadCounters;

const MIB: usize = 1 << 20;
const RAM: [(u64, usize); 1] = [(0, 32 * MIB)];
const PAGE: u64 = 4096;

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
        let cmdline = format!("hot=4M fill=4M rate=max check=max readonly=20 pattern={pattern} content={content}");
        let machine = Machine::start(&RAM, vcpus, &cmdline);
        let counters = machine.wait("3 passes of all", |c| c.total.passes >= 3 && c.total.checker_passes >= 3);
        assert_sound(&counters, &cmdline);
        assert!(counters.total.pages_read > 0 && counters.total.pages_written > counters.total.pages_read);
        assert_eq!((counters.hot_pages, counters.fill_pages), (1024, 1024));
        assert_eq!(machine.console(), "workload: running\r\n");
    }
}

fn assert_sound(counters: &WorkloadCounters, context: &str) {
    let total = counters.total;
    assert_eq!((total.errors, total.faulted, total.tsc_backward_steps), (0, 0, 0), "{context}: {counters:#?}");
}
