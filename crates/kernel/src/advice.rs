use std::io;

use vm_memory::{MmapRegion, VolatileMemory};

/// What the kernel is told about a piece of mapped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryAdvice {
    /// Back it with transparent huge pages (MADV_HUGEPAGE).
    HugePage,
    /// Back all of it with pages now, ready to be written (MADV_POPULATE_WRITE, Linux 5.14).
    PopulateWrite,
    /// Map all pages that the file has, and give it pages where it has none (MADV_POPULATE_READ, Linux 5.14).
    PopulateRead,
    /// Let go of its pages (MADV_DONTNEED): private memory reads as zero afterwards, a file's
    /// pages stay with the file.
    DontNeed,
}

/// Advises the kernel about `length` bytes at `offset` of a mapping.
///
/// # Errors
/// [`io::Error`]: ENOMEM when there is not enough memory to populate, EFAULT or EHWPOISON when a page
/// can't be had, EINVAL where the kernel does not know the advice.
///
/// # Panics
/// When the range lies outside of the mapping.
pub fn advise(region: &MmapRegion<()>, offset: usize, length: usize, advice: MemoryAdvice) -> io::Result<()> {
    let slice = region.get_slice(offset, length).expect("the range lies in the mapping");
    let advice = match advice {
        MemoryAdvice::HugePage => libc::MADV_HUGEPAGE,
        MemoryAdvice::PopulateWrite => libc::MADV_POPULATE_WRITE,
        MemoryAdvice::PopulateRead => libc::MADV_POPULATE_READ,
        MemoryAdvice::DontNeed => libc::MADV_DONTNEED,
    };
    // SAFETY: the range is mapped for as long as `region` is borrowed and stays so. What it holds changes
    // at most to zeros, and nobody has references into a mapping: it is accessed as volatile memory.
    let result = unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), length, advice) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
