use std::time::Duration;

use kvm_ioctls::VcpuFd;
use migrated_kernel::{KvmError, ThreadClock, VcpuStats, VmFd};

/// Counters of handled page faults of a vCPU. With write protection the first write to a page is a fault:
/// KVM lifts the protection in its quick way, or maps the page anew where it had been mapped larger.
const FAULTS: [&str; 2] = ["pf_fast", "pf_fixed"];

/// What a vCPU has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    /// Page faults; `None` where they can't be counted.
    pub(super) faults: Option<u64>,
    /// CPU time.
    pub(super) ran: Duration,
}

/// Reads what a vCPU does without asking it.
#[derive(Debug)]
pub(super) struct Meter {
    faults: Option<VcpuStats<{ FAULTS.len() }>>,
}

impl Meter {
    /// Of a vCPU that does not run yet. A KVM without the counters is no error: CPU time is left.
    pub(super) fn new(vm: &VmFd, vcpu: &VcpuFd) -> Result<Self, KvmError> {
        match VcpuStats::open(vm, vcpu, FAULTS) {
            Ok(stats) => Ok(Self { faults: Some(stats) }),
            Err(KvmError::Unsupported { .. }) => Ok(Self { faults: None }),
            Err(error) => Err(error),
        }
    }

    /// The thread's clock is that of the thread that runs the vCPU, if that has been started.
    pub(super) fn read(&self, thread: Option<ThreadClock>) -> Reading {
        let faults = self.faults.as_ref().and_then(|stats| stats.read().ok());
        Reading {
            faults: faults.map(|faults| faults.iter().sum()),
            ran: thread.and_then(|clock| clock.now().ok()).unwrap_or_default(),
        }
    }
}
