//! What a PVH loader hands over: `hvm_start_info`, module list, memory map, command line, and a GDT.
//!
//! All of it lies below 1 MiB, at the places where Firecracker and Cloud Hypervisor put theirs:
//! the protocol leaves them open, and kernels copy what they need.

use std::ops::Range;

use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry,
    hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::plan::GDT;
use super::{BootError, Memory};

/// Guest-physical address of the GDT.
pub(super) const GDT_ADDRESS: u64 = 0x500;
const START_INFO: u64 = 0x6000;
const MODULE_LIST: u64 = 0x6040;
const MEMORY_MAP: u64 = 0x7000;
const CMDLINE: u64 = 0x2_0000;
/// Longest command line that Linux takes on x86 (COMMAND_LINE_SIZE less the terminating zero).
const CMDLINE_MAX: usize = 2047;
/// Conventional memory ends here: firmware keeps its data area above, and kernels look for tables there.
const CONVENTIONAL_END: u64 = 0x9_fc00;
/// Kernels lie from here on.
pub(super) const KERNEL_MIN: u64 = 0x10_0000;
const PAGE_SIZE: u64 = 4096;

/// RAM that a kernel may use.
pub(super) fn ram(memory: &Memory) -> impl Iterator<Item = Range<u64>> {
    memory_map(memory)
        .into_iter()
        .filter(|(_, kind)| *kind == XEN_HVM_MEMMAP_TYPE_RAM)
        .map(|(range, _)| range)
}

fn memory_map(memory: &Memory) -> Vec<(Range<u64>, u32)> {
    let mut map = Vec::new();
    for region in memory.iter() {
        let (start, end) = (region.start_addr().0, region.start_addr().0 + region.len());
        if start < KERNEL_MIN {
            map.push((start..CONVENTIONAL_END.min(end), XEN_HVM_MEMMAP_TYPE_RAM));
            map.push((CONVENTIONAL_END..KERNEL_MIN, XEN_HVM_MEMMAP_TYPE_RESERVED));
        }
        map.push((start.max(KERNEL_MIN)..end, XEN_HVM_MEMMAP_TYPE_RAM));
    }
    map.retain(|(range, _)| !range.is_empty());
    map
}

pub(super) fn check_cmdline(cmdline: &str) -> Result<(), BootError> {
    if cmdline.len() > CMDLINE_MAX {
        return Err(BootError::CommandLineTooLong { length: cmdline.len(), limit: CMDLINE_MAX });
    }
    if cmdline.contains('\0') { Err(BootError::CommandLineNul) } else { Ok(()) }
}

/// Where an initramfs of `size` bytes goes: whole pages at the end of the RAM that begins at 0, so that a
/// kernel that ends at `kernel_end` has the room above it for itself. `None` when it does not fit.
pub(super) fn initramfs_address(memory: &Memory, kernel_end: u64, size: u64) -> Option<u64> {
    let low = memory.find_region(GuestAddress(0))?;
    let address = low.len().checked_sub(size)? & !(PAGE_SIZE - 1);
    (address >= kernel_end.max(KERNEL_MIN)).then_some(address)
}

/// Writes everything; `initramfs` is its address and size. Returns the address of `hvm_start_info`.
pub(super) fn write(
    memory: &Memory,
    cmdline: &str,
    initramfs: Option<(u64, u64)>,
) -> Result<u64, GuestMemoryError> {
    let map = memory_map(memory);
    let mut address = GuestAddress(MEMORY_MAP);
    for (range, kind) in &map {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.end - range.start,
            type_: *kind,
            reserved: 0,
        };
        memory.write_obj(entry, address)?;
        address.0 += size_of::<hvm_memmap_table_entry>() as u64;
    }
    if let Some((paddr, size)) = initramfs {
        memory
            .write_obj(hvm_modlist_entry { paddr, size, ..Default::default() }, GuestAddress(MODULE_LIST))?;
    }
    memory.write_slice(cmdline.as_bytes(), GuestAddress(CMDLINE))?;
    memory.write_obj(0u8, GuestAddress(CMDLINE + cmdline.len() as u64))?;
    for (index, descriptor) in (0..).zip(GDT) {
        memory.write_obj(descriptor, GuestAddress(GDT_ADDRESS + index * 8))?;
    }
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: initramfs.is_some().into(),
        modlist_paddr: if initramfs.is_some() { MODULE_LIST } else { 0 },
        cmdline_paddr: CMDLINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    memory.write_obj(info, GuestAddress(START_INFO))?;
    Ok(START_INFO)
}
