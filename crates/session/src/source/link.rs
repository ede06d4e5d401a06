use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use migrated_engine::MigrationState;
use migrated_engine::source::SourceEvent;
use migrated_guest::GuestRam;
use migrated_transport::{
    ControlReceiver, ControlSender, DataSender, Endpoint, Hangup, Transport, TransportError,
};
use migrated_wire::{
    ChannelRole, CommitOutcome, Hello, MAX_MESSAGE, ToDestination, ToSource, decode_message, encode_message,
};

use super::pages::{self, Lane};
use super::{Happening, Shared};
use crate::error::ChannelFault;
use crate::priority;
use crate::threads;
use crate::traffic::{Odometer, Traffic};

/// How long opening all channels may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The reader looks up from a silent channel this often, only to notice that the session is over.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a question about a commit may take on one connection.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// Which channels a migration has besides the control channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes {
    pub(super) pages: u16,
    pub(super) urgent: bool,
}

/// Channels that are open and have no threads yet.
pub(super) struct OpenedLink {
    sender: Box<dyn ControlSender>,
    receiver: Box<dyn ControlReceiver>,
    lanes: Vec<(Lane, Box<dyn DataSender>)>,
    version: u16,
}

impl OpenedLink {
    /// Opens the control channel, then all others.
    pub(super) fn open(
        transport: &dyn Transport,
        peer: &Endpoint,
        hello: &Hello,
        lanes: Lanes,
    ) -> Result<Self, TransportError> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let (sender, receiver, version) = transport.connect_control(peer, hello, deadline)?;
        let urgent = lanes.urgent.then_some(Lane::Urgent);
        let lanes = (0..lanes.pages).map(Lane::Page).chain(urgent).map(|lane| {
            let role = match lane {
                Lane::Page(index) => ChannelRole::Page(index),
                Lane::Urgent => ChannelRole::Urgent,
            };
            Ok((lane, transport.connect_data(peer, &Hello { role, ..*hello }, deadline)?))
        });
        Ok(Self { sender, receiver, lanes: lanes.collect::<Result<_, TransportError>>()?, version })
    }

    /// The protocol version that both ends speak.
    pub(super) const fn version(&self) -> u16 {
        self.version
    }

    /// Starts the threads: one that turns the destination's messages into events, and one for each page channel.
    pub(super) fn start(
        self,
        shared: &Arc<Shared>,
        events: &Sender<Happening>,
        ram: &GuestRam,
    ) -> SourceLink {
        let Self { sender, mut receiver, lanes, version: _ } = self;
        let mut hangups = vec![sender.hangup()];
        let mut threads = Vec::with_capacity(lanes.len() + 1);
        for (lane, sender) in lanes {
            hangups.push(sender.hangup());
            threads.push(pages::start(shared, events, ram, lane, sender));
        }
        let (shared, events) = (shared.clone(), events.clone());
        threads.push(threads::start("src-control", move || {
            priority::raise();
            let event = match read(receiver.as_mut(), &events, &shared) {
                ChannelFault::Lost(reason) => SourceEvent::LinkLost(reason),
                ChannelFault::Misbehaved(what) => SourceEvent::PeerMisbehaved(what),
            };
            // The session may have ended, which is why the channel did.
            let _ = events.send(Happening::Event(event));
        }));
        SourceLink { sender, hangups, threads, odometer: Odometer::default() }
    }
}

/// The source's channels and their threads.
pub(super) struct SourceLink {
    sender: Box<dyn ControlSender>,
    hangups: Vec<Hangup>,
    threads: Vec<JoinHandle<()>>,
    odometer: Odometer,
}

impl SourceLink {
    pub(super) fn send(&mut self, message: &ToDestination, traffic: &Traffic) -> Result<(), String> {
        let sent = self.sender.send(&encode_message(message)).map_err(|error| error.to_string());
        traffic.add_sent(self.odometer.advance(self.sender.bytes_sent()));
        sent
    }

    /// Ends all channels, and with them their threads, which are given to whoever waits for that.
    pub(super) fn hang_up(self) -> Vec<JoinHandle<()>> {
        self.hangups.iter().for_each(Hangup::hang_up);
        self.threads
    }
}

fn read(receiver: &mut dyn ControlReceiver, events: &Sender<Happening>, shared: &Shared) -> ChannelFault {
    let mut odometer = Odometer::default();
    loop {
        let message = match receiver.recv(MAX_MESSAGE, PATIENCE) {
            Ok(bytes) => decode_message::<ToSource>(bytes),
            Err(TransportError::TimedOut { .. }) => continue,
            Err(error) => return error.into(),
        };
        shared.traffic.add_received(odometer.advance(receiver.bytes_received()));
        let event = match message {
            Ok(message @ ToSource::PageRequest { .. }) => match take_request(shared, message) {
                Some(event) => event,
                None => continue,
            },
            Ok(message) => SourceEvent::Message(message),
            Err(error) => return error.into(),
        };
        if events.send(Happening::Event(event)).is_err() {
            return ChannelFault::Lost("the session is over".into());
        }
    }
}

