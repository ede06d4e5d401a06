use std::collections::VecDeque;
use std::time::Duration;

use migrated_pages::{BlockId, PageRun, PageSet, RamLayout};
use migrated_wire::MAX_OUTSTANDING;

use super::prefetch::{Prefetch, Window};
use crate::record::Postcopy;

/// Pages in a frame of the urgent channel.
const URGENT_PAGES: u64 = 16;
/// Windows kept for sending ahead; an older one is left to the background push.
const WINDOWS: usize = 8;

/// The pages that follow a guest which runs at the destination already, and who gets which of them next.
///
/// A page is handed out once on a link: to the urgent channel when it was asked for, or lies where the next
/// fault is expected, else to any page channel. The push starts just behind the last fault and wraps around:
/// what lies there is what the guest is likely to touch next. When the link was lost, what counts is the
/// destination's received map, see [`Drain::restart`].
///
/// A page that is asked for while it is on its way on a page channel goes once more, on the urgent one: in the
/// buffers of a busy page channel it may be behind megabytes, which is tens of milliseconds. Whichever comes
/// first is placed, the other is thrown away. So the destination may have everything before all of that has come.
#[derive(Debug)]
pub(super) struct Drain {
    /// The iteration that this link's frames carry.
    pub(super) iteration: u32,
    /// Pages missing at the switch.
    pub(super) missing: u64,
    /// Whether the destination's summary has come.
    pub(super) summary: bool,
    /// Payload bytes sent.
    pub(super) bytes: u64,
    /// When a page channel got pages last.
    pub(super) pushed_at: Duration,
    /// Not handed out on this link.
    pending: PageSet,
    cursor: (BlockId, u64),
    /// Asked for and not handed out; not in `pending`.
    urgent: VecDeque<(BlockId, u64)>,
    /// Asked for after a page channel had taken it.
    again: VecDeque<(BlockId, u64)>,
    /// What the urgent channel has or will have taken on this link.
    by_urgent: PageSet,
    /// The one of the last fault is at the back.
    windows: VecDeque<Window>,
    prefetch: Prefetch,
}

impl Drain {
    /// What follows the guest, with at most `prefetch` pages sent ahead of a fault.
    pub(super) fn new(iteration: u32, missing: PageSet, prefetch: u64) -> Self {
        let mut by_urgent = missing.clone();
        by_urgent.clear();
        Self {
            iteration,
            missing: missing.len(),
            summary: false,
            bytes: 0,
            pushed_at: Duration::ZERO,
            pending: missing,
            cursor: (BlockId(0), 0),
            urgent: VecDeque::new(),
            again: VecDeque::new(),
            by_urgent,
            windows: VecDeque::new(),
            prefetch: Prefetch::new(prefetch),
        }
    }

    /// Pages not handed out yet.
    pub(super) fn remaining(&self) -> u64 {
        self.pending.len() + self.urgent.len() as u64
    }

    /// Whether pages are asked for that nobody has taken yet.
    pub(super) fn has_urgent(&self) -> bool {
        !(self.urgent.is_empty() && self.again.is_empty())
    }

    /// Whether somebody asked for a page a short while ago.
    pub(super) fn is_waited_for(&self) -> bool {
        self.has_urgent() || !self.windows.is_empty()
    }

    /// The pages that were missing at the switch, if none of them was handed out.
    pub(super) fn untouched(self) -> Option<PageSet> {
        (self.pending.len() == self.missing).then_some(self.pending)
    }

    /// Takes in a request; says why it is none that a destination makes.
    pub(super) fn request(
        &mut self,
        pages: &[PageRun],
        layout: &RamLayout,
        counts: &mut Postcopy,
    ) -> Result<(), String> {
        let mut asked = 0u64;
        for run in pages {
            if !layout.contains(*run) {
                return Err(format!("it asks for {run:?}, which is outside of guest RAM"));
            }
            asked = asked.saturating_add(run.count);
        }
        let waiting = (self.urgent.len() + self.again.len()) as u64;
        if asked.saturating_add(waiting) > MAX_OUTSTANDING as u64 {
            return Err(format!("it asks for more than {MAX_OUTSTANDING} pages at a time"));
        }
        for run in pages {
            (run.first..run.first + run.count).for_each(|page| self.request_page(run.block, page, counts));
        }
        Ok(())
    }

