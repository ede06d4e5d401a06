use crate::{BlockId, PageBitmap, PageRun, RamLayout};

/// A set of pages over all blocks of a layout: what is dirty, pending, in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    blocks: Vec<PageBitmap>,
    count: u64,
}

impl PageSet {
    /// The empty set over `layout`.
    #[must_use]
    pub fn empty(layout: &RamLayout) -> Self {
        Self { blocks: layout.blocks().iter().map(|b| PageBitmap::new(b.pages)).collect(), count: 0 }
    }

    /// Every page of `layout`.
    #[must_use]
    pub fn full(layout: &RamLayout) -> Self {
        Self {
            blocks: layout.blocks().iter().map(|b| PageBitmap::full(b.pages)).collect(),
            count: layout.total_pages(),
        }
    }

    /// Number of pages in the set.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.count
    }

    /// Whether the set has no page.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether the page is in the set.
    #[must_use]
    pub fn contains(&self, block: BlockId, page: u64) -> bool {
        self.blocks.get(block.index()).is_some_and(|b| b.get(page))
    }

    /// The bitmap of one block.
    ///
    /// # Panics
    /// On a block outside the layout.
    #[must_use]
    pub fn block(&self, block: BlockId) -> &PageBitmap {
        &self.blocks[block.index()]
    }

    /// Adds a run and returns how many of its pages are new.
    ///
    /// # Panics
    /// On pages outside the layout: check a peer's runs with [`RamLayout::contains`] first.
    pub fn insert(&mut self, run: PageRun) -> u64 {
        let newly = self.blocks[run.block.index()].set_range(run.first, run.count);
        self.count += newly;
        newly
    }

    /// Removes a run and returns how many of its pages were in the set.
    ///
    /// # Panics
    /// On pages outside the layout.
    pub fn remove(&mut self, run: PageRun) -> u64 {
        let removed = self.blocks[run.block.index()].clear_range(run.first, run.count);
        self.count -= removed;
        removed
    }

    /// ORs a block's words, laid out as KVM's dirty bitmap, and returns how many pages are new.
    ///
    /// # Panics
    /// When the length is not exactly that block's.
    pub fn insert_words(&mut self, block: BlockId, words: &[u64]) -> u64 {
        let newly = self.blocks[block.index()].or_words(words);
        self.count += newly;
        newly
    }

    /// Adds all pages of `other` and returns how many are new.
    ///
    /// # Panics
    /// When `other` is over another layout.
    pub fn union(&mut self, other: &Self) -> u64 {
        assert_eq!(self.blocks.len(), other.blocks.len(), "page sets over different layouts");
        let mut newly = 0;
        for (mine, theirs) in self.blocks.iter_mut().zip(&other.blocks) {
            newly += mine.or_words(theirs.words());
        }
        self.count += newly;
        newly
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.blocks.iter_mut().for_each(PageBitmap::clear_all);
        self.count = 0;
    }

    /// First run at or after (`block`, `page`) in layout order, at most `limit` pages long.
    #[must_use]
    pub fn next_run(&self, block: BlockId, page: u64, limit: u64) -> Option<PageRun> {
        let mut from = page;
        for (index, bitmap) in self.blocks.iter().enumerate().skip(block.index()) {
            if let Some((first, count)) = bitmap.runs_from(from).next() {
                return Some(PageRun { block: BlockId(index as u16), first, count: count.min(limit) });
            }
            from = 0;
        }
        None
    }

    /// All maximal runs in layout order.
    pub fn runs(&self) -> impl Iterator<Item = PageRun> + '_ {
        self.blocks.iter().enumerate().flat_map(|(index, bitmap)| {
            let block = BlockId(index as u16);
            bitmap.runs().map(move |(first, count)| PageRun { block, first, count })
        })
    }
}
