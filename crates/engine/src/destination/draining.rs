use std::time::Duration;

use migrated_wire::{ToDestination, ToSource, VerifyWhen, bounded_text};

use super::common::Common;
use super::demand::Demand;
use super::running::Running;
use super::{DestinationAction, DestinationEvent, FailureCode, State};
use crate::record::MigrationState;

/// The guest runs here while its pages follow it. Nothing that happens to the link changes that: the guest
/// goes on with what is there, and whoever touches something else waits for the next link.
pub(super) struct Draining {
    demand: Demand,
    channels: u16,
    verify: VerifyWhen,
    started: Duration,
    link: Link,
    /// What to tell the source when nothing is missing any more.
    summary: Vec<ToSource>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Up,
    Lost,
    /// There are new channels; the source has yet to speak.
    New,
    /// The source asked what is here, and pages of the old link are still being placed.
    Asked {
        iteration: u32,
    },
}

impl Draining {
    /// The guest just started.
    pub(super) fn begin(common: &mut Common, demand: Demand, channels: u16) -> State {
        common.enter(MigrationState::PostcopyActive);
        common.counts().missing_pages = demand.missing();
        common.follows_since = Some(common.now);
        let (verify, started) = (common.verify, common.now);
        let state = Box::new(Self { demand, channels, verify, started, link: Link::Up, summary: Vec::new() });
        state.end_when_complete(common)
    }

    pub(super) const fn demand(&self) -> &Demand {
        &self.demand
    }

    pub(super) const fn demand_mut(&mut self) -> &mut Demand {
        &mut self.demand
    }

    /// Whether requests can be sent.
    pub(super) fn is_linked(&self) -> bool {
        self.link == Link::Up
    }

    pub(super) fn on(mut self: Box<Self>, common: &mut Common, event: DestinationEvent) -> State {
        match event {
            DestinationEvent::Observed { wire_received, guest_gap_us, first_packet_us } => {
                self.summary = common.observed(wire_received, guest_gap_us, first_packet_us);
                State::Draining(self)
            }
            DestinationEvent::Reconnected { .. } => self.relink(common),
            _ if self.link == Link::Lost => State::Draining(self),
            DestinationEvent::Message(ToDestination::Recover { epoch, iteration })
                if self.link == Link::New
                    && epoch == common.config.epoch
                    && (self.demand.iteration() + 1..u32::MAX).contains(&iteration) =>
            {
                self.link = Link::Asked { iteration };
                self.report_when_settled(common)
            }
            DestinationEvent::Message(ToDestination::LateInput(inputs)) if self.link == Link::Up => {
                common.deliver(inputs);
                State::Draining(self)
            }
            DestinationEvent::LinkLost(reason)
            | DestinationEvent::PagesLost(reason)
            | DestinationEvent::PeerMisbehaved(reason) => self.lose_link(common, &reason),
            DestinationEvent::Message(message) => {
                let text = format!("unexpected while pages follow the guest: {message:?}");
                self.lose_link(common, &bounded_text(&text))
            }
            DestinationEvent::Marker { .. } => {
                self.lose_link(common, "a marker while pages follow the guest")
            }
            DestinationEvent::Tick => match common.silence() {
                Some(reason) => self.lose_link(common, &reason),
                None => State::Draining(self),
            },
            _ => State::Draining(self),
        }
    }

    /// Claimed pages are in place, or were given back.
    pub(super) fn settle(self: Box<Self>, common: &mut Common) -> State {
        match self.link {
            Link::Asked { .. } => self.report_when_settled(common),
            Link::Up | Link::Lost => self.end_when_complete(common),
            Link::New => State::Draining(self),
        }
    }

    fn relink(mut self: Box<Self>, common: &mut Common) -> State {
        if self.link == Link::Up {
            // The source noticed first.
            common.note_loss("the source opened new channels");
        }
        common.link.heard(common.now);
        common.enter(MigrationState::Recovering);
        self.link = Link::New;
        State::Draining(self)
    }

    fn lose_link(mut self: Box<Self>, common: &mut Common, reason: &str) -> State {
        let here = self.demand.received().count();
        if self.link == Link::Up {
            common.note_loss(reason);
        }
        self.link = Link::Lost;
        common.enter(MigrationState::PostcopyPaused);
        let message = format!(
            "the link was lost while pages followed the guest: {reason}. The guest runs here with {here} of {} \
             pages; a vCPU that touches another waits for {} to come back, which has the only copy",
            common.config.identity.layout.total_pages(),
            common.config.peer
        );
        common.trouble(FailureCode::LinkLost, message, MigrationState::PostcopyActive);
        common.act(DestinationAction::HangUp);
        self.end_when_complete(common)
    }

    /// Tells the source what is here, as soon as nothing of the old link can change it any more: a page that
    /// is being placed would be sent again, or be given back after the source was told that it is here.
    fn report_when_settled(mut self: Box<Self>, common: &mut Common) -> State {
        let Link::Asked { iteration } = self.link else { return State::Draining(self) };
        if !self.demand.is_settled() {
            return State::Draining(self);
        }
        common.tell(self.demand.received().pages());
        self.demand.relink(iteration);
        self.link = Link::Up;
        common.enter(MigrationState::PostcopyActive);
        common.note_recovery(self.demand.missing() - self.demand.placed());
        common.act(DestinationAction::Request);
        self.end_when_complete(common)
    }

    /// Once the map says that nothing is missing, pages need no more attention.
    fn end_when_complete(self: Box<Self>, common: &mut Common) -> State {
        if !self.demand.is_complete() {
            return State::Draining(self);
        }
        let took = common.now.saturating_sub(self.started);
        common.counts().last_page_ms = Some(took.as_secs_f64() * 1e3);
        common.record.error = None;
        let pages = self.demand.placed();
        common.followed = Some(pages);
        if self.link == Link::Lost {
            return common.end(Ok(()));
        }
        common.enter(MigrationState::Running);
        common.send(ToSource::AllPagesReceived { pages });
        for message in self.summary {
            common.send(message);
        }
        State::Running(Box::new(Running::after(self.demand.iteration(), self.channels, self.verify)))
    }
}
