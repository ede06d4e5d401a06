//! The destination's state machine, the mirror of [`source`](crate::source): one struct a state, the
//! driver feeds events and carries out actions in order. An action on the guest, or on the epoch's record,
//! is answered before any other event is fed. Page faults are not events: [`Destination::fault`] may be called
//! at any time after [`DestinationAction::Arm`], even while an action is under way, because restoring a guest
//! touches its memory.

mod common;
mod demand;
mod direct;
mod draining;
mod ended;
mod event;
mod lanes;
mod late;
mod listening;
mod precopy_link;
mod ready;
mod receiving;
mod running;
mod this_round;
mod waits;

use std::time::Duration;

use migrated_pages::{BlockId, PageRun, ReceivedMap};
use migrated_wire::{
    CommitOutcome, FrameHead, FrameKind, GuestIdentity, ToDestination, ToSource, VerifyWhen, WireError,
};

use crate::failure::{Failure, FailureCode};
use crate::record::{MigrationRecord, MigrationState};
use common::Common;
pub use event::{DestinationAction, DestinationEvent, Due, FaultAnswer};
pub use waits::Arrived;

/// What a destination is told when it is made.
#[derive(Clone, Debug)]
pub struct DestinationConfig {
    /// The guest that was prepared.
    pub identity: GuestIdentity,
    /// The one attempt that may commit.
    pub epoch: u64,
    /// What exporting and importing state took in a rehearsal here.
    pub rehearsal: Duration,
    /// Whether page faults of a guest can be taken here, or why not and what to do about it.
    pub postcopy: Result<(), String>,
    /// How long to wait for the source's offer, from the beginning and anew from its first connection on: see
    /// [`patience_for`](crate::patience_for).
    pub patience: Duration,
    /// The source as people name it, for messages.
    pub peer: String,
}

/// The state machine of a migration's destination.
pub struct Destination {
    common: Common,
    state: State,
}

enum State {
    Listening(listening::Listening),
    Receiving(Box<receiving::Receiving>),
    Ready(Box<ready::Ready>),
    Draining(Box<draining::Draining>),
    Running(Box<running::Running>),
    Ended(ended::Ended),
    /// Only while a transition is under way.
    Moving,
}

impl Destination {
    /// A destination that listens from `now` on.
    #[must_use]
    pub fn new(config: DestinationConfig, record: MigrationRecord, now: Duration) -> Self {
        let listening = listening::Listening::begin(now, config.patience);
        let mut common = Common::new(config, record, now);
        common.enter(MigrationState::Negotiating);
        Self { common, state: State::Listening(listening) }
    }

    /// Takes in an event.
    pub fn handle(&mut self, now: Duration, event: DestinationEvent) {
        let common = &mut self.common;
        common.now = now;
        if let DestinationEvent::Message(message) = &event {
            common.link.heard(now);
            if let ToDestination::Ping { nonce } = *message {
                let pong = self.ping(now, nonce);
                self.common.act(DestinationAction::Send(pong));
                return;
            }
        }
        if let DestinationEvent::Connected { version } | DestinationEvent::Reconnected { version } = event {
            common.protocol = version;
        }
        if let DestinationEvent::Resolve { epoch } = event {
            self.resolve(epoch);
            return;
        }
        self.state = match std::mem::replace(&mut self.state, State::Moving) {
            State::Listening(state) => state.on(common, event),
            State::Receiving(state) => state.on(common, event),
            State::Ready(state) => state.on(common, event),
            State::Draining(state) => state.on(common, event),
            State::Running(state) => state.on(common, event),
            State::Ended(state) => State::Ended(state),
            State::Moving => unreachable!("a transition put a state back"),
        };
    }

    /// Answers for the commit of `epoch`. Saying "never ran" makes it true for ever: a guest that waits
    /// for its commit is destroyed first.
    fn resolve(&mut self, epoch: u64) {
        if epoch != self.common.config.epoch {
            self.common.act(DestinationAction::Answer(None));
            return;
        }
        self.state = match std::mem::replace(&mut self.state, State::Moving) {
            state @ (State::Listening(_) | State::Receiving(_) | State::Ready(_)) => {
                drop(state);
                let text = "the source lost the link and asked; the guest was given back to it";
                let failure = self.common.failure(FailureCode::SourceFailed, text);
                self.common.fail(failure)
            }
            other => other,
        };
        let outcome = match &self.state {
            State::Draining(_) | State::Running(_) => self.committed(),
            State::Ended(ended) if ended.result.is_ok() => self.committed(),
            _ => CommitOutcome::NeverRan,
        };
        self.common.act(DestinationAction::Answer(Some(outcome)));
    }

