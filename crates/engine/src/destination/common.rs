use std::collections::VecDeque;
use std::time::Duration;

use migrated_pages::PageSet;
use migrated_wire::{PROTOCOL, PageSetPiece, ToDestination, ToSource, VerifyWhen, bounded_text};

use super::ended::Ended;
use super::waits::Waits;
use super::{DestinationAction, DestinationConfig, DestinationEvent, Failure, FailureCode, State};
use crate::liveness::Liveness;
use crate::record::{
    self, MigrationRecord, MigrationState, Postcopy, RecordError, RecordRole, Verified, Verify,
};

/// What all states share.
pub(super) struct Common {
    pub(super) config: DestinationConfig,
    pub(super) record: MigrationRecord,
    pub(super) actions: VecDeque<DestinationAction>,
    pub(super) link: Liveness,
    /// The protocol version of the link that was opened last.
    pub(super) protocol: u16,
    pub(super) now: Duration,
    pub(super) phase: MigrationState,
    pub(super) verify: VerifyWhen,
    pub(super) guest_clock: Option<u64>,
    pub(super) comparison: Comparison,
    pub(super) goodbye: bool,
    /// How long to wait for a source that lost its link before the commit.
    pub(super) reconnect_window: Duration,
    /// Whether the source may name pages as missing.
    pub(super) may_follow: bool,
    pub(super) waits: Waits,
    /// When the guest began to run before its pages were here.
    pub(super) follows_since: Option<Duration>,
    /// Pages that followed the guest, once all have.
    pub(super) followed: Option<u64>,
}

/// What comparing hashes found so far.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) pages: u64,
    pub(super) mismatches: u64,
    pub(super) detail: String,
}

impl Comparison {
    pub(super) fn add(&mut self, pages: u64, mismatches: u64, detail: Option<String>) {
        self.pages += pages;
        self.mismatches += mismatches;
        if let (true, Some(detail)) = (self.detail.is_empty(), detail) {
            self.detail = bounded_text(&detail);
        }
    }
}

impl Common {
    pub(super) fn new(config: DestinationConfig, mut record: MigrationRecord, now: Duration) -> Self {
        record.role = RecordRole::Destination;
        record.ram.pages = config.identity.layout.total_pages();
        record.ram.bytes = config.identity.layout.total_bytes();
        Self {
            config,
            record,
            actions: VecDeque::new(),
            link: Liveness::new(now),
            protocol: PROTOCOL.min,
            now,
            phase: MigrationState::Negotiating,
            verify: VerifyWhen::Off,
            guest_clock: None,
            comparison: Comparison::default(),
            goodbye: false,
            reconnect_window: Duration::ZERO,
            may_follow: false,
            waits: Waits::default(),
            follows_since: None,
            followed: None,
        }
    }

    pub(super) fn enter(&mut self, phase: MigrationState) {
        self.phase = phase;
        self.record.state = Some(phase);
    }

    pub(super) fn act(&mut self, action: DestinationAction) {
        self.actions.push_back(action);
    }

    pub(super) fn send(&mut self, message: ToSource) {
        self.act(DestinationAction::Send(message));
    }

    /// What the record says about pages that follow the guest.
    pub(super) fn counts(&mut self) -> &mut Postcopy {
        self.record.postcopy.get_or_insert_default()
    }

    pub(super) fn note_loss(&mut self, reason: &str) {
        let lost_ms = self.now_ms();
        record::note_loss(&mut self.counts().recoveries, lost_ms, bounded_text(reason));
    }

    pub(super) fn note_recovery(&mut self, missing_pages: u64) {
        let now_ms = self.now_ms();
        self.record.error = None;
        record::note_recovery(&mut self.counts().recoveries, now_ms, missing_pages);
    }

    /// Says in the record what is wrong while it may still turn out well.
    pub(super) fn trouble(&mut self, code: FailureCode, message: String, phase: MigrationState) {
        let code = code.as_str().to_owned();
        self.record.error = Some(RecordError { code, message, phase: Some(phase), details: None });
    }

    /// Answers a source that is back and asked what is here.
    pub(super) fn tell(&mut self, received: &PageSet) {
        for piece in PageSetPiece::cut(received, &self.config.identity.layout) {
            self.send(ToSource::Received(piece));
        }
        self.send(ToSource::ReceivedSent { pages: received.len() });
    }

