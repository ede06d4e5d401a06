use migrated_api::{Vm, VmState, WorkloadCounters};
use migrated_testkit::wait_until;
use serde_json::{Value, json};

use crate::host::{Host, PATIENCE};

/// No pause of a guest may be longer, on a machine however busy.
const GAP_BOUND_US: f64 = 30e6;

/// What a test's workload guest is made of.
pub struct Workload<'a> {
    pub name: &'a str,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub parameters: &'a str,
}

impl Workload<'_> {
    pub fn spec(&self) -> Value {
        json!({
            "name": self.name,
            "memory_bytes": self.memory_mib << 20,
            "vcpus": self.vcpus,
            "boot": { "kind": "workload", "cmdline": self.parameters },
        })
    }

    /// Makes the guest and waits until it has filled its memory.
    pub fn create(&self, host: &Host) -> Vm {
        let made: Vm = host.api.post("/v1/vms", &self.spec()).ok();
        await_ready(host, self.name);
        made
    }
}

pub fn await_ready(host: &Host, vm: &str) {
    wait_until("the guest is in its loop", PATIENCE, || {
        host.vm(vm).workload.is_some_and(|counters| counters.ready)
    });
}

/// Checks that a guest lost nothing, and gives its counters.
#[track_caller]
pub fn assert_healthy(host: &Host, vm: &str) -> WorkloadCounters {
    let shown = host.vm(vm);
    let counters = shown.workload.unwrap_or_else(|| panic!("{shown:?} counts nothing"));
    assert_eq!((counters.errors, counters.tsc_backward), (0, 0), "{counters:?}");
    let gap = counters.gap_max_us;
    assert!(gap > 0.0 && gap < GAP_BOUND_US, "{counters:?}");
    counters
}

/// Checks that a guest runs on `here` and nowhere else, and waits until it has gone on there.
#[track_caller]
pub fn assert_runs_only(vm: &str, here: &Host, elsewhere: &Host) {
    assert_eq!(elsewhere.find(vm).map(|vm| vm.state), None, "{vm} is on {} as well", elsewhere.name);
    let shown = here.vm(vm);
    assert_eq!((shown.state, shown.error), (VmState::Running, None));
    let before = assert_healthy(here, vm).heartbeat;
    wait_until("the guest goes on", PATIENCE, || assert_healthy(here, vm).heartbeat > before);
}
