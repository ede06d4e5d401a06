use std::time::Duration;

use migrated_pages::PageSet;
use migrated_wire::{Section, ToDestination, ToSource, VerifyWhen};

use super::common::Common;
use super::drain::Drain;
use super::interrupted::Interrupted;
use super::postcopy_setup::PostcopySetup;
use super::precopy::Precopy;
use super::resuming::Resuming;
use super::switchover::Switchover;
use super::{Failure, FailureCode, SourceAction, SourceEvent, State};
use crate::limits::RESTORE_TIMEOUT;
use crate::record::{Downtime, MigrationState, Verified, Verify};
use crate::round::{Round, RoundKind};

/// Hashing all of RAM on both ends is allowed this much time for each GiB.
const HASH_TIME_PER_GIB: Duration = Duration::from_secs(4);

/// The guest is paused at the source, which has the right to run it. The last pages and the state travel
/// side by side.
pub(super) struct StopAndCopy {
    /// The rounds before this, to which a lost link leads back; none of post-copy.
    rounds: Option<Box<Precopy>>,
    round: Option<Round>,
    n: u32,
    rest: Rest,
    deadline: Duration,
    marks: Marks,
    doing: Doing,
    acked: bool,
}

/// Pages that the destination lacked when pausing began.
enum Rest {
    /// They go before the guest.
    Residual(PageSet),
    /// They were announced as missing and follow the guest.
    Announced(PageSet),
    /// All that will follow the guest.
    Following(Box<Drain>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    Harvesting,
    Saving,
    AwaitingReady,
    Verifying { hashes_sent: bool },
}

/// Moments of a downtime at the source's clock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks {
    called: Duration,
    paused: Duration,
    harvested: Duration,
    saved: Duration,
    last_page: Duration,
    ready: Duration,
    committed: Duration,
    import: Duration,
}

impl Marks {
    /// The downtime's parts, now that the destination is known to run.
    pub(super) fn downtime(&self, running: Duration) -> Downtime {
        let us = |d: Duration| d.as_secs_f64() * 1e6;
        // State is read while pages flow: pages count only where the guest waited for them alone.
        let pages_after_state = self.last_page.saturating_sub(self.saved);
        let sent = self.last_page.max(self.saved);
        let import = self.import.min(self.ready.saturating_sub(sent));
        Downtime {
            total: us(running.saturating_sub(self.called)),
            pause: us(self.paused.saturating_sub(self.called)),
            final_pages: us(self.harvested.saturating_sub(self.paused) + pages_after_state),
            export: us(self.saved.saturating_sub(self.harvested)),
            send: us(self.ready.saturating_sub(sent).saturating_sub(import)),
            import: us(import),
            verify: us(self.committed.saturating_sub(self.ready)),
            resume: us(running.saturating_sub(self.committed)),
        }
    }

    pub(super) const fn committed(&self) -> Duration {
        self.committed
    }

    pub(super) const fn called(&self) -> Duration {
        self.called
    }
}

impl StopAndCopy {
    pub(super) fn begin(
        common: &mut Common,
        rounds: Box<Precopy>,
        residual: PageSet,
        called: Duration,
    ) -> State {
        common.act(SourceAction::FinalHarvest);
        let pages = residual.len() as f64 * migrated_pages::PAGE_SIZE as f64 / rounds.rate();
        let transfer = Duration::try_from_secs_f64(pages * 3.0).unwrap_or(Duration::MAX / 4);
        let n = rounds.iteration() + 1;
        let paused = Self::paused(common, n, Rest::Residual(residual), called, transfer);
        State::StopAndCopy(Box::new(Self { rounds: Some(rounds), ..paused }))
    }

    /// The guest will run at the destination before its pages are there; `iteration` is that of their frames.
    pub(super) fn begin_postcopy(
        common: &mut Common,
        iteration: u32,
        announced: PageSet,
        called: Duration,
    ) -> State {
        let rest = Rest::Announced(announced);
        let state = Box::new(Self::paused(common, iteration, rest, called, Duration::ZERO));
        if common.tracking {
            common.act(SourceAction::FinalHarvest);
            return State::StopAndCopy(state);
        }
        let nothing = common.no_pages();
        state.harvested(common, nothing)
    }

    fn paused(common: &mut Common, n: u32, rest: Rest, called: Duration, transfer: Duration) -> Self {
        common.enter(MigrationState::StopAndCopy);
        Self {
            rounds: None,
            round: None,
            n,
            rest,
            deadline: common.now + RESTORE_TIMEOUT + transfer,
            marks: Marks { called, paused: common.now, ..Marks::default() },
            doing: Doing::Harvesting,
            acked: false,
        }
    }

