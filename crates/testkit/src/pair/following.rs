//! A destination whose guest runs before its pages are there: vCPUs that fault, frames that are placed while
//! others come, and an oracle of what memory must be.

use std::time::Duration;

use migrated_engine::destination::{Arrived, DestinationEvent, FaultAnswer};
use migrated_engine::source::SourceEvent;
use migrated_pages::{BlockId, PageRun, PageSet};
use migrated_wire::PROTOCOL;

use super::Pair;
use super::link::{Channel, Happening};
use super::scenario::Fault;
use crate::rng::Rng;

/// vCPUs of the destination's guest that touch pages of their own choice.
const VCPUS: usize = 4;
/// What a dropped page holds: nobody may ever see it.
const DROPPED: u64 = u64::MAX;

/// What the harness knows of pages that follow the guest.
#[derive(Debug)]
pub(super) struct Following {
    /// Dropped and not yet placed.
    absent: PageSet,
    /// Memory as the guest must see it, once it runs: the source's at the pause, and its own writes.
    expected: Vec<Vec<u64>>,
    blocked: [Option<Touch>; VCPUS],
    /// Pages that the source sent on this link, on any channel and on the urgent one.
    sent: PageSet,
    sent_urgent: PageSet,
    frames: u64,
}

#[derive(Clone, Copy, Debug)]
struct Touch {
    block: BlockId,
    page: u64,
    writes: bool,
}

impl Following {
    pub(super) fn new(nothing: &PageSet) -> Self {
        Self {
            absent: nothing.clone(),
            expected: Vec::new(),
            blocked: [None; VCPUS],
            sent: nothing.clone(),
            sent_urgent: nothing.clone(),
            frames: 0,
        }
    }
}

impl Pair {
    pub(super) const fn absent(&self) -> &PageSet {
        &self.following.absent
    }

    /// vCPUs of the destination that wait for a page.
    pub(super) fn blocked(&self) -> usize {
        self.following.blocked.iter().flatten().count()
    }

    /// The destination drops pages; they fault from now on.
    pub(super) fn arm(&mut self, missing: &PageSet) {
        for run in missing.runs() {
            for page in run.first..run.first + run.count {
                self.destination_guest.place(run.block, page, DROPPED);
            }
        }
        self.following.absent.union(missing);
    }

    /// Restoring state touches memory, too. Here it does not wait for it.
    pub(super) fn touch_in_restore(&mut self) {
        if let Some(run) = self.following.absent.next_run(BlockId(0), 0, 1) {
            let _ = self.destination.fault(self.link.now, run.block, run.first, 0);
            self.send_requests();
        }
    }

    /// From now on the guest's own writes count.
    pub(super) fn expect(&mut self, contents: &[Vec<u64>]) {
        self.following.expected = contents.to_vec();
        for vcpu in 0..VCPUS {
            self.link.after(Duration::ZERO, Happening::Touch(vcpu));
        }
    }

    /// The destination's guest writes a page that is there.
    pub(super) fn write_at_destination(&mut self, block: BlockId, page: u64) {
        if self.destination_guest.is_running() && !self.following.absent.contains(block, page) {
            self.destination_guest.write(block, page);
            self.following.expected[block.index()][page as usize] = self.destination_guest.read(block, page);
        }
    }

    /// A vCPU touches a page: a random one, or one that follows the one that it touched last.
    pub(super) fn touch(&mut self, vcpu: usize) -> Result<(), String> {
        if !self.destination_guest.is_running() || self.source.outcome().is_some() {
            return Ok(());
        }
        let block = BlockId(self.rng.below(2) as u16);
        let pages = self.destination_guest.layout().blocks()[block.index()].pages;
        let page = match self.rng.below(2) {
            0 => self.rng.below(pages),
            _ => (self.link.now.as_millis() as u64 * 3 + vcpu as u64) % pages,
        };
        let touch = Touch { block, page, writes: self.rng.below(2) == 0 };
        if !self.following.absent.contains(block, page) {
            return self.touched(vcpu, touch);
        }
        self.following.blocked[vcpu] = Some(touch);
        for _ in 0..=self.rng.below(2) {
            if self.destination.fault(self.link.now, block, page, vcpu as u32) == FaultAnswer::Here {
                return Err("the destination takes a missing page for one that is there".into());
            }
        }
        self.send_requests();
        Ok(())
    }

    /// The page is there: the guest sees what it must, and goes on.
    fn touched(&mut self, vcpu: usize, touch: Touch) -> Result<(), String> {
        let Touch { block, page, writes } = touch;
        let seen = self.destination_guest.read(block, page);
        let expected = self.following.expected[block.index()][page as usize];
        if seen != expected {
            return Err(format!("page {page} of block {} is {seen}, not {expected}", block.0));
        }
        if writes {
            self.write_at_destination(block, page);
        }
        if !self.following.absent.is_empty() {
            let pause = Duration::from_micros(10 + self.rng.below(1500));
            self.link.after(pause, Happening::Touch(vcpu));
        }
        Ok(())
    }

    pub(super) fn send_requests(&mut self) {
        while let Some(request) = self.destination.take_request(self.link.now) {
            let delay = self.delay();
            self.link.send(Channel::ToSource, delay, Happening::Source(SourceEvent::Message(request)));
            self.count_message();
        }
    }

    /// The source sends pages on a page channel: for the first time on this link.
    pub(super) fn note_pushed(&mut self, runs: &[PageRun]) -> Result<(), String> {
        self.note_frame();
        let again = runs.iter().find(|run| self.following.sent.insert(**run) != run.count);
        again.map_or(Ok(()), |run| Err(format!("{run:?} was sent twice on one link")))
    }

