//! The guest's CPU between the VMM, which has KVM's entries, and the wire, which has a table.

use kvm_bindings::CpuId;
use migrated_control::{ControlError, ErrorKind};
use migrated_cpuid::{CpuidSet, GuestCpu};
use migrated_vmm::CpuModel;

/// The CPU that a running guest has.
pub fn describe(model: &CpuModel) -> Result<GuestCpu, ControlError> {
    let internal = |reason: String| ControlError::new(ErrorKind::Internal, "cpu_table", reason);
    let table = CpuId::from_entries(&model.cpuid).map_err(|error| internal(format!("{error:?}")))?;
    let cpuid = CpuidSet::try_from(&table).map_err(|error| internal(error.to_string()))?;
    // Which MSRs hold something that must move is known only when they are read: restoring checks each.
    Ok(GuestCpu { cpuid, tsc_khz: model.tsc_khz, msr_indices: Vec::new() })
}

/// The CPU that an incoming guest must be given.
pub fn model(cpu: &GuestCpu) -> CpuModel {
    CpuModel { cpuid: (&cpu.cpuid).into(), tsc_khz: cpu.tsc_khz }
}
