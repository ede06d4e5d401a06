//! An ELF kernel: its segments and its PVH entry point.

use object::LittleEndian;
use object::elf::{EM_X86_64, FileHeader64, NoteType, PT_LOAD, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{BootError, Memory};
use crate::layout::HIGH_MEMORY;

/// Note of a kernel's 32-bit entry point (xen/include/public/elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: NoteType = NoteType(18);

/// A piece of the image and where it goes.
pub(super) struct Segment<'a> {
    /// Guest-physical address of the first byte.
    pub address: u64,
    /// What is in the file; the rest is zero.
    pub data: &'a [u8],
    /// Bytes in memory.
    size: u64,
}

/// A PVH kernel.
pub(super) struct Kernel<'a> {
    segments: Vec<Segment<'a>>,
    entry: u64,
}

impl<'a> Kernel<'a> {
    pub fn parse(name: &str, image: &'a [u8]) -> Result<Self, BootError> {
        let not_elf = |reason: &str| BootError::NotElf { kernel: name.into(), reason: reason.into() };
        let broken = |error: object::Error| not_elf(&error.to_string());
        let header = FileHeader64::<LittleEndian>::parse(image).map_err(broken)?;
        let endian = header.endian().map_err(broken)?;
        if header.e_machine(endian) != EM_X86_64 {
            return Err(not_elf("it is for another processor"));
        }
        let headers = header.program_headers(endian, image).map_err(broken)?;

        let mut segments = Vec::new();
        for header in headers.iter().filter(|h| h.p_type(endian) == PT_LOAD && h.p_memsz(endian) > 0) {
            let data = header.data(endian, image).map_err(|()| not_elf("it is cut short"))?;
            let size = header.p_memsz(endian);
            let data = data.get(..data.len().min(size as usize)).unwrap_or(data);
            segments.push(Segment { address: header.p_paddr(endian), data, size });
        }
        let entry = pvh_entry(headers, endian, image).map_err(broken)?;
        let entry = entry.ok_or_else(|| BootError::NoPvhNote { kernel: name.into() })?;
        Ok(Self { segments, entry })
    }

    /// Guest-physical address of the 32-bit entry point.
    pub const fn entry(&self) -> u64 {
        self.entry
    }

    pub fn segments(&self) -> &[Segment<'a>] {
        &self.segments
    }

    /// End of the last segment.
    pub fn end(&self) -> u64 {
        self.segments.iter().map(|s| s.address.saturating_add(s.size)).max().unwrap_or(0)
    }

    /// Checks that every segment is RAM and leaves the boot information alone.
    pub fn check_place(&self, memory: &Memory, name: &str, ram: u64) -> Result<(), BootError> {
        for Segment { address, size, .. } in &self.segments {
            let end = address.saturating_add(*size);
            if *address < HIGH_MEMORY {
                let occupant = "the boot information below 1 MiB";
                return Err(BootError::Overlap { kernel: name.into(), start: *address, end, occupant });
            }
            if !memory.check_range(GuestAddress(*address), *size as usize) {
                return Err(BootError::KernelTooLarge { kernel: name.into(), ram });
            }
        }
        Ok(())
    }
}

fn pvh_entry(
    headers: &[ProgramHeader64<LittleEndian>],
    endian: LittleEndian,
    image: &[u8],
) -> object::Result<Option<u64>> {
    for header in headers {
        let Some(mut notes) = header.notes(endian, image)? else { continue };
        while let Some(note) = notes.next()? {
            let is_entry = note.name() == b"Xen" && note.n_type(endian) == XEN_ELFNOTE_PHYS32_ENTRY;
            // 4 or 8 bytes; the entry point is a 32-bit address in either case.
            if let (true, Some(address)) = (is_entry, note.desc().first_chunk()) {
                return Ok(Some(u64::from(u32::from_le_bytes(*address))));
            }
        }
    }
    Ok(None)
}
