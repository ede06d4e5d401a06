//! What any loader hands over: memory map, command line, and a GDT.
//!
//! All of it lies below 1 MiB, at the places where Firecracker and Cloud Hypervisor put theirs:
//! the protocols leave them open, and kernels copy what they need.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::plan::{GDT, GDT_ADDRESS};
use super::{BootError, Memory};
use crate::layout::{CONVENTIONAL_END, HIGH_MEMORY};

/// Guest-physical address of the command line.
pub(super) const CMDLINE: u64 = 0x2_0000;
const PAGE_SIZE: u64 = 4096;

/// What both protocols tell a kernel, each in its own words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handover {
    /// Guest-physical address of ACPI's first table.
    pub rsdp: u64,
    /// Guest-physical address and size in bytes.
    pub initramfs: Option<(u64, u64)>,
}

/// What a piece of the memory map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemoryKind {
    /// RAM that a kernel may use.
    Ram,
    /// RAM with tables in it.
    Reserved,
}

/// RAM that a kernel may use.
pub(super) fn ram(memory: &Memory) -> impl Iterator<Item = Range<u64>> {
    memory_map(memory).into_iter().filter(|(_, kind)| *kind == MemoryKind::Ram).map(|(range, _)| range)
}

/// All of the guest's RAM.
pub(super) fn memory_map(memory: &Memory) -> Vec<(Range<u64>, MemoryKind)> {
    let mut map = Vec::new();
    for region in memory.iter() {
        let (start, end) = (region.start_addr().0, region.start_addr().0 + region.len());
        if start < HIGH_MEMORY {
            map.push((start..CONVENTIONAL_END.min(end), MemoryKind::Ram));
            map.push((CONVENTIONAL_END..HIGH_MEMORY, MemoryKind::Reserved));
        }
        map.push((start.max(HIGH_MEMORY)..end, MemoryKind::Ram));
    }
    map.retain(|(range, _)| !range.is_empty());
    map
}

/// Checks a command line for a kernel that takes `limit` bytes.
pub(super) fn check_cmdline(cmdline: &str, limit: usize) -> Result<(), BootError> {
    if cmdline.len() > limit {
        return Err(BootError::CommandLineTooLong { length: cmdline.len(), limit });
    }
    if cmdline.contains('\0') { Err(BootError::CommandLineNul) } else { Ok(()) }
}

/// Where an initramfs of `size` bytes goes: whole pages at the end of the RAM that begins at 0, or at `limit` if that
/// is less, so that a kernel that ends at `kernel_end` has the room above it for itself. `None` when it does not fit.
pub(super) fn initramfs_address(memory: &Memory, kernel_end: u64, limit: u64, size: u64) -> Option<u64> {
    let low = memory.find_region(GuestAddress(0))?;
    let address = low.len().min(limit).checked_sub(size)? & !(PAGE_SIZE - 1);
    (address >= kernel_end.max(HIGH_MEMORY)).then_some(address)
}

/// Writes the command line and the GDT.
pub(super) fn write(memory: &Memory, cmdline: &str) -> Result<(), GuestMemoryError> {
    memory.write_slice(cmdline.as_bytes(), GuestAddress(CMDLINE))?;
    memory.write_obj(0u8, GuestAddress(CMDLINE + cmdline.len() as u64))?;
    for (index, descriptor) in (0..).zip(GDT) {
        memory.write_obj(descriptor, GuestAddress(GDT_ADDRESS + index * 8))?;
    }
    Ok(())
}
