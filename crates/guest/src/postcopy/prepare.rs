use std::num::NonZero;
use std::thread;

use migrated_kernel::{MemoryAdvice, Userfaultfd, advise};
use migrated_pages::{PageRun, PageSet};
use rustix::fs::fstatfs;
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::{
    FileOffset, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use super::{Armed, MissingPages, PostcopyError, PostcopyRam, WatchedRam, bytes, kernel};
use crate::GuestRam;
use crate::ram::{next_data, next_hole};

/// `f_type` of a memfd of ordinary pages and of one of huge pages (include/uapi/linux/magic.h).
const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
/// Pages whose page tables one thread makes at a time: 64 MiB.
const POPULATE_AT_ONCE: u64 = 16 << 10;
/// Bytes of the place for what nobody wants.
const DISCARD: usize = 64 << 10;

/// RAM that can be armed for post-copy within a downtime.
#[derive(Debug)]
pub struct PreparedPostcopy {
    ram: GuestRam,
    staging: GuestRam,
    uffd: Userfaultfd,
    unmapped: PageSet,
    discard: MmapRegion<()>,
}

/// Refuses RAM that is not all in memfds of 4 KiB pages, mapped so that others see what is written.
pub(super) fn check_backing(ram: &GuestRam) -> Result<(), PostcopyError> {
    let refused = |place| Err(PostcopyError::Unsupported { place });
    for block in ram.layout().ids() {
        let Some(file) = ram.file_of(block) else {
            return refused("in anonymous memory, which can't be mapped a second time");
        };
        match fstatfs(file).map_err(kernel("fstatfs of guest RAM"))?.f_type as u64 {
            TMPFS_MAGIC => {}
            HUGETLBFS_MAGIC => return refused("in huge pages of hugetlbfs"),
            _ => return refused("in a file that is no memfd"),
        }
    }
    Ok(())
}

impl PreparedPostcopy {
    pub(super) fn new(ram: &GuestRam) -> Result<Self, PostcopyError> {
        check_backing(ram)?;
        let uffd = Userfaultfd::open()?;
        let staging = map_again(ram)?;
        populate(&staging)?;
        let discard = MmapRegion::new(DISCARD).map_err(mapping)?;
        let unmapped = PageSet::empty(ram.layout());
        Ok(Self { ram: ram.clone(), staging, uffd, unmapped, discard })
    }

    /// The same RAM, mapped once more. From now on pages are best placed here: what is placed through the
    /// guest's mapping may have to be taken out of it again, in the downtime.
    #[must_use]
    pub fn staging(&self) -> &GuestRam {
        &self.staging
    }

    /// Takes pages that will probably be stale out of the guest's mapping now, which costs up to 0.3 µs
    /// a page: the working set, as the last iteration's dirty pages show it. What is stale is said by
    /// [`arm`](Self::arm) alone; a wrong guess costs the guest a minor fault.
    ///
    /// # Errors
    /// [`PostcopyError::Kernel`].
    pub fn unmap(&mut self, pages: &PageSet) -> Result<(), PostcopyError> {
        take_out(&self.ram, pages)?;
        self.unmapped.union(pages);
        Ok(())
    }

    /// Makes accesses to the `stale` pages wait until they are placed. On return no access sees an old
    /// content; see [`PostcopyRam::faults`] for who must be there then.
    ///
    /// # Errors
    /// [`PostcopyError::Userfaultfd`] or [`PostcopyError::Kernel`]; the RAM is then as before, but for
    /// pages that were taken out of the guest's mapping and come back when they are touched.
    ///
    /// # Panics
    /// When `stale` is over another layout.
    pub fn arm(self, stale: &PageSet) -> Result<PostcopyRam, PostcopyError> {
        let Self { ram, staging, uffd, unmapped, discard } = self;
        // Watch first: what is taken out can't come back unseen then. On failure closing `uffd` lets go.
        ram.layout().ids().try_for_each(|block| uffd.register(ram.mapping(block)))?;
        take_out(&ram, stale)?;
        let missing = MissingPages::new(ram.layout(), stale);
        let watched = WatchedRam::new(ram, uffd, missing);
        let armed = Armed { watched, staging, unmapped, discard };
        Ok(PostcopyRam { armed: armed.into() })
    }
}

/// Takes pages out of the guest's mapping. The file keeps them.
pub(super) fn take_out(ram: &GuestRam, pages: &PageSet) -> Result<(), PostcopyError> {
    pages.runs().try_for_each(|run| {
        let (offset, length) = bytes(run);
        advise(ram.mapping(run.block), offset, length, MemoryAdvice::DontNeed)
            .map_err(kernel("MADV_DONTNEED of stale pages"))
    })
}

fn mapping(error: impl std::error::Error + Send + Sync + 'static) -> PostcopyError {
    kernel("mapping guest RAM a second time")(std::io::Error::other(error))
}

fn map_again(ram: &GuestRam) -> Result<GuestRam, PostcopyError> {
    let protection = (ProtFlags::READ | ProtFlags::WRITE).bits() as i32;
    let flags = (MapFlags::SHARED | MapFlags::NORESERVE).bits() as i32;
    let again = |region: &GuestRegionMmap<()>| {
        let file = region.file_offset().expect("the backing was checked");
        let file = file.file().try_clone().map_err(kernel("duplicating the guest RAM's file descriptor"))?;
        let size = region.len() as usize;
        let region_again = MmapRegion::build(Some(FileOffset::new(file, 0)), size, protection, flags);
        let region_again = region_again.map_err(mapping)?;
        Ok(GuestRegionMmap::new(region_again, region.start_addr()).expect("it fits where the first one does"))
    };
    let regions = ram.memory().iter().map(again).collect::<Result<Vec<_>, PostcopyError>>()?;
    let memory = GuestMemoryMmap::from_regions(regions).expect("they overlap as little as the first ones");
    Ok(GuestRam::new(memory).expect("the layout is the first one's"))
}

/// Makes page tables for all pages that the files have, on all CPUs at once.
fn populate(staging: &GuestRam) -> Result<(), PostcopyError> {
    let pieces: Vec<PageRun> = staging
        .layout()
        .ids()
        .zip(staging.layout().blocks())
        .flat_map(|(block, ram)| {
            (0..ram.pages).step_by(POPULATE_AT_ONCE as usize).map(move |first| PageRun {
                block,
                first,
                count: POPULATE_AT_ONCE.min(ram.pages - first),
            })
        })
        .collect();
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(pieces.len());
    let pieces = &pieces;
    thread::scope(|scope| {
        let every = |first: usize| {
            move || pieces.iter().skip(first).step_by(threads).try_for_each(|run| populate_run(staging, *run))
        };
        let workers: Vec<_> = (0..threads).map(|first| scope.spawn(every(first))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("populating does not panic"))
    })
}

fn populate_run(staging: &GuestRam, run: PageRun) -> Result<(), PostcopyError> {
    let file = staging.file_of(run.block).expect("the backing was checked");
    let (mut at, end) = (run.first, run.first + run.count);
    while at < end {
        let data = next_data(file, at).min(end);
        at = next_hole(file, data).min(end);
        if data < at {
            let (offset, length) = bytes(PageRun { block: run.block, first: data, count: at - data });
            // Reading is enough: the pages of a shared memfd are entered writable.
            advise(staging.mapping(run.block), offset, length, MemoryAdvice::PopulateRead)
                .map_err(kernel("MADV_POPULATE_READ of guest RAM"))?;
        }
    }
    Ok(())
}
