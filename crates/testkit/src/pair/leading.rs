//! Pages that come to the destination before the guest does: frames that take a while to be placed, and break off
//! with their link.

use std::collections::VecDeque;
use std::time::Duration;

use migrated_pages::PageRun;

use super::Pair;
use super::link::{Channel, Frame, Happening};
use super::scenario::Fault;

/// What is left in a page of which only some came.
const TORN: u64 = u64::MAX - 1;

/// Page channels of which a frame is being placed.
#[derive(Debug)]
pub(super) struct Leading {
    /// By channel: what came behind the frame that is being placed.
    waiting: Vec<Option<VecDeque<Frame>>>,
    frames: u64,
}

impl Leading {
    pub(super) fn new(channels: u16) -> Self {
        Self { waiting: (0..channels).map(|_| None).collect(), frames: 0 }
    }

    /// There are new channels: what the old ones had brought is not looked at any more.
    pub(super) fn forget_waiting(&mut self) {
        self.waiting.fill_with(|| None);
    }

    /// Gives the frame back, unless it has to wait for the one before it.
    pub(super) fn take_or_wait(&mut self, from: Channel, frame: Frame) -> Option<Frame> {
        match from {
            Channel::Page(channel) => match &mut self.waiting[usize::from(channel)] {
                Some(waiting) => {
                    waiting.push_back(frame);
                    None
                }
                None => Some(frame),
            },
            _ => Some(frame),
        }
    }
}

impl Pair {
    /// The source sends a frame of pages that go before the guest.
    pub(super) fn note_leading(&mut self) {
        self.leading.frames += 1;
        if self.scenario.faults.contains(&Fault::CutAtPages(self.leading.frames)) {
            self.cut();
        }
    }

    /// A frame begins to be placed. Where links are lost, some take long enough to outlive theirs and the next one's
    /// beginning.
    pub(super) fn begin_placing_before(
        &mut self,
        channel: u16,
        pages: Vec<(PageRun, Vec<u64>)>,
    ) -> Result<(), String> {
        self.destination.begin_placing();
        if self.scenario.faults.is_empty() {
            return self.place_before(channel, &pages);
        }
        let takes = match self.rng.below(32) {
            0 => Duration::from_micros(self.rng.below(400_000)),
            1 | 2 => Duration::from_micros(self.rng.below(500)),
            _ => return self.place_before(channel, &pages),
        };
        self.leading.waiting[usize::from(channel)] = Some(VecDeque::new());
        let generation = self.generation;
        self.link.after(takes, Happening::InPlace { generation, channel, pages });
        Ok(())
    }

    /// A frame is placed, or broke off with its link.
    pub(super) fn end_placing_before(
        &mut self,
        generation: u64,
        channel: u16,
        pages: &[(PageRun, Vec<u64>)],
    ) -> Result<(), String> {
        let broken = generation != self.generation || !self.link.is_up();
        if broken && self.rng.below(2) == 0 {
            // Nobody looks at what came behind it.
            return self.break_off(pages);
        }
        self.place_before(channel, pages)?;
        if generation != self.generation {
            return Ok(());
        }
        let waiting = self.leading.waiting[usize::from(channel)].take().unwrap_or_default();
        waiting.into_iter().try_for_each(|frame| self.receive(Channel::Page(channel), frame))
    }

    /// Pages that are zero and were never placed are left alone, as a session does.
    fn place_before(&mut self, channel: u16, pages: &[(PageRun, Vec<u64>)]) -> Result<(), String> {
        for (run, contents) in pages {
            for (page, contents) in (run.first..).zip(contents) {
                if *contents != 0 || self.destination.has(run.block, page) {
                    self.destination_guest.place(run.block, page, *contents);
                }
            }
        }
        let runs = pages.iter().map(|(run, _)| *run);
        let _ = self.destination.placed(self.link.now, channel, runs);
        self.drain_destination()
    }

    /// Some of the pages' bytes came. None of them may count, and what came is wiped out.
    fn break_off(&mut self, pages: &[(PageRun, Vec<u64>)]) -> Result<(), String> {
        let mut torn = Vec::new();
        for (run, contents) in pages {
            for (first, contents) in (run.first..).zip(contents) {
                if *contents != 0 {
                    self.destination_guest.place(run.block, first, TORN);
                    torn.push(PageRun { first, count: 1, ..*run });
                }
            }
        }
        torn.iter().for_each(|run| self.destination_guest.place(run.block, run.first, 0));
        let _ = self.destination.broke_off(self.link.now, torn);
        self.drain_destination()
    }
}
