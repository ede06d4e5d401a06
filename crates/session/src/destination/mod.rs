//! The destination's session.

mod acceptor;
mod blocks;
mod faults;
mod following;
mod hands;
mod hashes;
mod link;
mod pages;
mod reader;
mod restoring;

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use migrated_engine::destination::{Destination, DestinationAction, DestinationConfig, DestinationEvent};
use migrated_engine::{Failure, MigrationRecord, MigrationState};
use migrated_guest::{GuestRam, IncomingGuest};
use migrated_transport::Listener;
use migrated_wire::{CommitOutcome, MigrationId, PostcopyUse, ToDestination, Token};
use parking_lot::Mutex;

use crate::Clock;
use crate::threads;
use crate::traffic::Traffic;
use faults::Following;
use hands::Hands;
use hashes::PageHashes;
use link::{Link, NewLane, NewLink};
use restoring::Restoring;

/// The session's thread looks up this often from an engine that has no timer.
const IDLE: Duration = Duration::from_secs(60);

/// What a destination's session needs besides guest and listener.
pub struct DestinationRequest {
    /// The migration.
    pub migration: MigrationId,
    /// The one-shot secret that the source must show.
    pub token: Token,
    /// Most page channels to accept.
    pub max_channels: u16,
    /// What the engine is told.
    pub config: DestinationConfig,
    /// The record as far as it is known.
    pub record: MigrationRecord,
    /// Time since the request.
    pub clock: Clock,
    /// How long to go on answering for a commit after the link broke behind it. The daemon can answer
    /// after that, from the record.
    pub linger: Duration,
    /// Where commits are recorded.
    pub epochs: Box<dyn EpochLog>,
    /// Watches the guest once it runs.
    pub observer: GuestObserver,
}

/// Records what became of a commit where it survives this process.
pub trait EpochLog: Send {
    /// Records that this attempt was committed. When it returns, a process that starts later can read it.
    ///
    /// # Errors
    /// The system's; nothing may then be readable as committed.
    fn record_commit(&mut self, epoch: u64) -> io::Result<()>;

    /// Records that this attempt will never run.
    ///
    /// # Errors
    /// The system's.
    fn record_never_ran(&mut self, epoch: u64) -> io::Result<()>;
}

/// Watches the running guest until it has seen what there is to be seen; it is given the guest's clock when the migration
/// began.
pub type GuestObserver = Box<dyn FnOnce(Option<u64>) -> Observation + Send>;

/// What was seen of a guest that has just begun to run here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// The longest gap that the guest's own clock tells since the migration began, in µs; `None` of a guest that doesn't
    /// tell.
    pub guest_gap_us: Option<u64>,
    /// The time from the first KVM_RUN to the first frame that the guest sent or got, in µs; `None` of a guest without a
    /// network.
    pub first_packet_us: Option<u64>,
}

/// How a destination's session ended.
#[derive(Debug)]
pub enum DestinationEnd {
    /// The guest runs here; it was handed out when it started.
    Runs,
    /// The guest never ran here and was destroyed.
    NeverRan(Failure),
}

/// What others may do with a session from outside, from any thread.
#[derive(Clone)]
pub struct DestinationRemote {
    shared: Arc<Shared>,
    inbox: Sender<Happening>,
}

/// The engine and what its threads share. The engine's lock is never held while somebody waits for the kernel
/// or a socket.
struct Shared {
    engine: Mutex<Destination>,
    clock: Clock,
    traffic: Traffic,
    hashes: PageHashes,
    ram: GuestRam,
    /// The second mapping of RAM, once the source said that pages may follow the guest.
    staging: OnceLock<GuestRam>,
    /// RAM that is armed, once there are missing pages.
    following: OnceLock<Following>,
    restoring: Restoring,
    link: Link,
}

impl Shared {
    /// Where pages are placed and read that nobody waits for.
    fn placing(&self) -> &GuestRam {
        self.staging.get().unwrap_or(&self.ram)
    }
}

/// What the session's thread waits for.
enum Happening {
    Event(DestinationEvent),
    /// What a channel reports, of the link with this number.
    OfLink {
        link: u64,
        event: DestinationEvent,
    },
    /// The source has opened a control channel.
    NewLink(Box<NewLink>),
    /// It has opened a page channel, after the control channel of the same link.
    NewLane(Box<NewLane>),
    /// Somebody asks what became of a commit and waits for the answer.
    Asked {
        epoch: u64,
        answer: Sender<Option<CommitOutcome>>,
    },
}

