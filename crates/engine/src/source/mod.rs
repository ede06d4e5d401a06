//! The source's state machine.
//!
//! One struct a state, one file a struct; a transition consumes the struct. The driver (a session, or a
//! test with a virtual clock) does three things: it feeds [`SourceEvent`]s, it carries out
//! [`SourceAction`]s in order, and its page channels pull their work with [`Source::next_batch`], the urgent
//! one with [`Source::next_urgent`]. Its duties: an action on the guest is answered before any other event is
//! fed, so no state waits for the guest; and nothing of an old link is fed once there is a new one.

mod answer;
mod batch;
mod common;
mod drain;
mod encoding;
mod ended;
mod indeterminate;
mod interrupted;
mod late;
mod negotiating;
mod pacing;
mod path;
mod postcopy_active;
mod postcopy_paused;
mod postcopy_setup;
mod precopy;
mod precopy_paused;
mod precopy_recovering;
mod prefetch;
mod preflight;
mod push_rate;
mod recovering;
mod resuming;
mod retry;
mod settling;
mod stop_and_copy;
mod switchover;
mod throttle;

use std::time::Duration;

use migrated_pages::{PAGE_SIZE, PageRun, PageSet};
use migrated_wire::{CommitOutcome, GuestIdentity, LateInput, Section, ToDestination, ToSource, VerifyWhen};

use crate::failure::{Failure, FailureCode};
use crate::limits::Limits;
use crate::policy::ConvergencePolicy;
use crate::record::{Compression, MigrationRecord, MigrationState, Mode};
use crate::round::{RoundKind, Take};
use crate::throttle::{ThrottleCounts, ThrottleOrder};
pub use batch::{BATCH_PAGES, BATCH_RUNS, Compressed, Next, Sent};
use common::Common;
pub use encoding::Encoding;

/// What a source is told when it is made.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// The guest, as the destination must find it.
    pub identity: GuestIdentity,
    /// The attempt.
    pub epoch: u64,
    /// How memory is moved. Other than pre-copy needs an urgent channel.
    pub mode: Mode,
    /// Page channels that will be opened.
    pub channels: u16,
    /// When memory is compared.
    pub verify: VerifyWhen,
    /// Whether pages may be compressed.
    pub compression: Compression,
    /// What the migration may cost.
    pub limits: Limits,
    /// The guest's own clock, see [`ToDestination::Preflight`].
    pub guest_clock: Option<u64>,
    /// The destination as people name it, for messages.
    pub peer: String,
}

/// What happened.
#[derive(Debug)]
pub enum SourceEvent {
    /// All channels are open: for the first time, or as the answer to [`SourceAction::Reconnect`], when every
    /// thread of the old ones has ended.
    Connected {
        /// The protocol version that both ends speak.
        version: u16,
    },
    /// The channels could not be opened; that may pass.
    ConnectFailed(String),
    /// The channels were refused, or can't be opened by this host: when they were never open before, trying again
    /// changes nothing.
    ConnectRefused(String),
    /// The destination said something.
    Message(ToSource),
    /// A channel broke, for this reason.
    LinkLost(String),
    /// The peer sent what it must not.
    PeerMisbehaved(String),
    /// Somebody wants it cancelled.
    Cancel,
    /// Somebody knows that reconnecting may work now, or by another way.
    Retry,
    /// Answer to [`SourceAction::StartTracking`].
    TrackingStarted,
    /// Answer to [`SourceAction::Harvest`] and [`SourceAction::FinalHarvest`].
    Harvested {
        /// Pages written since the last harvest.
        dirty: PageSet,
        /// What the harvest took.
        took: Duration,
    },
    /// Answer to [`SourceAction::ReadThrottle`].
    Throttled(ThrottleCounts),
    /// [`SourceAction::Throttle`] failed, for this reason: nothing is held back.
    ThrottleFailed(String),
    /// Answer to [`SourceAction::Pause`].
    Paused,
    /// Answer to [`SourceAction::SaveState`].
    StateSaved(Vec<Section>),
    /// Answer to [`SourceAction::Resume`].
    Resumed,
    /// Answer to [`SourceAction::TakeLateInput`]: what there was, oldest first.
    LateInput(Vec<LateInput>),
    /// An action on the guest failed. After a failed pause the guest runs; after a failed resume it stays paused.
    GuestFailed(String),
    /// Answer to [`SourceAction::Ask`], or what somebody else learnt; `None` when nobody answered.
    Outcome(Option<CommitOutcome>),
    /// Time passed; see [`Source::deadline`].
    Tick,
}