    const fn committed(&self) -> CommitOutcome {
        match self.common.followed {
            Some(pages) => CommitOutcome::Complete { pages },
            None => CommitOutcome::Committed,
        }
    }

    /// The answer to a ping, for a driver that is busy with an action and must not seem dead meanwhile; one
    /// that isn't may feed the ping like any other message.
    pub fn ping(&mut self, now: Duration, nonce: u64) -> ToSource {
        self.common.link.heard(now);
        ToSource::Pong { nonce }
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<DestinationAction> {
        self.common.actions.pop_front()
    }

    /// Whether a frame may come now on a page channel. Called before its payload is read.
    ///
    /// # Errors
    /// [`WireError`] for a frame of another iteration, an unknown channel, or a kind that isn't due.
    pub fn admit(&self, channel: u16, head: &FrameHead) -> Result<Due, WireError> {
        if self.state.demand().is_some() || self.is_late(head) {
            return self.admit_urgent(head);
        }
        let (lanes, kind) = match &self.state {
            State::Receiving(state) if state.takes_frames() => (state.lanes(), FrameKind::Pages),
            State::Ready(state) => (state.lanes(), FrameKind::Hashes),
            State::Running(state) => (state.lanes(), FrameKind::Hashes),
            _ => return Err(misplaced(head, "no frame is due now")),
        };
        if head.kind != kind && head.kind != FrameKind::Marker {
            return Err(misplaced(head, "a frame of this kind is not due now"));
        }
        if !lanes.is_open(channel, head.iteration) {
            return Err(misplaced(head, "the channel or its iteration is not open"));
        }
        Ok(match head.kind {
            FrameKind::Pages => Due::Pages,
            FrameKind::Hashes => Due::Hashes,
            FrameKind::Marker => Due::Marker,
        })
    }

    /// Whether a frame may come now on the urgent channel. Called before its payload is read.
    ///
    /// # Errors
    /// [`WireError`] when no pages follow the guest, or the frame is none of theirs.
    pub fn admit_urgent(&self, head: &FrameHead) -> Result<Due, WireError> {
        match self.state.demand() {
            Some(demand) if head.kind == FrameKind::Pages && head.iteration == demand.iteration() => {
                Ok(Due::Following)
            }
            Some(_) => Err(misplaced(head, "only pages of this link follow the guest")),
            None if self.is_late(head) => Ok(Due::Following),
            None => Err(misplaced(head, "no pages follow the guest now")),
        }
    }

    fn is_late(&self, head: &FrameHead) -> bool {
        matches!(&self.state, State::Running(state) if state.is_late(head))
    }

    /// Takes what this channel is to place of a frame's pages, which are then nobody else's; appended to
    /// `claimed`. Pages that were placed before, or are being placed, are not among them.
    pub fn claim(&mut self, pages: impl IntoIterator<Item = PageRun>, claimed: &mut Vec<PageRun>) {
        let Some(demand) = self.state.demand_mut() else { return };
        for run in pages {
            let taken = demand.claim(run, claimed);
            self.common.record.postcopy.get_or_insert_default().pages_duplicate += run.count - taken;
        }
    }

    /// Claimed pages are in place. When it says true there are actions to be polled.
    #[must_use]
    pub fn placed_claims(
        &mut self,
        now: Duration,
        arrived: Arrived,
        runs: impl IntoIterator<Item = PageRun>,
    ) -> bool {
        let Some(demand) = self.state.demand_mut() else { return false };
        for run in runs {
            demand.place(run);
            self.common.record.ram.pages_sent += run.count;
            let counts = self.common.record.postcopy.get_or_insert_default();
            self.common.waits.placed(run, arrived, counts);
        }
        self.settle(now)
    }

    /// Claimed pages will not be placed by this channel, which broke. When it says true there are actions to
    /// be polled.
    #[must_use]
    pub fn unclaim(&mut self, now: Duration, runs: impl IntoIterator<Item = PageRun>) -> bool {
        let Some(demand) = self.state.demand_mut() else { return false };
        runs.into_iter().for_each(|run| demand.unclaim(run));
        self.settle(now)
    }

    fn settle(&mut self, now: Duration) -> bool {
        self.common.now = self.common.now.max(now);
        self.state = match std::mem::replace(&mut self.state, State::Moving) {
            State::Draining(state) => state.settle(&mut self.common),
            State::Receiving(state) => state.settle(&mut self.common),
            other => other,
        };
        !self.common.actions.is_empty()
    }

    /// A thread touched a page that is not in place, at `now`. May be called at any time, from any thread that has
    /// the lock.
    pub fn fault(&mut self, now: Duration, block: BlockId, page: u64, thread: u32) -> FaultAnswer {
        let Some(demand) = self.state.demand_mut() else { return FaultAnswer::Here };
        let answer = demand.fault(block, page, self.common.record.postcopy.get_or_insert_default());
        if answer != FaultAnswer::Here {
            self.common.waits.fault(now, (block, page), thread);
        }
        answer
    }

    /// What people call a thread that faults.
    pub fn name_thread(&mut self, thread: u32, name: String) {
        self.common.waits.name(thread, name);
    }

    /// The next request, to be sent on the control channel at once, by whoever asks. Call it until there is
    /// none after [`FaultAnswer::Wanted`], after [`DestinationAction::Request`], and after pages were placed.
    pub fn take_request(&mut self, now: Duration) -> Option<ToSource> {
        let epoch = self.common.config.epoch;
        let request = match &mut self.state {
            State::Draining(state) if !state.is_linked() => None,
            state => state.demand_mut()?.take_request(epoch),
        };
        if let Some(ToSource::PageRequest { pages, .. }) = &request {
            self.common.waits.requested(now, pages);
        }
        request
    }

    /// Hashes of a frame were compared with the pages here.
    pub fn compared(&mut self, channel: u16, pages: u64, mismatches: u64, detail: Option<String>) {
        let lanes = match &mut self.state {
            State::Ready(state) => state.lanes_mut(),
            State::Running(state) => state.lanes_mut(),
            _ => return,
        };
        lanes.count(channel, pages);
        self.common.comparison.add(pages, mismatches, detail);
    }

    /// Whether the page was placed before: a page that never was is still zero.
    #[must_use]
    pub fn has(&self, block: BlockId, page: u64) -> bool {
        self.received().is_some_and(|map| map.contains(block, page))
    }

    fn received(&self) -> Option<&ReceivedMap> {
        match &self.state {
            State::Receiving(state) => Some(state.received()),
            state => state.demand().map(demand::Demand::received),
        }
    }

    /// When memory will be compared, once the source has said.
    #[must_use]
    pub const fn verify(&self) -> VerifyWhen {
        self.common.verify
    }

    /// The guest's own clock when the migration began, once the source has said.
    #[must_use]
    pub const fn guest_clock(&self) -> Option<u64> {
        self.common.guest_clock
    }

    /// When to feed [`DestinationEvent::Tick`] at the latest; `None` once it has ended or waits for a link.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Listening(state) => Some(state.deadline()),
            State::Ended(_) => None,
            State::Receiving(state) => Some(state.deadline(&self.common)),
            State::Draining(_) if self.common.phase == MigrationState::PostcopyPaused => None,
            _ => Some(self.common.link.dead_at()),
        }
    }

    /// Where the migration is.
    #[must_use]
    pub const fn state(&self) -> MigrationState {
        self.common.phase
    }

    /// Whether the guest was committed here: it runs, or ran.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        match &self.state {
            State::Draining(_) | State::Running(_) => true,
            State::Ended(ended) => ended.result.is_ok(),
            _ => false,
        }
    }

    /// The attempt that may commit here.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.common.config.epoch
    }

    /// Whether the source has said that it needs nothing more, not even an answer.
    #[must_use]
    pub const fn was_said_goodbye(&self) -> bool {
        self.common.goodbye
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
    pub fn record(&self, now: Duration) -> MigrationRecord {
        self.common.snapshot(now)
    }

    /// Records what the transport sent and received so far, in bytes.
    pub fn set_wire_bytes(&mut self, sent: u64, received: u64) {
        self.common.record.wire_bytes.sent = sent;
        self.common.record.wire_bytes.received = received;
    }
}

impl State {
    fn demand(&self) -> Option<&demand::Demand> {
        match self {
            Self::Receiving(state) => state.demand(),
            Self::Ready(state) => state.demand(),
            Self::Draining(state) => Some(state.demand()),
            _ => None,
        }
    }

    fn demand_mut(&mut self) -> Option<&mut demand::Demand> {
        match self {
            Self::Receiving(state) => state.demand_mut(),
            Self::Ready(state) => state.demand_mut(),
            Self::Draining(state) => Some(state.demand_mut()),
            _ => None,
        }
    }
}

fn misplaced(head: &FrameHead, why: &str) -> WireError {
    WireError::Malformed { what: "page frame", reason: format!("{why}: {head:?}") }
}

impl std::fmt::Debug for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Destination").field("state", &self.common.phase).finish_non_exhaustive()
    }
}
