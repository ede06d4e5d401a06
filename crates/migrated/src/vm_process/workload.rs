//! The built-in workload guest's own counters, for the API and for the longest gap of a migration.

use std::time::{Duration, Instant};

use migrated_control::WorkloadCounters;
use migrated_vmm::{Vm, workload};
use parking_lot::Mutex;

/// How long the guest may take, once it runs, to have looked at its clock.
const GAP_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks at the guest's heartbeat.
const LOOK: Duration = Duration::from_millis(1);
/// A vCPU was stopped anywhere in its round: after two more it has certainly seen the gap.
const ROUNDS: u64 = 2;

/// Remembers until when gaps have been reported.
#[derive(Default)]
pub struct GapMeter {
    seen: Mutex<u64>,
}

impl GapMeter {
    /// The workload guest's counters, if it is the guest.
    pub fn read(&self, vm: &Vm) -> Option<WorkloadCounters> {
        let counters = vm.workload()?;
        let now = clock_of(&counters);
        let since = std::mem::replace(&mut *self.seen.lock(), now);
        let total = counters.total;
        Some(WorkloadCounters {
            ready: total.running as usize == counters.vcpus.len(),
            passes: total.passes,
            writes: total.pages_written,
            reads: total.pages_read,
            errors: total.errors,
            heartbeat: total.heartbeat,
            gap_max_us: total.longest_gap_us as f64,
            gap_recent_us: counters.gap_since(since) as f64,
            tsc_backward: total.tsc_backward_steps,
        })
    }
}

fn clock_of(counters: &workload::WorkloadCounters) -> u64 {
    counters.vcpus.iter().map(|vcpu| vcpu.tsc).max().unwrap_or(0)
}

/// The guest's clock now: what [`gap_since`] wants later.
pub fn clock(vm: &Vm) -> Option<u64> {
    vm.workload().map(|counters| clock_of(&counters))
}

/// Waits until every vCPU has looked at its clock after the move, and gives the longest gap since `since`, in µs.
pub fn gap_since(vm: &Vm, since: u64) -> Option<u64> {
    // There are none at first when post-copy still has to bring the guest's counters.
    let mut before = vm.workload();
    let deadline = Instant::now() + GAP_TIMEOUT;
    loop {
        let now = vm.workload();
        let went_on = |(a, b): (&workload::VcpuCounters, &workload::VcpuCounters)| {
            b.heartbeat.wrapping_sub(a.heartbeat) >= ROUNDS
        };
        match (&before, now) {
            (Some(before), Some(now)) if before.vcpus.iter().zip(&now.vcpus).all(went_on) => {
                return Some(now.gap_since(since));
            }
            (None, now) => before = now,
            _ => {}
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(LOOK);
    }
}
