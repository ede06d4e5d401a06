use std::time::Duration;

use migrated_pages::{PageRun, ReceivedMap};
use migrated_wire::{MAX_SECTIONS, Section, ToDestination, ToSource};

use super::common::Common;
use super::lanes::{Lanes, Mark};
use super::ready::Ready;
use super::{DestinationAction, DestinationEvent, FailureCode, State};
use crate::record::MigrationState;

/// Pages are placed while the guest runs at the source; at the end its state comes.
pub(super) struct Receiving {
    lanes: Lanes,
    received: ReceivedMap,
    sections: Vec<Section>,
    finish: Option<Finish>,
}

#[derive(Clone, Copy)]
struct Finish {
    iteration: u32,
    sections: u32,
}

impl Receiving {
    pub(super) fn begin(common: &Common, channels: u16) -> Self {
        Self {
            lanes: Lanes::new(channels),
            received: ReceivedMap::new(&common.config.identity.layout),
            sections: Vec::new(),
            finish: None,
        }
    }

    pub(super) const fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    pub(super) const fn received(&self) -> &ReceivedMap {
        &self.received
    }

    /// Notes pages that are in place; returns how many.
    pub(super) fn placed(&mut self, channel: u16, runs: impl IntoIterator<Item = PageRun>) -> u64 {
        let mut pages = 0;
        for run in runs {
            self.received.insert(run);
            self.lanes.count(channel, run.count);
            pages += run.count;
        }
        pages
    }

    pub(super) fn on(mut self: Box<Self>, common: &mut Common, event: DestinationEvent) -> State {
        match event {
            DestinationEvent::Marker { channel, iteration, pages } => {
                match self.lanes.mark(channel, iteration, pages) {
                    Mark::Partial => State::Receiving(self),
                    Mark::Complete { iteration, pages } => {
                        common.send(ToSource::IterationDone { iteration, pages });
                        self.restore_when_complete(common)
                    }
                    Mark::Wrong(why) => {
                        let failure = common.failure(FailureCode::Protocol, why);
                        common.fail(failure)
                    }
                }
            }
            DestinationEvent::Message(ToDestination::State(section)) if self.finish.is_none() => {
                if self.sections.len() >= MAX_SECTIONS {
                    let text = format!("more than {MAX_SECTIONS} state sections");
                    let failure = common.failure(FailureCode::Protocol, text);
                    return common.fail(failure);
                }
                self.sections.push(section);
                State::Receiving(self)
            }
            DestinationEvent::Message(ToDestination::Finish { iteration, sections })
                if self.finish.is_none() =>
            {
                self.finish = Some(Finish { iteration, sections });
                self.restore_when_complete(common)
            }
            DestinationEvent::Restored(took) => self.ready(common, took),
            event => match common.common_failure(&event) {
                Some(failure) => common.fail(failure),
                None => State::Receiving(self),
            },
        }
    }

    /// Restores once the last iteration is over and all state is here. Only the map says "complete".
    fn restore_when_complete(mut self: Box<Self>, common: &mut Common) -> State {
        let Some(finish) = self.finish else { return State::Receiving(self) };
        if self.lanes.completed() < finish.iteration {
            return State::Receiving(self);
        }
        let problem = if self.lanes.completed() != finish.iteration {
            Some(format!(
                "iteration {} is over but {} was to be the last",
                self.lanes.completed(),
                finish.iteration
            ))
        } else if self.sections.len() != finish.sections as usize {
            Some(format!("{} state sections came of {}", self.sections.len(), finish.sections))
        } else if !self.received.is_complete() {
            let total = common.config.identity.layout.total_pages();
            Some(format!("{} pages came of {total}", self.received.count()))
        } else {
            None
        };
        if let Some(problem) = problem {
            let failure = common.failure(FailureCode::Protocol, problem);
            return common.fail(failure);
        }
        common.enter(MigrationState::Restoring);
        common.act(DestinationAction::Restore(std::mem::take(&mut self.sections)));
        State::Receiving(self)
    }

    fn ready(self, common: &mut Common, took: Duration) -> State {
        common.enter(MigrationState::Ready);
        common.record.downtime_us.import = took.as_secs_f64() * 1e6;
        let received = self.received.count();
        common.send(ToSource::Ready { import_us: took.as_micros() as u64, received });
        State::Ready(Box::new(Ready::begin(self.lanes)))
    }
}
