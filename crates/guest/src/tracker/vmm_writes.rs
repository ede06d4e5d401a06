use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use migrated_kernel::WriteLog;
use migrated_pages::{BlockId, PAGE_SIZE, PageRun, PageSet, RamLayout};

const BITS: u64 = u64::BITS as u64;

/// Where the VMM records the guest memory that it writes itself: KVM logs only what vCPUs write.
///
/// Cheap to clone; all clones are one record. Marking takes no lock, and a harvest of a record
/// without marks reads one word for each 4096 pages.
#[derive(Clone, Debug)]
pub struct VmmWrites {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    layout: RamLayout,
    blocks: Vec<Marks>,
}

/// One block's marks in two levels: a bit for each page, and a bit for each word of those.
///
/// A marker sets the page's bit first and the summary's second, a harvest takes them in the other
/// order. So a mark that a harvest misses still has its summary bit to come, and the next finds it.
#[derive(Debug)]
struct Marks {
    pages: Vec<AtomicU64>,
    summary: Vec<AtomicU64>,
}

impl VmmWrites {
    /// A record without marks for a guest of that layout.
    #[must_use]
    pub fn new(layout: &RamLayout) -> Self {
        let zeros = |bits: u64| (0..bits.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        let blocks = layout.blocks().iter().map(|block| {
            let pages = zeros(block.pages);
            Marks { summary: zeros(pages.len() as u64), pages }
        });
        let blocks = blocks.collect();
        Self { shared: Arc::new(Shared { layout: layout.clone(), blocks }) }
    }

    /// Records that `len` bytes from guest-physical address `addr` were written. To be called *after*
    /// the write: a harvest between mark and write would lose it. Addresses that are no RAM count for nothing.
    pub fn mark(&self, addr: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = addr.saturating_add(len - 1);
        let mut at = addr & !(PAGE_SIZE as u64 - 1);
        while at <= last {
            if let Some((block, page)) = self.shared.layout.page_at(at) {
                self.shared.blocks[block.index()].set(page);
            }
            let Some(next) = at.checked_add(PAGE_SIZE as u64) else { return };
            at = next;
        }
    }

    /// Whether the page of a guest-physical address has a mark that no harvest has taken yet.
    #[must_use]
    pub fn is_marked(&self, addr: u64) -> bool {
        self.shared.layout.page_at(addr).is_some_and(|(block, page)| {
            let word =
                self.shared.blocks[block.index()].pages[(page / BITS) as usize].load(Ordering::Acquire);
            word & (1 << (page % BITS)) != 0
        })
    }

    /// Moves all marks into `dirty` and returns how many pages it did not have yet.
    pub fn take_into(&self, dirty: &mut PageSet) -> u64 {
        let mut newly = 0;
        self.take(|block, page| newly += dirty.insert(PageRun { block, first: page, count: 1 }));
        newly
    }

    /// Forgets all marks.
    pub(super) fn discard(&self) {
        self.take(|_, _| {});
    }

    fn take(&self, mut each: impl FnMut(BlockId, u64)) {
        for (marks, block) in self.shared.blocks.iter().zip((0..).map(BlockId)) {
            marks.take(|page| each(block, page));
        }
    }
}

/// As devices use it, by way of [`MarkedMemory`](migrated_kernel::MarkedMemory).
impl WriteLog for VmmWrites {
    fn wrote(&self, address: u64, len: u64) {
        self.mark(address, len);
    }
}

impl Marks {
    fn set(&self, page: u64) {
        let word = page / BITS;
        // Release: whoever sees the mark also sees the write that it is about.
        self.pages[word as usize].fetch_or(1 << (page % BITS), Ordering::Release);
        self.summary[(word / BITS) as usize].fetch_or(1 << (word % BITS), Ordering::Release);
    }

    fn take(&self, mut each: impl FnMut(u64)) {
        for (index, summary) in (0..).zip(&self.summary) {
            // A plain load first: an idle record's cache lines stay shared.
            if summary.load(Ordering::Relaxed) == 0 {
                continue;
            }
            for_bits(summary.swap(0, Ordering::Acquire), |bit| {
                let word = index * BITS + bit;
                let pages = self.pages[word as usize].swap(0, Ordering::Acquire);
                for_bits(pages, |bit| each(word * BITS + bit));
            });
        }
    }
}

fn for_bits(mut word: u64, mut each: impl FnMut(u64)) {
    while word != 0 {
        each(u64::from(word.trailing_zeros()));
        word &= word - 1;
    }
}

#[cfg(test)]
mod tests {
    use migrated_pages::RamBlock;

    use super::*;

    #[test]
    fn marks_every_page_that_a_write_touches_and_only_ram() {
        let block = |name: &str, guest_base, pages| RamBlock { name: name.into(), guest_base, pages };
        let layout = RamLayout::new(vec![block("low", 0, 70), block("high", u64::MAX - 0x1fff, 1)]).unwrap();
        let writes = VmmWrites::new(&layout);
        writes.mark(0xfff, 2);
        writes.mark(69 * 0x1000, 0x5000);
        writes.mark(u64::MAX - 0x1000, u64::MAX);
        writes.mark(0x5000, 0);

        let mut dirty = PageSet::empty(&layout);
        assert_eq!(writes.take_into(&mut dirty), 4);
        let pages: Vec<_> = dirty.runs().map(|r| (r.block.0, r.first, r.count)).collect();
        assert_eq!(pages, [(0, 0, 2), (0, 69, 1), (1, 0, 1)]);
        assert_eq!(writes.take_into(&mut dirty), 0, "taking empties the record");
    }

    #[test]
    fn loses_no_mark_of_another_thread() {
        let layout = RamLayout::new(vec![RamBlock { name: "a".into(), guest_base: 0, pages: 9000 }]).unwrap();
        let writes = VmmWrites::new(&layout);
        let mut dirty = PageSet::empty(&layout);
        std::thread::scope(|scope| {
            let marker = scope.spawn(|| (0..9000).for_each(|page| writes.mark(page * 0x1000, 1)));
            while !marker.is_finished() {
                writes.take_into(&mut dirty);
            }
        });
        writes.take_into(&mut dirty);
        assert_eq!(dirty.len(), 9000);
    }
}