/// What the driver does next.
#[derive(Debug, PartialEq, Eq)]
pub enum SourceAction {
    /// Send a message on the control channel.
    Send(ToDestination),
    /// Begin dirty tracking.
    StartTracking,
    /// Harvest dirty pages while the guest runs.
    Harvest,
    /// Hold vCPUs of the running guest back from now on, or none any more. Answered only by
    /// [`SourceEvent::ThrottleFailed`].
    Throttle(Option<ThrottleOrder>),
    /// Say what throttling did so far.
    ReadThrottle,
    /// Stop all vCPUs. Nothing is held back any more once they have stopped.
    Pause,
    /// Harvest dirty pages of the paused guest, for the last time.
    FinalHarvest,
    /// Read CPU and device state of the paused guest.
    SaveState,
    /// Run the guest on here, tracked or not as before.
    Resume,
    /// End dirty tracking of the running guest.
    StopTracking,
    /// The guest runs elsewhere: take what has come here for its devices since it was paused. Other than with the
    /// actions before, a request for pages may be fed before the answer.
    TakeLateInput {
        /// Most bytes to take at a time.
        limit_bytes: usize,
    },
    /// The guest runs elsewhere: give up this copy for ever and free its RAM.
    Retire,
    /// Ask the destination what became of the commit, by whatever way there is.
    Ask,
    /// Open all channels again with the same migration, attempt and token; answered by
    /// [`SourceEvent::Connected`] or [`SourceEvent::ConnectFailed`], meanwhile other events may be fed.
    Reconnect,
    /// Page channels have work: wake them.
    Wake,
    /// Close all channels.
    HangUp,
}

/// The state machine of a migration's source.
pub struct Source {
    common: Common,
    state: State,
}

enum State {
    Negotiating(negotiating::Negotiating),
    Preflight(preflight::Preflight),
    Precopy(Box<precopy::Precopy>),
    PrecopyPaused(precopy_paused::PrecopyPaused),
    PrecopyRecovering(Box<precopy_recovering::PrecopyRecovering>),
    PostcopySetup(Box<postcopy_setup::PostcopySetup>),
    StopAndCopy(Box<stop_and_copy::StopAndCopy>),
    Switchover(switchover::Switchover),
    Indeterminate(indeterminate::Indeterminate),
    PostcopyActive(postcopy_active::PostcopyActive),
    PostcopyPaused(postcopy_paused::PostcopyPaused),
    Recovering(Box<recovering::Recovering>),
    Settling(Box<settling::Settling>),
    Resuming(resuming::Resuming),
    Ended(ended::Ended),
    /// Only while a transition is under way.
    Moving,
}

impl Source {
    /// A source whose channels are about to be opened. `record` has what is known already (id, VM, peer,
    /// set-up so far); `now` counts from the request, as all times do.
    #[must_use]
    pub fn new(
        config: SourceConfig,
        record: MigrationRecord,
        policy: Box<dyn ConvergencePolicy>,
        now: Duration,
    ) -> Self {
        let mut common = Common::new(config, record, policy, now);
        common.enter(MigrationState::Negotiating);
        Self { common, state: negotiating::Negotiating::begin() }
    }

