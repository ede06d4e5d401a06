use std::time::Duration;

use migrated_pages::PageSet;
use migrated_wire::{ToDestination, ToSource, VerifyWhen};

use super::common::Common;
use super::{SourceAction, SourceEvent, State};
use crate::limits::SUMMARY_TIMEOUT;
use crate::record::{MigrationState, Verified, Verify};
use crate::round::{Round, RoundKind};

/// The guest runs at the destination. The source's RAM is history: at once when nothing is to be compared, after the
/// comparison with `verify: after`. It is freed when the migration ends, because freeing much takes long, and what comes
/// late for the guest must not wait for that.
pub(super) struct Settling {
    /// Hashes on their way; `None` when nothing is compared (any more).
    hashes: Option<Round>,
    verified: bool,
    summary: bool,
    /// When to stop waiting for the summary.
    deadline: Option<Duration>,
    /// Nothing is missing but the last late input.
    parting: bool,
}

impl Settling {
    pub(super) fn begin(common: &mut Common, next_round: u32, summary: bool) -> State {
        common.enter(MigrationState::Settling);
        let compare = common.config.verify == VerifyWhen::After;
        let hashes = compare.then(|| {
            let all = PageSet::full(&common.config.identity.layout);
            Round::new(RoundKind::Hashes, next_round, all, common.config.channels, common.now)
        });
        if compare {
            common.act(SourceAction::Wake);
        } else {
            common.release();
        }
        let deadline = (!compare).then(|| common.now + SUMMARY_TIMEOUT);
        let state = Self { hashes, verified: !compare, summary, deadline, parting: false };
        if !state.is_done() {
            common.hand_on_late_input();
        }
        Box::new(state).part_when_done(common)
    }

    pub(super) fn deadline(&self, common: &Common) -> Option<Duration> {
        [self.deadline, common.late.due()].into_iter().flatten().min()
    }

    const fn is_done(&self) -> bool {
        self.summary && self.verified
    }

    pub(super) fn round_mut(&mut self) -> Option<&mut Round> {
        self.hashes.as_mut()
    }

    /// A channel handed its marker to the transport.
    pub(super) fn after_marker(&mut self, common: &mut Common) {
        if let Some(round) = self.hashes.take_if(|round| round.all_marked()) {
            common.send(ToDestination::HashesSent { pages: round.handed_out() });
        }
    }

    pub(super) fn on(mut self: Box<Self>, common: &mut Common, event: SourceEvent) -> State {
        if self.parting {
            return match event {
                SourceEvent::LateInput(_) => Self::part(common),
                _ => State::Settling(self),
            };
        }
        match event {
            SourceEvent::Message(ToSource::FirstPacket { us }) => {
                common.record.first_packet_us = Some(us as f64);
            }
            SourceEvent::Message(ToSource::Summary { wire_received, guest_gap_us }) => {
                common.take_summary(wire_received, guest_gap_us);
                self.summary = true;
            }
            SourceEvent::Message(ToSource::Verified { pages, mismatches, detail }) if !self.verified => {
                common.record.verified = Some(Verified { method: Verify::After, pages, mismatches });
                if mismatches != 0 {
                    common.decide("memory_differs", detail);
                }
                self.verified = true;
                self.deadline = Some(common.now + SUMMARY_TIMEOUT);
                common.release();
            }
            SourceEvent::LinkLost(reason) | SourceEvent::PeerMisbehaved(reason) => {
                return self.part_early(common, &reason);
            }
            SourceEvent::Tick => {
                if self.deadline.is_some_and(|deadline| common.now >= deadline) {
                    return self.part_early(common, "the destination sent no summary");
                }
                common.look_for_late_input();
                if let Some(silence) = common.watch() {
                    return self.part_early(common, &silence);
                }
            }
            SourceEvent::Cancel => {
                common.decide("cancel_refused", "the guest runs at the destination");
            }
            _ => {}
        }
        self.part_when_done(common)
    }

    fn part_when_done(mut self: Box<Self>, common: &mut Common) -> State {
        if self.is_done() {
            self.parting = common.take_late_input();
            if !self.parting {
                return Self::part(common);
            }
        }
        State::Settling(self)
    }

    fn part(common: &mut Common) -> State {
        common.send(ToDestination::Goodbye);
        common.end_moved()
    }

    /// The guest has moved, whatever else was still to be said.
    fn part_early(&self, common: &mut Common, reason: &str) -> State {
        if !self.verified {
            common.skip_verification(reason);
            common.release();
        } else {
            common.decide("summary_skipped", reason);
        }
        common.end_moved()
    }
}
