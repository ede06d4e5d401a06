use std::collections::VecDeque;

use migrated_pages::{BlockId, PageRun, PageSet};

use super::drain::append_page;

/// Streams followed at a time: about as many as vCPUs fault at once.
const STREAMS: usize = 16;
/// Window of a stream that has not proved itself, at most, and at the beginning.
const UNPROVEN_MAX: u64 = 4;
/// Faults further apart than this belong to different streams.
const STRIDE_MAX: u64 = 16;

/// Says which pages are likely to be faulted on next.
///
/// Adaptive pre-paging after Hines and Gopalan (VEE 2009, §3.3): a fault is a pivot around which pages are
/// worth more than elsewhere. Each stream of faults has a stride and a window. A fault where the stream was to
/// go doubles the window, so that a sequential reader soon faults once in
/// [`Limits::prefetch_pages`](crate::Limits::prefetch_pages); a fault that fits
/// no stream begins one, with a window that halves with every such miss, so that a guest which jumps about gets
/// no page that it didn't ask for. The bubble's other half, that the background push goes on from the fault,
/// is in [`Drain`](super::drain::Drain).
#[derive(Debug)]
pub(super) struct Prefetch {
    /// The one used last is at the back.
    streams: VecDeque<Stream>,
    unproven: u64,
    /// Longest window.
    most: u64,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    block: BlockId,
    last: u64,
    stride: i64,
    window: u64,
}

/// Pages ahead of a fault, in the order in which they are expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    block: BlockId,
    next: u64,
    stride: i64,
    left: u64,
}

impl Prefetch {
    /// One that sends at most so many pages ahead.
    pub(super) const fn new(most: u64) -> Self {
        Self { streams: VecDeque::new(), unproven: UNPROVEN_MAX, most }
    }

    /// What to send ahead of a fault on this page.
    pub(super) fn on_fault(&mut self, block: BlockId, page: u64) -> Window {
        let stream = match self.take(|stream| stream.expects(block, page)) {
            Some(stream) => {
                self.unproven = (self.unproven * 2).clamp(1, UNPROVEN_MAX);
                Stream { last: page, window: (stream.window * 2).max(1), ..stream }
            }
            None => match self.take(|stream| stream.is_near(block, page)) {
                Some(stream) => {
                    let stride = page as i64 - stream.last as i64;
                    Stream { block, last: page, stride, window: self.unproven }
                }
                None => {
                    let window = self.unproven;
                    self.unproven /= 2;
                    Stream { block, last: page, stride: 1, window }
                }
            },
        };
        let stream = Stream { window: stream.window.min(self.most), ..stream };
        if self.streams.len() == STREAMS {
            self.streams.pop_front();
        }
        self.streams.push_back(stream);
        let next = page.saturating_add_signed(stream.stride);
        Window { block, next, stride: stream.stride, left: stream.window }
    }

    fn take(&mut self, fits: impl Fn(&Stream) -> bool) -> Option<Stream> {
        let index = self.streams.iter().rposition(fits)?;
        self.streams.remove(index)
    }
}

impl Stream {
    /// Whether the page lies in the window or just behind it, on the stride; a stream that has proved itself
    /// may skip what the background push has sent.
    fn expects(&self, block: BlockId, page: u64) -> bool {
        let distance = page as i64 - self.last as i64;
        let window = self.window as i64 + 1;
        let reach = if self.window > UNPROVEN_MAX { 2 * window } else { window };
        block == self.block && distance % self.stride == 0 && (1..=reach).contains(&(distance / self.stride))
    }

    fn is_near(&self, block: BlockId, page: u64) -> bool {
        block == self.block && (1..=STRIDE_MAX).contains(&page.abs_diff(self.last))
    }
}

impl Window {
    /// The window's end as far as it is known now: where a background push goes on.
    pub(super) const fn end(&self) -> u64 {
        if self.stride == 1 { self.next + self.left } else { self.next }
    }

