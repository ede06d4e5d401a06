use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{BlockId, PAGE_SIZE, PageRun};

/// Most RAM blocks a layout may have: RAM below and above the 4 GiB hole and room for devices' own.
pub const MAX_BLOCKS: usize = 64;
/// Most pages a layout may have in all: 64 TiB of RAM.
pub const MAX_PAGES: u64 = 1 << 34;

/// One contiguous piece of guest RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamBlock {
    /// Stable name that both ends must agree on, e.g. `ram-low`.
    pub name: String,
    /// Guest-physical address of the first byte, in bytes.
    pub guest_base: u64,
    /// Length in 4 KiB pages.
    pub pages: u64,
}

/// All RAM of a guest, in the order of [`BlockId`].
///
/// Both ends compare theirs at preflight; a frame that names a page outside is refused before its
/// payload is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamLayout {
    blocks: Vec<RamBlock>,
}

/// Why a list of blocks is no layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// No block at all, or more than [`MAX_BLOCKS`].
    BlockCount(usize),
    /// A block without pages, or more pages in all than [`MAX_PAGES`].
    PageCount(String),
    /// Two blocks of one name.
    DuplicateName(String),
    /// Two blocks share guest-physical addresses, or one wraps the address space.
    Overlap(String),
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BlockCount(n) => write!(f, "a RAM layout has 1 to {MAX_BLOCKS} blocks, not {n}"),
            Self::PageCount(name) => {
                write!(f, "RAM block {name:?} is empty or makes the guest larger than {MAX_PAGES} pages")
            }
            Self::DuplicateName(name) => write!(f, "two RAM blocks are named {name:?}"),
            Self::Overlap(name) => write!(f, "RAM block {name:?} overlaps another in guest-physical space"),
        }
    }
}

impl std::error::Error for LayoutError {}

impl RamLayout {
    /// A layout of `blocks`; [`BlockId`]s follow their order.
    ///
    /// # Errors
    /// [`LayoutError`] when the blocks are too many, empty, too large, or overlap.
    pub fn new(blocks: Vec<RamBlock>) -> Result<Self, LayoutError> {
        if blocks.is_empty() || blocks.len() > MAX_BLOCKS {
            return Err(LayoutError::BlockCount(blocks.len()));
        }
        let mut total = 0u64;
        for (i, block) in blocks.iter().enumerate() {
            total = total.saturating_add(block.pages);
            if block.pages == 0 || total > MAX_PAGES {
                return Err(LayoutError::PageCount(block.name.clone()));
            }
            let end = block.guest_base.checked_add(block.pages * PAGE_SIZE as u64);
            let Some(end) = end else { return Err(LayoutError::Overlap(block.name.clone())) };
            for other in &blocks[..i] {
                if other.name == block.name {
                    return Err(LayoutError::DuplicateName(block.name.clone()));
                }
                let other_end = other.guest_base + other.pages * PAGE_SIZE as u64;
                if block.guest_base < other_end && other.guest_base < end {
                    return Err(LayoutError::Overlap(block.name.clone()));
                }
            }
        }
        Ok(Self { blocks })
    }

    /// Checks a layout that came from a peer: deserialisation alone proves nothing.
    ///
    /// # Errors
    /// As [`RamLayout::new`].
    pub fn validate(&self) -> Result<(), LayoutError> {
        Self::new(self.blocks.clone()).map(|_| ())
    }

    /// The blocks, in the order of their ids.
    #[must_use]
    pub fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    /// Ids of all blocks.
    pub fn ids(&self) -> impl Iterator<Item = BlockId> + use<> {
        (0..self.blocks.len() as u16).map(BlockId)
    }

    /// The block of that id, if there is one.
    #[must_use]
    pub fn block(&self, id: BlockId) -> Option<&RamBlock> {
        self.blocks.get(id.index())
    }

    /// Pages in all blocks.
    #[must_use]
    pub fn total_pages(&self) -> u64 {
        self.blocks.iter().map(|b| b.pages).sum()
    }

