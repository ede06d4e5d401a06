use std::time::Duration;

use migrated_wire::CommitOutcome;

use super::common::Common;
use super::drain::Drain;
use super::postcopy_active::PostcopyActive;
use super::recovering::Recovering;
use super::stop_and_copy::Marks;
use super::{FailureCode, SourceAction, SourceEvent, State};
use crate::record::{MigrationState, RecordError};

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_SLOWEST: Duration = Duration::from_secs(5);

/// The guest runs at the destination on what is there, and the link is lost. The guest here stays down for
/// good and its RAM is kept, however long it takes: it is the only copy of what is missing.
pub(super) struct PostcopyPaused {
    drain: Box<Drain>,
    marks: Marks,
    /// When to try again; `None` while an attempt is under way.
    retry_at: Option<Duration>,
    backoff: Duration,
}

impl PostcopyPaused {
    pub(super) fn begin(common: &mut Common, drain: Box<Drain>, marks: Marks, reason: &str) -> State {
        common.enter(MigrationState::PostcopyPaused);
        common.decide("postcopy_paused", reason);
        common.note_loss(reason);
        common.record.error = Some(RecordError {
            code: FailureCode::LinkLost.as_str().to_owned(),
            message: format!(
                "the link was lost while pages followed the guest: {reason}. The guest runs at {} and waits for \
                 what it misses, up to {} pages, which this host keeps. It goes on by itself when the link is \
                 back; if the destination's VM process died, the guest is lost",
                common.config.peer, drain.missing
            ),
            phase: Some(MigrationState::PostcopyActive),
            details: None,
        });
        // Page threads look up and find that their link has ended.
        common.act(SourceAction::Wake);
        common.act(SourceAction::HangUp);
        common.act(SourceAction::Reconnect);
        State::PostcopyPaused(Self { drain, marks, retry_at: None, backoff: RETRY_FIRST })
    }

    pub(super) const fn deadline(&self) -> Option<Duration> {
        self.retry_at
    }

    pub(super) const fn drain(&self) -> &Drain {
        &self.drain
    }

    pub(super) fn on(mut self, common: &mut Common, event: SourceEvent) -> State {
        match event {
            SourceEvent::Connected => return Recovering::begin(common, self.drain, self.marks),
            SourceEvent::ConnectFailed(reason) => {
                common.progress(format!("reconnecting failed: {reason}"));
                self.retry_at = Some(common.now + self.backoff);
                self.backoff = (self.backoff * 2).min(RETRY_SLOWEST);
                // A destination that has everything may have gone; then somebody else knows.
                common.act(SourceAction::Ask);
            }
            SourceEvent::Tick if self.retry_at.is_some_and(|at| common.now >= at) => {
                self.retry_at = None;
                common.act(SourceAction::Reconnect);
            }
            SourceEvent::Retry if self.retry_at.is_some() => {
                self.retry_at = None;
                self.backoff = RETRY_FIRST;
                common.act(SourceAction::Reconnect);
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
            _ => {}
        }
        State::PostcopyPaused(self)
    }

    /// The link is lost, but nothing is missing any more.
    fn complete(self, common: &mut Common) -> State {
        PostcopyActive::account(common, &self.drain, &self.marks);
        common.skip_verification("the link was lost before it");
        common.release();
        common.end(Ok(()))
    }
}
