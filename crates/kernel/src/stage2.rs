//! Page tables of the guest's memory, made before the guest needs them.

use std::io;

use kvm_bindings::{KVM_CAP_PRE_FAULT_MEMORY, KVMIO};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use crate::KvmError;

/// `struct kvm_pre_fault_memory` of include/uapi/linux/kvm.h.
#[repr(C)]
#[derive(Debug, Default)]
struct PreFaultMemory {
    gpa: u64,
    size: u64,
    flags: u64,
    padding: [u64; 5],
}

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, PreFaultMemory);

const _: () = assert!(size_of::<PreFaultMemory>() == 64);

/// Whether a VM has [`pre_fault`] (KVM_CAP_PRE_FAULT_MEMORY, Linux 6.11): not where KVM shadows the guest's page
/// tables, which it makes from the guest's own.
#[must_use]
pub fn can_pre_fault(vm: &VmFd) -> bool {
    vm.check_extension_raw(KVM_CAP_PRE_FAULT_MEMORY.into()) > 0
}

/// Maps `size` bytes of guest RAM from guest-physical address `gpa` on into the guest's second-stage page tables, as
/// the guest would by reading them, but without leaving guest mode for each page. All vCPUs of a VM share these
/// tables. Memory without a page gets one. Both are whole pages. The vCPU must not be in KVM_RUN; another thread
/// that wants it waits.
///
/// # Errors
/// [`KvmError::Call`]; what was mapped by then stays mapped.
pub fn pre_fault(vcpu: &VcpuFd, gpa: u64, size: u64) -> Result<(), KvmError> {
    let mut range = PreFaultMemory { gpa, size, ..PreFaultMemory::default() };
    while range.size > 0 {
        // SAFETY: KVM reads and writes exactly one struct of the size that the number was made from, and writes no
        // guest memory.
        let result = unsafe { ioctl_with_mut_ref(vcpu, KVM_PRE_FAULT_MEMORY(), &mut range) };
        if result < 0 {
            let error = io::Error::last_os_error();
            // It was interrupted, or the memory's mapping changed meanwhile. What is left is in `range`.
            if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
                continue;
            }
            return Err(KvmError::call(
                "KVM_PRE_FAULT_MEMORY",
                kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(0)),
                &[
                    (libc::ENOENT, "the range is not all memory of the guest's"),
                    (libc::EOPNOTSUPP, "this KVM shadows the guest's page tables"),
                ],
            ));
        }
    }
    Ok(())
}