/// Feeds a request for pages itself where it may, so that a vCPU does not wait for one more thread to wake:
/// once the commit is on its way no action on the guest can be under way but the taking of late input, beside which the
/// engine takes requests. Gives what is left for the
/// session's thread.
fn take_request(shared: &Shared, message: ToSource) -> Option<SourceEvent> {
    let mut engine = shared.engine.lock();
    let state = engine.state();
    if !matches!(state, MigrationState::Switchover | MigrationState::PostcopyActive) {
        return Some(SourceEvent::Message(message));
    }
    engine.handle(shared.clock.now(), SourceEvent::Message(message));
    let is_refused = engine.state() != state;
    drop(engine);
    shared.urgent_work.notify_one();
    is_refused.then_some(SourceEvent::Tick)
}

/// How channels of a migration are opened.
#[derive(Clone)]
pub(super) struct Opener {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) shared: Arc<Shared>,
    pub(super) hello: Hello,
    pub(super) lanes: Lanes,
    pub(super) events: Sender<Happening>,
}

impl Opener {
    /// Opens all channels for the first time, on a thread of its own: at the first address that works.
    pub(super) fn open(self) {
        threads::start("src-connect", move || {
            let mut errors = Vec::new();
            let peers = self.shared.addresses.all();
            let opened = peers.into_iter().find_map(|peer| self.attempt(&peer, &mut errors));
            self.report(opened, &errors);
        });
    }

    /// Opens the channels anew, on a thread of its own, when the threads of the old ones have ended. An address that
    /// does not work is another's turn at the next attempt.
    pub(super) fn reopen(self, old: Vec<JoinHandle<()>>) {
        threads::start("src-reconnect", move || {
            for thread in old {
                // One that panicked has ended as well.
                let _ = thread.join();
            }
            let mut errors = Vec::new();
            let opened = self.attempt(&self.shared.addresses.current(), &mut errors);
            self.report(opened, &errors);
        });
    }

    fn attempt(&self, peer: &Endpoint, errors: &mut Vec<TransportError>) -> Option<OpenedLink> {
        match OpenedLink::open(self.transport.as_ref(), peer, &self.hello, self.lanes) {
            Ok(opened) => Some(opened),
            Err(error) => {
                self.shared.addresses.turn(peer);
                errors.push(error);
                None
            }
        }
    }

    fn report(&self, opened: Option<OpenedLink>, errors: &[TransportError]) {
        // The session may have ended, which nobody told this thread.
        let _ = self.events.send(Happening::Opened(opened.ok_or_else(|| why_not(errors))));
    }

    /// Asks the destination's VM process, on a connection and a thread of its own, what became of the commit; at
    /// each address until somebody answers.
    pub(super) fn ask(self, epoch: u64) {
        threads::start("src-ask", move || {
            let outcome = self.shared.addresses.all().into_iter().find_map(|peer| {
                question(self.transport.as_ref(), &peer, &self.hello, epoch).unwrap_or_else(|error| {
                    tracing::info!(
                        "the destination's VM process does not say what became of the commit: {error}"
                    );
                    None
                })
            });
            let _ = self.events.send(Happening::Event(SourceEvent::Outcome(outcome)));
        });
    }
}

/// What the engine is told of channels that could not be opened.
fn why_not(errors: &[TransportError]) -> SourceEvent {
    let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
    let may_pass = |error: &TransportError| {
        use TransportError as E;
        matches!(error, E::Unreachable { .. } | E::Lost { .. } | E::TimedOut { .. })
    };
    match errors.iter().any(may_pass) {
        true => SourceEvent::ConnectFailed(texts.join("; ")),
        false => SourceEvent::ConnectRefused(texts.join("; ")),
    }
}

fn question(
    transport: &dyn Transport,
    peer: &Endpoint,
    hello: &Hello,
    epoch: u64,
) -> Result<Option<CommitOutcome>, TransportError> {
    let hello = Hello { role: ChannelRole::Resolve, ..*hello };
    let (mut sender, mut receiver, _) =
        transport.connect_control(peer, &hello, Instant::now() + ASK_TIMEOUT)?;
    sender.send(&encode_message(&ToDestination::Resolve { epoch }))?;
    let answer = receiver.recv(MAX_MESSAGE, ASK_TIMEOUT)?;
    match decode_message::<ToSource>(answer) {
        Ok(ToSource::Outcome(outcome)) => Ok(Some(outcome)),
        _ => Ok(None),
    }
}
