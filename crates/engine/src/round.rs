use std::time::Duration;

use migrated_pages::{BlockId, PageRun, PageSet};

/// What kind of frames a round makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoundKind {
    Pages,
    Hashes,
}

/// One pass over a set of pages by all channels together: channels take batches from one cursor, so none
/// idles while another has work, and each ends its part with a marker that carries its count.
///
/// A page is handed out at most once a round, and the next round begins only when the destination has
/// acknowledged all markers: that is what keeps an old version of a page from overtaking a newer one on
/// another channel.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) kind: RoundKind,
    pub(crate) n: u32,
    pub(crate) started: Duration,
    /// Pages and payload bytes reported as sent.
    pub(crate) pages: u64,
    pub(crate) zero_pages: u64,
    pub(crate) bytes: u64,
    pending: PageSet,
    cursor: (BlockId, u64),
    lanes: Vec<Lane>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lane {
    pages: u64,
    marked: bool,
}

/// What a channel does next in a round.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// Runs were appended.
    Batch,
    /// The channel's part is over: send a marker with this count.
    Marker(u64),
    /// The marker was handed out already.
    Nothing,
}

impl Round {
    pub(crate) fn new(kind: RoundKind, n: u32, pending: PageSet, channels: u16, started: Duration) -> Self {
        Self {
            kind,
            n,
            started,
            pages: 0,
            zero_pages: 0,
            bytes: 0,
            pending,
            cursor: (BlockId(0), 0),
            lanes: vec![Lane::default(); channels.into()],
        }
    }

    /// Pages not handed out yet.
    pub(crate) const fn remaining(&self) -> u64 {
        self.pending.len()
    }

    /// Takes up to `pages` pages in up to `runs` runs for a channel.
    pub(crate) fn take(&mut self, channel: u16, pages: u64, runs: usize, out: &mut Vec<PageRun>) -> Take {
        let lane = &mut self.lanes[usize::from(channel)];
        if lane.marked {
            return Take::Nothing;
        }
        let mut left = pages;
        while left > 0 && out.len() < runs {
            let Some(run) = self.pending.next_run(self.cursor.0, self.cursor.1, left) else { break };
            self.pending.remove(run);
            self.cursor = (run.block, run.first + run.count);
            left -= run.count;
            out.push(run);
        }
        if out.is_empty() {
            lane.marked = true;
            return Take::Marker(lane.pages);
        }
        lane.pages += pages - left;
        Take::Batch
    }

    /// Whether every channel was given its marker to send.
    pub(crate) fn all_marked(&self) -> bool {
        self.lanes.iter().all(|lane| lane.marked)
    }

    /// Pages handed out on all channels, as their markers say.
    pub(crate) fn handed_out(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.pages).sum()
    }

    /// Ends the round early: what was not handed out is given back and must go into a later one.
    pub(crate) fn cut_short(&mut self, empty: PageSet) -> PageSet {
        std::mem::replace(&mut self.pending, empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use migrated_pages::{RamBlock, RamLayout};

    #[test]
    fn channels_share_a_round_and_count_their_part() {
        let layout = RamLayout::new(vec![RamBlock { name: "a".into(), guest_base: 0, pages: 10 }]).unwrap();
        let mut round = Round::new(RoundKind::Pages, 1, PageSet::full(&layout), 2, Duration::ZERO);
        let mut out = Vec::new();
        assert_eq!(round.take(0, 6, 8, &mut out), Take::Batch);
        assert_eq!(out, [PageRun { block: BlockId(0), first: 0, count: 6 }]);
        out.clear();
        assert_eq!(round.take(1, 6, 8, &mut out), Take::Batch);
        assert_eq!(out, [PageRun { block: BlockId(0), first: 6, count: 4 }]);
        out.clear();
        assert_eq!(round.take(1, 6, 8, &mut out), Take::Marker(4));
        assert_eq!(round.take(1, 6, 8, &mut out), Take::Nothing);
        assert!(!round.all_marked());
        assert_eq!(round.take(0, 6, 8, &mut out), Take::Marker(6));
        assert!(round.all_marked() && round.handed_out() == 10 && round.remaining() == 0);
    }

    #[test]
    fn a_round_cut_short_gives_back_what_it_did_not_hand_out() {
        let layout = RamLayout::new(vec![RamBlock { name: "a".into(), guest_base: 0, pages: 10 }]).unwrap();
        let mut round = Round::new(RoundKind::Pages, 1, PageSet::full(&layout), 1, Duration::ZERO);
        let mut out = Vec::new();
        round.take(0, 3, 8, &mut out);
        let rest = round.cut_short(PageSet::empty(&layout));
        assert_eq!((rest.len(), round.remaining()), (7, 0));
        out.clear();
        assert_eq!(round.take(0, 3, 8, &mut out), Take::Marker(3));
    }
}
