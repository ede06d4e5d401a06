//! The CPU that the guest sees: a table of CPUID and feature MSRs, and a TSC frequency, fixed for its life.
//!
//! A vCPU is given its CPU before anything else, in an order that KVM asks for: AMX is permitted before the
//! first vCPU of the process, since that fixes how large vector state may be; paravirtual features that are
//! not in CPUID are switched off; then comes CPUID, which decides which MSRs there are, so feature MSRs
//! follow; then the TSC's frequency. All of it is read back: KVM says nothing when it does otherwise. What
//! was read back is the guest's CPU from then on, and what a destination has to give.

mod error;
mod feature_msrs;
mod readback;
mod topology;

use kvm_bindings::{
    CpuId, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_enable_cap,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use migrated_cpuid::{Baseline, CpuidSet, Feature, FeatureSet, GuestCpu, HOST, TSC_TOLERANCE_PPM};
use migrated_kernel::permit_guest_amx;

pub use error::CpuError;
pub use readback::{CpuDifference, cpu_differences};

use crate::HostKvm;
use readback::ReadBack;

/// Makes the vCPUs of a VM with the CPU `given`, or with all that this host offers, and gives the CPU that they have.
pub(crate) fn create_vcpus(
    host: &HostKvm,
    vm: &VmFd,
    count: u32,
    given: Option<GuestCpu>,
) -> Result<(Vec<VcpuFd>, GuestCpu), CpuError> {
    let given = given.map_or_else(|| of_host(host), Ok)?;
    if Feature::named("amx_tile").is_some_and(|amx| given.table.has(amx)) {
        permit_guest_amx().map_err(CpuError::Amx)?;
    }
    let mut vcpus = Vec::new();
    let mut effective: Option<GuestCpu> = None;
    for index in 0..count {
        let vcpu = vm.create_vcpu(index.into()).map_err(CpuError::kvm("KVM_CREATE_VCPU"))?;
        enforce_paravirtual(vm, &vcpu)?;
        let wanted = topology::of_vcpu(&given.table.cpuid, index, count);
        let here = set_cpuid(&vcpu, &wanted)?;
        feature_msrs::set(&vcpu, &given.table.feature_msrs)?;
        let tsc_khz = set_tsc_khz(&vcpu, given.tsc_khz, vm.check_extension(Cap::TscControl))?;
        match &effective {
            None => effective = Some(accept(&given, &wanted, here, tsc_khz)?),
            Some(first) if topology::of_vcpu(&first.table.cpuid, index, count) == here => {}
            Some(_) => return Err(CpuError::Uneven { vcpu: index }),
        }
        vcpus.push(vcpu);
    }
    // There is at least one, or the guest has what it was given.
    Ok((vcpus, effective.unwrap_or(given)))
}

/// The CPU of a guest that nobody chose one for.
fn of_host(host: &HostKvm) -> Result<GuestCpu, CpuError> {
    let cpu = host.read_cpu(HOST).map_err(CpuError::Host)?;
    cpu.grant(&Baseline::of_host(&cpu)).map_err(CpuError::NotGranted)
}

/// Makes KVM refuse the guest those of its own services that CPUID does not list (Linux 5.10).
fn enforce_paravirtual(vm: &VmFd, vcpu: &VcpuFd) -> Result<(), CpuError> {
    if vm.check_extension_raw(KVM_CAP_ENFORCE_PV_FEATURE_CPUID.into()) <= 0 {
        return Ok(());
    }
    let mut cap = kvm_enable_cap { cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID, ..Default::default() };
    cap.args[0] = 1;
    vcpu.enable_cap(&cap).map_err(CpuError::kvm("KVM_ENABLE_CAP of KVM_CAP_ENFORCE_PV_FEATURE_CPUID"))
}

/// Gives a vCPU a table and tells which it has.
fn set_cpuid(vcpu: &VcpuFd, wanted: &CpuidSet) -> Result<CpuidSet, CpuError> {
    let entries: Vec<kvm_cpuid_entry2> = wanted.into();
    let too_many = |_| CpuError::kvm("KVM_SET_CPUID2")(kvm_ioctls::Error::new(libc::E2BIG));
    let table = CpuId::from_entries(&entries).map_err(too_many)?;
    vcpu.set_cpuid2(&table).map_err(CpuError::kvm("KVM_SET_CPUID2"))?;
    let table = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(CpuError::kvm("KVM_GET_CPUID2"))?;
    let mut here = CpuidSet::try_from(&table).map_err(CpuError::Table)?;
    here.keep_run_time_bits(wanted);
    Ok(here)
}

/// The CPU of a guest whose first vCPU was to see `wanted` and sees `here`.
fn accept(given: &GuestCpu, wanted: &CpuidSet, here: CpuidSet, tsc_khz: u32) -> Result<GuestCpu, CpuError> {
    let found = ReadBack::compare(wanted, &here);
    if !found.refused.is_empty() {
        return Err(CpuError::Differs(found.refused));
    }
    let name = |places: &[_]| places.iter().copied().map(readback::describe).collect::<Vec<_>>().join(", ");
    if !found.tolerated.is_empty() {
        tracing::warn!("this host's KVM does not tell the guest of {}", name(&found.tolerated));
    }
    if !found.unmasked.is_empty() {
        let features = found.unmasked;
        tracing::warn!("this host's KVM can't hide from the guest what its CPU baseline lacks: {features}");
    }
    if !found.unmasked_places.is_empty() {
        tracing::warn!("nor bits that have no name here: {}", name(&found.unmasked_places));
    }
    let mut cpu = given.clone();
    cpu.table.cpuid = here;
    cpu.tsc_khz = tsc_khz;
    let still: FeatureSet = given.unmasked.iter().filter(|feature| cpu.table.has(*feature)).collect();
    cpu.unmasked = still | found.unmasked;
    Ok(cpu)
}

/// Makes the TSC of a vCPU run at `wanted` kHz, as near as it must be. A guest that came from another host
/// keeps the frequency that it was told.
fn set_tsc_khz(vcpu: &VcpuFd, wanted: u32, can_scale: bool) -> Result<u32, CpuError> {
    let host = vcpu.get_tsc_khz().map_err(CpuError::kvm("KVM_GET_TSC_KHZ"))?;
    if !same_frequency(wanted, host) {
        if !can_scale {
            return Err(CpuError::Tsc { wanted, host });
        }
        vcpu.set_tsc_khz(wanted).map_err(CpuError::kvm("KVM_SET_TSC_KHZ"))?;
    }
    Ok(wanted)
}

/// Whether two TSC frequencies are within [`TSC_TOLERANCE_PPM`].
pub(crate) fn same_frequency(a: u32, b: u32) -> bool {
    u64::from(a.abs_diff(b)) * 1_000_000 <= u64::from(a.max(b)) * TSC_TOLERANCE_PPM
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_within_the_tolerance_are_the_same() {
        assert!(same_frequency(2_600_000, 2_600_650));
        assert!(!same_frequency(2_600_000, 2_600_651));
        assert!(!same_frequency(2_600_000, 2_100_000));
    }
}
