use std::time::Duration;

use migrated_wire::CommitOutcome;

use super::common::Common;
use super::drain::Drain;
use super::postcopy_paused::PostcopyPaused;
use super::stop_and_copy::Marks;
use super::{FailureCode, SourceAction, SourceEvent, State};
use crate::record::MigrationState;

const ASK_FIRST: Duration = Duration::from_millis(100);
const ASK_SLOWEST: Duration = Duration::from_secs(5);
/// A question without any answer, not even that nobody answers, is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The link died between the commit and its ack. The guest stays paused, however long it takes, until
/// somebody who knows says whether it runs at the destination: guessing is how two copies run.
pub(super) struct Indeterminate {
    marks: Marks,
    /// Pages that follow the guest, with post-copy.
    drain: Option<Box<Drain>>,
    ask_at: Duration,
    backoff: Duration,
}

impl Indeterminate {
    pub(super) fn begin(common: &mut Common, marks: Marks, drain: Option<Box<Drain>>, reason: &str) -> State {
        common.enter(MigrationState::Indeterminate);
        common.decide("ask_destination", format!("the link was lost after the commit was sent: {reason}"));
        common.act(SourceAction::HangUp);
        common.act(SourceAction::Ask);
        let ask_at = common.now + ANSWER_TIMEOUT;
        State::Indeterminate(Self { marks, drain, ask_at, backoff: ASK_FIRST })
    }

    pub(super) const fn deadline(&self) -> Duration {
        self.ask_at
    }

    pub(super) fn drain(&self) -> Option<&Drain> {
        self.drain.as_deref()
    }

    pub(super) fn on(mut self, common: &mut Common, event: SourceEvent) -> State {
        match event {
            SourceEvent::Outcome(Some(CommitOutcome::Committed | CommitOutcome::Complete { .. })) => {
                self.committed(common)
            }
            SourceEvent::Outcome(Some(CommitOutcome::NeverRan)) => {
                let text = "the link was lost after the commit was sent; the destination never ran the guest and now never will";
                common.fail_paused(common.failure(FailureCode::LinkLost, text))
            }
            SourceEvent::Outcome(None) => {
                self.ask_at = common.now + self.backoff;
                self.backoff = (self.backoff * 2).min(ASK_SLOWEST);
                State::Indeterminate(self)
            }
            SourceEvent::Tick if common.now >= self.ask_at => {
                self.ask_at = common.now + ANSWER_TIMEOUT;
                common.act(SourceAction::Ask);
                State::Indeterminate(self)
            }
            SourceEvent::Cancel => {
                common.decide("cancel_refused", "only the destination's answer may run the guest here");
                State::Indeterminate(self)
            }
            _ => State::Indeterminate(self),
        }
    }

    fn committed(self, common: &mut Common) -> State {
        common.record.downtime_us = self.marks.downtime(common.now);
        common.late.acknowledged(common.now);
        if let Some(drain) = self.drain {
            let reason = "the destination says that it runs the guest; the link was lost at the switch";
            return PostcopyPaused::begin(common, drain, self.marks, reason);
        }
        common.decide("completed", "the destination says that it runs the guest");
        common.release();
        common.end_moved()
    }
}
