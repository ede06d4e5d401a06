//! What goes wrong in here, in the words that the API uses.

use migrated_control::{ControlError, ErrorKind};
use migrated_transport::TransportError;
use migrated_vmm::boot::BootError;
use migrated_vmm::{MemoryError, VmmError};

/// The VM could not be made.
pub fn of_vmm(error: &VmmError) -> ControlError {
    let (kind, code) = match error {
        VmmError::NoKvm { .. } => (ErrorKind::Unavailable, "no_kvm"),
        VmmError::KvmPermission { .. } => (ErrorKind::Unavailable, "kvm_permission"),
        VmmError::KvmApi { .. } | VmmError::Unsupported { .. } => (ErrorKind::Unavailable, "kvm_unsupported"),
        VmmError::Vcpus { .. } => (ErrorKind::InvalidInput, "invalid_vcpus"),
        VmmError::Memory(MemoryError::Zero | MemoryError::Granule { .. }) => {
            (ErrorKind::InvalidInput, "invalid_memory")
        }
        VmmError::Memory(_) => (ErrorKind::Unavailable, "no_memory"),
        VmmError::Cpu(_) => (ErrorKind::InvalidInput, "cpu_incompatible"),
        VmmError::Boot(error) => (ErrorKind::InvalidInput, code_of_boot(error)),
        _ => (ErrorKind::Internal, "vm_not_made"),
    };
    ControlError::new(kind, code, error.to_string())
}

const fn code_of_boot(error: &BootError) -> &'static str {
    match error {
        BootError::File { .. } => "file_unreadable",
        BootError::NotKernel { .. } => "not_a_kernel",
        BootError::NotElf { .. } => "kernel_not_elf",
        BootError::NotBzImage { .. } => "kernel_not_bzimage",
        BootError::NoPvhNote { .. } => "kernel_without_pvh",
        BootError::KernelTooLarge { .. } => "kernel_too_large",
        BootError::InitramfsTooLarge { .. } => "initramfs_too_large",
        BootError::Overlap { .. } => "kernel_overlaps",
        BootError::CommandLineTooLong { .. } | BootError::CommandLineNul => "invalid_cmdline",
        BootError::Workload(_) => "invalid_workload",
        BootError::GuestMemory(_) => "guest_cannot_boot",
    }
}

/// The transport could not be set up on this host.
pub fn of_transport(error: &TransportError) -> ControlError {
    ControlError::new(ErrorKind::Unavailable, "transport_unavailable", error.to_string())
}

/// Something that this process's state doesn't allow now.
pub fn conflict(code: &str, message: impl Into<String>) -> ControlError {
    ControlError::new(ErrorKind::Conflict, code, message)
}
