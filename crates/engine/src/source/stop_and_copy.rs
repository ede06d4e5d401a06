use std::time::Duration;

use migrated_pages::PageSet;
use migrated_wire::{Section, ToDestination, ToSource, VerifyWhen};

use super::common::Common;
use super::switchover::Switchover;
use super::{FailureCode, SourceAction, SourceEvent, State};
use crate::limits::RESTORE_TIMEOUT;
use crate::record::{Downtime, MigrationState, Verified, Verify};
use crate::round::{Round, RoundKind};

/// Hashing all of RAM on both ends is allowed this much time for each GiB.
const HASH_TIME_PER_GIB: Duration = Duration::from_secs(4);

/// The guest is paused at the source, which has the right to run it. The last pages and the state travel
/// side by side.
pub(super) struct StopAndCopy {
    round: Option<Round>,
    n: u32,
    residual: PageSet,
    deadline: Duration,
    marks: Marks,
    doing: Doing,
    acked: bool,
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

    pub(super) const fn called(&self) -> Duration {
        self.called
    }
}

impl StopAndCopy {
    pub(super) fn begin(
        common: &mut Common,
        n: u32,
        residual: PageSet,
        called: Duration,
        rate: f64,
    ) -> State {
        common.enter(MigrationState::StopAndCopy);
        common.act(SourceAction::FinalHarvest);
        let pages = residual.len() as f64 * migrated_pages::PAGE_SIZE as f64 / rate;
        let transfer = Duration::try_from_secs_f64(pages * 3.0).unwrap_or(Duration::MAX / 4);
        State::StopAndCopy(Box::new(Self {
            round: None,
            n,
            residual,
            deadline: common.now + RESTORE_TIMEOUT + transfer,
            marks: Marks { called, paused: common.now, ..Marks::default() },
            doing: Doing::Harvesting,
            acked: false,
        }))
    }

    pub(super) const fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(super) fn round_mut(&mut self) -> Option<&mut Round> {
        self.round.as_mut()
    }

    pub(super) fn on(mut self: Box<Self>, common: &mut Common, event: SourceEvent) -> State {
        match (event, self.doing) {
            (SourceEvent::Harvested { dirty, .. }, Doing::Harvesting) => self.send_last_pages(common, &dirty),
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
            (
                SourceEvent::Message(ToSource::Verified { pages, mismatches, detail }),
                Doing::Verifying { hashes_sent: true },
            ) => self.on_verified(common, pages, mismatches, &detail),
            (SourceEvent::Tick, _) if common.now >= self.deadline => {
                let text = "the destination was not ready in time; the guest resumes at the source";
                common.fail_paused(common.failure(FailureCode::PhaseTimeout, text))
            }
            (event, _) => match common.common_failure(&event) {
                Some(failure) => common.fail_paused(failure),
                None => State::StopAndCopy(self),
            },
        }
    }

    fn send_last_pages(mut self: Box<Self>, common: &mut Common, dirty: &PageSet) -> State {
        self.marks.harvested = common.now;
        let mut pages = std::mem::replace(&mut self.residual, common.no_pages());
        pages.union(dirty);
        common.progress(format!("guest paused, {} pages left", pages.len()));
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
        common.send(ToDestination::Finish { iteration: self.n, sections: count });
        State::StopAndCopy(self)
    }

    fn on_ready(mut self: Box<Self>, common: &mut Common, import: Duration, received: u64) -> State {
        let total = common.config.identity.layout.total_pages();
        if received != total {
            let text = format!("the destination is ready with {received} of {total} pages");
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
        common.decide("commit", "the destination holds all pages and the restored state");
        common.send(ToDestination::Commit { epoch: common.config.epoch });
        State::Switchover(Switchover { marks: self.marks, next_round: self.n + 1 })
    }
}
