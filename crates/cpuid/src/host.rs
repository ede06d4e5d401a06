use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{CpuidSet, CpuidSetError, Register};

/// TSC_DEADLINE: KVM emulates it with its APIC timer and says so by a capability.
const TSC_DEADLINE: u32 = 1 << 24;

/// What a host can give a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCpu {
    /// The CPUID table of everything that KVM supports here.
    pub offer: CpuidSet,
    /// Frequency of the TSC in kHz.
    pub tsc_khz: u32,
    /// Whether KVM can give a guest another TSC frequency (KVM_CAP_TSC_CONTROL).
    pub tsc_scaling: bool,
    /// Size of a vCPU's XSAVE area in bytes (KVM_CAP_XSAVE2).
    pub xsave_size: u32,
    /// The MSRs that KVM saves and restores, in ascending order.
    pub msr_indices: Vec<u32>,
}

/// Why the host's CPU could not be read.
#[derive(Debug, Error)]
pub enum HostCpuError {
    /// KVM refused a call.
    #[error("{call} failed: {source}; is another hypervisor using this host's CPU?")]
    Kvm {
        /// The call, as KVM's API names it.
        call: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// KVM's own table contradicts itself.
    #[error("KVM_GET_SUPPORTED_CPUID: {0}; report this with the kernel's version")]
    Table(#[from] CpuidSetError),
}

impl HostCpu {
    /// Asks KVM. Makes a VM with one vCPU for a moment, because the TSC's frequency is asked of a vCPU.
    ///
    /// # Errors
    /// [`HostCpuError`].
    pub fn read(kvm: &Kvm) -> Result<Self, HostCpuError> {
        let failed = |call| move |error: kvm_ioctls::Error| HostCpuError::Kvm { call, source: error.into() };
        let table =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        let mut offer = CpuidSet::try_from(&table)?;
        if let (true, Some(leaf)) = (kvm.check_extension(Cap::TscDeadlineTimer), offer.get_mut(1, 0)) {
            *leaf.get_mut(Register::Ecx) |= TSC_DEADLINE;
        }
        let list = kvm.get_msr_index_list().map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
        let mut msr_indices = list.as_slice().to_vec();
        msr_indices.sort_unstable();
        let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        Ok(Self {
            offer,
            tsc_khz: vcpu.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?,
            tsc_scaling: kvm.check_extension(Cap::TscControl),
            // Without KVM_CAP_XSAVE2 the area is the old struct kvm_xsave.
            xsave_size: u32::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0).max(4096),
            msr_indices,
        })
    }
}
