use std::time::Duration;

use migrated_wire::{ToDestination, ToSource, VerifyWhen};

use super::common::Common;
use super::demand::Demand;
use super::draining::Draining;
use super::lanes::{Lanes, Mark};
use super::receiving::Receiving;
use super::running::Running;
use super::{DestinationAction, DestinationEvent, FailureCode, State};
use crate::record::{MigrationState, Verify};

/// RAM is complete, or what is missing of it is known; state is restored, nothing has run: waiting for the commit.
pub(super) struct Ready {
    /// What came, and what to go back to when the link is lost before the commit.
    receiving: Box<Receiving>,
    /// Pages whose hashes the source says it sent, and whether all channels have ended that iteration.
    hashes_sent: Option<u64>,
    hashes_here: bool,
    verified: Option<bool>,
    doing: Doing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    Waiting,
    Recording,
    Starting,
}

impl Ready {
    pub(super) const fn begin(receiving: Box<Receiving>) -> Self {
        Self { receiving, hashes_sent: None, hashes_here: false, verified: None, doing: Doing::Waiting }
    }

    pub(super) fn demand(&self) -> Option<&Demand> {
        self.receiving.demand()
    }

    pub(super) fn demand_mut(&mut self) -> Option<&mut Demand> {
        self.receiving.demand_mut()
    }

    pub(super) const fn lanes(&self) -> &Lanes {
        self.receiving.lanes()
    }

    pub(super) const fn lanes_mut(&mut self) -> &mut Lanes {
        self.receiving.lanes_mut()
    }

    pub(super) fn on(mut self: Box<Self>, common: &mut Common, event: DestinationEvent) -> State {
        match (event, self.doing) {
            (DestinationEvent::Marker { channel, iteration, pages }, Doing::Waiting) => {
                match self.lanes_mut().mark(channel, iteration, pages) {
                    Mark::Partial => {}
                    Mark::Complete { .. } => self.hashes_here = true,
                    Mark::Wrong(why) => {
                        let failure = common.failure(FailureCode::Protocol, why);
                        return common.fail(failure);
                    }
                }
                self.verify_when_complete(common)
            }
            (DestinationEvent::Message(ToDestination::HashesSent { pages }), Doing::Waiting)
                if common.verify == VerifyWhen::Before && self.hashes_sent.is_none() =>
            {
                self.hashes_sent = Some(pages);
                self.verify_when_complete(common)
            }
            (DestinationEvent::Message(ToDestination::Commit { epoch }), Doing::Waiting) => {
                self.commit(common, epoch)
            }
            (DestinationEvent::CommitRecorded, Doing::Recording) => {
                self.doing = Doing::Starting;
                common.act(DestinationAction::Start);
                State::Ready(self)
            }
            (DestinationEvent::CommitNotRecorded(reason), Doing::Recording) => {
                common.act(DestinationAction::RecordNeverRan(common.config.epoch));
                let text = format!("the commit can't be recorded: {reason}");
                let failure = common.failure(FailureCode::EpochNotRecorded, text);
                common.refuse_commit(failure)
            }
            (DestinationEvent::Started(took), Doing::Starting) => self.running(common, took),
            (DestinationEvent::GuestFailed(reason), Doing::Starting) => {
                common.act(DestinationAction::RecordNeverRan(common.config.epoch));
                let failure = common.failure(FailureCode::GuestFailed, reason);
                common.refuse_commit(failure)
            }
            // What was restored is restored again, of a later moment.
            (DestinationEvent::LinkLost(reason) | DestinationEvent::PagesLost(reason), Doing::Waiting) => {
                self.receiving.lose_link(common, FailureCode::LinkLost, &reason)
            }
            (DestinationEvent::Reconnected { .. }, Doing::Waiting) => self.receiving.replace_link(common),
            (DestinationEvent::Tick, Doing::Waiting) => match common.silence() {
                Some(silence) => self.receiving.lose_link(common, FailureCode::PeerDead, &silence),
                None => State::Ready(self),
            },
            (event, _) => match common.common_failure(&event) {
                Some(failure) => common.fail(failure),
                None => State::Ready(self),
            },
        }
    }

    fn verify_when_complete(mut self: Box<Self>, common: &mut Common) -> State {
        let (Some(sent), true) = (self.hashes_sent, self.hashes_here) else { return State::Ready(self) };
        let total = common.config.identity.layout.total_pages();
        if sent != common.comparison.pages || sent != total {
            let text = format!("{sent} hashes were sent, {} came, {total} were due", common.comparison.pages);
            let failure = common.failure(FailureCode::Protocol, text);
            return common.fail(failure);
        }
        self.verified = Some(common.comparison.mismatches == 0);
        common.report_comparison(Verify::Before);
        State::Ready(self)
    }

    fn commit(mut self: Box<Self>, common: &mut Common, epoch: u64) -> State {
        let problem = if epoch != common.config.epoch {
            Some(format!("commit of attempt {epoch}, prepared was {}", common.config.epoch))
        } else if common.verify == VerifyWhen::Before && self.verified != Some(true) {
            Some("commit although memory was not found equal".to_owned())
        } else {
            None
        };
        if let Some(problem) = problem {
            let failure = common.failure(FailureCode::Protocol, problem);
            return common.fail(failure);
        }
        self.doing = Doing::Recording;
        common.act(DestinationAction::RecordCommit(epoch));
        State::Ready(self)
    }

    fn running(self, common: &mut Common, took: Duration) -> State {
        common.record.downtime_us.resume = took.as_secs_f64() * 1e6;
        let resume_us = took.as_micros() as u64;
        common.send(ToSource::Running { epoch: common.config.epoch, resume_us });
        common.act(DestinationAction::Observe);
        match self.receiving.into_parts() {
            (lanes, Some(demand)) => Draining::begin(common, *demand, lanes.channels()),
            (lanes, None) => {
                common.enter(MigrationState::Running);
                State::Running(Box::new(Running::begin(lanes, common.verify)))
            }
        }
    }
}
