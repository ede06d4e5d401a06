//! A guest's whole CPU and device state as versioned sections.
//!
//! A section is one of KVM's own structures, byte for byte as the kernel's ABI fixes it, or a small
//! structure of ours. Which sections a VM has follows from its vCPUs and from what the host's KVM can
//! do: [`section_ids`] lists them before anything is saved, so two hosts can compare. A restore takes
//! exactly that list: one section more, fewer, twice, or of another version is refused, and so is one
//! whose bytes are too few or too many.

mod chips;
mod cpu_part;
mod devices;
pub(crate) mod msrs;
pub(crate) mod section;
mod time;

use std::sync::Arc;

use kvm_ioctls::{Cap, VcpuFd, VmFd};
use migrated_guest::{GuestError, SectionId, StateSection};
use serde::{Deserialize, Serialize};

use crate::acpi::pm::PowerManagement;
use crate::error::KvmContext;
use crate::serial::SerialPort;
use crate::vcpu::Vcpu;
use crate::virtio::Devices;
use crate::{HostKvm, VmmError};

use chips::ChipPart;
use cpu_part::CpuPart;
use section::{Sections, refused};
pub(crate) use section::{decode, encode};
pub(crate) use time::forgive_pause;
use time::{Tsc, TscFault, tsc_id};

/// The machine as far as it has state to save.
#[derive(Debug)]
pub(crate) struct Hardware {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) serial: Arc<SerialPort>,
    pub(crate) power: Arc<PowerManagement>,
    /// Its virtio devices, if it has any.
    pub(crate) devices: Option<Devices>,
    pub(crate) features: Features,
}

/// What of the state this host's KVM can read.
#[derive(Debug)]
pub(crate) struct Features {
    /// KVM_CAP_SREGS2.
    sregs2: bool,
    /// The VM has a PIT.
    pit: bool,
    /// MSRs of KVM_GET_MSR_INDEX_LIST that can be read.
    msrs: Vec<u32>,
    /// TSC frequency in kHz.
    tsc_khz: u32,
}

impl Features {
    pub(crate) fn probe(
        host: &HostKvm,
        vm: &VmFd,
        first_vcpu: &Vcpu,
        tsc_khz: u32,
    ) -> Result<Self, VmmError> {
        let listed = host.kvm().get_msr_index_list().vmm("KVM_GET_MSR_INDEX_LIST")?;
        Ok(Self {
            sregs2: vm.check_extension_raw(kvm_bindings::KVM_CAP_SREGS2.into()) > 0,
            pit: vm.check_extension(Cap::Pit2),
            msrs: msrs::readable(&first_vcpu.lock(), listed.as_slice()).vmm("KVM_GET_MSRS")?,
            tsc_khz,
        })
    }
}

/// What the machine itself has to say, besides its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineState {
    /// The owner wants the guest paused, wherever it is.
    pub(crate) owner_paused: bool,
}

fn machine_id() -> SectionId {
    SectionId { kind: "machine".into(), instance: 0, version: 1 }
}

/// What [`save`] will give, in that order, and what [`restore`] wants.
pub(crate) fn section_ids(hardware: &Hardware) -> Vec<SectionId> {
    let mut ids = vec![machine_id()];
    for vcpu in 0..hardware.vcpus.len() {
        ids.extend(CpuPart::SAVE_ORDER.iter().map(|part| part.id(vcpu)));
        ids.push(tsc_id(vcpu));
    }
    ids.extend(devices::ids(hardware));
    ids.extend(ChipPart::all(&hardware.features).iter().map(|part| part.id()));
    ids
}

/// Reads everything. No vCPU may be running.
pub(crate) fn save(hardware: &Hardware, machine: MachineState) -> Result<Vec<StateSection>, GuestError> {
    let mut sections = vec![StateSection { id: machine_id(), data: encode(&machine) }];
    for (index, vcpu) in hardware.vcpus.iter().enumerate() {
        let vcpu = vcpu.lock();
        for part in CpuPart::SAVE_ORDER {
            sections.push(StateSection { id: part.id(index), data: part.save(hardware, &vcpu)? });
        }
        let tsc = Tsc::save(&vcpu, hardware.features.tsc_khz)?;
        sections.push(StateSection { id: tsc_id(index), data: encode(&tsc) });
    }
    devices::save(hardware, &mut sections);
    for part in ChipPart::all(&hardware.features) {
        sections.push(StateSection { id: part.id(), data: part.save(hardware)? });
    }
    Ok(sections)
}

/// Writes everything. The vCPUs have their CPUID and have not run.
///
/// vCPUs come before the chips: a pending interrupt in the IOAPIC is delivered as it is restored, to
/// local APICs that must be there by then.
pub(crate) fn restore(hardware: &Hardware, sections: Vec<StateSection>) -> Result<MachineState, GuestError> {
    let mut sections = Sections::matching(&section_ids(hardware), sections)?;
    let machine = decode(&sections.take(&machine_id())).map_err(|reason| refused(&machine_id(), reason))?;
    let mut tscs = Vec::with_capacity(hardware.vcpus.len());
    for (index, vcpu) in hardware.vcpus.iter().enumerate() {
        let id = tsc_id(index);
        tscs.push(decode::<Tsc>(&sections.take(&id)).map_err(|reason| refused(&id, reason))?);
        let vcpu = vcpu.lock();
        for part in CpuPart::RESTORE_ORDER {
            let id = part.id(index);
            part.restore(hardware, &vcpu, &sections.take(&id)).map_err(|reason| refused(&id, reason))?;
        }
    }
    restore_tscs(hardware, &tscs)?;
    devices::restore(hardware, &mut sections)?;
    for part in ChipPart::all(&hardware.features) {
        let id = part.id();
        part.restore(hardware, &sections.take(&id)).map_err(|reason| refused(&id, reason))?;
    }
    Ok(machine)
}

/// After everything else of all vCPUs: a deadline programs the timer of a local APIC, which must be there by then.
fn restore_tscs(hardware: &Hardware, tscs: &[Tsc]) -> Result<(), GuestError> {
    let vcpus: Vec<_> = hardware.vcpus.iter().map(|vcpu| vcpu.lock()).collect();
    let vcpus: Vec<&VcpuFd> = vcpus.iter().map(|vcpu| &**vcpu).collect();
    time::restore_tscs(tscs, &vcpus, hardware.features.tsc_khz)
        .map_err(|TscFault { vcpu, reason }| refused(&tsc_id(vcpu), reason))
}
