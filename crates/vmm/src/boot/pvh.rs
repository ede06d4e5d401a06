//! What a PVH loader hands over: `hvm_start_info`, version 1, with a list of modules and a memory map
//! (xen/include/public/arch-x86/hvm/start_info.h).

use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry,
    hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::Memory;
use super::handover::{self, Handover, MemoryKind};

const START_INFO: u64 = 0x6000;
const MODULE_LIST: u64 = 0x6040;
const MEMORY_MAP: u64 = 0x7000;

/// Longest command line that Linux takes on x86 (COMMAND_LINE_SIZE less the terminating zero), which PVH doesn't tell.
pub(super) const CMDLINE_MAX: usize = 2047;

/// Writes all of it and returns the address of `hvm_start_info`.
pub(super) fn hand_over(memory: &Memory, handover: &Handover) -> Result<u64, GuestMemoryError> {
    let map = handover::memory_map(memory);
    let mut address = GuestAddress(MEMORY_MAP);
    for (range, kind) in &map {
        let type_ = match kind {
            MemoryKind::Ram => XEN_HVM_MEMMAP_TYPE_RAM,
            MemoryKind::Reserved => XEN_HVM_MEMMAP_TYPE_RESERVED,
        };
        let size = range.end - range.start;
        memory.write_obj(hvm_memmap_table_entry { addr: range.start, size, type_, reserved: 0 }, address)?;
        address.0 += size_of::<hvm_memmap_table_entry>() as u64;
    }
    if let Some((paddr, size)) = handover.initramfs {
        memory
            .write_obj(hvm_modlist_entry { paddr, size, ..Default::default() }, GuestAddress(MODULE_LIST))?;
    }
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: handover.initramfs.is_some().into(),
        modlist_paddr: if handover.initramfs.is_some() { MODULE_LIST } else { 0 },
        cmdline_paddr: handover::CMDLINE,
        rsdp_paddr: handover.rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    memory.write_obj(info, GuestAddress(START_INFO))?;
    Ok(START_INFO)
}