    fn request_page(&mut self, block: BlockId, page: u64, counts: &mut Postcopy) {
        counts.faults += 1;
        let run = PageRun { block, first: page, count: 1 };
        let is_first = self.by_urgent.insert(run) == 1;
        if self.pending.remove(run) == 1 {
            self.urgent.push_back((block, page));
        } else {
            counts.requests_duplicate += 1;
            if is_first {
                self.again.push_back((block, page));
            }
        }
        let window = self.prefetch.on_fault(block, page);
        self.cursor = (window.block(), window.end());
        if self.windows.len() == WINDOWS {
            self.windows.pop_front();
        }
        self.windows.push_back(window);
    }

    /// Work for the urgent channel: what was asked for, then what probably will be.
    pub(super) fn take_urgent(&mut self, counts: &mut Postcopy, out: &mut Vec<PageRun>) -> bool {
        let asked = self.urgent.len().min(URGENT_PAGES as usize);
        let again = self.again.len().min(URGENT_PAGES as usize - asked);
        if asked + again > 0 {
            let pages = self.urgent.drain(..asked).chain(self.again.drain(..again));
            pages.for_each(|(block, page)| append_page(out, block, page));
            counts.pages_fault += asked as u64;
            return true;
        }
        while let Some(window) = self.windows.back_mut() {
            let ahead = window.take(&mut self.pending, URGENT_PAGES, out);
            out.iter().for_each(|run| _ = self.by_urgent.insert(*run));
            if window.is_empty() {
                self.windows.pop_back();
            }
            if ahead > 0 {
                counts.pages_prefetch += ahead;
                return true;
            }
        }
        false
    }

    /// Work for a page channel: up to so many pages. Gives how many.
    pub(super) fn take_push(&mut self, most: u64, counts: &mut Postcopy, out: &mut Vec<PageRun>) -> u64 {
        let mut left = most;
        while left > 0 {
            let ahead = self.pending.next_run(self.cursor.0, self.cursor.1, left);
            let Some(run) = ahead.or_else(|| self.pending.next_run(BlockId(0), 0, left)) else { break };
            self.pending.remove(run);
            self.cursor = (run.block, run.first + run.count);
            left -= run.count;
            out.push(run);
        }
        counts.pages_push += most - left;
        most - left
    }

    /// Begins again on a new link with everything that the destination does not have.
    pub(super) fn restart(&mut self, received: &PageSet, layout: &RamLayout) {
        let mut pending = PageSet::full(layout);
        for run in received.runs() {
            pending.remove(run);
        }
        self.pending = pending;
        self.urgent.clear();
        self.again.clear();
        self.by_urgent.clear();
        self.windows.clear();
    }
}