    pub(super) const fn block(&self) -> BlockId {
        self.block
    }

    /// Takes up to `pages` pages of the window that are in `pending`.
    pub(super) fn take(&mut self, pending: &mut PageSet, pages: u64, out: &mut Vec<PageRun>) -> u64 {
        let mut taken = 0;
        while self.left > 0 && taken < pages {
            let page = self.next;
            self.left -= 1;
            match self.next.checked_add_signed(self.stride) {
                Some(next) => self.next = next,
                None => self.left = 0,
            }
            if pending.contains(self.block, page) {
                pending.remove(PageRun { block: self.block, first: page, count: 1 });
                append_page(out, self.block, page);
                taken += 1;
            }
        }
        taken
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PREFETCH_PAGES;
    use migrated_pages::{RamBlock, RamLayout};

    const PAGES: u64 = 100_000;

    fn everything() -> PageSet {
        let block = RamBlock { name: "a".into(), guest_base: 0, pages: PAGES };
        PageSet::full(&RamLayout::new(vec![block]).unwrap())
    }

    /// Touches pages in this order; gives faults and pages sent ahead.
    fn touch(pages: impl Iterator<Item = u64>) -> (u64, u64) {
        touch_with(PREFETCH_PAGES, pages)
    }

    /// The same, with at most so many pages sent ahead of one.
    fn touch_with(most: u64, pages: impl Iterator<Item = u64>) -> (u64, u64) {
        let (mut prefetch, mut pending) = (Prefetch::new(most), everything());
        let (mut faults, mut ahead) = (0, 0);
        for page in pages {
            if pending.remove(PageRun { block: BlockId(0), first: page, count: 1 }) == 1 {
                faults += 1;
                let mut window = prefetch.on_fault(BlockId(0), page);
                ahead += window.take(&mut pending, PREFETCH_PAGES, &mut Vec::new());
            }
        }
        (faults, ahead)
    }

    #[test]
    fn a_sequential_reader_soon_faults_once_a_window() {
        let (faults, ahead) = touch(0..3300);
        assert!((95..110).contains(&faults), "{faults} faults, {ahead} ahead");
        let (faults, _) = touch((0..3300).rev());
        assert!((95..110).contains(&faults), "backwards: {faults}");
        let (faults, _) = touch((0..3300).map(|i| i * 7));
        assert!((95..110).contains(&faults), "every seventh page: {faults}");
    }

    #[test]
    fn four_readers_at_once_are_four_streams() {
        let (faults, _) = touch((0..3300u64).flat_map(|i| (0..4).map(move |vcpu| vcpu * 20_000 + i)));
        assert!(faults < 500, "{faults}");
    }

    #[test]
    fn a_guest_that_jumps_about_gets_little_that_it_did_not_ask_for() {
        let mut at = 1u64;
        let (faults, ahead) = touch((0..2000).map(|_| {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (at >> 33) % PAGES
        }));
        assert!(faults > 1900 && ahead < faults / 4, "{faults} faults, {ahead} ahead");
    }

    #[test]
    fn as_many_are_sent_ahead_as_is_allowed() {
        assert_eq!(touch_with(0, 0..3300), (3300, 0));
        let (faults, _) = touch_with(8, 0..3300);
        assert!((365..400).contains(&faults), "{faults}");
    }

    #[test]
    fn windows_end_at_both_ends_of_a_block() {
        let mut pending = everything();
        let mut out = Vec::new();
        let mut down = Window { block: BlockId(0), next: 1, stride: -1, left: 9 };
        assert_eq!(down.take(&mut pending, 32, &mut out), 2);
        let mut up = Window { block: BlockId(0), next: PAGES - 2, stride: 1, left: 9 };
        assert_eq!(up.take(&mut pending, 32, &mut out), 2);
        assert!(down.is_empty() && up.is_empty());
    }
}
