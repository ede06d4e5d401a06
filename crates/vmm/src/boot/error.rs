use thiserror::Error;

use crate::workload::WorkloadError;

/// Why a guest can't boot. The text says what a person would do next.
#[derive(Debug, Error)]
pub enum BootError {
    /// A file is missing or can't be read.
    #[error("can't read {path}: {source}; check the path and that this user may read it")]
    File {
        /// The file.
        path: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The kernel is no ELF image for this processor.
    #[error("{kernel} is no 64-bit x86 ELF image ({reason}); use an uncompressed vmlinux, not a bzImage")]
    NotElf {
        /// The kernel.
        kernel: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel does not say where PVH loaders enter it.
    #[error(
        "{kernel} has no PVH entry point (ELF note XEN_ELFNOTE_PHYS32_ENTRY); \
         build it with CONFIG_PVH=y or use one that was"
    )]
    NoPvhNote {
        /// The kernel.
        kernel: String,
    },
    /// The kernel does not fit into RAM where it asks to be.
    #[error("{kernel} does not fit into the guest's {ram} bytes of RAM; give the guest more memory")]
    KernelTooLarge {
        /// The kernel.
        kernel: String,
        /// The guest's RAM in bytes.
        ram: u64,
    },
    /// The initramfs does not fit into RAM beside the kernel.
    #[error(
        "{initramfs} does not fit into the guest's {ram} bytes of RAM beside the kernel; give the guest more memory"
    )]
    InitramfsTooLarge {
        /// The initramfs.
        initramfs: String,
        /// The guest's RAM in bytes.
        ram: u64,
    },
    /// The kernel asks to be where something else lies.
    #[error(
        "{kernel} asks to be loaded at {start:#x}..{end:#x}, which overlaps {occupant}; link it to lie elsewhere"
    )]
    Overlap {
        /// The kernel.
        kernel: String,
        /// First byte of the segment.
        start: u64,
        /// End of the segment.
        end: u64,
        /// What lies there.
        occupant: &'static str,
    },
    /// The command line is longer than a kernel takes.
    #[error("the kernel's command line has {length} bytes, a kernel takes {limit}; shorten it")]
    CommandLineTooLong {
        /// Its length in bytes.
        length: usize,
        /// The most it may have.
        limit: usize,
    },
    /// The command line has a zero byte, which would end it there.
    #[error("the kernel's command line has a zero byte in it; remove it")]
    CommandLineNul,
    /// The workload guest can't do what its command line asks for.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// Guest RAM could not be written; the checks before should have found out.
    #[error("writing the boot information to guest RAM failed: {0}; give the guest at least 2 MiB")]
    GuestMemory(#[source] vm_memory::GuestMemoryError),
}
