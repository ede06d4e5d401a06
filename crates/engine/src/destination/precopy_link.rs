use std::time::Duration;

use migrated_wire::{ToDestination, bounded_text};

use super::common::Common;
use super::lanes::Lanes;
use super::listening::{self, Offer};
use super::receiving::Receiving;
use super::{DestinationAction, DestinationEvent, FailureCode, State};
use crate::limits::RECONNECT_GRACE;
use crate::record::{self, MigrationState};

/// The link while nothing is committed. What a lost one costs is told in
/// `crates/engine/src/source/precopy_paused.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Up,
    /// The source has until then to come back.
    Lost {
        until: Duration,
    },
    /// There are new channels; the source has yet to speak.
    New {
        until: Duration,
    },
    /// The source asked what is here, and frames of the old link are still being placed.
    Asked {
        until: Duration,
        iteration: u32,
    },
}

impl Receiving {
    /// The link is gone. What is here is kept for the source's return: its guest runs, or will run again, because
    /// nothing was committed.
    pub(super) fn lose_link(self: Box<Self>, common: &mut Common, code: FailureCode, reason: &str) -> State {
        match self.wait_for_source(common, code, reason) {
            Ok(waiting) => {
                common.act(DestinationAction::HangUp);
                State::Receiving(waiting)
            }
            Err(ended) => ended,
        }
    }

    fn wait_for_source(
        mut self: Box<Self>,
        common: &mut Common,
        code: FailureCode,
        reason: &str,
    ) -> Result<Box<Self>, State> {
        if common.reconnect_window.is_zero() {
            let failure = common.failure(code, reason);
            return Err(common.fail(failure));
        }
        let until = match self.link {
            Link::Up => {
                let lost_ms = common.now_ms();
                record::note_loss(&mut common.record.reconnects, lost_ms, bounded_text(reason));
                common.now + common.reconnect_window + RECONNECT_GRACE
            }
            Link::Lost { until } | Link::New { until } | Link::Asked { until, .. } => until,
        };
        self.link = Link::Lost { until };
        common.enter(MigrationState::PrecopyPaused);
        let (here, total) = (self.received().count(), common.config.identity.layout.total_pages());
        let message = format!(
            "the link to {} was lost: {reason}. The guest runs there; {here} of its {total} pages are kept here for \
             when it comes back",
            common.config.peer
        );
        common.trouble(FailureCode::LinkLost, message, MigrationState::Receiving);
        Ok(self)
    }

    /// The source opened new channels while it still seemed to be there: it noticed a loss first.
    pub(super) fn replace_link(self: Box<Self>, common: &mut Common) -> State {
        match self.wait_for_source(common, FailureCode::LinkLost, "the source opened new channels") {
            Ok(waiting) => {
                let version = common.protocol;
                waiting.without_link(common, DestinationEvent::Reconnected { version })
            }
            Err(ended) => ended,
        }
    }

    /// Takes in an event while pages don't flow.
    pub(super) fn without_link(mut self: Box<Self>, common: &mut Common, event: DestinationEvent) -> State {
        match (event, self.link) {
            (
                DestinationEvent::Reconnected { .. },
                Link::Lost { until } | Link::New { until } | Link::Asked { until, .. },
            ) => {
                common.link.heard(common.now);
                self.link = Link::New { until };
                State::Receiving(self)
            }
            (DestinationEvent::Tick, Link::Lost { until }) if common.now >= until => {
                let text = "the link was lost and the source did not come back in time";
                let failure = common.failure(FailureCode::LinkLost, text);
                common.fail(failure)
            }
            (event @ (DestinationEvent::Cancel | DestinationEvent::GuestFailed(_)), _) => {
                self.fail_or_stay(common, &event)
            }
            // Whatever a link that is lost has still brought.
            (_, Link::Lost { .. }) => State::Receiving(self),
            (DestinationEvent::Message(ToDestination::Recover { epoch, iteration }), Link::New { until })
                if epoch == common.config.epoch && self.may_come_next(common, iteration) =>
            {
                self.link = Link::Asked { until, iteration };
                self.settle(common)
            }
            // It never heard that its guest fits.
            (DestinationEvent::Message(message @ ToDestination::Preflight { .. }), Link::New { .. })
                if self.has_nothing() =>
            {
                match Offer::of(message) {
                    Ok(offer) => listening::judge(common, offer),
                    Err(other) => self.fail_or_stay(common, &DestinationEvent::Message(other)),
                }
            }
            (DestinationEvent::LinkLost(reason) | DestinationEvent::PagesLost(reason), _) => {
                self.lose_link(common, FailureCode::LinkLost, &reason)
            }
            (DestinationEvent::Tick, _) => match common.silence() {
                Some(silence) => self.lose_link(common, FailureCode::PeerDead, &silence),
                None => State::Receiving(self),
            },
            (event, _) => self.fail_or_stay(common, &event),
        }
    }

    /// Frames of the old link were placed, or broke off: tells the source what is here once there are no more.
    pub(super) fn settle(mut self: Box<Self>, common: &mut Common) -> State {
        let Link::Asked { iteration, .. } = self.link else { return State::Receiving(self) };
        if self.is_placing() {
            return State::Receiving(self);
        }
        let here = self.placed_in(iteration - 1).cloned();
        let here = here.unwrap_or_else(|| common.no_pages());
        common.tell(&here);
        self.start_over(Lanes::at(self.lanes().channels(), iteration));
        let never_came = common.config.identity.layout.total_pages() - self.received().count();
        let now_ms = common.now_ms();
        record::note_recovery(&mut common.record.reconnects, now_ms, never_came);
        common.record.error = None;
        common.enter(MigrationState::Receiving);
        State::Receiving(self)
    }

    pub(super) fn fail_or_stay(self: Box<Self>, common: &mut Common, event: &DestinationEvent) -> State {
        match common.common_failure(event) {
            Some(failure) => common.fail(failure),
            None => State::Receiving(self),
        }
    }
}
