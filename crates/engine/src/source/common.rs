use std::collections::VecDeque;
use std::time::Duration;

use migrated_pages::{PAGE_SIZE, PageRun, PageSet};
use migrated_wire::{PROTOCOL, PageSetPiece, PostcopyUse, ToDestination, VerifyWhen, bounded_text};

use super::{Failure, FailureCode, Sent, SourceAction, SourceConfig, SourceEvent, State};
use super::{
    drain::Drain, encoding::Encoder, ended::Ended, late::Late, path::PathWatch, push_rate::PushRate,
};
use super::{resuming::Resuming, throttle::Hold};
use crate::liveness::Liveness;
use crate::pace::Pace;
use crate::policy::ConvergencePolicy;
use crate::record::{
    self, Decision, Encodings, Iteration, MigrationRecord, MigrationState, Mode, Postcopy, RecordError,
};
use crate::round::Round;

/// Most decisions and iterations a record keeps; the newest replace the last one beyond it.
const RECORD_LIST_MAX: usize = 200;

/// What all states share.
pub(super) struct Common {
    pub(super) config: SourceConfig,
    pub(super) policy: Box<dyn ConvergencePolicy>,
    pub(super) record: MigrationRecord,
    pub(super) actions: VecDeque<SourceAction>,
    pub(super) link: Liveness,
    pub(super) pace: Pace,
    pub(super) push: PushRate,
    pub(super) path: PathWatch,
    pub(super) encoder: Encoder,
    pub(super) now: Duration,
    pub(super) phase: MigrationState,
    pub(super) tracking: bool,
    /// Whether the guest may switch before its pages: allowed here and possible there.
    pub(super) can_switch: bool,
    /// What holds the guest back while it writes too much.
    pub(super) hold: Hold,
    /// The protocol version of the link that was opened last.
    pub(super) protocol: u16,
    pub(super) late: Late,
    /// Time over which pages flowed, for the throughput.
    pub(super) flow: Duration,
    last_progress: String,
}

impl Common {
    pub(super) fn new(
        config: SourceConfig,
        mut record: MigrationRecord,
        policy: Box<dyn ConvergencePolicy>,
        now: Duration,
    ) -> Self {
        record.ram.pages = config.identity.layout.total_pages();
        record.ram.bytes = config.identity.layout.total_bytes();
        record.channels = config.channels;
        record.mode = config.mode;
        record.bandwidth_bps = config.limits.bandwidth_bps;
        let pace = Pace::new(config.limits.bandwidth_bps);
        let (push, path) = (PushRate::new(config.channels), PathWatch::new(config.channels));
        Self {
            config,
            policy,
            record,
            actions: VecDeque::new(),
            link: Liveness::new(now),
            pace,
            push,
            path,
            encoder: Encoder::default(),
            now,
            phase: MigrationState::Negotiating,
            tracking: false,
            can_switch: false,
            hold: Hold::default(),
            protocol: PROTOCOL.min,
            late: Late::default(),
            flow: Duration::ZERO,
            last_progress: "nothing yet".into(),
        }
    }

    pub(super) fn enter(&mut self, phase: MigrationState) {
        self.phase = phase;
        self.record.state = Some(phase);
    }

    pub(super) fn act(&mut self, action: SourceAction) {
        self.actions.push_back(action);
    }

    pub(super) fn send(&mut self, message: ToDestination) {
        self.act(SourceAction::Send(message));
    }

    pub(super) fn now_ms(&self) -> f64 {
        self.now.as_secs_f64() * 1e3
    }

    pub(super) fn progress(&mut self, what: impl Into<String>) {
        self.last_progress = what.into();
    }

    pub(super) fn decide(&mut self, decision: &str, reason: impl Into<String>) {
        let at_ms = self.now_ms();
        push_bounded(
            &mut self.record.decisions,
            Decision { at_ms, decision: decision.to_owned(), reason: reason.into() },
        );
    }

    pub(super) fn note_iteration(&mut self, round: &Round, dirty_pages: u64, since: Duration) {
        let duration = self.now.saturating_sub(round.started);
        self.flow += duration;
        let seconds = self.now.saturating_sub(since).as_secs_f64();
        self.note(Iteration {
            n: round.n,
            pages: round.pages,
            bytes: round.bytes,
            duration_ms: duration.as_secs_f64() * 1e3,
            dirty_rate_pps: if seconds > 0.0 { dirty_pages as f64 / seconds } else { 0.0 },
            throttle_percent: self.throttle_percent(),
        });
        self.progress(format!("iteration {} with {} pages", round.n, round.pages));
    }

    pub(super) fn note(&mut self, iteration: Iteration) {
        push_bounded(&mut self.record.iterations, iteration);
    }

    /// What the record says about pages that follow the guest.
    pub(super) fn counts(&mut self) -> &mut Postcopy {
        self.record.postcopy.get_or_insert_default()
    }

