use std::collections::{BTreeMap, VecDeque};

use migrated_pages::{BlockId, PageRun, PageSet, RamLayout, ReceivedMap};
use migrated_wire::{MAX_OUTSTANDING, ToSource};

use super::FaultAnswer;
use crate::record::Postcopy;

/// Most pages in one request: what many vCPUs fault on at once still fits.
const REQUEST_PAGES: usize = 64;

/// The pages that follow the guest: which are there, which are being placed, and who waits.
///
/// A page goes from *open* (missing) to *claimed* (a channel is placing it) to *received*, and never back from
/// received: whatever comes again for it is thrown away, because the guest may have written to it. A channel
/// that breaks while it places gives its claim back. Somebody who touches an open page makes it *wanted*, which
/// is asked for once on each link; who touches it after that just waits along.
#[derive(Debug)]
pub(super) struct Demand {
    /// The iteration of this link's frames.
    iteration: u32,
    received: ReceivedMap,
    /// Neither received nor claimed.
    open: PageSet,
    /// Pages named as missing.
    missing: u64,
    /// Pages placed since.
    placed: u64,
    /// Pages that somebody waits for.
    waited: BTreeMap<(BlockId, u64), Asked>,
    /// Of those, the ones to ask for, in the order of the faults.
    wanted: VecDeque<(BlockId, u64)>,
    outstanding: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Not,
    OnThisLink,
}

impl Demand {
    pub(super) fn new(iteration: u32, received: ReceivedMap, layout: &RamLayout) -> Self {
        Self {
            iteration,
            received,
            open: PageSet::empty(layout),
            missing: 0,
            placed: 0,
            waited: BTreeMap::new(),
            wanted: VecDeque::new(),
            outstanding: 0,
        }
    }

    /// These pages are stale or were never here.
    pub(super) fn miss(&mut self, fresh: &PageSet) {
        fresh.runs().for_each(|run| _ = self.received.remove(run));
        self.missing += self.open.union(fresh);
    }

    /// Whether a page of the run is known to be missing.
    pub(super) fn misses_any(&self, run: PageRun) -> bool {
        self.open
            .next_run(run.block, run.first, run.count)
            .is_some_and(|next| next.block == run.block && next.first < run.first + run.count)
    }

    /// Pages that are neither here nor being placed.
    pub(super) const fn open(&self) -> &PageSet {
        &self.open
    }

    pub(super) const fn iteration(&self) -> u32 {
        self.iteration
    }

    pub(super) const fn received(&self) -> &ReceivedMap {
        &self.received
    }

    pub(super) const fn missing(&self) -> u64 {
        self.missing
    }

    /// Pages placed since the switch.
    pub(super) const fn placed(&self) -> u64 {
        self.placed
    }

    pub(super) const fn is_complete(&self) -> bool {
        self.received.is_complete()
    }

    /// Whether no page is being placed.
    pub(super) const fn is_settled(&self) -> bool {
        self.missing == self.placed + self.open.len()
    }

    /// Somebody touched a page.
    pub(super) fn fault(&mut self, block: BlockId, page: u64, counts: &mut Postcopy) -> FaultAnswer {
        if self.received.contains(block, page) {
            return FaultAnswer::Here;
        }
        if self.waited.contains_key(&(block, page)) {
            counts.faults_shared += 1;
            return FaultAnswer::Waits;
        }
        counts.faults += 1;
        self.waited.insert((block, page), Asked::Not);
        if !self.open.contains(block, page) {
            // It is being placed. If that fails, the next link asks for it.
            return FaultAnswer::Waits;
        }
        self.wanted.push_back((block, page));
        FaultAnswer::Wanted
    }

    /// The next request to send.
    pub(super) fn take_request(&mut self, epoch: u64) -> Option<ToSource> {
        let mut pages: Vec<PageRun> = Vec::new();
        while pages.len() < REQUEST_PAGES && self.outstanding < MAX_OUTSTANDING {
            let Some((block, page)) = self.wanted.pop_front() else { break };
            // It may have come by itself meanwhile.
            let Some(asked) = self.waited.get_mut(&(block, page)) else { continue };
            *asked = Asked::OnThisLink;
            self.outstanding += 1;
            pages.push(PageRun { block, first: page, count: 1 });
        }
        (!pages.is_empty()).then_some(ToSource::PageRequest { epoch, pages })
    }