    pub(super) fn drain(&self) -> Option<&Drain> {
        match &self.rest {
            Rest::Following(drain) => Some(drain),
            _ => None,
        }
    }

    pub(super) fn drain_mut(&mut self) -> Option<&mut Drain> {
        match &mut self.rest {
            Rest::Following(drain) => Some(drain),
            _ => None,
        }
    }

    pub(super) const fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(super) fn round_mut(&mut self) -> Option<&mut Round> {
        self.round.as_mut()
    }

    pub(super) fn on(mut self: Box<Self>, common: &mut Common, event: SourceEvent) -> State {
        match (event, self.doing) {
            (SourceEvent::Harvested { dirty, .. }, Doing::Harvesting) => self.harvested(common, dirty),
            (SourceEvent::StateSaved(sections), Doing::Saving) => self.send_state(common, sections),
            (SourceEvent::Message(ToSource::IterationDone { iteration, pages }), _)
                if iteration == self.n && !self.acked =>
            {
                self.acked = true;
                match &self.round {
                    Some(round) if pages == round.handed_out() && round.all_marked() => {
                        common.note_iteration(round, 0, round.started);
                        State::StopAndCopy(self)
                    }
                    _ => common.fail_paused(common.failure(
                        FailureCode::Protocol,
                        format!("the destination counts {pages} pages in the last iteration"),
                    )),
                }
            }
            (SourceEvent::Message(ToSource::Ready { import_us, received }), Doing::AwaitingReady)
                if self.acked =>
            {
                self.on_ready(common, Duration::from_micros(import_us), received)
            }
            // Restoring state touches memory too.
            (SourceEvent::Message(ToSource::PageRequest { epoch, pages }), _) if self.drain().is_some() => {
                let refused = self.drain_mut().and_then(|drain| common.request(drain, epoch, &pages).err());
                match refused {
                    Some(why) => common.fail_paused(common.failure(FailureCode::Protocol, why)),
                    None => State::StopAndCopy(self),
                }
            }
            // It has dropped what was announced last; it restores only after that.
            (SourceEvent::Message(ToSource::Armed { pages }), _)
                if self.drain().is_some_and(|drain| drain.missing == pages) =>
            {
                State::StopAndCopy(self)
            }
            (
                SourceEvent::Message(ToSource::Verified { pages, mismatches, detail }),
                Doing::Verifying { hashes_sent: true },
            ) => self.on_verified(common, pages, mismatches, &detail),
            (SourceEvent::Tick, _) if common.now >= self.deadline => {
                let text = "the destination was not ready in time; the guest resumes at the source";
                common.fail_paused(common.failure(FailureCode::PhaseTimeout, text))
            }
            (event, _) => match common.common_failure(&event) {
                Some(failure) => self.fail(common, failure),
                None => State::StopAndCopy(self),
            },
        }
    }

    /// The guest runs again; when it was the link that failed, until there is another one.
    fn fail(self: Box<Self>, common: &mut Common, failure: Failure) -> State {
        let is_lost = matches!(failure.code, FailureCode::LinkLost | FailureCode::PeerDead);
        if !is_lost || common.config.limits.reconnect_window.is_zero() {
            return common.fail_paused(failure);
        }
        match self.interrupted() {
            Some(interrupted) => Resuming::to_reconnect(common, failure, interrupted),
            None => common.fail_paused(failure),
        }
    }

    /// What to go on with on another link, unless the destination is known to have restored state.
    fn interrupted(self) -> Option<Interrupted> {
        match (self.rounds, self.round, self.rest) {
            (Some(mut rounds), Some(round), _) if round.kind == RoundKind::Pages => {
                rounds.take_back(round);
                Some(Interrupted::Round(rounds))
            }
            (None, None, Rest::Following(drain)) => {
                Some(Interrupted::Setup(PostcopySetup::interrupted(self.n, drain.untouched()?)))
            }
            _ => None,
        }
    }

    fn harvested(mut self: Box<Self>, common: &mut Common, dirty: PageSet) -> State {
        self.marks.harvested = common.now;
        match std::mem::replace(&mut self.rest, Rest::Residual(common.no_pages())) {
            Rest::Announced(announced) => self.announce_rest(common, announced, dirty),
            Rest::Residual(pages) => self.send_last_pages(common, pages, &dirty),
            Rest::Following(_) => unreachable!("the guest is harvested once"),
        }
    }

