//! vCPU state that kvm-ioctls lacks ([`get_sregs2`]) or can't offer as safe ([`get_xsave`]).

use kvm_bindings::{KVM_CAP_XSAVE2, KVMIO, kvm_sregs2, kvm_xsave};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

use crate::KvmError;

// Numbers of include/uapi/linux/kvm.h.
ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);
ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);
ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);

// An ioctl's number contains its argument's size: another size would be another, unknown call.
const _: () = {
    assert!(size_of::<kvm_sregs2>() == 320);
    assert!(std::mem::offset_of!(kvm_sregs2, pdptrs) == 288);
    assert!(size_of::<kvm_xsave>() == XSAVE_MIN);
};

/// Size in bytes of the area that KVM_SET_XSAVE always takes; more where a guest may have more state.
const XSAVE_MIN: usize = 4096;

/// Reads the special registers with the PDPTRs (KVM_CAP_SREGS2).
///
/// # Errors
/// [`KvmError::Call`].
pub fn get_sregs2(vcpu: &VcpuFd) -> Result<kvm_sregs2, KvmError> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: KVM writes exactly one kvm_sregs2, whose size the number was made from.
    let result = unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut sregs) };
    check("KVM_GET_SREGS2", result, &[])?;
    Ok(sregs)
}

/// Writes the special registers with the PDPTRs (KVM_CAP_SREGS2).
///
/// # Errors
/// [`KvmError::Call`], as for register values that no CPU can have.
pub fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> Result<(), KvmError> {
    // SAFETY: KVM reads exactly one kvm_sregs2, whose size the number was made from.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), sregs) };
    check(
        "KVM_SET_SREGS2",
        result,
        &[(libc::EINVAL, "the control registers contradict each other or the guest's CPUID")],
    )
}

/// Size in bytes of the XSAVE area that KVM reads and writes for vCPUs of `vm` (KVM_CAP_XSAVE2).
#[must_use]
pub fn xsave_size(vm: &VmFd) -> usize {
    // 0 or negative where KVM lacks the capability: the size then is fixed.
    usize::try_from(vm.check_extension_raw(KVM_CAP_XSAVE2.into())).unwrap_or(0).max(XSAVE_MIN)
}

/// Reads FPU and vector state, a whole XSAVE area of [`xsave_size`] bytes.
///
/// # Errors
/// [`KvmError`]; [`KvmError::Unsupported`] before Linux 5.17.
pub fn get_xsave(vm: &VmFd, vcpu: &VcpuFd) -> Result<Vec<u8>, KvmError> {
    if vm.check_extension_raw(KVM_CAP_XSAVE2.into()) <= 0 {
        return Err(KvmError::Unsupported {
            capability: "KVM_CAP_XSAVE2",
            advice: "guests can be migrated from Linux 5.17 or newer",
        });
    }
    let mut area = vec![0u8; xsave_size(vm)];
    // SAFETY: KVM writes as many bytes as KVM_CAP_XSAVE2 says, which `area` has; the permission to use
    // more state that could make it larger is fixed for a vCPU when it is created.
    let result = unsafe { ioctl_with_mut_ptr(vcpu, KVM_GET_XSAVE2(), area.as_mut_ptr().cast::<kvm_xsave>()) };
    check("KVM_GET_XSAVE2", result, &[])?;
    Ok(area)
}

/// Writes FPU and vector state that [`get_xsave`] read, maybe where fewer bytes were enough.
///
/// # Errors
/// [`KvmError::Call`], as for state components that the guest's CPU has not.
///
/// # Panics
/// When `area` is larger than [`xsave_size`]: the rest would be lost.
pub fn set_xsave(vm: &VmFd, vcpu: &VcpuFd, area: &[u8]) -> Result<(), KvmError> {
    let size = xsave_size(vm);
    assert!(area.len() <= size, "XSAVE area of {} bytes, KVM takes {size}", area.len());
    let mut whole = vec![0u8; size];
    whole[..area.len()].copy_from_slice(area);
    // SAFETY: KVM reads as many bytes as KVM_CAP_XSAVE2 says, at least 4096: `whole` has them.
    let result = unsafe { ioctl_with_ptr(vcpu, KVM_SET_XSAVE(), whole.as_ptr().cast::<kvm_xsave>()) };
    check(
        "KVM_SET_XSAVE",
        result,
        &[(libc::EINVAL, "the state has components that this host or the guest's CPUID lacks")],
    )
}

fn check(call: &'static str, result: i32, meanings: &[(i32, &'static str)]) -> Result<(), KvmError> {
    if result == 0 {
        return Ok(());
    }
    Err(KvmError::call(call, std::io::Error::last_os_error(), meanings))
}