/// Whether a source that has lost its link may open another: while pages come, and while they follow a guest that
/// runs here. One that comes while state is restored tries again, when its loss was noticed here, too.
const fn may_relink(state: MigrationState) -> bool {
    use MigrationState as S;
    matches!(
        state,
        S::Negotiating
            | S::Preflight
            | S::Receiving
            | S::PrecopyPaused
            | S::PostcopyActive
            | S::PostcopyPaused
            | S::Recovering
    )
}

impl DestinationRemote {
    /// The record as it stands.
    #[must_use]
    pub fn record(&self) -> MigrationRecord {
        let mut engine = self.shared.engine.lock();
        engine.set_wire_bytes(self.shared.traffic.sent(), self.shared.traffic.received());
        engine.record(self.shared.clock.now())
    }

    /// Where it is.
    #[must_use]
    pub fn state(&self) -> MigrationState {
        self.shared.engine.lock().state()
    }

    /// Gives up the incoming guest, unless it runs already.
    pub fn cancel(&self) {
        // A session that has ended has nothing left to cancel.
        let _ = self.inbox.send(Happening::Event(DestinationEvent::Cancel));
    }

    /// What became of the commit of this attempt. Asking before a commit came makes the answer "never ran".
    #[must_use]
    pub fn resolve(&self, epoch: u64) -> Option<CommitOutcome> {
        let (answer, receiver) = channel();
        if self.inbox.send(Happening::Asked { epoch, answer }).is_ok()
            && let Ok(outcome) = receiver.recv()
        {
            return outcome;
        }
        // The session is over: nobody else looks at actions any more.
        let mut engine = self.shared.engine.lock();
        engine.handle(self.shared.clock.now(), DestinationEvent::Resolve { epoch });
        std::iter::from_fn(|| engine.poll_action()).find_map(|action| match action {
            DestinationAction::Answer(outcome) => Some(outcome),
            _ => None,
        })?
    }
}

/// A destination's session that is ready to run.
pub struct DestinationSession {
    remote: DestinationRemote,
    inbox: Receiver<Happening>,
    migration: MigrationId,
    token: Token,
    max_channels: u16,
    linger: Duration,
    epochs: Box<dyn EpochLog>,
    observer: Option<GuestObserver>,
}

/// Prepares a session for a guest with this RAM: the remote works from now on,
/// [`DestinationSession::run`] does the work.
#[must_use]
pub fn receive(request: DestinationRequest, ram: &GuestRam) -> (DestinationSession, DestinationRemote) {
    let DestinationRequest {
        migration,
        token,
        max_channels,
        config,
        record,
        clock,
        linger,
        epochs,
        observer,
    } = request;
    let shared = Arc::new(Shared {
        engine: Mutex::new(Destination::new(config, record, clock.now())),
        clock,
        traffic: Traffic::default(),
        hashes: PageHashes::new(ram.layout()),
        ram: ram.clone(),
        staging: OnceLock::new(),
        following: OnceLock::new(),
        restoring: Restoring::default(),
        link: Link::default(),
    });
    let (sender, inbox) = channel();
    let remote = DestinationRemote { shared, inbox: sender };
    let observer = Some(observer);
    (
        DestinationSession {
            remote: remote.clone(),
            inbox,
            migration,
            token,
            max_channels,
            linger,
            epochs,
            observer,
        },
        remote,
    )
}

impl DestinationSession {
    /// Receives the guest, on this thread. `running` is given the guest the moment it runs; `changed` is
    /// called after every event, to publish the record. Returns when nothing is left to do or to answer.
    pub fn run<I: IncomingGuest>(
        mut self,
        guest: I,
        listener: Box<dyn Listener>,
        running: impl FnOnce(I::Running),
        mut changed: impl FnMut(),
    ) -> DestinationEnd {
        let shared = self.remote.shared.clone();
        let door = acceptor::start(
            &shared,
            &self.remote.inbox,
            listener,
            self.migration,
            self.token,
            self.max_channels,
        );
        let mut hands = Hands::new(guest, running);
        loop {
            self.act(&mut hands);
            changed();
            match self.next(&shared) {
                Some(Happening::Event(event)) => self.feed(&mut hands, event),
                Some(Happening::OfLink { link, event }) => {
                    if link::is_current(&shared, link) {
                        self.feed(&mut hands, event);
                    }
                }
                Some(Happening::NewLink(link)) => link.replace(&shared),
                Some(Happening::NewLane(lane)) => lane.join(&shared),
                Some(Happening::Asked { epoch, answer }) => {
                    hands.asker = Some(answer);
                    self.feed(&mut hands, DestinationEvent::Resolve { epoch });
                }
                None => break,
            }
        }
        door.hang_up();
        let engine = shared.engine.lock();
        match engine.outcome() {
            Some(Err(failure)) => DestinationEnd::NeverRan(failure.clone()),
            _ => DestinationEnd::Runs,
        }
    }

