//! Guest RAM in two memfds, and words in its pages.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use migrated_guest::{Claim, FaultStop, GuestRam, PageFault, PostcopyRam};
use migrated_pages::{BlockId, PAGE_SIZE, PageRun, PageSet};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, VolatileMemory};

/// Pages of the two blocks.
pub const PAGES: [u64; 2] = [150, 70];
/// Where they begin.
const BASES: [u64; 2] = [0, 1 << 32];
pub const LOW: BlockId = BlockId(0);
pub const HIGH: BlockId = BlockId(1);

pub struct Ram {
    pub ram: GuestRam,
    files: Vec<File>,
}

impl Ram {
    /// RAM that no page was ever touched of.
    pub fn empty() -> Self {
        let mut files = Vec::new();
        let regions = PAGES.iter().zip(BASES).map(|(pages, base)| {
            let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            let (file, size) = (File::from(fd), *pages as usize * PAGE_SIZE);
            file.set_len(size as u64).unwrap();
            files.push(file.try_clone().unwrap());
            let file = Some(FileOffset::new(file, 0));
            GuestRegionMmap::from_range(GuestAddress(base), size, file).unwrap()
        });
        let memory = GuestMemoryMmap::from_regions(regions.collect()).unwrap();
        Self { ram: GuestRam::new(memory).unwrap(), files }
    }

    /// RAM whose every page holds [`old`].
    pub fn full() -> Self {
        let ram = Self::empty();
        for (block, page) in every_page() {
            write(&ram.ram, block, page, old(block, page));
        }
        ram
    }

    /// Blocks of memory that the files have, as stat(2) counts them.
    pub fn allocated(&self) -> u64 {
        self.files.iter().map(|file| file.metadata().unwrap().blocks()).sum()
    }

    pub fn arm(&self, stale: &[PageRun]) -> PostcopyRam {
        PostcopyRam::prepare(&self.ram).unwrap().arm(&self.set(stale)).unwrap()
    }

    pub fn set(&self, runs: &[PageRun]) -> PageSet {
        let mut set = PageSet::empty(self.ram.layout());
        for run in runs {
            set.insert(*run);
        }
        set
    }
}

pub fn every_page() -> impl Iterator<Item = (BlockId, u64)> {
    [LOW, HIGH].into_iter().flat_map(|block| (0..PAGES[block.index()]).map(move |page| (block, page)))
}

pub const fn run(block: BlockId, first: u64, count: u64) -> PageRun {
    PageRun { block, first, count }
}

/// What a page holds before it is stale, and after it came anew.
pub fn old(block: BlockId, page: u64) -> u64 {
    1 << 40 | u64::from(block.0) << 32 | page
}

pub fn new(block: BlockId, page: u64) -> u64 {
    2 << 40 | u64::from(block.0) << 32 | page
}

fn address(block: BlockId, page: u64) -> GuestAddress {
    GuestAddress(BASES[block.index()] + page * PAGE_SIZE as u64)
}

/// Reads the first and the last word of a page, which must be the same.
pub fn read(ram: &GuestRam, block: BlockId, page: u64) -> u64 {
    let at = address(block, page);
    let last = GuestAddress(at.0 + PAGE_SIZE as u64 - 8);
    let [first, last] = [at, last].map(|at| ram.memory().load::<u64>(at, Ordering::Relaxed).unwrap());
    assert_eq!(first, last, "page {page} of {block:?} is torn");
    first
}

pub fn write(ram: &GuestRam, block: BlockId, page: u64, word: u64) {
    let at = address(block, page);
    for at in [at, GuestAddress(at.0 + PAGE_SIZE as u64 - 8)] {
        ram.memory().store(word, at, Ordering::Relaxed).unwrap();
    }
}

/// Receives pages for a claim as a channel does: the pages asked for, one after another, in its memory.
pub fn receive(claim: &Claim<'_>, runs: &[PageRun], content: impl Fn(BlockId, u64) -> u64) {
    let mut slices = Vec::new();
    claim.slices(&mut slices);
    let asked: u64 = runs.iter().map(|run| run.bytes()).sum();
    assert_eq!(slices.iter().map(|slice| slice.len() as u64).sum::<u64>(), asked);
    let pages = slices.iter().flat_map(|slice| {
        (0..slice.len() / PAGE_SIZE).map(|at| slice.get_slice(at * PAGE_SIZE, PAGE_SIZE).unwrap())
    });
    let names = runs.iter().flat_map(|run| (run.first..run.first + run.count).map(|page| (run.block, page)));
    for (slice, (block, page)) in pages.zip(names) {
        let word = content(block, page).to_ne_bytes();
        slice.copy_from(&word);
        slice.get_slice(PAGE_SIZE - 8, 8).unwrap().copy_from(&word);
    }
}

/// Receives and places runs; returns what had been missing.
pub fn place(postcopy: &PostcopyRam, runs: &[PageRun]) -> Vec<PageRun> {
    let claim = postcopy.claim(runs.iter().copied());
    receive(&claim, runs, new);
    let mut placed = Vec::new();
    claim.place(&mut placed).unwrap();
    placed
}

/// A thread that gives each fault to `serve`, and the way to end it. Its result is what was reported.
pub fn serve<'scope>(
    scope: &'scope Scope<'scope, '_>,
    postcopy: &PostcopyRam,
    mut serve: impl FnMut(PageFault) + Send + 'scope,
) -> (FaultStop, ScopedJoinHandle<'scope, Vec<PageFault>>) {
    let mut reader = postcopy.faults().unwrap();
    let stop = reader.stop_handle();
    let thread = scope.spawn(move || {
        let (mut all, mut faults) = (Vec::new(), Vec::new());
        while reader.next(Duration::ZERO, &mut faults).unwrap() {
            all.extend(&faults);
            faults.drain(..).for_each(&mut serve);
        }
        all
    });
    (stop, thread)
}
