//! Late input: what comes to the source for a guest that has left.
//!
//! From the moment that the guest is paused until the network's switches have learnt where it is, frames for it come to
//! the source's TAP, where nobody reads them. They are few, but each may be the only one on its way: a TCP client with
//! one request outstanding that loses it waits for its retransmission timer, 200 ms and more, however short the
//! downtime was. So the source hands them on, on the control channel, and the destination gives them to the guest.
//!
//! **When.** Never before the destination said that the guest runs there. Until then the guest may resume here and read
//! its TAP itself, and what was taken from there can't be put back: so a source that doesn't know what became of its
//! commit takes nothing. From the answer on there is no way back. The source looks at once, then every 5 ms for half a
//! second: by then the guest has announced itself from its new place, and what still comes here is what every host gets.
//!
//! **At what price.** None that the guest pays: the first look is behind everything that the answer to the commit sets
//! in motion. Neither does the migration wait for late input; when it ends within that half second it looks a last
//! time. A lost link loses what was taken, as a network may.

use std::time::Duration;

use migrated_wire::{LATE_INPUT_SINCE, LateInput, LateInputs, MAX_LATE_BYTES, ToDestination};

use super::SourceAction;
use super::common::Common;
use crate::record::MigrationState;

/// How often the source looks: a fraction of what a client notices beside the downtime.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// For how long after the commit's acknowledgement: announcements are repeated within that time.
const LOOK_FOR: Duration = Duration::from_millis(500);

/// When the source looks for late input.
#[derive(Debug, Default)]
pub(super) struct Late {
    /// When it stops; `None` before the commit is known to have been obeyed.
    until: Option<Duration>,
    /// When it looks next.
    due: Option<Duration>,
}

impl Late {
    /// The guest is known to run at the destination; only the first time counts.
    pub(super) fn acknowledged(&mut self, now: Duration) {
        self.until.get_or_insert(now + LOOK_FOR);
    }

    /// When to look next, if at all.
    pub(super) const fn due(&self) -> Option<Duration> {
        self.due
    }
}

impl Common {
    /// There is a link to a guest that runs at its other end: looks now, and again from time to time.
    pub(super) fn hand_on_late_input(&mut self) {
        self.late.acknowledged(self.now);
        self.take_late_input();
    }

    /// Looks again if it is time to.
    pub(super) fn look_for_late_input(&mut self) {
        if self.late.due.is_some_and(|due| self.now >= due) {
            self.take_late_input();
        }
    }

    /// Looks now, if it is still the time for that. Says whether an answer is to come.
    pub(super) fn take_late_input(&mut self) -> bool {
        self.late.due = None;
        let Some(until) = self.late.until.filter(|until| self.now < *until) else { return false };
        if self.protocol < LATE_INPUT_SINCE {
            return false;
        }
        self.late.due = Some(self.now + LOOK_EVERY).filter(|next| *next < until);
        self.act(SourceAction::TakeLateInput { limit_bytes: MAX_LATE_BYTES });
        true
    }

    /// Sends what was found. It is gone from where it waited, so what can't be sent is lost.
    pub(super) fn late_input_taken(&mut self, found: &[LateInput]) {
        let linked = matches!(self.phase, MigrationState::PostcopyActive | MigrationState::Settling);
        let counts = &mut self.record.late_frames;
        let mut inputs = LateInputs::default();
        for input in found {
            let carried = linked && counts.has_room_for(input) && inputs.push(input.clone()).is_ok();
            counts.count(input, carried);
        }
        if !inputs.is_empty() {
            self.send(ToDestination::LateInput(inputs));
        }
    }
}
