//! What the loader hands over: Xen's `hvm_start_info`, version 1 (xen/include/public/arch-x86/hvm/start_info.h).

use core::{ptr, slice, str};

/// Value of the first field.
const MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const TYPE_RAM: u32 = 1;
/// Longest command line that is read.
const CMDLINE_MAX: usize = 4096;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    cmdline: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
struct MemoryMapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// What the guest needs of it.
pub struct Boot {
    /// Command line, in the loader's memory below 1 MiB.
    pub cmdline: &'static str,
    memory_map: &'static [MemoryMapEntry],
}

impl Boot {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it.
    ///
    /// # Safety
    /// `start_info` is what the loader left in EBX, and nothing was written below 1 MiB since.
    pub unsafe fn read(start_info: u64) -> Result<Self, &'static str> {
        let info = ptr::with_exposed_provenance::<StartInfo>(start_info as usize);
        // SAFETY: the caller vouches for the address.
        let info = unsafe { &*info };
        if info.magic != MAGIC || info.version < 1 || info.memory_map == 0 {
            return Err("no hvm_start_info of version 1");
        }
        let map = ptr::with_exposed_provenance(info.memory_map as usize);
        // SAFETY: the loader's table of that many entries.
        let memory_map = unsafe { slice::from_raw_parts(map, info.memory_map_entries as usize) };
        let cmdline = match info.cmdline {
            0 => "",
            // SAFETY: the loader's zero-terminated text.
            address => unsafe { text(address) }.ok_or("the command line is too long or not UTF-8")?,
        };
        Ok(Self { cmdline, memory_map })
    }

    /// RAM, as (first byte, end).
    pub fn ram(&self) -> impl Iterator<Item = (u64, u64)> {
        self.memory_map.iter().filter(|e| e.kind == TYPE_RAM).map(|e| (e.address, e.address + e.size))
    }
}

/// # Safety
/// A zero-terminated text lies at `address`, or [`CMDLINE_MAX`] bytes of RAM.
unsafe fn text(address: u64) -> Option<&'static str> {
    let first = ptr::with_exposed_provenance::<u8>(address as usize);
    // SAFETY: every byte up to the end is RAM, and nobody writes it.
    let length = (0..CMDLINE_MAX).find(|i| unsafe { *first.add(*i) } == 0)?;
    // SAFETY: as above.
    str::from_utf8(unsafe { slice::from_raw_parts(first, length) }).ok()
}
