//! The source's session.

mod guest;
mod link;
mod pages;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use migrated_engine::source::{Source, SourceAction, SourceConfig, SourceEvent};
use migrated_engine::{Failure, MigrationRecord, MigrationState, PrecopyPolicy};
use migrated_guest::Guest;
use migrated_transport::{Endpoint, Transport};
use migrated_wire::{ChannelRole, CommitOutcome, Hello, MigrationId, PROTOCOL, Token};
use parking_lot::{Condvar, Mutex};

use crate::{Clock, traffic::Traffic};
use guest::{Held, Holder};
use link::SourceLink;

/// How long opening all channels may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a source's session needs besides guest and transport.
pub struct SourceRequest {
    /// The migration.
    pub migration: MigrationId,
    /// The destination's one-shot secret.
    pub token: Token,
    /// Where the destination listens.
    pub peer: Endpoint,
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
    events: Sender<SourceEvent>,
}

/// The engine and what its threads wait for.
struct Shared {
    engine: Mutex<Source>,
    work: Condvar,
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
        possible && self.events.send(SourceEvent::Cancel).is_ok()
    }

    /// Brings what somebody learnt about the commit.
    pub fn resolve(&self, outcome: Option<CommitOutcome>) {
        // A session that has ended has its answer already.
        let _ = self.events.send(SourceEvent::Outcome(outcome));
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
    inbox: Receiver<SourceEvent>,
    hello: Hello,
    peer: Endpoint,
    channels: u16,
    seeker: OutcomeSeeker,
}

/// Prepares a session: the remote works from now on, [`SourceSession::run`] does the work.
#[must_use]
pub fn send(request: SourceRequest) -> (SourceSession, SourceRemote) {
    let SourceRequest { migration, token, peer, config, record, clock, seeker } = request;
    let channels = config.channels;
    let engine = Source::new(config, record, Box::<PrecopyPolicy>::default(), clock.now());
    let shared = Arc::new(Shared {
        engine: Mutex::new(engine),
        work: Condvar::new(),
        clock,
        traffic: Traffic::default(),
    });
    let (events, inbox) = channel();
    let remote = SourceRemote { shared, events };
    let hello = Hello { versions: PROTOCOL, role: ChannelRole::Control, migration, token };
    (SourceSession { remote: remote.clone(), inbox, hello, peer, channels, seeker }, remote)
}

impl SourceSession {
    /// Moves the guest, on this thread, until the migration has ended one way or the other.
    /// `changed` is called after every event, to publish the record.
    pub fn run<G: Guest>(
        self,
        guest: G,
        transport: &Arc<dyn Transport>,
        mut changed: impl FnMut(),
    ) -> SourceEnd<G> {
        let shared = &self.remote.shared;
        let ram = guest.ram().clone();
        let mut holder = Holder::new(guest);
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let link = SourceLink::open(transport, &self.peer, &self.hello, self.channels, deadline);
        let mut link = match link {
            Ok((link, page_senders)) => {
                pages::start(shared, &self.remote.events, &ram, page_senders);
                self.feed(SourceEvent::Connected);
                Some(link.start_reader(self.remote.events.clone(), shared.clone()))
            }
            Err(error) => {
                self.feed(SourceEvent::ConnectFailed(error.to_string()));
                None
            }
        };
        loop {
            self.act(&mut holder, &mut link, transport);
            changed();
            if shared.engine.lock().outcome().is_some() {
                break;
            }
            self.feed_next();
        }
        let engine = shared.engine.lock();
        match (holder.into_held(), engine.outcome()) {
            (Held::Running(guest), Some(Err(failure))) => SourceEnd::Kept(guest, failure.clone()),
            (_, Some(Err(failure))) => SourceEnd::Stuck(failure.clone()),
            _ => SourceEnd::Moved,
        }
    }

    fn feed(&self, event: SourceEvent) {
        let shared = &self.remote.shared;
        shared.engine.lock().handle(shared.clock.now(), event);
    }

    /// Waits for the next event or timer.
    fn feed_next(&self) {
        let shared = &self.remote.shared;
        let deadline = shared.engine.lock().deadline();
        let event = match deadline {
            Some(at) => match self.inbox.recv_timeout(at.saturating_sub(shared.clock.now())) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => SourceEvent::Tick,
            },
            None => self.inbox.recv().unwrap_or(SourceEvent::Tick),
        };
        self.feed(event);
    }

    /// Carries out all actions. One that concerns the guest is answered before the next is looked at.
    fn act<G: Guest>(
        &self,
        holder: &mut Holder<G>,
        link: &mut Option<SourceLink>,
        transport: &Arc<dyn Transport>,
    ) {
        let shared = &self.remote.shared;
        loop {
            let Some(action) = shared.engine.lock().poll_action() else { break };
            match action {
                SourceAction::Send(message) => {
                    let sent = link.as_mut().map(|link| link.send(&message, &shared.traffic));
                    if let Some(Err(reason)) = sent {
                        // The reader notices as well, behind what the peer had said: its reason must not be lost.
                        tracing::debug!("a message was not sent: {reason}");
                    }
                }
                SourceAction::Wake => {
                    // Taken so that no page thread is between its look at the engine and its wait.
                    drop(shared.engine.lock());
                    shared.work.notify_all();
                }
                SourceAction::HangUp => {
                    if let Some(link) = link.take() {
                        link.hang_up();
                    }
                }
                SourceAction::Ask => {
                    (self.seeker)();
                    link::ask(
                        transport.clone(),
                        self.peer.clone(),
                        self.hello,
                        self.epoch(),
                        &self.remote.events,
                    );
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
