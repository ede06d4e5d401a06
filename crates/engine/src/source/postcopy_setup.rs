use std::time::Duration;

use migrated_pages::PageSet;
use migrated_wire::ToSource;

use super::common::Common;
use super::interrupted::Interrupted;
use super::precopy_paused::PrecopyPaused;
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
    /// To be announced as missing.
    missing: PageSet,
    doing: Doing,
    deadline: Duration,
}

#[derive(Clone, Copy)]
enum Doing {
    /// After a lost link: what the guest has written meanwhile is missing as well.
    Harvesting,
    /// Missing pages were named, and the destination drops them.
    Arming,
    /// It has; pausing began at this moment.
    Pausing { called_at: Duration },
}

impl PostcopySetup {
    pub(super) fn begin(common: &mut Common, iteration: u32, missing: PageSet) -> State {
        common.enter(MigrationState::PostcopySetup);
        let deadline = common.now + RESTORE_TIMEOUT;
        Box::new(Self { iteration, missing, doing: Doing::Arming, deadline }).announce(common)
    }

    /// A set-up whose link was lost when it was over.
    pub(super) fn interrupted(iteration: u32, missing: PageSet) -> Box<Self> {
        Box::new(Self { iteration, missing, doing: Doing::Arming, deadline: Duration::ZERO })
    }

    /// Begins again on a new link.
    pub(super) fn begin_again(self: Box<Self>, common: &mut Common) -> State {
        common.enter(MigrationState::PostcopySetup);
        if !common.tracking {
            return self.announce(common);
        }
        common.act(SourceAction::Harvest);
        State::PostcopySetup(Box::new(Self { doing: Doing::Harvesting, ..*self }))
    }

    fn announce(mut self: Box<Self>, common: &mut Common) -> State {
        let pages = self.missing.len();
        common.progress(format!("{pages} pages announced as missing"));
        common.announce(&self.missing, pages);
        self.doing = Doing::Arming;
        self.deadline = common.now + RESTORE_TIMEOUT;
        State::PostcopySetup(self)
    }

    pub(super) const fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(super) const fn iteration(&self) -> u32 {
        self.iteration
    }

    /// How many pages the destination will lack, as far as is known.
    pub(super) fn missing(&self) -> u64 {
        self.missing.len()
    }

    pub(super) fn on(mut self: Box<Self>, common: &mut Common, event: SourceEvent) -> State {
        match (event, self.doing) {
            (SourceEvent::Harvested { dirty, .. }, Doing::Harvesting) => {
                self.missing.union(&dirty);
                self.announce(common)
            }
            (SourceEvent::Message(ToSource::Armed { pages }), Doing::Arming)
                if pages == self.missing.len() =>
            {
                self.doing = Doing::Pausing { called_at: common.now };
                common.act(SourceAction::Pause);
                State::PostcopySetup(self)
            }
            (SourceEvent::Paused, Doing::Pausing { called_at }) => {
                StopAndCopy::begin_postcopy(common, self.iteration, self.missing, called_at)
            }
            (SourceEvent::Tick, Doing::Arming) if common.now >= self.deadline => {
                let text = "the destination did not get ready for post-copy in time";
                let failure = common.failure(FailureCode::PhaseTimeout, text);
                common.fail_running(failure)
            }
            (SourceEvent::LinkLost(reason), Doing::Arming) => {
                PrecopyPaused::begin(common, Interrupted::Setup(self), FailureCode::LinkLost, &reason)
            }
            (SourceEvent::Tick, Doing::Arming) => match common.watch() {
                Some(silence) => {
                    PrecopyPaused::begin(common, Interrupted::Setup(self), FailureCode::PeerDead, &silence)
                }
                None => State::PostcopySetup(self),
            },
            (event, _) => match common.common_failure(&event) {
                Some(failure) => common.fail_running(failure),
                None => State::PostcopySetup(self),
            },
        }
    }
}