    pub(super) fn note_loss(&mut self, reason: &str) {
        let lost_ms = self.now_ms();
        record::note_loss(&mut self.counts().recoveries, lost_ms, bounded_text(reason));
    }

    /// Notes that a link that was lost before the commit is back.
    pub(super) fn note_reconnect(&mut self, left: u64, what: &str) {
        let now_ms = self.now_ms();
        record::note_recovery(&mut self.record.reconnects, now_ms, left);
        self.record.error = None;
        self.decide("reconnected", what);
    }

    pub(super) fn note_recovery(&mut self, missing_pages: u64) {
        let now_ms = self.now_ms();
        self.record.error = None;
        self.decide("recovered", format!("there is a link again; {missing_pages} pages are missing"));
        record::note_recovery(&mut self.counts().recoveries, now_ms, missing_pages);
    }

    /// Says in the record what is wrong while it may still turn out well.
    pub(super) fn trouble(&mut self, code: FailureCode, message: String, phase: MigrationState) {
        let code = code.as_str().to_owned();
        self.record.error = Some(RecordError { code, message, phase: Some(phase), details: None });
    }

    /// What the destination must be able to do.
    pub(super) fn postcopy_use(&self) -> PostcopyUse {
        match self.config.mode {
            Mode::Precopy => PostcopyUse::Never,
            Mode::Postcopy | Mode::Hybrid => PostcopyUse::Required,
            Mode::Auto => match self.config.limits.allow_postcopy && self.config.verify != VerifyWhen::Before
            {
                true => PostcopyUse::Allowed,
                false => PostcopyUse::Never,
            },
        }
    }

    /// Names pages as missing at the destination; `total` is how many were named with them.
    pub(super) fn announce(&mut self, missing: &PageSet, total: u64) {
        for piece in PageSetPiece::cut(missing, &self.config.identity.layout) {
            self.send(ToDestination::Missing(piece));
        }
        self.send(ToDestination::MissingSent { pages: total });
    }

    /// Takes in a request for pages. An error is a breach of the protocol, and nothing was done.
    pub(super) fn request(&mut self, drain: &mut Drain, epoch: u64, pages: &[PageRun]) -> Result<(), String> {
        if epoch != self.config.epoch {
            return Err(format!("it asks for pages of attempt {epoch}"));
        }
        let counts = self.record.postcopy.get_or_insert_default();
        drain.request(pages, &self.config.identity.layout, counts)?;
        self.act(SourceAction::Wake);
        Ok(())
    }

    pub(super) fn take_summary(&mut self, wire_received: u64, guest_gap_us: Option<u64>) {
        self.record.guest_gap_us = guest_gap_us.map(|us| us as f64);
        self.progress(format!("summary with {wire_received} bytes received"));
    }

    /// Notes that memory was not compared though it was to be.
    pub(super) fn skip_verification(&mut self, reason: &str) {
        if self.config.verify == VerifyWhen::After {
            self.decide("verification_skipped", format!("the comparison did not finish: {reason}"));
        }
    }

    pub(super) fn account(&mut self, sent: Sent) {
        let ram = &mut self.record.ram;
        ram.pages_zero += sent.zero_pages;
        ram.pages_sent += sent.data_pages;
        self.account_encoding(&sent);
    }

    /// Payload bytes that a page with content came to so far.
    pub(super) fn payload_per_page(&self) -> f64 {
        let Encodings { raw, lz4, .. } = self.record.encodings;
        match raw.pages + lz4.pages {
            0 => PAGE_SIZE as f64,
            pages => (raw.bytes + lz4.bytes) as f64 / pages as f64,
        }
    }

    pub(super) fn no_pages(&self) -> PageSet {
        PageSet::empty(&self.config.identity.layout)
    }

    /// A failure in this state, worded so that it names phase, peer and last progress.
    pub(super) fn failure(&self, code: FailureCode, what: impl std::fmt::Display) -> Failure {
        let message = format!(
            "{what} (in {} with {}; last progress: {}; the guest stays at the source)",
            self.phase, self.config.peer, self.last_progress
        );
        Failure { code, message, phase: self.phase }
    }

    /// Ends the migration before its commit while the guest runs here.
    pub(super) fn fail_running(&mut self, failure: Failure) -> State {
        self.release_throttle();
        self.part(&failure);
        self.stop_tracking();
        self.end(Err(failure))
    }

    /// Ends the migration before its commit while the guest is paused: it must run again first.
    pub(super) fn fail_paused(&mut self, failure: Failure) -> State {
        self.part(&failure);
        Resuming::to_end(self, failure)
    }

    /// Ends dirty tracking, if it is on, of a guest that runs here.
    pub(super) fn stop_tracking(&mut self) {
        if std::mem::take(&mut self.tracking) {
            self.act(SourceAction::StopTracking);
        }
    }

