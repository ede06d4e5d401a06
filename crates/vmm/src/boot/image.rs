//! A kernel of either kind.

use vm_memory::{Bytes, GuestAddress};

use super::handover::Handover;
use super::{BootError, BootProtocol, Memory, bzimage, elf, pvh};

/// What an ELF file begins with.
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// A kernel, told by what the file begins with.
pub(super) enum Image<'a> {
    Elf(elf::Kernel<'a>),
    BzImage(bzimage::Kernel<'a>),
}

impl<'a> Image<'a> {
    pub fn parse(name: &str, image: &'a [u8]) -> Result<Self, BootError> {
        if image.starts_with(ELF_MAGIC) {
            elf::Kernel::parse(name, image).map(Self::Elf)
        } else if bzimage::is_boot_sector(image) {
            bzimage::Kernel::parse(name, image).map(Self::BzImage)
        } else {
            Err(BootError::NotKernel { kernel: name.into() })
        }
    }

    /// How it is entered.
    pub const fn protocol(&self) -> BootProtocol {
        match self {
            Self::Elf(_) => BootProtocol::Pvh,
            Self::BzImage(_) => BootProtocol::Linux,
        }
    }

    /// Guest-physical address of its 32-bit entry point.
    pub fn entry(&self) -> u64 {
        match self {
            Self::Elf(kernel) => kernel.entry(),
            Self::BzImage(kernel) => kernel.entry(),
        }
    }

    /// End of what it takes of RAM.
    pub fn end(&self) -> u64 {
        match self {
            Self::Elf(kernel) => kernel.end(),
            Self::BzImage(kernel) => kernel.end(),
        }
    }

    /// Longest command line that it takes, in bytes without the terminating zero.
    pub fn cmdline_max(&self) -> usize {
        match self {
            Self::Elf(_) => pvh::CMDLINE_MAX,
            Self::BzImage(kernel) => kernel.cmdline_max(),
        }
    }

    /// The address past which an initramfs must not reach.
    pub fn initramfs_end(&self) -> u64 {
        match self {
            Self::Elf(_) => u64::MAX,
            Self::BzImage(kernel) => kernel.initramfs_end(),
        }
    }

    /// Checks that it has a place in `memory`, of `ram` bytes.
    pub fn check_place(&self, memory: &Memory, name: &str, ram: u64) -> Result<(), BootError> {
        match self {
            Self::Elf(kernel) => kernel.check_place(memory, name, ram),
            Self::BzImage(kernel) => kernel.check_place(memory, name, ram),
        }
    }

    /// Writes it to its place, which was checked.
    pub fn load(&self, memory: &Memory, name: &str) -> Result<(), BootError> {
        match self {
            Self::Elf(kernel) => kernel
                .segments()
                .iter()
                .try_for_each(|segment| memory.write_slice(segment.data, GuestAddress(segment.address)))
                .map_err(BootError::GuestMemory),
            Self::BzImage(kernel) => kernel.load(memory, name),
        }
    }

    /// Writes what its protocol tells it and returns where that lies.
    pub fn hand_over(&self, memory: &Memory, handover: &Handover) -> Result<u64, BootError> {
        match self {
            Self::Elf(_) => pvh::hand_over(memory, handover).map_err(BootError::GuestMemory),
            Self::BzImage(kernel) => kernel.hand_over(memory, handover),
        }
    }
}
