//! CPUID tables as KVM takes and gives them.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::{CpuidEntry, CpuidSet, CpuidSetError, Registers};

impl TryFrom<&CpuId> for CpuidSet {
    type Error = CpuidSetError;

    fn try_from(table: &CpuId) -> Result<Self, CpuidSetError> {
        let mut set = Self::default();
        for entry in table.as_slice() {
            let kvm_cpuid_entry2 { function: leaf, index, flags, eax, ebx, ecx, edx, .. } = *entry;
            let subleaf = (flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0).then_some(index);
            set.insert(CpuidEntry { leaf, subleaf, registers: Registers { eax, ebx, ecx, edx } })?;
        }
        Ok(set)
    }
}

impl From<&CpuidSet> for Vec<kvm_cpuid_entry2> {
    fn from(set: &CpuidSet) -> Self {
        let entry = |entry: CpuidEntry| {
            let Registers { eax, ebx, ecx, edx } = entry.registers;
            kvm_cpuid_entry2 {
                function: entry.leaf,
                index: entry.subleaf.unwrap_or(0),
                flags: entry.subleaf.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            }
        };
        set.entries().map(entry).collect()
    }
}
