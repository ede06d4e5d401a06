//! Guest RAM: where it lies in the guest, and what backs it on the host.

use std::fs::{self, File};
use std::io;
use std::num::NonZero;
use std::thread;

use migrated_guest::GuestRam;
use migrated_kernel::{MemoryAdvice, advise};
use migrated_pages::{PAGE_SIZE, PageRun};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use thiserror::Error;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

use crate::MemoryBacking;
use crate::layout::{HIGH_RAM_START, LOW_RAM_END};

/// RAM comes in this many bytes: a huge page, so that every backing can hold it.
pub const RAM_GRANULE: u64 = 2 << 20;

const SHMEM_THP: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const ANON_THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const HUGETLB_2M: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
/// What one prefaulting thread takes at a time, in bytes.
const PREFAULT_PIECE: usize = 64 << 20;

/// Why guest RAM can't be had.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// A guest without RAM.
    #[error("a guest needs RAM: ask for at least 2 MiB")]
    Zero,
    /// A size that huge pages can't hold.
    #[error("{bytes} bytes of RAM is no multiple of 2 MiB; {} would be", bytes.next_multiple_of(RAM_GRANULE))]
    Granule {
        /// What was asked for.
        bytes: u64,
    },
    /// More than the host can give now.
    #[error(
        "{bytes} bytes of RAM asked for, the host has {available} available; use a smaller guest or free memory"
    )]
    TooLarge {
        /// What was asked for.
        bytes: u64,
        /// MemAvailable of /proc/meminfo, in bytes.
        available: u64,
    },
    /// Too few huge pages are reserved.
    #[error(
        "{wanted} huge pages of 2 MiB asked for, {free} are free; reserve more: \
         add {} to {HUGETLB_2M}/nr_hugepages", wanted.saturating_sub(*free)
    )]
    NoHugePages {
        /// Pages that the guest needs.
        wanted: u64,
        /// Pages that are reserved and not in use.
        free: u64,
    },
    /// Transparent huge pages are switched off.
    #[error(
        "transparent huge pages are off on this host; write `advise` to {SHMEM_THP} or `madvise` to {ANON_THP}"
    )]
    NoThp,
    /// The kernel refused.
    #[error("{operation} failed: {source}")]
    Kernel {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Maps RAM for a guest, all zero.
///
/// # Errors
/// [`MemoryError`] says which size or which host setting would do.
pub fn allocate(bytes: u64, backing: MemoryBacking, prefault: bool) -> Result<GuestRam, MemoryError> {
    check_size(bytes, backing)?;
    let mut regions = Vec::new();
    for (base, size) in ranges(bytes) {
        let region = map(size as usize, backing)?;
        regions.push(GuestRegionMmap::new(region, GuestAddress(base)).expect("RAM ends below 2^64"));
    }
    if prefault {
        regions.iter().try_for_each(|region| populate(&region.get_mmap()))?;
    }
    let memory = GuestMemoryMmap::from_regions(regions).expect("the ranges don't overlap");
    Ok(GuestRam::new(memory).expect("one or two whole-page regions are a layout"))
}

/// Pages that are given back in one call: a huge page. While the kernel frees pages, whoever else needs the core waits.
const RELEASED_AT_ONCE: u64 = 512;

/// Gives all pages of a guest's RAM back to the host, whoever else still has it mapped.
///
/// # Errors
/// The kernel's; some pages may be given back then.
pub(crate) fn release(ram: &GuestRam) -> io::Result<()> {
    let runs = ram.layout().whole_pages(0, u64::MAX);
    runs.flat_map(|run| run.pieces(RELEASED_AT_ONCE)).try_for_each(|piece| give_back(ram, piece))
}

/// Gives pages back to the host, whoever else still has them mapped. They read as zero from then on.
///
/// # Errors
/// The kernel's; some of the pages may be given back then.
///
/// # Panics
/// On a run outside the layout.
pub(crate) fn give_back(ram: &GuestRam, run: PageRun) -> io::Result<()> {
    assert!(ram.layout().contains(run), "{run:?} is outside of guest RAM");
    let region = ram.memory().iter().nth(run.block.index()).expect("a block is a region");
    let offset = run.first * PAGE_SIZE as u64;
    match region.file_offset() {
        Some(file) => {
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            Ok(fallocate(file.file(), how, offset, run.bytes())?)
        }
        None => advise(&region.get_mmap(), offset as usize, run.bytes() as usize, MemoryAdvice::DontNeed),
    }
}

/// Where RAM of that size lies: (guest-physical address, bytes).
fn ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(LOW_RAM_END);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((HIGH_RAM_START, bytes - low));
    }
    ranges
}

fn check_size(bytes: u64, backing: MemoryBacking) -> Result<(), MemoryError> {
    if bytes == 0 {
        return Err(MemoryError::Zero);
    }
    if !bytes.is_multiple_of(RAM_GRANULE) {
        return Err(MemoryError::Granule { bytes });
    }
    if backing == MemoryBacking::Hugetlb2m {
        let free = read_number(&format!("{HUGETLB_2M}/free_hugepages")).unwrap_or(0);
        let wanted = bytes / RAM_GRANULE;
        return if wanted > free { Err(MemoryError::NoHugePages { wanted, free }) } else { Ok(()) };
    }
    match mem_available() {
        Some(available) if bytes > available => Err(MemoryError::TooLarge { bytes, available }),
        _ => Ok(()),
    }
}

