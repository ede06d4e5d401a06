use std::time::Duration;

use migrated_pages::{PageRun, PageSet, ReceivedMap};
use migrated_wire::{MAX_SECTIONS, PageSetPiece, Section, ToDestination, ToSource};

use super::common::Common;
use super::demand::Demand;
use super::lanes::{Lanes, Mark};
use super::precopy_link::Link;
use super::ready::Ready;
use super::this_round::ThisRound;
use super::{DestinationAction, DestinationEvent, FailureCode, State};
use crate::record::MigrationState;

/// Pages are placed while the guest runs at the source; at the end its state comes.
pub(super) struct Receiving {
    lanes: Lanes,
    pages: Pages,
    sections: Vec<Section>,
    finish: Option<Finish>,
    pub(super) link: Link,
    this_round: ThisRound,
    /// Frames that are being placed, of whichever link.
    placing: u32,
}

/// What is here of the guest's RAM.
enum Pages {
    /// All of it comes before the guest runs.
    Before(ReceivedMap),
    /// What is missing follows the guest.
    Follow {
        demand: Box<Demand>,
        /// Pages named as missing since the last [`DestinationAction::Arm`], and before it.
        named: PageSet,
        armed: u64,
        /// Whether the source names all of them again, because it lost its link.
        again: bool,
    },
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
            pages: Pages::Before(ReceivedMap::new(&common.config.identity.layout)),
            sections: Vec::new(),
            finish: None,
            link: Link::Up,
            this_round: ThisRound::new(&common.config.identity.layout),
            placing: 0,
        }
    }

    pub(super) const fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    pub(super) const fn lanes_mut(&mut self) -> &mut Lanes {
        &mut self.lanes
    }

    /// What is left of it once the guest runs: the channels, and the pages that follow it, if any do.
    pub(super) fn into_parts(self) -> (Lanes, Option<Box<Demand>>) {
        match self.pages {
            Pages::Before(_) => (self.lanes, None),
            Pages::Follow { demand, .. } => (self.lanes, Some(demand)),
        }
    }

    pub(super) const fn received(&self) -> &ReceivedMap {
        match &self.pages {
            Pages::Before(received) => received,
            Pages::Follow { demand, .. } => demand.received(),
        }
    }

    pub(super) fn demand(&self) -> Option<&Demand> {
        match &self.pages {
            Pages::Before(_) => None,
            Pages::Follow { demand, .. } => Some(demand),
        }
    }

    pub(super) fn demand_mut(&mut self) -> Option<&mut Demand> {
        match &mut self.pages {
            Pages::Before(_) => None,
            Pages::Follow { demand, .. } => Some(demand),
        }
    }

    /// Whether frames of this link may come.
    pub(super) const fn takes_frames(&self) -> bool {
        matches!(self.link, Link::Up | Link::Lost { .. })
    }

    /// A frame's pages begin to be placed.
    pub(super) const fn begin_placing(&mut self) {
        self.placing += 1;
    }

    /// Notes that a frame's pages are in place; returns how many.
    pub(super) fn placed(&mut self, channel: u16, runs: impl IntoIterator<Item = PageRun>) -> u64 {
        self.placing = self.placing.saturating_sub(1);
        let Pages::Before(received) = &mut self.pages else { return 0 };
        let mut pages = 0;
        for run in runs {
            received.insert(run);
            self.this_round.insert(self.lanes.iteration(), run);
            self.lanes.count(channel, run.count);
            pages += run.count;
        }
        pages
    }

    /// Notes that a frame broke off with its link: of its pages nothing is here any more.
    pub(super) fn broke_off(&mut self, runs: impl IntoIterator<Item = PageRun>) {
        self.placing = self.placing.saturating_sub(1);
        if let Pages::Before(received) = &mut self.pages {
            runs.into_iter().for_each(|run| _ = received.remove(run));
        }
    }

    /// Has what came in an iteration made ready for the guest, unless it is the last one: then the guest waits.
    fn warm_up(&self, common: &mut Common, iteration: u32) {
        if let Some(pages) = self.placed_in(iteration)
            && self.finish.is_none()
        {
            common.act(DestinationAction::WarmUp(pages.clone()));
        }
    }

    pub(super) const fn is_placing(&self) -> bool {
        self.placing > 0
    }

    /// Whether no page has come.
    pub(super) fn has_nothing(&self) -> bool {
        self.received().count() == 0 && !self.is_placing() && self.lanes.iteration() == 1
    }

    /// Whether an iteration may be the next one on a new link: the one that is due, or the one after that, when
    /// the one that is due was interrupted. The first is due only when all pages follow the guest.
    pub(super) fn may_come_next(&self, common: &Common, iteration: u32) -> bool {
        let due = self.lanes.iteration();
        let is_due = iteration == due && (iteration > 1 || common.may_follow);
        let was_interrupted = matches!(self.pages, Pages::Before(_));
        is_due || (was_interrupted && Some(iteration) == due.checked_add(1))
    }

    /// What was placed in that iteration, if it was interrupted: none was once pages are named as missing.
    pub(super) fn placed_in(&self, iteration: u32) -> Option<&PageSet> {
        matches!(self.pages, Pages::Before(_)).then(|| self.this_round.of(iteration)).flatten()
    }

    /// There is a link whose frames are counted anew.
    pub(super) fn start_over(&mut self, lanes: Lanes) {
        self.lanes = lanes;
        self.link = Link::Up;
        // What came of the guest's state is that of a moment which is past.
        self.sections.clear();
        self.finish = None;
        if let Pages::Follow { named, again, .. } = &mut self.pages {
            named.clear();
            *again = true;
        }
    }

    /// When the source counts as dead, or will not be waited for any longer.
    pub(super) fn deadline(&self, common: &Common) -> Duration {
        match self.link {
            Link::Lost { until } => until,
            _ => common.link.dead_at(),
        }
    }

    pub(super) fn on(mut self: Box<Self>, common: &mut Common, event: DestinationEvent) -> State {
        if self.link != Link::Up {
            return self.without_link(common, event);
        }
        match event {
            DestinationEvent::Reconnected { .. } => self.replace_link(common),
            DestinationEvent::LinkLost(reason) | DestinationEvent::PagesLost(reason) => {
                self.lose_link(common, FailureCode::LinkLost, &reason)
            }
            DestinationEvent::Tick => match common.silence() {
                Some(silence) => self.lose_link(common, FailureCode::PeerDead, &silence),
                None => State::Receiving(self),
            },
            DestinationEvent::Marker { channel, iteration, pages } => {
                match self.lanes.mark(channel, iteration, pages) {
                    Mark::Partial => State::Receiving(self),
                    Mark::Complete { iteration, pages } => {
                        common.send(ToSource::IterationDone { iteration, pages });
                        self.warm_up(common, iteration);
                        self.restore_when_complete(common)
                    }
                    Mark::Wrong(why) => {
                        let failure = common.failure(FailureCode::Protocol, why);
                        common.fail(failure)
                    }
                }
            }
            DestinationEvent::Message(ToDestination::Missing(piece))
                if common.may_follow && self.finish.is_none() =>
            {
                match self.name_missing(common, &piece) {
                    Ok(()) => State::Receiving(self),
                    Err(why) => {
                        let failure = common.failure(FailureCode::Protocol, why);
                        common.fail(failure)
                    }
                }
            }
            DestinationEvent::Message(ToDestination::MissingSent { pages }) if self.finish.is_none() => {
                self.arm(common, pages)
            }
            DestinationEvent::Armed => {
                if let Pages::Follow { armed, .. } = &self.pages {
                    common.send(ToSource::Armed { pages: *armed });
                }
                State::Receiving(self)
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
            event => self.fail_or_stay(common, &event),
        }
    }

    /// Takes in pages that the source names as missing. From the first on, all pages follow the guest.
    fn name_missing(&mut self, common: &Common, piece: &PageSetPiece) -> Result<(), String> {
        let layout = &common.config.identity.layout;
        if let Pages::Before(received) = &mut self.pages {
            if !self.lanes.is_between() {
                return Err("pages were named as missing in the middle of an iteration".into());
            }
            let received = std::mem::replace(received, ReceivedMap::new(layout));
            let demand = Box::new(Demand::new(self.lanes.completed() + 1, received, layout));
            self.pages = Pages::Follow { demand, named: PageSet::empty(layout), armed: 0, again: false };
        }
        let Pages::Follow { demand, named, again, .. } = &mut self.pages else { return Ok(()) };
        piece.add_to(named, layout).map_err(|error| error.to_string())?;
        if *again {
            demand.open().runs().for_each(|run| _ = named.remove(run));
        } else if named.runs().any(|run| demand.misses_any(run)) {
            return Err("pages were named as missing again".into());
        }
        Ok(())
    }

    fn arm(mut self: Box<Self>, common: &mut Common, pages: u64) -> State {
        let problem = match &mut self.pages {
            Pages::Follow { named, armed, again: true, .. } if named.is_empty() && pages == *armed => {
                common.send(ToSource::Armed { pages });
                return State::Receiving(self);
            }
            Pages::Follow { demand, named, armed, .. } if *armed + named.len() == pages && pages > *armed => {
                let empty = PageSet::empty(&common.config.identity.layout);
                let named = std::mem::replace(named, empty);
                demand.miss(&named);
                *armed = pages;
                common.act(DestinationAction::Arm(named));
                return State::Receiving(self);
            }
            Pages::Follow { named, armed, .. } => {
                format!("{pages} pages are missing, {} were named", *armed + named.len())
            }
            Pages::Before(_) => format!("{pages} pages are missing, none was named"),
        };
        let failure = common.failure(FailureCode::Protocol, problem);
        common.fail(failure)
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
        } else {
            self.lack(common)
        };
        if let Some(problem) = problem {
            let failure = common.failure(FailureCode::Protocol, problem);
            return common.fail(failure);
        }
        common.enter(MigrationState::Restoring);
        common.act(DestinationAction::Restore(std::mem::take(&mut self.sections)));
        State::Receiving(self)
    }

    /// Why the pages here are not what they must be before the guest may run, if they aren't.
    fn lack(&self, common: &Common) -> Option<String> {
        let total = common.config.identity.layout.total_pages();
        match &self.pages {
            Pages::Before(received) if received.is_complete() => None,
            Pages::Before(received) => Some(format!("{} pages came of {total}", received.count())),
            Pages::Follow { demand, named, .. } => {
                let (here, missing) = (demand.received().count() - demand.placed(), demand.missing());
                let whole = here + missing == total && named.is_empty();
                (!whole)
                    .then(|| format!("{here} pages came and {missing} are known to be missing, of {total}"))
            }
        }
    }

    fn ready(self: Box<Self>, common: &mut Common, took: Duration) -> State {
        common.enter(MigrationState::Ready);
        common.record.downtime_us.import = took.as_secs_f64() * 1e6;
        let received = self.received().count() - self.demand().map_or(0, Demand::placed);
        common.send(ToSource::Ready { import_us: took.as_micros() as u64, received });
        State::Ready(Box::new(Ready::begin(self)))
    }
}