    /// The source's copy is not needed any more: that is when the migration has taken its total time.
    pub(super) fn release(&mut self) {
        self.tracking = false;
        self.record.total_ms = self.now_ms();
    }

    /// Ends a migration whose guest has moved: gives up the source's copy for ever.
    pub(super) fn end_moved(&mut self) -> State {
        self.act(SourceAction::Retire);
        self.end(Ok(()))
    }

    /// The destination's count of a round's pages is not the source's.
    pub(super) fn miscounted(&mut self, round: &Round, pages: u64) -> State {
        let sent = round.handed_out();
        let text = format!("iteration {} has {sent} pages, the destination counts {pages}", round.n);
        let failure = self.failure(FailureCode::Protocol, text);
        self.fail_running(failure)
    }

    fn part(&mut self, failure: &Failure) {
        if failure.code == FailureCode::Cancelled {
            self.decide("cancel", failure.message.clone());
        }
        self.send(ToDestination::Abort { reason: bounded_text(&failure.message) });
    }

    pub(super) fn end(&mut self, result: Result<(), Failure>) -> State {
        self.act(SourceAction::Wake);
        self.act(SourceAction::HangUp);
        match &result {
            Ok(()) => self.enter(MigrationState::Completed),
            Err(failure) => {
                self.record.error = Some(failure.into());
                self.enter(failure.final_state());
            }
        }
        if self.record.total_ms == 0.0 {
            self.record.total_ms = self.now.as_secs_f64() * 1e3;
        }
        State::Ended(Ended { result })
    }

    /// What every state before the commit does alike with an event that is none of its own: `Some` is why
    /// the migration ends. Sends pings when they are due.
    pub(super) fn common_failure(&mut self, event: &SourceEvent) -> Option<Failure> {
        use migrated_wire::ToSource;
        match event {
            SourceEvent::LinkLost(reason) => Some(self.failure(FailureCode::LinkLost, reason)),
            SourceEvent::PeerMisbehaved(what) => Some(self.failure(FailureCode::Protocol, what)),
            SourceEvent::GuestFailed(reason) => Some(self.failure(FailureCode::GuestFailed, reason)),
            SourceEvent::Cancel => Some(self.failure(FailureCode::Cancelled, "cancelled by request")),
            SourceEvent::Message(ToSource::Failed { reason }) => {
                Some(self.failure(
                    FailureCode::DestinationFailed,
                    format_args!("the destination gave up: {reason}"),
                ))
            }
            SourceEvent::Message(message) => {
                let text = format!("unexpected message {message:?}");
                Some(self.failure(FailureCode::Protocol, bounded_text(&text)))
            }
            SourceEvent::Tick => {
                let silence = self.watch()?;
                Some(self.failure(FailureCode::PeerDead, silence))
            }
            _ => None,
        }
    }

    /// Pings when due and says so when the peer is dead.
    pub(super) fn watch(&mut self) -> Option<String> {
        if let Some(silent) = self.link.silence(self.now) {
            return Some(format!("{} has been silent for {:.1} s", self.config.peer, silent.as_secs_f64()));
        }
        if let Some(nonce) = self.link.ping_due(self.now) {
            self.send(ToDestination::Ping { nonce });
        }
        None
    }

    /// Why the guest had better not switch before its pages now.
    pub(super) fn objection(&mut self) -> Option<String> {
        self.path.objection(self.now, &self.link)
    }

    /// Ends a migration that could only have gone on over a better link.
    pub(super) fn fail_unfit(&mut self, objection: &str) -> State {
        let text = format!(
            "the guest would have to run at the destination before its pages are there, and the link is not fit for \
             that: {objection}; repair the link, raise --timeout, or use --on-timeout stop"
        );
        let failure = self.failure(FailureCode::LinkUnfit, text);
        self.fail_running(failure)
    }

    pub(super) fn snapshot(&mut self, now: Duration, remaining: u64) -> MigrationRecord {
        let mut record = self.record.clone();
        record.remaining_pages = remaining;
        if record.total_ms == 0.0 {
            record.total_ms = now.as_secs_f64() * 1e3;
        }
        let first_pass = record.ram.pages.min(record.ram.pages_sent + record.ram.pages_zero);
        record.ram.pages_resent = record.ram.pages_sent + record.ram.pages_zero - first_pass;
        if !self.flow.is_zero() {
            let bytes: u64 = record.iterations.iter().map(|i| i.bytes).sum();
            record.throughput_bps = bytes as f64 * 8.0 / self.flow.as_secs_f64();
        }
        record
    }
}

fn push_bounded<T>(list: &mut Vec<T>, item: T) {
    if list.len() >= RECORD_LIST_MAX {
        list.pop();
    }
    list.push(item);
}