    /// The source sends pages on the urgent channel: once each, though a page channel may have them as well.
    pub(super) fn note_urgent(&mut self, runs: &[PageRun]) -> Result<(), String> {
        self.note_frame();
        runs.iter().for_each(|run| _ = self.following.sent.insert(*run));
        let again = runs.iter().find(|run| self.following.sent_urgent.insert(**run) != run.count);
        again.map_or(Ok(()), |run| Err(format!("{run:?} was sent twice on the urgent channel of one link")))
    }

    fn note_frame(&mut self) {
        self.following.frames += 1;
        if self.scenario.faults.contains(&Fault::CutAtFollowing(self.following.frames)) {
            self.cut();
        }
    }

    pub(super) fn forget_sent(&mut self) {
        self.following.sent.clear();
        self.following.sent_urgent.clear();
    }

    /// A frame begins to be placed; others come before it is done.
    pub(super) fn begin_placing(&mut self, pages: Vec<(PageRun, Vec<u64>)>) -> Result<(), String> {
        let mut claimed = Vec::new();
        self.destination.claim(pages.iter().map(|(run, _)| *run), &mut claimed);
        let contents = |part: &PageRun| {
            let (run, contents) = pages.iter().find(|(run, _)| {
                run.block == part.block
                    && run.first <= part.first
                    && part.first + part.count <= run.first + run.count
            })?;
            let at = (part.first - run.first) as usize;
            Some((*part, contents[at..at + part.count as usize].to_vec()))
        };
        let Some(placing) = claimed.iter().map(contents).collect() else {
            return Err("pages were claimed that are not in the frame".into());
        };
        // Some are slow enough to outlive their link and the next one's beginning.
        let longest = if self.rng.below(8) == 0 { 20_000 } else { 300 };
        let takes = Duration::from_micros(self.rng.below(longest));
        self.link.after(takes, Happening::Placed { generation: self.generation, pages: placing });
        Ok(())
    }

    /// A frame is placed, or broke off with its link.
    pub(super) fn end_placing(
        &mut self,
        generation: u64,
        pages: &[(PageRun, Vec<u64>)],
    ) -> Result<(), String> {
        let runs = pages.iter().map(|(run, _)| *run);
        let broken = generation != self.generation || !self.link.is_up();
        if broken && self.rng.below(2) == 0 {
            let _ = self.destination.unclaim(self.link.now, runs);
            return self.drain_destination();
        }
        for (run, contents) in pages {
            for (page, contents) in (run.first..).zip(contents) {
                self.destination_guest.place(run.block, page, *contents);
            }
            if self.following.absent.remove(*run) != run.count {
                return Err(format!("{run:?} was written over after it was placed"));
            }
        }
        let now = self.link.now;
        let arrived = Arrived { read: now, ready: now, woken: now };
        let _ = self.destination.placed_claims(now, arrived, runs);
        self.drain_destination()?;
        self.wake()?;
        self.send_requests();
        Ok(())
    }

    fn wake(&mut self) -> Result<(), String> {
        for vcpu in 0..VCPUS {
            let Some(touch) = self.following.blocked[vcpu] else { continue };
            if self.following.absent.contains(touch.block, touch.page) {
                continue;
            }
            self.following.blocked[vcpu] = None;
            self.touched(vcpu, touch)?;
        }
        Ok(())
    }

    /// Whether the guest at the destination is what it must be.
    pub(super) fn check_destination(&self) -> Result<(), String> {
        if !self.following.absent.is_empty() || self.blocked() > 0 {
            return Err("the migration completed, but pages are missing".into());
        }
        if self.destination_guest.contents() != self.following.expected.as_slice() {
            return Err("the destination's memory is not what the guest wrote".into());
        }
        Ok(())
    }

    /// The source opens new channels.
    pub(super) fn reconnect(&mut self) -> Result<(), String> {
        if self.source.outcome().is_some() {
            return Ok(());
        }
        if self.destination_alive && self.link.now >= self.outage_until && self.rng.below(2) == 0 {
            self.feed_destination(DestinationEvent::LinkLost("replaced by new channels".into()))?;
        }
        if self.destination_is_over() || self.link.now < self.outage_until {
            return self.feed_source(SourceEvent::ConnectFailed("unreachable".into()));
        }
        self.generation += 1;
        self.link.restore();
        self.forget_sent();
        self.leading.forget_waiting();
        self.feed_destination(DestinationEvent::Reconnected { version: PROTOCOL.max })?;
        if self.rng.below(8) == 0 {
            let closed = DestinationEvent::LinkLost("closed by the source".into());
            self.link.send(Channel::ToDestination, Duration::ZERO, Happening::Destination(closed));
            self.link.close();
            return self.feed_source(SourceEvent::ConnectFailed("a page channel was refused".into()));
        }
        self.feed_source(SourceEvent::Connected { version: PROTOCOL.max })?;
        self.wake_channels();
        Ok(())
    }

    /// How long a cut link stays away.
    pub(super) fn outage(&mut self) -> Duration {
        match self.scenario.reconnects {
            true => self.link.now + outage(&mut self.rng),
            false => Duration::MAX,
        }
    }
}

fn outage(rng: &mut Rng) -> Duration {
    let longest = if rng.below(2) == 0 { 10_000 } else { 20_000_000 };
    Duration::from_micros(rng.below(longest))
}
