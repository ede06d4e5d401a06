//! The host's KVM, opened and checked.

use std::ffi::CStr;
use std::sync::Arc;

use kvm_bindings::{KVM_API_VERSION, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VmFd};
use migrated_cpuid::{HostCpu, HostCpuError};
use migrated_kernel::{KvmError, permit_guest_amx};

use crate::VmmError;
use crate::error::KvmContext;

/// Where a 64-bit guest never looks and Intel's KVM wants three pages to itself (KVM_SET_TSS_ADDR) and
/// one more below (KVM_SET_IDENTITY_MAP_ADDR), for guest code that runs in real mode.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// Most vCPUs of a VM: an APIC id is a byte, 255 addresses all APICs (without KVM_CAP_X2APIC_API), and the table of
/// processors needs one for the I/O APIC.
pub const MAX_VCPUS: u32 = 254;

/// An open `/dev/kvm` that can run guests.
#[derive(Debug)]
pub struct HostKvm {
    kvm: Kvm,
}

impl HostKvm {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// [`VmmError`] says what the host lacks.
    pub fn open() -> Result<Self, VmmError> {
        Self::open_at(c"/dev/kvm")
    }

    /// Opens KVM's device under another name.
    ///
    /// # Errors
    /// As [`HostKvm::open`].
    pub fn open_at(path: &CStr) -> Result<Self, VmmError> {
        let kvm = Kvm::new_with_path(path).map_err(|error| {
            let path = path.to_string_lossy().into_owned();
            match error.errno() {
                libc::ENOENT | libc::ENXIO | libc::ENODEV => VmmError::NoKvm { path },
                libc::EACCES | libc::EPERM => VmmError::KvmPermission { path },
                _ => VmmError::Kvm { operation: "opening KVM's device", source: error.into() },
            }
        })?;
        let found = kvm.get_api_version();
        if u32::try_from(found) != Ok(KVM_API_VERSION) {
            return Err(VmmError::KvmApi { found, needed: KVM_API_VERSION });
        }
        let needed = [
            (Cap::Irqchip, "KVM_CAP_IRQCHIP", "build the kernel with CONFIG_KVM_IOAPIC"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "Linux 4.13 has it"),
            (Cap::Xcrs, "KVM_CAP_XCRS", "the CPU must have XSAVE"),
        ];
        for (cap, capability, advice) in needed {
            if !kvm.check_extension(cap) {
                return Err(VmmError::Unsupported { capability, advice });
            }
        }
        Ok(Self { kvm })
    }

    /// KVM's system descriptor.
    #[must_use]
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// What this host's CPU can give guests; `name` is the host's. Makes a VM for a moment, with a vCPU, so
    /// it first asks for what only a process without vCPUs gets: KVM shows no AMX without permission.
    ///
    /// # Errors
    /// [`HostCpuError`].
    pub fn read_cpu(&self, name: &str) -> Result<HostCpu, HostCpuError> {
        match permit_guest_amx() {
            Ok(()) | Err(KvmError::Unsupported { .. }) => {}
            Err(error) => tracing::warn!("guests of this process get no AMX: {error}"),
        }
        HostCpu::read(&self.kvm, name)
    }

    /// Checks a number of vCPUs against KVM's limit and ours.
    pub(crate) fn check_vcpus(&self, wanted: u32) -> Result<(), VmmError> {
        let max = u32::try_from(self.kvm.get_max_vcpus()).unwrap_or(u32::MAX).min(MAX_VCPUS);
        if wanted == 0 || wanted > max { Err(VmmError::Vcpus { wanted, max }) } else { Ok(()) }
    }

    /// A VM with an interrupt controller, without RAM and vCPUs.
    pub(crate) fn create_vm(&self) -> Result<Arc<VmFd>, VmmError> {
        let vm = self.kvm.create_vm().vmm("KVM_CREATE_VM")?;
        vm.set_tss_address(TSS_ADDRESS).vmm("KVM_SET_TSS_ADDR")?;
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).vmm("KVM_SET_IDENTITY_MAP_ADDR")?;
        Ok(Arc::new(vm))
    }
}

/// Gives a VM its interrupt controllers and its timer, which must come before its first vCPU.
pub(crate) fn create_chips(vm: &VmFd) -> Result<(), VmmError> {
    vm.create_irq_chip().vmm("KVM_CREATE_IRQCHIP")?;
    if vm.check_extension(Cap::Pit2) {
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(config).vmm("KVM_CREATE_PIT2")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_kvm_is_told_what_to_do() {
        let error = HostKvm::open_at(c"/dev/no-kvm-here").unwrap_err().to_string();
        assert!(error.contains("/dev/no-kvm-here") && error.contains("kvm_intel"), "{error}");
    }
}
