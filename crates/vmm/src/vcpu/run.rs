use std::sync::Arc;

use kvm_bindings::{KVM_EXIT_DIRTY_RING_FULL, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use migrated_guest::RingHarvester;

use super::Vcpu;
use crate::gate::{Gate, GuestEnd};
use crate::pci::PciBus;
use crate::ports::{PortWrite, Ports};

/// Whoever serves the guest's exits.
#[derive(Debug)]
pub(crate) struct Exits {
    pub(crate) ports: Arc<Ports>,
    /// What lies in memory that isn't RAM, if anything does.
    pub(crate) pci: Option<Arc<PciBus>>,
    /// Empties dirty rings of which one is full, where the VM has such.
    pub(crate) ring_full: Option<RingHarvester>,
}

/// The life of a vCPU's thread.
pub(crate) fn run(index: usize, vcpu: &Vcpu, gate: &Gate, exits: &Exits) {
    while gate.enter(index) {
        let end = run_until_stopped(&mut vcpu.lock(), index, gate, exits);
        // The end is known before the vCPU counts as stopped: whoever paused it learns of it.
        if let Some(end) = end {
            tracing::warn!("vCPU {index} ended the guest: {end}");
            gate.end(end);
        }
        gate.leave(index);
    }
}

/// Runs the guest and serves its exits until a kick that is meant (`None`) or the guest's own end.
///
/// The stop is taken only where KVM_RUN was interrupted: by then KVM has completed the last exit, and
/// the registers are whole.
fn run_until_stopped(vcpu: &mut VcpuFd, index: usize, gate: &Gate, exits: &Exits) -> Option<GuestEnd> {
    let crashed = |reason: String| Some(GuestEnd::Crashed(format!("vCPU {index}: {reason}")));
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => exits.ports.read(port, data),
            Ok(VcpuExit::IoOut(port, data)) => match exits.ports.write(port, data) {
                PortWrite::Done => {}
                PortWrite::Reset => return Some(GuestEnd::ShutDown),
            },
            Ok(VcpuExit::MmioRead(address, data)) => match &exits.pci {
                Some(pci) => pci.read_memory(address, data),
                // Nothing is there: a bus that nobody drives reads as ones.
                None => data.fill(0xff),
            },
            Ok(VcpuExit::MmioWrite(address, data)) => {
                if let Some(pci) = &exits.pci {
                    pci.write_memory(address, data);
                }
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => {}
            Ok(VcpuExit::Shutdown) => return crashed("triple fault".into()),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN | KVM_SYSTEM_EVENT_RESET, _)) => {
                return Some(GuestEnd::ShutDown);
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return crashed(format!(
                    "the CPU refused to enter the guest: reason {reason:#x} on CPU {cpu}"
                ));
            }
            Ok(VcpuExit::InternalError) => {
                let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
                return crashed(format!(
                    "KVM internal error at rip {rip:#x}, as for an instruction it can't emulate"
                ));
            }
            Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => {
                if let Some(Err(error)) = exits.ring_full.as_ref().map(RingHarvester::drain) {
                    return crashed(format!("its full dirty ring could not be emptied: {error}"));
                }
            }
            Ok(other) => return crashed(format!("an exit that nobody handles: {other:?}")),
            Err(error) => match error.errno() {
                libc::EINTR if gate.must_leave(index) => return None,
                // EAGAIN: a vCPU that waits for its start-up IPI got one.
                libc::EINTR | libc::EAGAIN => {}
                _ => return crashed(format!("KVM_RUN failed: {error}")),
            },
        }
    }
}