    fn feed<I: IncomingGuest, R: FnOnce(I::Running)>(
        &self,
        hands: &mut Hands<I, R>,
        event: DestinationEvent,
    ) {
        let shared = &self.remote.shared;
        match &event {
            DestinationEvent::Message(ToDestination::Commit { .. }) => {
                hands.committed_at = Some(Instant::now());
            }
            DestinationEvent::Message(ToDestination::Preflight { postcopy, .. })
                if *postcopy != PostcopyUse::Never =>
            {
                hands.prepare(shared);
            }
            _ => {}
        }
        shared.engine.lock().handle(shared.clock.now(), event);
    }

    /// The next thing that happens; `None` when the session is over and has nobody to answer any more.
    fn next(&self, shared: &Shared) -> Option<Happening> {
        let (deadline, outcome) = {
            let engine = shared.engine.lock();
            (engine.deadline(), engine.outcome().map(|result| (result.is_ok(), engine.was_said_goodbye())))
        };
        match (outcome, deadline) {
            (Some((true, false)), _) => self.inbox.recv_timeout(self.linger).ok(),
            (Some(_), _) => None,
            (None, deadline) => {
                let wait = deadline.map_or(IDLE, |at| at.saturating_sub(shared.clock.now()));
                match self.inbox.recv_timeout(wait) {
                    Ok(happening) => Some(happening),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                        Some(Happening::Event(DestinationEvent::Tick))
                    }
                }
            }
        }
    }

    /// Carries out all actions; one that concerns guest or record is answered before the next is looked at.
    fn act<I: IncomingGuest, R: FnOnce(I::Running)>(&mut self, hands: &mut Hands<I, R>) {
        let shared = self.remote.shared.clone();
        loop {
            let Some(action) = shared.engine.lock().poll_action() else { break };
            // The source may free its copy when it is told that nothing is missing: that must be true by then.
            hands.let_go_when_complete(&shared);
            let answer = match action {
                DestinationAction::Send(message) => {
                    shared.link.send(&message, &shared.traffic);
                    None
                }
                DestinationAction::Arm(stale) => Some(hands.arm(&shared, &stale)),
                DestinationAction::Request => {
                    let request = shared.engine.lock().take_request(shared.clock.now());
                    shared.send_requests(request);
                    None
                }
                DestinationAction::Restore(sections) => Some(hands.restore(&shared, sections)),
                DestinationAction::RecordCommit(epoch) => Some(match self.epochs.record_commit(epoch) {
                    Ok(()) => DestinationEvent::CommitRecorded,
                    Err(error) => DestinationEvent::CommitNotRecorded(error.to_string()),
                }),
                DestinationAction::RecordNeverRan(epoch) => {
                    if let Err(error) = self.epochs.record_never_ran(epoch) {
                        tracing::error!("the end of attempt {epoch} is not on record: {error}");
                    }
                    None
                }
                DestinationAction::Start => Some(hands.start()),
                DestinationAction::Destroy => {
                    hands.destroy(&shared);
                    None
                }
                DestinationAction::WarmUp(pages) => {
                    hands.warm_up(pages);
                    None
                }
                DestinationAction::Deliver(inputs) => {
                    hands.deliver(inputs);
                    None
                }
                DestinationAction::Observe => {
                    self.observe();
                    None
                }
                DestinationAction::Answer(outcome) => {
                    if let Some(asker) = hands.asker.take() {
                        // Whoever asked may have gone away; the answer stays true.
                        let _ = asker.send(outcome);
                    }
                    None
                }
                DestinationAction::HangUp => {
                    shared.link.hang_up();
                    None
                }
            };
            if let Some(event) = answer {
                shared.engine.lock().handle(shared.clock.now(), event);
            }
        }
    }

    /// Lets the observer watch the guest on a thread of its own: the guest's clock may take a while.
    fn observe(&mut self) {
        let Some(observer) = self.observer.take() else { return };
        let (shared, inbox) = (self.remote.shared.clone(), self.remote.inbox.clone());
        threads::start("dst-observe", move || {
            let clock = shared.engine.lock().guest_clock();
            let Observation { guest_gap_us, first_packet_us } = observer(clock);
            let wire_received = shared.traffic.received();
            let observed = DestinationEvent::Observed { wire_received, guest_gap_us, first_packet_us };
            let _ = inbox.send(Happening::Event(observed));
        });
    }
}
