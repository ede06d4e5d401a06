//! The source's session.

mod addresses;
mod compress;
mod guest;
mod link;
mod pages;
mod throttle;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;

use migrated_engine::source::{Source, SourceAction, SourceConfig, SourceEvent};
use migrated_engine::{Failure, MigrationRecord, MigrationState, Mode, policy_for};
use migrated_guest::{Guest, GuestRam};
use migrated_transport::{Endpoint, Transport};
use migrated_wire::{ChannelRole, CommitOutcome, Hello, MigrationId, PROTOCOL, Token};
use parking_lot::{Condvar, Mutex};

use crate::{Clock, traffic::Traffic};
use addresses::Addresses;
use guest::{Held, Holder};
use link::{Lanes, OpenedLink, Opener, SourceLink};

/// What a source's session needs besides guest and transport.
pub struct SourceRequest {
    /// The migration.
    pub migration: MigrationId,
    /// The destination's one-shot secret.
    pub token: Token,
    /// Where the destination listens.
    pub peer: Endpoint,
    /// Its other addresses. They are tried in this order, and in turn when the link was lost.
    pub other_addresses: Vec<Endpoint>,
    /// What the engine is told.
    pub config: SourceConfig,
    /// The record as far as it is known.
    pub record: MigrationRecord,
    /// Time since the request.
    pub clock: Clock,
    /// Called whenever the engine wants to know what became of its commit, besides asking directly.
    pub seeker: OutcomeSeeker,
}

/// Tells somebody else (the daemon) that an answer is wanted; see [`SourceRemote::resolve`].
pub type OutcomeSeeker = Box<dyn Fn() + Send>;

/// How a source's session ended.
#[derive(Debug)]
pub enum SourceEnd<G> {
    /// The guest runs at the destination; its copy here is gone.
    Moved,
    /// The guest runs here as before.
    Kept(G, Failure),
    /// The guest is here but stands still: it could not be resumed.
    Stuck(Failure),
}

/// What others may do with a session from outside, from any thread.
#[derive(Clone)]
pub struct SourceRemote {
    shared: Arc<Shared>,
    events: Sender<Happening>,
}

/// What the session's thread waits for.
enum Happening {
    Event(SourceEvent),
    /// The channels were opened, or what the engine is to be told.
    Opened(Result<OpenedLink, SourceEvent>),
}

/// The engine and what its threads wait for.
struct Shared {
    engine: Mutex<Source>,
    /// For page channels, and for the urgent one.
    work: Condvar,
    urgent_work: Condvar,
    addresses: Addresses,
    clock: Clock,
    traffic: Traffic,
}

impl SourceRemote {
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

    /// Asks for the migration to be cancelled. Says whether that is still possible; the record tells the rest.
    #[must_use]
    pub fn cancel(&self) -> bool {
        let possible = self.shared.engine.lock().cancellable();
        possible && self.feed(SourceEvent::Cancel)
    }

    /// Brings what somebody learnt about the commit.
    pub fn resolve(&self, outcome: Option<CommitOutcome>) {
        // A session that has ended has its answer already.
        let _ = self.feed(SourceEvent::Outcome(outcome));
    }

    /// Tries at once to reach the destination over a link that was lost, `via` another address first if one is given.
    /// Says whether a link is missing; the session tries by itself, too.
    #[must_use]
    pub fn recover(&self, via: Option<Endpoint>) -> bool {
        if let Some(via) = via {
            self.shared.addresses.prefer(via);
        }
        let lost = matches!(self.state(), MigrationState::PrecopyPaused | MigrationState::PostcopyPaused);
        lost && self.feed(SourceEvent::Retry)
    }

    fn feed(&self, event: SourceEvent) -> bool {
        self.events.send(Happening::Event(event)).is_ok()
    }

    /// Whether the session waits for an answer about its commit.
    #[must_use]
    pub fn is_indeterminate(&self) -> bool {
        self.state() == MigrationState::Indeterminate
    }
}

/// A source's session that is ready to run.
pub struct SourceSession {
    remote: SourceRemote,
    inbox: Receiver<Happening>,
    hello: Hello,
    lanes: Lanes,
    seeker: OutcomeSeeker,
}

/// Prepares a session: the remote works from now on, [`SourceSession::run`] does the work.
#[must_use]
pub fn send(request: SourceRequest) -> (SourceSession, SourceRemote) {
    let SourceRequest { migration, token, peer, other_addresses, config, record, clock, seeker } = request;
    let lanes = Lanes { pages: config.channels, urgent: config.mode != Mode::Precopy };
    let policy = policy_for(config.mode);
    let engine = Source::new(config, record, policy, clock.now());
    let shared = Arc::new(Shared {
        engine: Mutex::new(engine),
        work: Condvar::new(),
        urgent_work: Condvar::new(),
        addresses: Addresses::new(peer, other_addresses),
        clock,
        traffic: Traffic::default(),
    });
    let (events, inbox) = channel();
    let remote = SourceRemote { shared, events };
    let hello = Hello { versions: PROTOCOL, role: ChannelRole::Control, migration, token };
    (SourceSession { remote: remote.clone(), inbox, hello, lanes, seeker }, remote)
}

