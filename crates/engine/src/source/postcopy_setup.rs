use std::time::Duration;

use migrated_pages::PageSet;
use migrated_wire::ToSource;

use super::common::Common;
use super::stop_and_copy::StopAndCopy;
use super::{FailureCode, SourceAction, SourceEvent, State};
use crate::limits::RESTORE_TIMEOUT;
use crate::record::MigrationState;

/// The destination drops what is stale already and lets vCPUs fault on it. Dropping scattered pages takes
/// as long as copying them, so it happens while the guest still runs here; only what the guest writes
/// meanwhile is left for the downtime.
pub(super) struct PostcopySetup {
    /// The iteration of the frames that will follow the guest.
    iteration: u32,
    /// Announced as missing.
    missing: PageSet,
    deadline: Duration,
    /// Once armed: when pausing began.
    called_at: Option<Duration>,
}

impl PostcopySetup {
    pub(super) fn begin(common: &mut Common, iteration: u32, missing: PageSet) -> State {
        common.enter(MigrationState::PostcopySetup);
        common.progress(format!("{} pages announced as missing", missing.len()));
        common.announce(&missing, missing.len());
        let deadline = common.now + RESTORE_TIMEOUT;
        State::PostcopySetup(Box::new(Self { iteration, missing, deadline, called_at: None }))
    }

    pub(super) const fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(super) fn on(mut self: Box<Self>, common: &mut Common, event: SourceEvent) -> State {
        match (event, self.called_at) {
            (SourceEvent::Message(ToSource::Armed { pages }), None) if pages == self.missing.len() => {
                self.called_at = Some(common.now);
                common.act(SourceAction::Pause);
                State::PostcopySetup(self)
            }
            (SourceEvent::Paused, Some(called_at)) => {
                StopAndCopy::begin_postcopy(common, self.iteration, self.missing, called_at)
            }
            (SourceEvent::Tick, None) if common.now >= self.deadline => {
                let text = "the destination did not get ready for post-copy in time";
                let failure = common.failure(FailureCode::PhaseTimeout, text);
                common.fail_running(failure)
            }
            (event, _) => match common.common_failure(&event) {
                Some(failure) => common.fail_running(failure),
                None => State::PostcopySetup(self),
            },
        }
    }
}
