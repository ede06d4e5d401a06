//! Frames that come from outside for the guest, wherever it is, all the time: those that come while it is paused wait at
//! the source.

use std::collections::{BTreeSet, VecDeque};

use migrated_wire::LateInput;

use super::Pair;
use crate::guest::FakeGuest;
use crate::rng::Rng;

/// The source's TAP, and the frames that went from there to the destination.
#[derive(Debug)]
pub(super) struct Late {
    rng: Rng,
    next: u64,
    /// Frames that wait at the source.
    waiting: VecDeque<u64>,
    /// Frames that were taken from there to be handed on, and that the guest has not seen.
    taken: BTreeSet<u64>,
    /// How many the guest saw at the destination.
    delivered: u64,
}

impl Late {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed ^ 0x6c61_7465),
            next: 0,
            waiting: VecDeque::new(),
            taken: BTreeSet::new(),
            delivered: 0,
        }
    }

    pub(super) const fn delivered(&self) -> u64 {
        self.delivered
    }
}

impl Pair {
    /// Some frames come to the source's TAP, for as long as there is one.
    pub(super) fn frames_arrive(&mut self) {
        if self.source_guest.is_none() {
            return;
        }
        for _ in 0..self.late.rng.below(3) {
            self.late.waiting.push_back(self.late.next);
            self.late.next += 1;
        }
        self.read_frames();
    }

    /// A guest that runs at the source reads what waits there: nobody will take that.
    pub(super) fn read_frames(&mut self) {
        if self.source_guest.as_ref().is_some_and(FakeGuest::is_running) {
            self.late.waiting.clear();
        }
    }

    /// The source's session takes frames that wait.
    pub(super) fn take_late_input(&mut self, limit_bytes: usize) -> Result<Vec<LateInput>, String> {
        if !self.ever_ran_at_destination {
            return Err("late input was taken before the guest ran at the destination".into());
        }
        let mut found = Vec::new();
        let mut bytes = 0;
        while let Some(frame) = self.late.waiting.front() {
            let data = vec![0; 60 + self.late.rng.below(8) as usize * 1500];
            bytes += data.len();
            if bytes > limit_bytes {
                break;
            }
            let data = [frame.to_le_bytes().to_vec(), data].concat().into();
            self.late.taken.insert(*frame);
            self.late.waiting.pop_front();
            found.push(LateInput { device: 0, data });
        }
        Ok(found)
    }

    /// The destination's session delivers frames.
    pub(super) fn deliver_late_input(&mut self, inputs: &[LateInput]) -> Result<(), String> {
        if !self.destination_guest.is_running() {
            return Err("late input was delivered to a guest that does not run".into());
        }
        for input in inputs {
            let frame = input.data.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
            if !frame.is_some_and(|frame| self.late.taken.remove(&frame)) {
                return Err(format!("frame {frame:?} was delivered twice, or without having been taken"));
            }
            self.late.delivered += 1;
        }
        Ok(())
    }
}