/// MemAvailable in bytes; `None` where the host doesn't say, and then the kernel decides by itself.
fn mem_available() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn read_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn map(size: usize, backing: MemoryBacking) -> Result<MmapRegion<()>, MemoryError> {
    match backing {
        MemoryBacking::Memfd => map_memfd(size, MemfdFlags::empty(), libc::MAP_NORESERVE),
        // Without MAP_NORESERVE the pages are reserved here, and not found missing by a SIGBUS later.
        MemoryBacking::Hugetlb2m => map_memfd(size, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB, 0),
        MemoryBacking::Thp => map_thp(size),
    }
}

fn map_memfd(size: usize, kind: MemfdFlags, flags: i32) -> Result<MmapRegion<()>, MemoryError> {
    let failed = |operation| move |source| MemoryError::Kernel { operation, source };
    let file = memfd_create("guest-ram", kind | MemfdFlags::CLOEXEC)
        .map_err(|error| failed("memfd_create")(error.into()))?;
    ftruncate(&file, size as u64).map_err(|error| failed("sizing the guest's memfd")(error.into()))?;
    let file = FileOffset::new(File::from(file), 0);
    map_shared(Some(file), size, libc::MAP_SHARED | flags)
}

/// Huge pages of a memfd need the host's consent twice: many hosts allow them for anonymous memory
/// only. Anonymous RAM migrates as well, but can't be mapped a second time, which post-copy's
/// cheapest way of placing pages needs; hence the warning.
fn map_thp(size: usize) -> Result<MmapRegion<()>, MemoryError> {
    let region = if thp_allowed(SHMEM_THP, &["always", "within_size", "advise", "force"]) {
        map_memfd(size, MemfdFlags::empty(), libc::MAP_NORESERVE)?
    } else if thp_allowed(ANON_THP, &["always", "madvise"]) {
        tracing::warn!("{SHMEM_THP} forbids huge pages in a memfd: guest RAM is anonymous memory instead");
        map_shared(None, size, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)?
    } else {
        return Err(MemoryError::NoThp);
    };
    advise(&region, 0, size, MemoryAdvice::HugePage)
        .map_err(|source| MemoryError::Kernel { operation: "MADV_HUGEPAGE", source })?;
    Ok(region)
}

/// Whether the setting in `path` that brackets mark is one of `values`.
fn thp_allowed(path: &str, values: &[&str]) -> bool {
    let text = fs::read_to_string(path).unwrap_or_default();
    let chosen = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    chosen.is_some_and(|word| values.contains(&word))
}

fn map_shared(file: Option<FileOffset>, size: usize, flags: i32) -> Result<MmapRegion<()>, MemoryError> {
    MmapRegion::build(file, size, libc::PROT_READ | libc::PROT_WRITE, flags).map_err(|error| {
        MemoryError::Kernel { operation: "mapping guest RAM", source: io::Error::other(error) }
    })
}

/// Backs a whole region with pages, on all CPUs at once: zeroing pages is bound by the CPU.
fn populate(region: &MmapRegion<()>) -> Result<(), MemoryError> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let pieces = region.size().div_ceil(PREFAULT_PIECE);
    let populate_every = |first: usize| {
        (first..pieces).step_by(threads).try_for_each(|piece| {
            let offset = piece * PREFAULT_PIECE;
            let length = PREFAULT_PIECE.min(region.size() - offset);
            advise(region, offset, length, MemoryAdvice::PopulateWrite)
        })
    };
    let populate_every = &populate_every;
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads.min(pieces)).map(|first| scope.spawn(move || populate_every(first))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("prefaulting does not panic"))
    })
    .map_err(|source| MemoryError::Kernel { operation: "MADV_POPULATE_WRITE", source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn ram_goes_around_the_device_hole() {
        assert_eq!(ranges(LOW_RAM_END), [(0, LOW_RAM_END)]);
        assert_eq!(ranges(LOW_RAM_END + RAM_GRANULE), [(0, LOW_RAM_END), (HIGH_RAM_START, RAM_GRANULE)]);
    }

    #[test]
    fn impossible_sizes_are_refused_with_the_next_possible_one() {
        assert!(matches!(allocate(0, MemoryBacking::Memfd, false), Err(MemoryError::Zero)));
        let odd = allocate(RAM_GRANULE + 4096, MemoryBacking::Memfd, false).unwrap_err().to_string();
        assert!(odd.contains(&(2 * RAM_GRANULE).to_string()), "{odd}");
        let huge = allocate(1 << 50, MemoryBacking::Memfd, false);
        assert!(matches!(huge, Err(MemoryError::TooLarge { available, .. }) if available > 0));
        let error = allocate(1 << 50, MemoryBacking::Hugetlb2m, false).unwrap_err().to_string();
        assert!(error.contains("nr_hugepages"), "{error}");
    }

    #[test]
    fn every_available_backing_gives_zeroed_writable_ram() {
        for backing in [MemoryBacking::Memfd, MemoryBacking::Thp, MemoryBacking::Hugetlb2m] {
            let ram = match allocate(4 * RAM_GRANULE, backing, true) {
                Err(MemoryError::NoThp | MemoryError::NoHugePages { .. }) => continue,
                other => other.unwrap(),
            };
            let last = GuestAddress(4 * RAM_GRANULE - 8);
            assert_eq!(ram.memory().read_obj::<u64>(last).unwrap(), 0, "{backing:?}");
            ram.memory().write_obj(7u64, last).unwrap();
            assert_eq!(ram.clone().memory().read_obj::<u64>(last).unwrap(), 7, "{backing:?}");
            release(&ram).unwrap();
            assert_eq!(ram.memory().read_obj::<u64>(last).unwrap(), 0, "{backing:?}");
            assert_eq!(ram.memory().last_addr().0, 4 * RAM_GRANULE - 1);
        }
    }
}
