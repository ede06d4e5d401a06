use crate::{BlockId, PageRun, PageSet, RamLayout};

/// Which pages of guest RAM the destination holds. Only this map may say "complete".
#[derive(Clone, Debug)]
pub struct ReceivedMap {
    pages: PageSet,
    total: u64,
}

impl ReceivedMap {
    /// Nothing received yet of `layout`.
    #[must_use]
    pub fn new(layout: &RamLayout) -> Self {
        Self { pages: PageSet::empty(layout), total: layout.total_pages() }
    }

    /// Records a placed run and returns how many of its pages had not been there before.
    ///
    /// # Panics
    /// On pages outside the layout: the frame is checked before its payload is read.
    pub fn insert(&mut self, run: PageRun) -> u64 {
        self.pages.insert(run)
    }

    /// Forgets pages whose contents are stale, and returns how many had been there.
    ///
    /// # Panics
    /// On pages outside the layout.
    pub fn remove(&mut self, run: PageRun) -> u64 {
        self.pages.remove(run)
    }

    /// The pages placed so far.
    #[must_use]
    pub const fn pages(&self) -> &PageSet {
        &self.pages
    }

    /// Whether the page has been placed.
    #[must_use]
    pub fn contains(&self, block: BlockId, page: u64) -> bool {
        self.pages.contains(block, page)
    }

    /// Distinct pages placed so far.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.pages.len()
    }

    /// Whether every page of the layout has been placed.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.pages.len() == self.total
    }
}
