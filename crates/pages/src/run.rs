use serde::{Deserialize, Serialize};

/// Bytes in a page of guest RAM as migration counts them: x86's 4 KiB, whatever backs the RAM.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// Names one RAM block of a guest: its position in the [`RamLayout`](crate::RamLayout).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockId(pub u16);

impl BlockId {
    /// The position in the layout as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Pages of one block that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PageRun {
    /// The block the pages lie in.
    pub block: BlockId,
    /// Index of the first page in the block.
    pub first: u64,
    /// How many pages; a run of no pages is never made by this crate.
    pub count: u64,
}

impl PageRun {
    /// One past the last page's index, or `None` where that does not fit (a hostile peer's run).
    #[must_use]
    pub const fn end(self) -> Option<u64> {
        self.first.checked_add(self.count)
    }

    /// The run in pieces of `pages` pages, of which the last may have fewer.
    ///
    /// # Panics
    /// When `pages` is 0, or the run's end does not fit.
    pub fn pieces(self, pages: u64) -> impl Iterator<Item = Self> {
        let end = self.first + self.count;
        let piece = move |first| Self { first, count: pages.min(end - first), ..self };
        (0..self.count.div_ceil(pages)).map(move |n| piece(self.first + n * pages))
    }

    /// Size in bytes; saturates.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.count.saturating_mul(PAGE_SIZE as u64)
    }
}
