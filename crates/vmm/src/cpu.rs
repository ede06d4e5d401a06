//! The CPU that the guest sees: a CPUID table and a TSC frequency, fixed for the guest's life.

mod topology;

use std::fmt;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use migrated_cpuid::TSC_TOLERANCE_PPM;
use thiserror::Error;

/// A CPUID table and a TSC frequency.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuModel {
    /// CPUID entries as KVM_SET_CPUID2 takes them; what differs between vCPUs (APIC ids, topology) is
    /// filled in for each.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// TSC frequency in kHz.
    pub tsc_khz: u32,
}

/// Why a guest can't have its CPU here.
#[derive(Debug, Error)]
pub enum CpuError {
    /// KVM refused a call.
    #[error("{operation} failed: {source}; compare the CPU models of both hosts")]
    Kvm {
        /// What was tried, in KVM's words.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM took the table and left bits out.
    #[error("this host's KVM drops CPUID bits that the guest must have: {}", list(.0))]
    Dropped(Vec<DroppedBits>),
    /// The TSC runs at another speed and can't be scaled.
    #[error(
        "the guest's TSC runs at {wanted} kHz, this host's at {host} kHz and it can't scale \
         (KVM_CAP_TSC_CONTROL); choose a host of that frequency"
    )]
    Tsc {
        /// The guest's, in kHz.
        wanted: u32,
        /// The host's, in kHz.
        host: u32,
    },
}

/// Bits of one CPUID register that KVM left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedBits {
    /// CPUID leaf.
    pub leaf: u32,
    /// Subleaf.
    pub subleaf: u32,
    /// Register: `eax`, `ebx`, `ecx` or `edx`.
    pub register: &'static str,
    /// The bits.
    pub bits: u32,
}

impl fmt::Display for DroppedBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "leaf {:#x}.{} {} bits {:#x}", self.leaf, self.subleaf, self.register, self.bits)
    }
}

fn list(dropped: &[DroppedBits]) -> String {
    dropped.iter().map(DroppedBits::to_string).collect::<Vec<_>>().join(", ")
}

impl CpuModel {
    /// The most that this host's KVM can give (KVM_GET_SUPPORTED_CPUID), with an in-kernel APIC. Guests
    /// can't host guests: the state of those is not among the sections, and would be lost in silence.
    ///
    /// # Errors
    /// [`CpuError::Kvm`]. `tsc_khz` stays 0 until a vCPU exists that can be asked.
    pub(crate) fn supported(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, CpuError> {
        let mut table = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|source| CpuError::Kvm { operation: "KVM_GET_SUPPORTED_CPUID", source })?;
        // KVM lists what it emulates itself; the APIC's deadline timer it tells by a capability.
        if kvm.check_extension(Cap::TscDeadlineTimer) {
            let leaf_1 = table.as_mut_slice().iter_mut().find(|entry| entry.function == 1);
            leaf_1.into_iter().for_each(|entry| entry.ecx |= topology::TSC_DEADLINE);
        }
        for entry in table.as_mut_slice() {
            entry.ecx &= !topology::nested_virtualization(entry.function);
        }
        Ok(table.as_slice().to_vec())
    }

    /// Gives vCPU `index` of `vcpus` this table and checks that KVM kept all of it.
    pub(crate) fn set_cpuid(
        table: &[kvm_cpuid_entry2],
        vcpu: &VcpuFd,
        index: u32,
        vcpus: u32,
    ) -> Result<(), CpuError> {
        let wanted = topology::of_vcpu(table, index, vcpus);
        let cpuid = CpuId::from_entries(&wanted).map_err(|_| CpuError::Kvm {
            operation: "KVM_SET_CPUID2",
            source: kvm_ioctls::Error::new(libc::E2BIG),
        })?;
        vcpu.set_cpuid2(&cpuid).map_err(|source| CpuError::Kvm { operation: "KVM_SET_CPUID2", source })?;
        let kept = vcpu
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(|source| CpuError::Kvm { operation: "KVM_GET_CPUID2", source })?;
        let dropped = dropped(&wanted, kept.as_slice());
        if dropped.is_empty() { Ok(()) } else { Err(CpuError::Dropped(dropped)) }
    }

