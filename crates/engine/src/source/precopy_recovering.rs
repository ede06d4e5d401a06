use std::time::Duration;

use migrated_wire::{ToDestination, ToSource};

use super::answer::Answer;
use super::common::Common;
use super::precopy::Precopy;
use super::precopy_paused::PrecopyPaused;
use super::{FailureCode, SourceEvent, State};
use crate::record::{self, MigrationState};

/// There are new channels in pre-copy: the destination says what it has of the interrupted round.
pub(super) struct PrecopyRecovering {
    precopy: Box<Precopy>,
    answer: Answer,
    /// When the window of the loss is over.
    until: Duration,
}

impl PrecopyRecovering {
    pub(super) fn begin(common: &mut Common, precopy: Box<Precopy>, until: Duration) -> State {
        common.link.relinked(common.now);
        let iteration = precopy.iteration() + 1;
        common.send(ToDestination::Recover { epoch: common.config.epoch, iteration });
        let answer = Answer::awaited(common);
        State::PrecopyRecovering(Box::new(Self { precopy, answer, until }))
    }

    pub(super) const fn deadline(&self) -> Duration {
        self.answer.deadline()
    }

    pub(super) fn remaining(&self) -> u64 {
        self.precopy.remaining()
    }

    pub(super) fn on(mut self: Box<Self>, common: &mut Common, event: SourceEvent) -> State {
        let wrong = match &event {
            SourceEvent::Message(ToSource::Received(piece)) => self.answer.take(common, piece).err(),
            SourceEvent::Message(ToSource::ReceivedSent { pages }) => match self.resume(common, *pages) {
                Ok(()) => return State::Precopy(self.precopy),
                Err(why) => Some(why),
            },
            SourceEvent::LinkLost(reason) => {
                common.progress(format!("the new link was lost: {reason}"));
                return PrecopyPaused::again(common, self.precopy, self.until);
            }
            SourceEvent::Tick => {
                if let Some(reason) = self.answer.overdue(common).or_else(|| common.watch()) {
                    common.progress(reason);
                    return PrecopyPaused::again(common, self.precopy, self.until);
                }
                None
            }
            event => match common.common_failure(event) {
                Some(failure) => return common.fail_running(failure),
                None => None,
            },
        };
        match wrong {
            Some(why) => {
                let failure = common.failure(FailureCode::Protocol, why);
                common.fail_running(failure)
            }
            None => State::PrecopyRecovering(self),
        }
    }

    fn resume(&mut self, common: &mut Common, pages: u64) -> Result<(), String> {
        let interrupted = self.precopy.iteration();
        let left = self.precopy.resume(common, self.answer.whole(pages)?)?;
        let now_ms = common.now_ms();
        record::note_recovery(&mut common.record.reconnects, now_ms, left);
        common.record.error = None;
        common.decide(
            "reconnected",
            format!("{pages} pages of iteration {interrupted} are at the destination, {left} are left of it"),
        );
        common.enter(MigrationState::Precopy);
        Ok(())
    }
}
