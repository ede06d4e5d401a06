use thiserror::Error;

use crate::workload::WorkloadError;

/// What is wrong with a bzImage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BzImageFault {
    /// A boot sector without Linux's header.
    #[error("it has no header (\"HdrS\" at byte 0x202)")]
    NoHeader,
    /// The boot protocol is from before it said where the kernel may run and how much room it takes there.
    #[error("its boot protocol is {}.{:02}, and at least 2.10 is needed", version >> 8, version & 0xff)]
    TooOld {
        /// The protocol's version, major in the high byte.
        version: u16,
    },
    /// A zImage, which runs below 1 MiB and begins in real mode.
    #[error("it must be loaded low and entered in real mode (LOADED_HIGH is not set)")]
    LoadedLow,
    /// The file ends before its kernel begins.
    #[error("it is cut short")]
    CutShort,
}

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
    /// The file is no kernel of a kind that boots here.
    #[error(
        "{kernel} is neither an ELF image (vmlinux) nor a bzImage (vmlinuz); name the kernel as the distribution \
         installs it in /boot, unpacked if it is an archive"
    )]
    NotKernel {
        /// The file.
        kernel: String,
    },
    /// The kernel is an ELF image, and broken or for another processor.
    #[error("{kernel} is no ELF image that boots here ({reason}); use one for 64-bit x86, in one piece")]
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
    /// The kernel is no bzImage that can be loaded.
    #[error(
        "{kernel} can't be loaded as a bzImage: {reason}; use a vmlinuz of Linux 2.6.31 or later, in one piece"
    )]
    NotBzImage {
        /// The kernel.
        kernel: String,
        /// What is wrong with it.
        reason: BzImageFault,
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
