use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use migrated_engine::destination::DestinationEvent;
use migrated_transport::{
    ControlReceiver, ControlSender, DataReceiver, Gate, Hangup, Incoming, Listener, MigrationGate,
    TransportError,
};
use migrated_wire::{
    ChannelRole, MAX_MESSAGE, MigrationId, Refusal, RefusalCode, ToDestination, ToSource, Token,
    decode_message, encode_message,
};
use parking_lot::Mutex;

use super::link::{LinkEvents, NewLane, NewLink};
use super::pages::Lane;
use super::{Happening, Shared, may_relink};
use crate::threads;

const ROUND: Duration = Duration::from_secs(60);
/// How long somebody who asks for a commit's fate may take to say which.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);

/// Starts the thread that lets channels in until it is hung up. Resolve channels come in at any time, the
/// control channel, the urgent one and each page channel once; and all once more when the source has lost its
/// link, as long as it may come back.
pub(super) fn start(
    shared: &Arc<Shared>,
    inbox: &Sender<Happening>,
    mut listener: Box<dyn Listener>,
    migration: MigrationId,
    token: Token,
    max_channels: u16,
) -> Hangup {
    let hangup = listener.hangup();
    let seats = Arc::new(Mutex::new(Seats::new(max_channels)));
    let (taken, state) = (seats.clone(), shared.clone());
    let gate: Arc<dyn Gate> = Arc::new(MigrationGate::new(migration, token, move |role| {
        let may_relink = may_relink(state.engine.lock().state());
        taken.lock().take(role, may_relink)
    }));
    let mut porter = Porter { inbox: inbox.clone(), seats, link: None, early: BTreeMap::new() };
    threads::start("dst-accept", move || {
        loop {
            match listener.accept(&gate, Instant::now() + ROUND) {
                Ok(incoming) => porter.welcome(incoming),
                Err(TransportError::TimedOut { .. }) => {}
                Err(error) => {
                    let event = DestinationEvent::LinkLost(format!("the listener ended: {error}"));
                    // The session may have ended, which is why the listener did.
                    let _ = porter.inbox.send(Happening::Event(event));
                    return;
                }
            }
        }
    });
    hangup
}

/// Which channels of the newest link have come already.
struct Seats {
    links: u64,
    control: bool,
    urgent: bool,
    pages: Vec<bool>,
}

impl Seats {
    fn new(max_channels: u16) -> Self {
        Self { links: 0, control: false, urgent: false, pages: vec![false; max_channels.into()] }
    }

    fn take(&mut self, role: ChannelRole, may_replace: bool) -> Result<(), Refusal> {
        let refuse = |text: String| Err(Refusal { code: RefusalCode::Role, text });
        let seat = match role {
            ChannelRole::Resolve => return Ok(()),
            ChannelRole::Control => {
                if !self.control || may_replace {
                    self.links += 1;
                    (self.control, self.urgent) = (false, false);
                    self.pages.fill(false);
                }
                &mut self.control
            }
            ChannelRole::Page(index) => match self.pages.get_mut(usize::from(index)) {
                Some(seat) => seat,
                None => return refuse(format!("page channel {index} is beyond the most allowed here")),
            },
            ChannelRole::Urgent => &mut self.urgent,
        };
        match std::mem::replace(seat, true) {
            false => Ok(()),
            true => refuse(format!("{role:?} is open already")),
        }
    }
}

/// Takes channels to where they belong: to the session, the control channel of a link first.
struct Porter {
    inbox: Sender<Happening>,
    seats: Arc<Mutex<Seats>>,
    /// The link whose control channel has come.
    link: Option<u64>,
    /// Page channels that overtook their link's control channel.
    early: BTreeMap<Lane, (u64, Box<dyn DataReceiver>)>,
}

impl Porter {
    fn welcome(&mut self, incoming: Incoming) {
        let link = self.seats.lock().links.saturating_sub(1);
        match incoming {
            Incoming::Control { role: ChannelRole::Resolve, sender, receiver, .. } => {
                let inbox = self.inbox.clone();
                threads::start("dst-answer", move || answer(sender, receiver, &inbox));
            }
            Incoming::Control { sender, receiver, version, peer, .. } => {
                tracing::info!(%peer, link, "the source has connected");
                self.link = Some(link);
                let events = self.events(link);
                self.hand_on(Happening::NewLink(Box::new(NewLink { events, sender, receiver, version })));
                for (lane, (of, receiver)) in std::mem::take(&mut self.early) {
                    // Those of a link before this one are closed.
                    if of == link {
                        self.hand_on_lane(link, lane, receiver);
                    }
                }
            }
            Incoming::Data { role, receiver } => {
                let lane = match role {
                    ChannelRole::Page(channel) => Lane::Page(channel),
                    ChannelRole::Urgent => Lane::Urgent,
                    ChannelRole::Control | ChannelRole::Resolve => return,
                };
                match self.link == Some(link) {
                    true => self.hand_on_lane(link, lane, receiver),
                    false => _ = self.early.insert(lane, (link, receiver)),
                }
            }
        }
    }

    fn events(&self, link: u64) -> LinkEvents {
        LinkEvents { link, inbox: self.inbox.clone() }
    }

    fn hand_on_lane(&self, link: u64, lane: Lane, receiver: Box<dyn DataReceiver>) {
        let events = self.events(link);
        self.hand_on(Happening::NewLane(Box::new(NewLane { events, lane, receiver })));
    }

    fn hand_on(&self, happening: Happening) {
        // A session that has ended takes no channel.
        let _ = self.inbox.send(happening);
    }
}

/// Takes one question about a commit, lets the session answer it, and passes the answer on. Silence is
/// the answer to what is not understood: the source asks elsewhere then.
fn answer(
    mut sender: Box<dyn ControlSender>,
    mut receiver: Box<dyn ControlReceiver>,
    inbox: &Sender<Happening>,
) {
    let Ok(bytes) = receiver.recv(MAX_MESSAGE, QUESTION_TIMEOUT) else { return };
    let Ok(ToDestination::Resolve { epoch }) = decode_message(bytes) else { return };
    let (answer, outcome) = channel();
    if inbox.send(Happening::Asked { epoch, answer }).is_ok()
        && let Ok(Some(outcome)) = outcome.recv()
        && let Err(error) = sender.send(&encode_message(&ToSource::Outcome(outcome)))
    {
        tracing::info!("an answer about attempt {epoch} did not reach the source: {error}");
    }
}
