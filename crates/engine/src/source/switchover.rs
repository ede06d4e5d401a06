use migrated_wire::ToSource;

use super::common::Common;
use super::drain::Drain;
use super::indeterminate::Indeterminate;
use super::postcopy_active::PostcopyActive;
use super::settling::Settling;
use super::stop_and_copy::Marks;
use super::{FailureCode, SourceEvent, State};

/// The commit is on its way: from here no failure of the link may run the guest at the source.
pub(super) struct Switchover {
    pub(super) marks: Marks,
    pub(super) next_round: u32,
    /// Pages that follow the guest, with post-copy. They are on their way as soon as the commit is: it goes
    /// first, and what arrives before the guest runs is not faulted on.
    pub(super) drain: Option<Box<Drain>>,
}

impl Switchover {
    pub(super) fn on(mut self, common: &mut Common, event: SourceEvent) -> State {
        match event {
            SourceEvent::Message(ToSource::Running { epoch, .. }) if epoch == common.config.epoch => {
                self.on_running(common)
            }
            SourceEvent::Message(ToSource::PageRequest { epoch, pages }) if self.drain.is_some() => {
                let refused =
                    self.drain.as_mut().and_then(|drain| common.request(drain, epoch, &pages).err());
                match refused {
                    Some(reason) => self.lose_link(common, &reason),
                    None => State::Switchover(self),
                }
            }
            SourceEvent::Message(ToSource::CommitRefused { epoch, reason })
                if epoch == common.config.epoch =>
            {
                common.fail_paused(common.failure(FailureCode::CommitRefused, reason))
            }
            // Sent before the commit arrived there: the destination has destroyed its copy.
            SourceEvent::Message(ToSource::Failed { reason }) => {
                common.fail_paused(common.failure(FailureCode::DestinationFailed, reason))
            }
            SourceEvent::LinkLost(reason) | SourceEvent::PeerMisbehaved(reason) => {
                self.lose_link(common, &reason)
            }
            SourceEvent::Message(other) => {
                let reason = format!("unexpected answer to the commit: {other:?}");
                self.lose_link(common, &migrated_wire::bounded_text(&reason))
            }
            SourceEvent::Tick => match common.watch() {
                Some(silence) => self.lose_link(common, &silence),
                None => State::Switchover(self),
            },
            SourceEvent::Cancel => {
                common
                    .decide("cancel_refused", "the commit was sent: only the destination may run the guest");
                State::Switchover(self)
            }
            _ => State::Switchover(self),
        }
    }

    fn on_running(self, common: &mut Common) -> State {
        if let Some(drain) = self.drain {
            return PostcopyActive::begin(common, drain, self.marks);
        }
        common.record.downtime_us = self.marks.downtime(common.now);
        common.decide(
            "completed",
            format!("the guest runs at {}, {:.2} ms after the call to pause", common.config.peer, {
                common.now.saturating_sub(self.marks.called()).as_secs_f64() * 1e3
            }),
        );
        Settling::begin(common, self.next_round, false)
    }

    fn lose_link(self, common: &mut Common, reason: &str) -> State {
        Indeterminate::begin(common, self.marks, self.drain, reason)
    }
}