    /// Takes what may be placed of a frame; the rest of it is to be thrown away.
    pub(super) fn claim(&mut self, run: PageRun, out: &mut Vec<PageRun>) -> u64 {
        let end = run.first + run.count;
        let (mut at, mut claimed) = (run.first, 0);
        while at < end {
            let Some(next) = self.open.next_run(run.block, at, end - at) else { break };
            if next.block != run.block || next.first >= end {
                break;
            }
            let part = PageRun { count: next.count.min(end - next.first), ..next };
            self.open.remove(part);
            at = part.first + part.count;
            claimed += part.count;
            out.push(part);
        }
        claimed
    }

    /// Claimed pages are in place.
    pub(super) fn place(&mut self, run: PageRun) {
        self.open.remove(run);
        self.placed += self.received.insert(run);
        let waited = (run.block, run.first)..(run.block, run.first + run.count);
        while let Some((&page, &asked)) = self.waited.range(waited.clone()).next() {
            self.waited.remove(&page);
            self.outstanding -= usize::from(asked == Asked::OnThisLink);
        }
    }

    /// Claimed pages were not placed: their channel broke.
    pub(super) fn unclaim(&mut self, run: PageRun) {
        for page in run.first..run.first + run.count {
            if !self.received.contains(run.block, page) {
                self.open.insert(PageRun { block: run.block, first: page, count: 1 });
            }
        }
    }

    /// There is a new link, whose frames carry this iteration: whoever waits asks again.
    pub(super) fn relink(&mut self, iteration: u32) {
        self.iteration = iteration;
        self.outstanding = 0;
        self.waited.values_mut().for_each(|asked| *asked = Asked::Not);
        self.wanted = self.waited.keys().copied().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use migrated_pages::RamBlock;

    const RAM: BlockId = BlockId(0);

    fn run(first: u64, count: u64) -> PageRun {
        PageRun { block: RAM, first, count }
    }

    fn demand(pages: u64) -> Demand {
        let block = RamBlock { name: "a".into(), guest_base: 0, pages };
        let layout = RamLayout::new(vec![block]).unwrap();
        let mut demand = Demand::new(1, ReceivedMap::new(&layout), &layout);
        demand.miss(&PageSet::full(&layout));
        demand
    }

    fn requested(demand: &mut Demand) -> Vec<PageRun> {
        match demand.take_request(7) {
            Some(ToSource::PageRequest { epoch: 7, pages }) => pages,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_page_is_asked_for_once_however_many_wait_and_again_on_a_new_link() {
        let (mut demand, mut counts) = (demand(10), Postcopy::default());
        assert_eq!(demand.fault(RAM, 3, &mut counts), FaultAnswer::Wanted);
        assert_eq!(demand.fault(RAM, 3, &mut counts), FaultAnswer::Waits);
        assert_eq!(requested(&mut demand), [run(3, 1)]);
        assert_eq!(demand.fault(RAM, 3, &mut counts), FaultAnswer::Waits);
        assert!(demand.take_request(7).is_none());
        assert_eq!((counts.faults, counts.faults_shared), (1, 2));
        demand.relink(2);
        assert_eq!(requested(&mut demand), [run(3, 1)]);
        let mut mine = Vec::new();
        demand.claim(run(2, 3), &mut mine);
        demand.place(run(2, 3));
        assert_eq!(demand.fault(RAM, 3, &mut counts), FaultAnswer::Here);
        demand.relink(3);
        assert!(demand.take_request(7).is_none());
    }

    #[test]
    fn a_page_is_placed_by_one_channel_and_never_again() {
        let mut demand = demand(10);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        assert_eq!(demand.claim(run(2, 4), &mut first), 4);
        assert_eq!(demand.claim(run(0, 10), &mut second), 6);
        assert_eq!(second, [run(0, 2), run(6, 4)]);
        demand.place(run(0, 2));
        assert!(!demand.is_settled());
        demand.unclaim(run(2, 4));
        demand.place(run(6, 4));
        assert!(demand.is_settled() && !demand.is_complete());
        second.clear();
        assert_eq!(demand.claim(run(0, 10), &mut second), 4, "only what broke off");
        demand.place(run(2, 4));
        assert!(demand.is_settled() && demand.is_complete());
        assert_eq!(demand.placed(), 10);
        assert_eq!(demand.claim(run(0, 10), &mut second), 0);
    }

    #[test]
    fn requests_are_bounded_and_go_on_as_pages_come() {
        let (mut demand, mut counts) = (demand(5000), Postcopy::default());
        (0..5000).for_each(|page| _ = demand.fault(RAM, page, &mut counts));
        let asked = std::iter::from_fn(|| demand.take_request(7)).count();
        assert_eq!(asked, MAX_OUTSTANDING / REQUEST_PAGES);
        demand.place(run(0, 10));
        assert_eq!(requested(&mut demand).len(), 10);
    }
}
