use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use migrated_guest::GuestRam;
use migrated_pages::{PageRun, RamLayout};

/// The hash of each page as it was placed, for `verify: after`: the guest writes its pages from the commit
/// on, so what came must be remembered. Eight bytes a page, there from the first one recorded.
pub(super) struct PageHashes {
    blocks: OnceLock<Vec<Vec<AtomicU64>>>,
    layout: RamLayout,
}

impl PageHashes {
    pub(super) fn new(layout: &RamLayout) -> Self {
        Self { blocks: OnceLock::new(), layout: layout.clone() }
    }

    /// Hashes pages that were just placed.
    pub(super) fn record(&self, ram: &GuestRam, run: PageRun, scratch: &mut Vec<u64>) {
        scratch.clear();
        ram.hash_pages(run, scratch);
        for (at, hash) in self.of(run).iter().zip(scratch.iter()) {
            at.store(*hash, Ordering::Relaxed);
        }
    }

    /// Notes pages that are zero without looking at them: most have no memory of their own.
    pub(super) fn record_zero(&self, run: PageRun) {
        self.of(run).iter().for_each(|at| at.store(GuestRam::zero_page_hash(), Ordering::Relaxed));
    }

    /// The hashes of a run as it was placed last.
    pub(super) fn placed(&self, run: PageRun, out: &mut Vec<u64>) {
        out.extend(self.of(run).iter().map(|hash| hash.load(Ordering::Relaxed)));
    }

    fn of(&self, run: PageRun) -> &[AtomicU64] {
        assert!(self.layout.contains(run), "{run:?} is outside of guest RAM");
        let blocks =
            self.blocks.get_or_init(|| self.layout.blocks().iter().map(|b| empty(b.pages)).collect());
        &blocks[run.block.index()][run.first as usize..][..run.count as usize]
    }
}

fn empty(pages: u64) -> Vec<AtomicU64> {
    std::iter::repeat_with(AtomicU64::default).take(pages as usize).collect()
}