    /// Takes in an event.
    pub fn handle(&mut self, now: Duration, event: SourceEvent) {
        let common = &mut self.common;
        common.now = now;
        if let SourceEvent::Message(message) = &event {
            common.link.heard(now);
            if let ToSource::Pong { nonce } = message {
                common.link.pong(now, *nonce);
                return;
            }
        }
        match event {
            SourceEvent::LateInput(ref found) => common.late_input_taken(found),
            SourceEvent::Throttled(counts) => return common.throttle_read(&counts),
            SourceEvent::ThrottleFailed(reason) => return common.throttle_failed(reason),
            SourceEvent::Connected { version } => common.protocol = version,
            _ => {}
        }
        self.state = match std::mem::replace(&mut self.state, State::Moving) {
            State::Negotiating(state) => state.on(common, event),
            State::Preflight(state) => state.on(common, event),
            State::Precopy(state) => state.on(common, event),
            State::PrecopyPaused(state) => state.on(common, event),
            State::PrecopyRecovering(state) => state.on(common, event),
            State::PostcopySetup(state) => state.on(common, event),
            State::StopAndCopy(state) => state.on(common, event),
            State::Switchover(state) => state.on(common, event),
            State::Indeterminate(state) => state.on(common, event),
            State::PostcopyActive(state) => state.on(common, event),
            State::PostcopyPaused(state) => state.on(common, event),
            State::Recovering(state) => state.on(common, event),
            State::Settling(state) => state.on(common, event),
            State::Resuming(state) => state.on(common, event),
            State::Ended(state) => State::Ended(state),
            State::Moving => unreachable!("a transition put a state back"),
        };
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<SourceAction> {
        self.common.actions.pop_front()
    }

    /// Work for a page channel; runs are appended to `out`.
    pub fn next_batch(&mut self, now: Duration, channel: u16, out: &mut Vec<PageRun>) -> Next {
        let round = match &mut self.state {
            State::Precopy(state) => state.round_mut(),
            State::StopAndCopy(state) => state.round_mut(),
            State::Settling(state) => state.round_mut(),
            State::Switchover(switchover::Switchover { drain: Some(_), .. }) | State::PostcopyActive(_) => {
                return self.next_push(now, out);
            }
            state if state.has_no_link() => return Next::Ended,
            _ => None,
        };
        let Some(round) = round else { return Next::Wait };
        if round.kind == RoundKind::Pages
            && let Some(at) = self.common.pace.not_before(now)
        {
            return Next::WaitUntil(at);
        }
        let iteration = round.n;
        match (round.take(channel, BATCH_PAGES, BATCH_RUNS, out), round.kind) {
            (Take::Batch, RoundKind::Pages) => Next::Pages { iteration },
            (Take::Batch, RoundKind::Hashes) => Next::Hashes { iteration },
            (Take::Marker(pages), _) => Next::Marker { iteration, pages },
            (Take::Nothing, _) => Next::Wait,
        }
    }

    /// The background push of post-copy: any channel takes any page, and no marker ends it.
    fn next_push(&mut self, now: Duration, out: &mut Vec<PageRun>) -> Next {
        let Some(drain) = self.state.drain_mut() else { return Next::Wait };
        match self.common.next_push(now, drain, out) {
            Ok(true) => Next::Pages { iteration: drain.iteration },
            Ok(false) => Next::Wait,
            Err(at) => Next::WaitUntil(at),
        }
    }

    /// Work for the urgent channel: pages that somebody waits for, then those that somebody is likely to
    /// touch next. No bandwidth limit holds them back.
    pub fn next_urgent(&mut self, out: &mut Vec<PageRun>) -> Next {
        if self.state.has_no_link() {
            return Next::Ended;
        }
        let Some(drain) = self.state.drain_mut() else { return Next::Wait };
        match self.common.next_urgent(drain, out) {
            true => Next::Pages { iteration: drain.iteration },
            false => Next::Wait,
        }
    }

    /// A channel, the urgent one too, handed a batch to the transport.
    pub fn batch_sent(&mut self, now: Duration, sent: Sent) {
        self.common.now = now;
        self.common.account(sent);
        match self.state.drain_mut() {
            Some(drain) => {
                drain.bytes += sent.bytes;
                // They were accounted for as if all of them were sent as they are when they were handed out.
                let whole = (sent.data_pages + sent.zero_pages) * PAGE_SIZE as u64;
                self.common.pace.refund(whole - sent.bytes);
            }
            None => self.common.pace.spend(sent.bytes),
        }
        if let Some(round) = self.round() {
            round.pages += sent.data_pages + sent.zero_pages;
            round.zero_pages += sent.zero_pages;
            round.bytes += sent.bytes;
        }
    }

    /// A channel handed its marker to the transport.
    pub fn marker_sent(&mut self, now: Duration) {
        self.common.now = now;
        match &mut self.state {
            State::StopAndCopy(state) => state.after_marker(&mut self.common),
            State::Settling(state) => state.after_marker(&mut self.common),
            _ => {}
        }
    }

    fn round(&mut self) -> Option<&mut crate::round::Round> {
        match &mut self.state {
            State::Precopy(state) => state.round_mut(),
            State::StopAndCopy(state) => state.round_mut(),
            State::Settling(state) => state.round_mut(),
            _ => None,
        }
    }

    /// When to feed [`SourceEvent::Tick`] at the latest; `None` once it has ended.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let own = match &self.state {
            State::Resuming(_) | State::Ended(_) | State::Moving => return None,
            State::Negotiating(state) => return state.deadline(),
            State::Indeterminate(state) => return Some(state.deadline()),
            State::Preflight(state) => Some(state.deadline()),
            State::Precopy(state) => state.deadline(&self.common),
            State::PrecopyPaused(state) => return Some(state.deadline()),
            State::PrecopyRecovering(state) => Some(state.deadline()),
            State::PostcopySetup(state) => Some(state.deadline()),
            State::StopAndCopy(state) => Some(state.deadline()),
            State::PostcopyPaused(state) => return state.deadline(),
            State::Recovering(state) => Some(state.deadline()),
            State::Settling(state) => state.deadline(&self.common),
            State::PostcopyActive(_) => self.common.late.due(),
            State::Switchover(_) => None,
        };
        let link = self.common.link.next_timer();
        Some(own.map_or(link, |own| own.min(link)))
    }

    /// Where the migration is.
    #[must_use]
    pub fn state(&self) -> MigrationState {
        self.common.phase
    }

    /// How it ended: `None` while it goes on.
    #[must_use]
    pub fn outcome(&self) -> Option<Result<(), &Failure>> {
        match &self.state {
            State::Ended(ended) => Some(ended.result.as_ref().map(|_| ())),
            _ => None,
        }
    }

    /// The record as it stands.
    #[must_use]
    pub fn record(&mut self, now: Duration) -> MigrationRecord {
        let interrupted = match &self.state {
            State::PrecopyPaused(state) => Some(state.remaining()),
            State::PrecopyRecovering(state) => Some(state.remaining()),
            _ => None,
        };
        let following = self.state.drain().map(drain::Drain::remaining).or(interrupted);
        let remaining = following.or(self.round().map(|round| round.remaining())).unwrap_or(0);
        self.common.snapshot(now, remaining)
    }

    /// The attempt that a commit will carry.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.common.config.epoch
    }

    /// Whether somebody may still cancel.
    #[must_use]
    pub fn cancellable(&self) -> bool {
        matches!(
            self.state,
            State::Negotiating(_)
                | State::Preflight(_)
                | State::Precopy(_)
                | State::PrecopyPaused(_)
                | State::PrecopyRecovering(_)
                | State::PostcopySetup(_)
                | State::StopAndCopy(_)
        )
    }

    /// Records what the transport sent and received so far, in bytes.
    pub fn set_wire_bytes(&mut self, sent: u64, received: u64) {
        self.common.record.wire_bytes.sent = sent;
        self.common.record.wire_bytes.received = received;
    }
}

impl State {
    /// Whether the threads of page channels have nothing to wait for any more.
    const fn has_no_link(&self) -> bool {
        matches!(
            self,
            Self::Negotiating(_)
                | Self::PrecopyPaused(_)
                | Self::PostcopyPaused(_)
                | Self::Resuming(_)
                | Self::Ended(_)
        )
    }

    /// The pages that follow the guest, where the state has channels to send them on.
    fn drain_mut(&mut self) -> Option<&mut drain::Drain> {
        match self {
            Self::StopAndCopy(state) => state.drain_mut(),
            Self::Switchover(state) => state.drain.as_deref_mut(),
            Self::PostcopyActive(state) => Some(state.drain_mut()),
            _ => None,
        }
    }

    /// The pages that follow the guest.
    fn drain(&self) -> Option<&drain::Drain> {
        match self {
            Self::StopAndCopy(state) => state.drain(),
            Self::Switchover(state) => state.drain.as_deref(),
            Self::Indeterminate(state) => state.drain(),
            Self::PostcopyActive(state) => Some(state.drain()),
            Self::PostcopyPaused(state) => Some(state.drain()),
            Self::Recovering(state) => Some(state.drain()),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("state", &self.common.phase).finish_non_exhaustive()
    }
}
