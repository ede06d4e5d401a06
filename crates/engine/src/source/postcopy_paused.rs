use std::time::Duration;

use migrated_wire::CommitOutcome;

use super::common::Common;
use super::drain::Drain;
use super::postcopy_active::PostcopyActive;
use super::recovering::Recovering;
use super::retry::Retry;
use super::stop_and_copy::Marks;
use super::{FailureCode, SourceAction, SourceEvent, State};
use crate::record::MigrationState;

/// The guest runs at the destination on what is there, and the link is lost. The guest here stays down for
/// good and its RAM is kept, however long it takes: it is the only copy of what is missing.
pub(super) struct PostcopyPaused {
    drain: Box<Drain>,
    marks: Marks,
    retry: Retry,
}

impl PostcopyPaused {
    pub(super) fn begin(common: &mut Common, drain: Box<Drain>, marks: Marks, reason: &str) -> State {
        common.enter(MigrationState::PostcopyPaused);
        common.decide("postcopy_paused", reason);
        common.note_loss(reason);
        let message = format!(
            "the link was lost while pages followed the guest: {reason}. The guest runs at {} and waits for \
             what it misses, up to {} pages, which this host keeps. It goes on by itself when the link is \
             back; if the destination's VM process died, the guest is lost",
            common.config.peer, drain.missing
        );
        common.trouble(FailureCode::LinkLost, message, MigrationState::PostcopyActive);
        State::PostcopyPaused(Self { drain, marks, retry: Retry::now(common) })
    }

    pub(super) const fn deadline(&self) -> Option<Duration> {
        self.retry.deadline()
    }

    pub(super) const fn drain(&self) -> &Drain {
        &self.drain
    }

    pub(super) fn on(mut self, common: &mut Common, event: SourceEvent) -> State {
        match event {
            SourceEvent::Connected { .. } => return Recovering::begin(common, self.drain, self.marks),
            SourceEvent::ConnectFailed(reason) | SourceEvent::ConnectRefused(reason) => {
                self.retry.failed(common, &reason);
                // A destination that has everything may have gone; then somebody else knows.
                common.act(SourceAction::Ask);
            }
            SourceEvent::Outcome(Some(CommitOutcome::Complete { pages })) => {
                if pages == self.drain.missing {
                    return self.complete(common);
                }
                let reason =
                    format!("the destination counts {pages} pages, {} were missing", self.drain.missing);
                common.decide("ram_kept", reason);
            }
            SourceEvent::Cancel => common.decide("cancel_refused", "the guest runs at the destination"),
            event => self.retry.on(common, &event),
        }
        State::PostcopyPaused(self)
    }

    /// The link is lost, but nothing is missing any more.
    fn complete(self, common: &mut Common) -> State {
        PostcopyActive::account(common, &self.drain, &self.marks);
        common.skip_verification("the link was lost before it");
        common.release();
        common.end_moved()
    }
}