/// Appends a page, to the last run if it follows it.
pub(super) fn append_page(out: &mut Vec<PageRun>, block: BlockId, page: u64) {
    match out.last_mut() {
        Some(run) if run.block == block && run.end() == Some(page) => run.count += 1,
        _ => out.push(PageRun { block, first: page, count: 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PREFETCH_PAGES;
    use migrated_pages::RamBlock;

    fn layout() -> RamLayout {
        let block = |name: &str, base, pages| RamBlock { name: name.into(), guest_base: base, pages };
        RamLayout::new(vec![block("a", 0, 100), block("b", 1 << 32, 10_000)]).unwrap()
    }

    fn run(block: u16, first: u64, count: u64) -> PageRun {
        PageRun { block: BlockId(block), first, count }
    }

    #[test]
    fn a_page_is_handed_out_once_and_the_push_goes_on_behind_the_last_fault_and_wraps() {
        let (mut drain, mut counts) =
            (Drain::new(1, PageSet::full(&layout()), PREFETCH_PAGES), Postcopy::default());
        let mut seen = PageSet::empty(&layout());
        let mut take = |runs: &mut Vec<PageRun>| {
            let first = runs.first().copied();
            for run in runs.drain(..) {
                assert_eq!(seen.insert(run), run.count, "{run:?} again");
            }
            first
        };
        let mut out = Vec::new();
        assert!(!drain.take_urgent(&mut counts, &mut out));
        assert_eq!(drain.take_push(64, &mut counts, &mut out), 64);
        assert_eq!(take(&mut out), Some(run(0, 0, 64)));
        // Two vCPUs fault on the same page, another on what is to come on the urgent channel.
        drain.request(&[run(1, 5000, 1), run(1, 5000, 1)], &layout(), &mut counts).unwrap();
        drain.request(&[run(1, 5000, 1)], &layout(), &mut counts).unwrap();
        assert_eq!((counts.faults, counts.requests_duplicate), (3, 2));
        drain.request(&[run(1, 9990, 1)], &layout(), &mut counts).unwrap();
        assert!(drain.take_urgent(&mut counts, &mut out));
        assert_eq!(out, [run(1, 5000, 1), run(1, 9990, 1)]);
        take(&mut out);
        assert!(drain.take_push(64, &mut counts, &mut out) > 0);
        let pushed = take(&mut out).unwrap();
        assert!(pushed.block == BlockId(1) && (9991..10_000).contains(&pushed.first), "{pushed:?}");
        while drain.take_urgent(&mut counts, &mut out) || drain.take_push(9, &mut counts, &mut out) > 0 {
            take(&mut out);
        }
        assert_eq!(drain.remaining(), 0);
        assert_eq!(counts.pages_push + counts.pages_fault + counts.pages_prefetch, 10_100);
        assert_eq!(seen.len(), 10_100);
    }

    #[test]
    fn what_is_in_a_page_channel_s_queue_overtakes_itself_once() {
        let (mut drain, mut counts) =
            (Drain::new(1, PageSet::full(&layout()), PREFETCH_PAGES), Postcopy::default());
        let mut out = Vec::new();
        assert_eq!(drain.take_push(64, &mut counts, &mut out), 64);
        let remaining = drain.remaining();
        for _ in 0..2 {
            drain.request(&[run(0, 3, 1)], &layout(), &mut counts).unwrap();
        }
        assert_eq!((drain.remaining(), counts.requests_duplicate), (remaining, 2), "it is not owed twice");
        out.clear();
        assert!(drain.take_urgent(&mut counts, &mut out));
        assert_eq!((out.as_slice(), counts.pages_fault), ([run(0, 3, 1)].as_slice(), 0));
        drain.request(&[run(0, 3, 1)], &layout(), &mut counts).unwrap();
        out.clear();
        while drain.take_urgent(&mut counts, &mut out) {}
        assert!(!out.contains(&run(0, 3, 1)), "{out:?}");
    }

    #[test]
    fn a_flood_of_requests_and_pages_outside_of_ram_are_refused() {
        let (mut drain, mut counts) =
            (Drain::new(1, PageSet::full(&layout()), PREFETCH_PAGES), Postcopy::default());
        assert!(drain.request(&[run(1, 9_999, 2)], &layout(), &mut counts).is_err());
        assert!(drain.request(&[run(2, 0, 1)], &layout(), &mut counts).is_err());
        assert!(drain.request(&[run(1, 0, 5000)], &layout(), &mut counts).is_err());
        assert!(drain.request(&[run(1, 0, 4000)], &layout(), &mut counts).is_ok());
        assert!(drain.request(&[run(1, 4000, 100)], &layout(), &mut counts).is_err());
        assert_eq!(drain.remaining(), 10_100, "nothing was lost");
    }
}