    /// Takes bits out of a table.
    pub(crate) fn strip(table: &mut [kvm_cpuid_entry2], bits: &[DroppedBits]) {
        for out in bits {
            let of = |entry: &&mut kvm_cpuid_entry2| (entry.function, entry.index) == (out.leaf, out.subleaf);
            for entry in table.iter_mut().filter(of) {
                let register = match out.register {
                    "eax" => &mut entry.eax,
                    "ebx" => &mut entry.ebx,
                    "ecx" => &mut entry.ecx,
                    _ => &mut entry.edx,
                };
                *register &= !out.bits;
            }
        }
    }

    /// Makes the TSC of a vCPU run at `wanted` kHz, as near as it must be. Returns its frequency.
    pub(crate) fn set_tsc_khz(vcpu: &VcpuFd, wanted: Option<u32>, can_scale: bool) -> Result<u32, CpuError> {
        let host =
            vcpu.get_tsc_khz().map_err(|source| CpuError::Kvm { operation: "KVM_GET_TSC_KHZ", source })?;
        match wanted {
            Some(khz) if !same_frequency(khz, host) => {
                if !can_scale {
                    return Err(CpuError::Tsc { wanted: khz, host });
                }
                vcpu.set_tsc_khz(khz)
                    .map_err(|source| CpuError::Kvm { operation: "KVM_SET_TSC_KHZ", source })?;
                Ok(khz)
            }
            // A guest that came from another host keeps the frequency that it was told.
            Some(khz) => Ok(khz),
            None => Ok(host),
        }
    }
}

/// Whether two TSC frequencies are within [`TSC_TOLERANCE_PPM`].
pub(crate) fn same_frequency(a: u32, b: u32) -> bool {
    u64::from(a.abs_diff(b)) * 1_000_000 <= u64::from(a.max(b)) * TSC_TOLERANCE_PPM
}

/// Bits that were asked for and are not there. Bits too many are no error: KVM shows at run time some
/// that follow the guest's own settings, and hosts that can't mask everything let bits shine through.
fn dropped(wanted: &[kvm_cpuid_entry2], kept: &[kvm_cpuid_entry2]) -> Vec<DroppedBits> {
    let mut dropped = Vec::new();
    for entry in wanted {
        let found = kept.iter().find(|k| (k.function, k.index) == (entry.function, entry.index));
        let found = found.copied().unwrap_or_default();
        let registers = [
            ("eax", entry.eax, found.eax),
            ("ebx", entry.ebx, found.ebx),
            ("ecx", entry.ecx, found.ecx),
            ("edx", entry.edx, found.edx),
        ];
        for (register, wanted, found) in registers {
            let bits = wanted & !found & !topology::run_time_bits(entry.function, entry.index, register);
            if bits != 0 {
                dropped.push(DroppedBits { leaf: entry.function, subleaf: entry.index, register, bits });
            }
        }
    }
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, ecx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, ecx, ..Default::default() }
    }

    #[test]
    fn dropped_bits_are_named_and_extra_ones_are_not() {
        let found = dropped(&[entry(1, 0b110), entry(7, 1)], &[entry(1, 0b011), entry(7, 1)]);
        assert_eq!(found, [DroppedBits { leaf: 1, subleaf: 0, register: "ecx", bits: 0b100 }]);
        let error = CpuError::Dropped(found.clone()).to_string();
        assert!(error.contains("leaf 0x1.0 ecx bits 0x4"), "{error}");
        let mut table = [entry(1, 0b110), entry(7, 1)];
        CpuModel::strip(&mut table, &found);
        assert_eq!((table[0].ecx, table[1].ecx), (0b010, 1));
        // A leaf that is gone altogether drops all its bits.
        assert_eq!(dropped(&[entry(7, 1)], &[]).len(), 1);
    }

    #[test]
    fn frequencies_within_the_tolerance_are_the_same() {
        assert!(same_frequency(2_600_000, 2_600_650));
        assert!(!same_frequency(2_600_000, 2_600_651));
        assert!(!same_frequency(2_600_000, 2_100_000));
    }
}
