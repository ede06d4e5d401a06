//! The workload guest as measurements want it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use migrated_api::{BootSource, Vm, VmSpec, VmState, WorkloadCounters};

use crate::lab::{Host, PATIENCE};

/// What measured guests are called.
pub const NAME: &str = "measured";
/// Time between two looks at a guest that fills its memory.
const LOOK: Duration = Duration::from_millis(20);

/// A guest.
#[derive(Clone, Debug)]
pub struct Guest {
    /// RAM in MiB.
    pub memory_mib: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// Parameters of the workload: see `migrated workload build --help`.
    pub workload: String,
    /// Whether its RAM is touched before it runs, and before it comes to a host, so that no first touch is measured
    /// while pages flow.
    pub prefault: bool,
}

impl Guest {
    /// A guest with one vCPU that accesses its working set at this rate, in pages a second or `max`. All that is
    /// written is random.
    #[must_use]
    pub fn writing(memory_mib: u64, hot_mib: u64, pattern: &str, rate: &str) -> Self {
        let workload = format!("hot={hot_mib}M rate={rate} pattern={pattern} content=random");
        Self { memory_mib, vcpus: 1, workload, prefault: true }
    }

    /// The guest's specification.
    #[must_use]
    pub fn spec(&self) -> VmSpec {
        VmSpec {
            name: NAME.into(),
            memory_bytes: self.memory_mib << 20,
            vcpus: self.vcpus,
            boot: BootSource::Workload { cmdline: self.workload.clone() },
            backing: Default::default(),
            prefault: self.prefault,
            cpu_baseline: Default::default(),
            network: Vec::new(),
        }
    }

    /// Makes it, and waits until it has filled its memory and runs.
    ///
    /// # Errors
    /// It is refused, or does not get there.
    pub fn create(&self, host: &Host) -> Result<()> {
        let _: Vm = host.api.post("/v1/vms", &self.spec())?;
        let deadline = Instant::now() + PATIENCE;
        while !counters(host)?.is_some_and(|counters| counters.ready) {
            ensure!(Instant::now() < deadline, "the guest has not filled its memory within {PATIENCE:?}");
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// Ends the guest at this host.
///
/// # Errors
/// It isn't there, or can't be ended.
pub fn delete(host: &Host) -> Result<()> {
    Ok(host.api.delete(&format!("/v1/vms/{NAME}"))?)
}

/// The counters of the guest, if it runs at this host and has any that can be read now.
///
/// # Errors
/// The daemon does not answer.
pub fn counters(host: &Host) -> Result<Option<WorkloadCounters>> {
    let running = host.find(NAME)?.filter(|vm| vm.state == VmState::Running);
    Ok(running.and_then(|vm| vm.workload))
}

/// What the guest says was lost; `None` when it lost nothing.
#[must_use]
pub fn losses(counters: &WorkloadCounters) -> Option<String> {
    let WorkloadCounters { errors, tsc_backward, .. } = counters;
    (*errors != 0 || *tsc_backward != 0).then(|| {
        format!("the guest found {errors} pages lost or gone back in time; its TSC went backward {tsc_backward} times")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_lost_is_said() {
        let healthy = WorkloadCounters { writes: 5, ..WorkloadCounters::default() };
        assert_eq!(losses(&healthy), None);
        let broken = WorkloadCounters { errors: 2, ..healthy };
        assert!(losses(&broken).unwrap().contains("found 2 pages"));
        assert!(losses(&WorkloadCounters { tsc_backward: 1, ..healthy }).is_some());
    }
}