/// The channels of a session, as long as there are some.
struct Channels {
    link: Option<SourceLink>,
    /// Threads of channels that were hung up.
    ending: Vec<JoinHandle<()>>,
    ram: GuestRam,
}

impl SourceSession {
    /// Moves the guest, on this thread, until the migration has ended one way or the other. While pages follow
    /// a guest that runs at the destination already, that is when the last one is there, however long the
    /// link is down. `changed` is called after every event, to publish the record.
    pub fn run<G: Guest>(
        self,
        guest: G,
        transport: &Arc<dyn Transport>,
        mut changed: impl FnMut(),
    ) -> SourceEnd<G> {
        let shared = &self.remote.shared;
        let mut channels = Channels { link: None, ending: Vec::new(), ram: guest.ram().clone() };
        let mut holder = Holder::new(guest);
        let opener = Opener {
            transport: transport.clone(),
            shared: shared.clone(),
            hello: self.hello,
            lanes: self.lanes,
            events: self.remote.events.clone(),
        };
        opener.clone().open();
        loop {
            self.act(&mut holder, &mut channels, &opener);
            changed();
            if shared.engine.lock().outcome().is_some() {
                break;
            }
            match self.next() {
                Happening::Event(event) => self.feed(event),
                Happening::Opened(opened) => self.connected(&mut channels, opened),
            }
        }
        let engine = shared.engine.lock();
        match (holder.into_held(), engine.outcome()) {
            (Held::Running(guest), Some(Err(failure))) => SourceEnd::Kept(guest, failure.clone()),
            (_, Some(Err(failure))) => SourceEnd::Stuck(failure.clone()),
            _ => SourceEnd::Moved,
        }
    }

    /// Tells the engine of new channels first, so that their threads find it waiting for work, not ended.
    fn connected(&self, channels: &mut Channels, opened: Result<OpenedLink, SourceEvent>) {
        match opened {
            Ok(opened) => {
                self.feed(SourceEvent::Connected { version: opened.version() });
                channels.link = Some(opened.start(&self.remote.shared, &self.remote.events, &channels.ram));
            }
            Err(event) => self.feed(event),
        }
    }

    fn feed(&self, event: SourceEvent) {
        let shared = &self.remote.shared;
        shared.engine.lock().handle(shared.clock.now(), event);
    }

    /// Waits for the next event or timer.
    fn next(&self) -> Happening {
        let shared = &self.remote.shared;
        let deadline = shared.engine.lock().deadline();
        let tick = Happening::Event(SourceEvent::Tick);
        match deadline {
            Some(at) => match self.inbox.recv_timeout(at.saturating_sub(shared.clock.now())) {
                Ok(happening) => happening,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => tick,
            },
            None => self.inbox.recv().unwrap_or(tick),
        }
    }

    /// Carries out all actions. One that concerns the guest is answered before the next is looked at.
    fn act<G: Guest>(&self, holder: &mut Holder<G>, channels: &mut Channels, opener: &Opener) {
        let shared = &self.remote.shared;
        loop {
            let Some(action) = shared.engine.lock().poll_action() else { break };
            match action {
                SourceAction::Send(message) => {
                    let sent = channels.link.as_mut().map(|link| link.send(&message, &shared.traffic));
                    if let Some(Err(reason)) = sent {
                        // The reader notices as well, behind what the peer had said: its reason must not be lost.
                        tracing::debug!("a message was not sent: {reason}");
                    }
                }
                SourceAction::Wake => {
                    // Taken so that no page thread is between its look at the engine and its wait.
                    drop(shared.engine.lock());
                    shared.work.notify_all();
                    shared.urgent_work.notify_all();
                }
                SourceAction::HangUp => {
                    if let Some(link) = channels.link.take() {
                        channels.ending.extend(link.hang_up());
                    }
                }
                SourceAction::Reconnect => opener.clone().reopen(std::mem::take(&mut channels.ending)),
                SourceAction::Ask => {
                    (self.seeker)();
                    opener.clone().ask(self.epoch());
                }
                action => {
                    if let Some(answer) = holder.act(&action) {
                        self.feed(answer);
                    }
                }
            }
        }
    }

    fn epoch(&self) -> u64 {
        self.remote.shared.engine.lock().epoch()
    }
}