    /// Bytes in all blocks.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total_pages() * PAGE_SIZE as u64
    }

    /// The whole pages of RAM among `len` bytes from guest-physical address `addr` on.
    pub fn whole_pages(&self, addr: u64, len: u64) -> impl Iterator<Item = PageRun> + '_ {
        let page = PAGE_SIZE as u64;
        let (first, end) = (addr.div_ceil(page), addr.saturating_add(len) / page);
        self.ids().zip(&self.blocks).filter_map(move |(id, block)| {
            let base = block.guest_base / page;
            let (first, end) = (first.max(base), end.min(base + block.pages));
            (first < end).then(|| PageRun { block: id, first: first - base, count: end - first })
        })
    }

    /// Whether every page of `run` exists and it has at least one.
    #[must_use]
    pub fn contains(&self, run: PageRun) -> bool {
        match (self.block(run.block), run.end()) {
            (Some(block), Some(end)) => run.count > 0 && end <= block.pages,
            _ => false,
        }
    }

    /// The page that holds guest-physical address `addr`, if it is RAM.
    #[must_use]
    pub fn page_at(&self, addr: u64) -> Option<(BlockId, u64)> {
        self.ids().zip(&self.blocks).find_map(|(id, block)| {
            let offset = addr.checked_sub(block.guest_base)?;
            let index = offset / PAGE_SIZE as u64;
            (index < block.pages).then_some((id, index))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(name: &str, guest_base: u64, pages: u64) -> RamBlock {
        RamBlock { name: name.into(), guest_base, pages }
    }

    #[test]
    fn finds_pages_by_guest_address_and_refuses_runs_outside() {
        let layout = RamLayout::new(vec![block("low", 0, 4), block("high", 1 << 32, 2)]).unwrap();
        assert_eq!(layout.page_at(0x3fff), Some((BlockId(0), 3)));
        assert_eq!(layout.page_at(0x4000), None);
        assert_eq!(layout.page_at((1 << 32) + 0x1000), Some((BlockId(1), 1)));
        assert!(layout.contains(PageRun { block: BlockId(1), first: 0, count: 2 }));
        assert!(!layout.contains(PageRun { block: BlockId(1), first: 1, count: 2 }));
        assert!(!layout.contains(PageRun { block: BlockId(1), first: u64::MAX, count: 2 }));
        assert!(!layout.contains(PageRun { block: BlockId(2), first: 0, count: 1 }));
        assert!(!layout.contains(PageRun { block: BlockId(0), first: 0, count: 0 }));
    }

    #[test]
    fn whole_pages_of_a_range_are_those_that_it_covers_and_ram_has() {
        let layout = RamLayout::new(vec![block("low", 0, 4), block("high", 0x10000, 2)]).unwrap();
        let pages = |addr, len| {
            layout.whole_pages(addr, len).map(|run| (run.block.0, run.first, run.count)).collect::<Vec<_>>()
        };
        assert_eq!(pages(0x1000, 0x2000), [(0, 1, 2)]);
        assert_eq!(pages(0x1001, 0x2fff), [(0, 2, 2)]);
        assert_eq!(pages(0x1fff, 0x1001), [(0, 2, 1)]);
        assert_eq!(pages(0x1001, 0x1000), [], "no page is covered");
        assert_eq!(pages(0x3000, 0xe000), [(0, 3, 1), (1, 0, 1)]);
        assert_eq!(pages(0, u64::MAX), [(0, 0, 4), (1, 0, 2)]);
        assert_eq!(pages(u64::MAX, u64::MAX), []);
        assert_eq!(pages(0x1000, 0), []);
    }

    #[test]
    fn refuses_impossible_layouts() {
        assert_eq!(RamLayout::new(vec![]), Err(LayoutError::BlockCount(0)));
        assert_eq!(RamLayout::new(vec![block("a", 0, 0)]), Err(LayoutError::PageCount("a".into())));
        let overlapping = vec![block("a", 0, 2), block("b", 0x1000, 2)];
        assert_eq!(RamLayout::new(overlapping), Err(LayoutError::Overlap("b".into())));
        let twins = vec![block("a", 0, 1), block("a", 0x1000, 1)];
        assert_eq!(RamLayout::new(twins), Err(LayoutError::DuplicateName("a".into())));
        let wrapping = vec![block("a", u64::MAX - 0xfff, 2)];
        assert_eq!(RamLayout::new(wrapping), Err(LayoutError::Overlap("a".into())));
    }
}
