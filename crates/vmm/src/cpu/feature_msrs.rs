//! MSRs that tell a guest what its CPU can do.

use std::collections::BTreeMap;

use kvm_ioctls::VcpuFd;

use super::CpuError;
use crate::state::msrs;

/// Gives a vCPU, whose CPUID is set, these values, and checks that it has them. One that it does not have
/// reads as zero, and is left alone where zero is wanted.
pub(super) fn set(vcpu: &VcpuFd, wanted: &BTreeMap<u32, u64>) -> Result<(), CpuError> {
    let read = |msr| msrs::read(vcpu, msr).map_err(CpuError::kvm("KVM_GET_MSRS"));
    for (&msr, &value) in wanted {
        if read(msr)?.unwrap_or(0) == value {
            continue;
        }
        // Whether KVM took it, or something like it, shows when it is read.
        msrs::write(vcpu, msr, value).map_err(CpuError::kvm("KVM_SET_MSRS"))?;
        let here = read(msr)?;
        if here != Some(value) {
            return Err(CpuError::FeatureMsr { msr, wanted: value, here });
        }
    }
    Ok(())
}
