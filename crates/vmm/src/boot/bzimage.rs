//! A bzImage: Linux's header, and a kernel that unpacks itself (Documentation/arch/x86/boot.rst).
//!
//! The kernel is loaded where it prefers to be and entered by the 32-bit boot protocol, which asks nothing of the CPU
//! but flat segments. From there on it needs `init_size` bytes to unpack itself in, whatever the file's size.

use std::io::Cursor;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend};

use super::error::BzImageFault;
use super::handover::{self, Handover, MemoryKind};
use super::{BootError, Memory};
use crate::layout::HIGH_MEMORY;

/// Where the header begins in the file, and in `boot_params`.
const HEADER: usize = 0x1f1;
/// "HdrS".
const MAGIC: u32 = 0x5372_6448;
/// What a boot sector ends with, and where.
const BOOT_SECTOR: [u8; 2] = [0x55, 0xaa];
const BOOT_SECTOR_AT: usize = 0x1fe;
/// Bytes of a sector, in which the real-mode part's size is told.
const SECTOR: usize = 512;
/// The protocol that tells `pref_address` and `init_size`.
const MIN_VERSION: u16 = 0x020a;
/// LOADED_HIGH of `loadflags`.
const LOADED_HIGH: u8 = 1;
/// `type_of_loader` of whoever has no number of its own.
const OTHER_LOADER: u8 = 0xff;
/// Guest-physical address of `boot_params`.
const BOOT_PARAMS: u64 = 0x7000;

/// E820 types (ACPI 6.5, table 15.4).
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Whether the file begins as a boot sector does, which a bzImage still is.
pub(super) fn is_boot_sector(image: &[u8]) -> bool {
    image.get(BOOT_SECTOR_AT..).is_some_and(|image| image.starts_with(&BOOT_SECTOR))
}

/// A kernel in a bzImage.
pub(super) struct Kernel<'a> {
    image: &'a [u8],
    header: setup_header,
}

impl<'a> Kernel<'a> {
    pub fn parse(name: &str, image: &'a [u8]) -> Result<Self, BootError> {
        let fault = |reason| BootError::NotBzImage { kernel: name.into(), reason };
        let bytes = image.get(HEADER..HEADER + size_of::<setup_header>());
        let mut header = setup_header::default();
        header.as_mut_slice().copy_from_slice(bytes.ok_or_else(|| fault(BzImageFault::CutShort))?);
        let version = header.version;
        if header.header != MAGIC {
            return Err(fault(BzImageFault::NoHeader));
        }
        if version < MIN_VERSION {
            return Err(fault(BzImageFault::TooOld { version }));
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(fault(BzImageFault::LoadedLow));
        }
        let kernel = Self { image, header };
        if kernel.image.len() <= kernel.real_mode_size() {
            return Err(fault(BzImageFault::CutShort));
        }
        Ok(kernel)
    }

    /// Bytes of the file before the kernel proper: boot sector and real-mode code, of which nothing is used.
    fn real_mode_size(&self) -> usize {
        // 0 means 4, for reasons of history.
        let sectors = if self.header.setup_sects == 0 { 4 } else { self.header.setup_sects.into() };
        SECTOR * (1 + sectors)
    }

    /// Guest-physical address where it is loaded, and entered.
    pub fn entry(&self) -> u64 {
        self.header.pref_address
    }

    /// End of what it needs before it knows of the memory map.
    pub fn end(&self) -> u64 {
        let file = (self.image.len() - self.real_mode_size()) as u64;
        self.entry().saturating_add(file.max(self.header.init_size.into()))
    }

    /// Longest command line that it takes, in bytes without the terminating zero.
    pub fn cmdline_max(&self) -> usize {
        self.header.cmdline_size as usize
    }

    /// The address past which an initramfs must not reach.
    pub fn initramfs_end(&self) -> u64 {
        u64::from(self.header.initrd_addr_max) + 1
    }

    /// Checks that its place is RAM and leaves the boot information alone.
    pub fn check_place(&self, memory: &Memory, name: &str, ram: u64) -> Result<(), BootError> {
        let (start, end) = (self.entry(), self.end());
        if start < HIGH_MEMORY {
            let occupant = "the boot information below 1 MiB";
            return Err(BootError::Overlap { kernel: name.into(), start, end, occupant });
        }
        // Entered in 32-bit mode, it can't lie higher.
        if end > u64::from(u32::MAX) || !memory.check_range(GuestAddress(start), (end - start) as usize) {
            return Err(BootError::KernelTooLarge { kernel: name.into(), ram });
        }
        Ok(())
    }

    /// Writes the kernel, whose place was checked.
    pub fn load(&self, memory: &Memory, name: &str) -> Result<(), BootError> {
        let mut image = Cursor::new(self.image);
        match BzImage::load(memory, Some(GuestAddress(self.entry())), &mut image, None) {
            Ok(_) => Ok(()),
            Err(_) => Err(BootError::NotBzImage { kernel: name.into(), reason: BzImageFault::CutShort }),
        }
    }

    /// Writes `boot_params` and returns its address.
    pub fn hand_over(&self, memory: &Memory, handover: &Handover) -> Result<u64, BootError> {
        let mut params = boot_params { hdr: self.header, ..boot_params::default() };
        params.acpi_rsdp_addr = handover.rsdp;
        params.hdr.type_of_loader = OTHER_LOADER;
        params.hdr.code32_start = self.entry() as u32;
        params.hdr.cmd_line_ptr = handover::CMDLINE as u32;
        if let Some((address, size)) = handover.initramfs {
            // It ends below `initramfs_end`, so both have 32 bits.
            params.hdr.ramdisk_image = address as u32;
            params.hdr.ramdisk_size = size as u32;
        }
        let map = handover::memory_map(memory);
        params.e820_entries = map.len() as u8;
        for (index, (range, kind)) in map.iter().enumerate() {
            let r#type = match kind {
                MemoryKind::Ram => E820_RAM,
                MemoryKind::Reserved => E820_RESERVED,
            };
            params.e820_table[index] =
                boot_e820_entry { addr: range.start, size: range.end - range.start, r#type };
        }
        memory.write_obj(params, GuestAddress(BOOT_PARAMS)).map_err(BootError::GuestMemory)?;
        Ok(BOOT_PARAMS)
    }
}