    pub(super) fn no_pages(&self) -> PageSet {
        PageSet::empty(&self.config.identity.layout)
    }

    pub(super) fn now_ms(&self) -> f64 {
        self.now.as_secs_f64() * 1e3
    }

    /// A failure in this state, worded so that it names phase and peer.
    pub(super) fn failure(&self, code: FailureCode, what: impl std::fmt::Display) -> Failure {
        let message = format!(
            "{what} (in {} with {}; the guest never ran here and stays at the source)",
            self.phase, self.config.peer
        );
        Failure { code, message, phase: self.phase }
    }

    /// Ends the migration before its commit: the incoming guest is destroyed.
    pub(super) fn fail(&mut self, failure: Failure) -> State {
        self.send(ToSource::Failed { reason: bounded_text(&failure.message) });
        self.destroy(failure)
    }

    /// Ends the migration after its commit arrived but before the guest ran.
    pub(super) fn refuse_commit(&mut self, failure: Failure) -> State {
        let epoch = self.config.epoch;
        self.send(ToSource::CommitRefused { epoch, reason: bounded_text(&failure.message) });
        self.destroy(failure)
    }

    fn destroy(&mut self, failure: Failure) -> State {
        // Before the answer reaches anybody: "never ran" has to stay true.
        self.actions.push_front(DestinationAction::Destroy);
        self.end(Err(failure))
    }

    pub(super) fn end(&mut self, result: Result<(), Failure>) -> State {
        self.act(DestinationAction::HangUp);
        match &result {
            Ok(()) => self.enter(MigrationState::Completed),
            Err(failure) => {
                self.record.error = Some(failure.into());
                self.enter(failure.final_state());
            }
        }
        self.record.total_ms = self.now.as_secs_f64() * 1e3;
        State::Ended(Ended { result })
    }

    /// What every state before the commit does alike with an event that is none of its own: `Some` is why
    /// the migration ends.
    pub(super) fn common_failure(&mut self, event: &DestinationEvent) -> Option<Failure> {
        match event {
            DestinationEvent::LinkLost(reason) | DestinationEvent::PagesLost(reason) => {
                Some(self.failure(FailureCode::LinkLost, reason))
            }
            DestinationEvent::PeerMisbehaved(what) => Some(self.failure(FailureCode::Protocol, what)),
            DestinationEvent::GuestFailed(reason) => Some(self.failure(FailureCode::GuestFailed, reason)),
            DestinationEvent::Cancel => Some(self.failure(FailureCode::Cancelled, "cancelled by request")),
            DestinationEvent::Message(ToDestination::Abort { reason }) => {
                Some(self.failure(FailureCode::SourceFailed, format_args!("the source gave up: {reason}")))
            }
            DestinationEvent::Message(message) => {
                let text = bounded_text(&format!("unexpected message {message:?}"));
                Some(self.failure(FailureCode::Protocol, text))
            }
            DestinationEvent::Tick => Some(self.failure(FailureCode::PeerDead, self.silence()?)),
            _ => None,
        }
    }

    /// Why the source counts as dead, if it does.
    pub(super) fn silence(&self) -> Option<String> {
        let silent = self.link.silence(self.now)?;
        Some(format!("{} has been silent for {:.1} s", self.config.peer, silent.as_secs_f64()))
    }

    /// Answers with what comparing found.
    pub(super) fn report_comparison(&mut self, method: Verify) {
        let Comparison { pages, mismatches, detail } = std::mem::take(&mut self.comparison);
        self.record.verified = Some(Verified { method, pages, mismatches });
        self.send(ToSource::Verified { pages, mismatches, detail });
    }

    pub(super) fn snapshot(&self, now: Duration) -> MigrationRecord {
        let mut record = self.record.clone();
        if !self.phase.is_final() {
            record.total_ms = now.as_secs_f64() * 1e3;
        }
        if let (Some(counts), Some(since)) = (&mut record.postcopy, self.follows_since) {
            let until = counts.last_page_ms.map(|ms| since + Duration::from_secs_f64(ms / 1e3));
            self.waits.report(now, until.unwrap_or(now).saturating_sub(since), counts);
        }
        record
    }
}
