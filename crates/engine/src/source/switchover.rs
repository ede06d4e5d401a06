use migrated_wire::ToSource;

use super::common::Common;
use super::indeterminate::Indeterminate;
use super::settling::Settling;
use super::stop_and_copy::Marks;
use super::{FailureCode, SourceEvent, State};

/// The commit is on its way: from here no failure of the link may run the guest at the source.
pub(super) struct Switchover {
    pub(super) marks: Marks,
    pub(super) next_round: u32,
}

impl Switchover {
    pub(super) fn on(self, common: &mut Common, event: SourceEvent) -> State {
        match event {
            SourceEvent::Message(ToSource::Running { epoch, .. }) if epoch == common.config.epoch => {
                Settling::begin(common, self.marks, self.next_round)
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
                Indeterminate::begin(common, self.marks, &reason)
            }
            SourceEvent::Message(other) => {
                let reason = format!("unexpected answer to the commit: {other:?}");
                Indeterminate::begin(common, self.marks, &migrated_wire::bounded_text(&reason))
            }
            SourceEvent::Tick => match common.watch() {
                Some(failure) => Indeterminate::begin(common, self.marks, &failure.message),
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
}
