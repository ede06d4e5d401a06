use std::time::Duration;

use migrated_wire::{ToDestination, ToSource};

use super::answer::Answer;
use super::common::Common;
use super::interrupted::Interrupted;
use super::precopy_paused::PrecopyPaused;
use super::{FailureCode, SourceEvent, State};

/// There are new channels, and the guest runs here: the destination says what it has of an interrupted round.
pub(super) struct PrecopyRecovering {
    interrupted: Interrupted,
    answer: Answer,
    /// When the window of the loss is over.
    until: Duration,
}

impl PrecopyRecovering {
    pub(super) fn begin(common: &mut Common, interrupted: Interrupted, until: Duration) -> State {
        common.link.relinked(common.now);
        let iteration = interrupted.next_iteration();
        common.send(ToDestination::Recover { epoch: common.config.epoch, iteration });
        let answer = Answer::awaited(common);
        State::PrecopyRecovering(Box::new(Self { interrupted, answer, until }))
    }

    pub(super) const fn deadline(&self) -> Duration {
        self.answer.deadline()
    }

    pub(super) fn remaining(&self) -> u64 {
        self.interrupted.remaining()
    }

    pub(super) fn on(mut self: Box<Self>, common: &mut Common, event: SourceEvent) -> State {
        let wrong = match &event {
            SourceEvent::Message(ToSource::Received(piece)) => self.answer.take(common, piece).err(),
            SourceEvent::Message(ToSource::ReceivedSent { pages }) => {
                let Self { interrupted, answer, .. } = *self;
                let resumed = answer.whole(*pages).and_then(|received| interrupted.resume(common, received));
                return resumed.unwrap_or_else(|why| {
                    let failure = common.failure(FailureCode::Protocol, why);
                    common.fail_running(failure)
                });
            }
            SourceEvent::LinkLost(reason) => {
                common.progress(format!("the new link was lost: {reason}"));
                return PrecopyPaused::again(common, self.interrupted, self.until);
            }
            SourceEvent::Tick => {
                if let Some(reason) = self.answer.overdue(common).or_else(|| common.watch()) {
                    common.progress(reason);
                    return PrecopyPaused::again(common, self.interrupted, self.until);
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
}
