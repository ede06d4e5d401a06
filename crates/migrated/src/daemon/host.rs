//! What this host's KVM can do, probed anew each time: modules come and go.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_ioctls::Kvm;
use migrated_cpuid::HostCpu;
use migrated_vmm::{HostKvm, MAX_VCPUS};

use super::DaemonError;

/// What matters of KVM before a VM is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvmFacts {
    /// Most vCPUs of one VM, by KVM's limit and ours.
    pub max_vcpus: u32,
}

/// Looks at the system's KVM.
pub fn probe_kvm() -> Result<KvmFacts, DaemonError> {
    probe_kvm_at(Path::new("/dev/kvm"))
}

/// What the CPU of this host, which is called `name`, can give a guest. Makes a VM for a moment.
pub fn read_host_cpu(name: &str) -> Result<HostCpu, DaemonError> {
    let kvm = HostKvm::open().map_err(|e| DaemonError::Kvm(e.to_string()))?;
    kvm.read_cpu(name).map_err(|e| DaemonError::Kvm(format!("can't read the host's CPU: {e}")))
}

/// Looks at the KVM of `device`.
pub fn probe_kvm_at(device: &Path) -> Result<KvmFacts, DaemonError> {
    let max_vcpus = open_kvm(device)?.get_max_vcpus();
    Ok(KvmFacts { max_vcpus: u32::try_from(max_vcpus).unwrap_or(u32::MAX).min(MAX_VCPUS) })
}

fn open_kvm(device: &Path) -> Result<Kvm, DaemonError> {
    let refuse = |reason: &str| DaemonError::Kvm(format!("can't use {}: {reason}", device.display()));
    let path = CString::new(device.as_os_str().as_bytes()).map_err(|_| refuse("the path has a zero byte"))?;
    Kvm::new_with_path(path.as_c_str()).map_err(|e| match e.errno() {
        libc_errno::ENOENT | libc_errno::ENODEV | libc_errno::ENXIO => refuse(
            "it is not there; load kvm_intel or kvm_amd, and check that virtualisation is on in the firmware",
        ),
        libc_errno::EACCES | libc_errno::EPERM => refuse(
            "permission denied; run the daemon as root or add its user to the device's group (often `kvm`)",
        ),
        _ => refuse(&e.to_string()),
    })
}

mod libc_errno {
    use rustix::io::Errno;

    pub const ENOENT: i32 = Errno::NOENT.raw_os_error();
    pub const ENODEV: i32 = Errno::NODEV.raw_os_error();
    pub const ENXIO: i32 = Errno::NXIO.raw_os_error();
    pub const EACCES: i32 = Errno::ACCESS.raw_os_error();
    pub const EPERM: i32 = Errno::PERM.raw_os_error();
}
