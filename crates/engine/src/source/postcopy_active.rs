use migrated_wire::{ToSource, bounded_text};

use super::common::Common;
use super::drain::Drain;
use super::postcopy_paused::PostcopyPaused;
use super::settling::Settling;
use super::stop_and_copy::Marks;
use super::{SourceAction, SourceEvent, State};
use crate::record::{Iteration, MigrationState};

/// The guest runs at the destination and its pages follow it. This RAM is the only copy of what has not
/// arrived: it is kept until the destination's count of what it placed is the count of what was missing.
pub(super) struct PostcopyActive {
    drain: Box<Drain>,
    marks: Marks,
}

impl PostcopyActive {
    /// The destination says for the first time that it runs the guest.
    pub(super) fn begin(common: &mut Common, drain: Box<Drain>, marks: Marks) -> State {
        common.record.downtime_us = marks.downtime(common.now);
        common.decide(
            "postcopy",
            format!("the guest runs at {}, {} pages follow it", common.config.peer, drain.remaining()),
        );
        Self::enter(common, drain, marks)
    }

    pub(super) fn enter(common: &mut Common, drain: Box<Drain>, marks: Marks) -> State {
        common.enter(MigrationState::PostcopyActive);
        common.act(SourceAction::Wake);
        common.hand_on_late_input();
        State::PostcopyActive(Self { drain, marks })
    }

    pub(super) const fn drain(&self) -> &Drain {
        &self.drain
    }

    pub(super) const fn drain_mut(&mut self) -> &mut Drain {
        &mut self.drain
    }

    pub(super) fn on(mut self, common: &mut Common, event: SourceEvent) -> State {
        let lost = match event {
            SourceEvent::Message(ToSource::PageRequest { epoch, pages }) => {
                common.request(&mut self.drain, epoch, &pages).err()
            }
            SourceEvent::Message(ToSource::AllPagesReceived { pages }) => {
                if pages == self.drain.missing && self.drain.remaining() == 0 {
                    return self.complete(common);
                }
                Some(format!(
                    "the destination says that it has all {pages} missing pages; {} were, of which {} are still here",
                    self.drain.missing,
                    self.drain.remaining()
                ))
            }
            SourceEvent::Message(ToSource::Summary { wire_received, guest_gap_us }) => {
                common.take_summary(wire_received, guest_gap_us);
                self.drain.summary = true;
                None
            }
            SourceEvent::Message(other) => {
                Some(bounded_text(&format!("unexpected while pages follow the guest: {other:?}")))
            }
            SourceEvent::LinkLost(reason) | SourceEvent::PeerMisbehaved(reason) => Some(reason),
            SourceEvent::Tick => {
                common.look_for_late_input();
                common.watch()
            }
            SourceEvent::Cancel => {
                common.decide("cancel_refused", "the guest runs at the destination");
                None
            }
            _ => None,
        };
        match lost {
            Some(reason) => PostcopyPaused::begin(common, self.drain, self.marks, &reason),
            None => State::PostcopyActive(self),
        }
    }

    fn complete(self, common: &mut Common) -> State {
        Self::account(common, &self.drain, &self.marks);
        Settling::begin(common, self.drain.iteration + 1, self.drain.summary)
    }

    /// Notes in the record that everything has arrived.
    pub(super) fn account(common: &mut Common, drain: &Drain, marks: &Marks) {
        let took = common.now.saturating_sub(marks.committed());
        let counts = common.counts();
        counts.last_page_ms = Some(took.as_secs_f64() * 1e3);
        let pages = counts.pages_push + counts.pages_fault + counts.pages_prefetch;
        let reason = format!(
            "the destination has all pages: {} pushed, {} by fault, {} by prefetch",
            counts.pages_push, counts.pages_fault, counts.pages_prefetch
        );
        common.note(Iteration {
            n: drain.iteration,
            pages,
            bytes: drain.bytes,
            duration_ms: took.as_secs_f64() * 1e3,
            ..Iteration::default()
        });
        common.flow += took;
        common.record.error = None;
        common.decide("completed", reason);
    }
}