    /// What the guest wrote since the rest was announced is stale there as well.
    fn announce_rest(
        mut self: Box<Self>,
        common: &mut Common,
        announced: PageSet,
        mut dirty: PageSet,
    ) -> State {
        announced.runs().for_each(|run| _ = dirty.remove(run));
        let mut missing = announced;
        missing.union(&dirty);
        common.progress(format!("guest paused, {} pages follow it", missing.len()));
        if !dirty.is_empty() {
            common.announce(&dirty, missing.len());
        }
        common.counts().missing_pages = missing.len();
        self.rest =
            Rest::Following(Box::new(Drain::new(self.n, missing, common.config.limits.prefetch_pages)));
        self.acked = true;
        self.doing = Doing::Saving;
        common.act(SourceAction::SaveState);
        State::StopAndCopy(self)
    }

    fn send_last_pages(
        mut self: Box<Self>,
        common: &mut Common,
        mut pages: PageSet,
        dirty: &PageSet,
    ) -> State {
        pages.union(dirty);
        common.progress(format!("guest paused, {} pages left", pages.len()));
        if let Some(rounds) = &mut self.rounds {
            rounds.keep(&pages);
        }
        let channels = common.config.channels;
        self.round = Some(Round::new(RoundKind::Pages, self.n, pages, channels, common.now));
        self.doing = Doing::Saving;
        common.act(SourceAction::Wake);
        common.act(SourceAction::SaveState);
        State::StopAndCopy(self)
    }

    fn send_state(mut self: Box<Self>, common: &mut Common, sections: Vec<Section>) -> State {
        self.marks.saved = common.now;
        self.doing = Doing::AwaitingReady;
        let count = sections.len() as u32;
        for section in sections {
            common.send(ToDestination::State(section));
        }
        let iteration = if self.drain().is_some() { self.n - 1 } else { self.n };
        common.send(ToDestination::Finish { iteration, sections: count });
        State::StopAndCopy(self)
    }

    fn on_ready(mut self: Box<Self>, common: &mut Common, import: Duration, received: u64) -> State {
        let total = common.config.identity.layout.total_pages();
        let due = total - self.drain().map_or(0, |drain| drain.missing);
        if received != due {
            let text = format!("the destination is ready with {received} of {due} pages");
            return common.fail_paused(common.failure(FailureCode::Protocol, text));
        }
        self.marks.ready = common.now;
        self.marks.import = import;
        common.progress("destination ready");
        if common.config.verify != VerifyWhen::Before {
            return self.commit(common);
        }
        let gib = u32::try_from(total >> 18).unwrap_or(u32::MAX).saturating_add(1);
        self.deadline = common.now + RESTORE_TIMEOUT + HASH_TIME_PER_GIB.saturating_mul(gib);
        let all = PageSet::full(&common.config.identity.layout);
        let channels = common.config.channels;
        self.round = Some(Round::new(RoundKind::Hashes, self.n + 1, all, channels, common.now));
        self.doing = Doing::Verifying { hashes_sent: false };
        common.act(SourceAction::Wake);
        State::StopAndCopy(self)
    }

    /// A channel handed its marker to the transport.
    pub(super) fn after_marker(&mut self, common: &mut Common) {
        let Some(round) = &self.round else { return };
        match round.kind {
            RoundKind::Pages => self.marks.last_page = common.now,
            RoundKind::Hashes
                if self.doing == (Doing::Verifying { hashes_sent: false }) && round.all_marked() =>
            {
                self.doing = Doing::Verifying { hashes_sent: true };
                common.send(ToDestination::HashesSent { pages: round.handed_out() });
            }
            RoundKind::Hashes => {}
        }
    }

    fn on_verified(self: Box<Self>, common: &mut Common, pages: u64, wrong: u64, detail: &str) -> State {
        common.record.verified = Some(Verified { method: Verify::Before, pages, mismatches: wrong });
        if wrong != 0 || pages != common.config.identity.layout.total_pages() {
            let text = format!("memory differs: {wrong} of {pages} pages compared ({detail})");
            return common.fail_paused(common.failure(FailureCode::VerificationFailed, text));
        }
        self.commit(common)
    }

    fn commit(mut self: Box<Self>, common: &mut Common) -> State {
        self.marks.committed = common.now;
        common.enter(MigrationState::Switchover);
        let drain = match self.rest {
            Rest::Following(drain) => Some(drain),
            Rest::Residual(_) | Rest::Announced(_) => None,
        };
        common.decide(
            "commit",
            match drain.is_some() {
                true => "the destination holds the restored state and knows which pages it lacks",
                false => "the destination holds all pages and the restored state",
            },
        );
        common.send(ToDestination::Commit { epoch: common.config.epoch });
        if drain.is_some() {
            common.push.govern(common.now);
            common.limit_push(common.now);
            common.act(SourceAction::Wake);
        }
        State::Switchover(Switchover { marks: self.marks, next_round: self.n + 1, drain })
    }
}
