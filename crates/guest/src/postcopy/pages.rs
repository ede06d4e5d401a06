use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use migrated_pages::{BlockId, PageRun, PageSet, RamLayout};

/// Which pages post-copy still has to bring. Cheap to clone; all clones are the same.
///
/// A page is missing until it is placed, and whoever wants to write it claims it first. A claim ends
/// by placing the page, after which nobody can claim it again, or by giving it up.
#[derive(Clone, Debug)]
pub struct MissingPages {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    blocks: Vec<Block>,
    /// Bits of all `missing`.
    count: AtomicU64,
}

/// A bit a page, as in [`PageBitmap`](migrated_pages::PageBitmap).
#[derive(Debug)]
struct Block {
    missing: Box<[AtomicU64]>,
    /// Pages that may be claimed: missing, and nobody is about to place them.
    free: Box<[AtomicU64]>,
}

impl MissingPages {
    pub(super) fn new(layout: &RamLayout, stale: &PageSet) -> Self {
        let copy = |block| stale.block(block).words().iter().map(|word| AtomicU64::new(*word)).collect();
        let blocks = layout.ids().map(|block| Block { missing: copy(block), free: copy(block) }).collect();
        Self { shared: Arc::new(Shared { blocks, count: AtomicU64::new(stale.len()) }) }
    }

    /// More pages are missing, none of which were.
    pub(super) fn add(&self, stale: &PageSet) {
        self.shared.count.fetch_add(stale.len(), Ordering::AcqRel);
        for run in stale.runs() {
            let block = &self.shared.blocks[run.block.index()];
            for (index, mask) in words(run) {
                let were = block.missing[index].fetch_or(mask, Ordering::AcqRel);
                assert_eq!(were & mask, 0, "pages of {run:?} were missing already");
                block.free[index].fetch_or(mask, Ordering::AcqRel);
            }
        }
    }

    /// How many pages are missing.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.shared.count.load(Ordering::Acquire)
    }

    /// Whether the page is missing. One outside the layout is not.
    #[must_use]
    pub fn contains(&self, block: BlockId, page: u64) -> bool {
        let words = self.shared.blocks.get(block.index()).map(|block| &block.missing);
        let word = words.and_then(|words| words.get((page / 64) as usize));
        // Acquire: what was done before the page was placed is seen by who finds it so.
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (page % 64) & 1 == 1)
    }

    /// Claims what is free of a run and cuts the run into maximal pieces: those that are now the
    /// caller's (true), and those that are not.
    pub(super) fn claim(&self, run: PageRun, out: &mut Vec<(PageRun, bool)>) {
        let start = out.len();
        for (index, mask) in words(run) {
            let mine = self.shared.blocks[run.block.index()].free[index].fetch_and(!mask, Ordering::AcqRel);
            let mut at = mask.trailing_zeros();
            let end = 64 - mask.leading_zeros();
            while at < end {
                let is_mine = mine >> at & 1 == 1;
                let same = if is_mine { mine >> at } else { !(mine >> at) }.trailing_ones();
                let count = u64::from(same.min(end - at));
                match out[start..].last_mut() {
                    Some((last, kind)) if *kind == is_mine => last.count += count,
                    _ => {
                        let first = index as u64 * 64 + u64::from(at);
                        out.push((PageRun { block: run.block, first, count }, is_mine));
                    }
                }
                at += count as u32;
            }
        }
    }

    /// Gives up a claim on pages.
    pub(super) fn give_up(&self, run: PageRun) {
        for (index, mask) in words(run) {
            self.shared.blocks[run.block.index()].free[index].fetch_or(mask, Ordering::AcqRel);
        }
    }

    /// Ends a claim: the pages are there.
    pub(super) fn placed(&self, run: PageRun) {
        for (index, mask) in words(run) {
            self.shared.blocks[run.block.index()].missing[index].fetch_and(!mask, Ordering::AcqRel);
        }
        self.shared.count.fetch_sub(run.count, Ordering::AcqRel);
    }
}

/// The words of a bitmap that a run touches, each with the run's bits in it.
fn words(run: PageRun) -> impl Iterator<Item = (usize, u64)> {
    let (first, end) = (run.first, run.first + run.count);
    (first / 64..end.div_ceil(64)).map(move |word| {
        let low = first.saturating_sub(word * 64);
        let high = (end - word * 64).min(64);
        (word as usize, (u64::MAX >> (64 - (high - low))) << low)
    })
}

#[cfg(test)]
mod tests {
    use migrated_pages::RamBlock;
    use proptest::prelude::*;

    use super::*;

    const BLOCK: BlockId = BlockId(0);

    proptest! {
        #[test]
        fn claims_are_what_a_page_by_page_list_says(
            stale in prop::collection::vec(any::<bool>(), 1..300),
            steps in prop::collection::vec((any::<(u64, u64)>(), 0..3u8), 0..20),
        ) {
            let pages = stale.len() as u64;
            let block = RamBlock { name: "ram".into(), guest_base: 0, pages };
            let layout = RamLayout::new(vec![block]).unwrap();
            let mut set = PageSet::empty(&layout);
            for page in (0..pages).filter(|page| stale[*page as usize]) {
                set.insert(PageRun { block: BLOCK, first: page, count: 1 });
            }
            let (missing, mut oracle) = (MissingPages::new(&layout, &set), stale);
            for ((first, count), end) in steps {
                let first = first % pages;
                let run = PageRun { block: BLOCK, first, count: 1 + count % (pages - first) };
                let mut pieces = Vec::new();
                missing.claim(run, &mut pieces);
                let listed: Vec<_> = pieces.iter().flat_map(|(run, mine)| {
                    (run.first..run.first + run.count).map(|page| (page, *mine))
                }).collect();
                let expected: Vec<_> =
                    (first..first + run.count).map(|page| (page, oracle[page as usize])).collect();
                prop_assert_eq!(listed, expected);
                prop_assert!(pieces.windows(2).all(|pair| pair[0].1 != pair[1].1));
                let mut again = Vec::new();
                missing.claim(run, &mut again);
                prop_assert_eq!(again, vec![(run, false)], "nobody claims it a second time");
                for (piece, _) in pieces.iter().filter(|(_, mine)| *mine) {
                    if end == 0 {
                        missing.give_up(*piece);
                    } else {
                        missing.placed(*piece);
                        (piece.first..piece.first + piece.count).for_each(|page| oracle[page as usize] = false);
                    }
                }
                prop_assert_eq!(missing.count(), oracle.iter().filter(|missing| **missing).count() as u64);
                prop_assert!((0..pages).all(|page| missing.contains(BLOCK, page) == oracle[page as usize]));
            }
            prop_assert!(!missing.contains(BLOCK, pages.next_multiple_of(64)));
            prop_assert!(!missing.contains(BlockId(1), 0));
        }
    }
}
