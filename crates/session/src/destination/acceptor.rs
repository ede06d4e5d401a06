use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
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

use super::link::{LinkEvents, NewLink};
use super::pages::{self, Lane};
use super::{Happening, Shared, is_draining, reader};

const ROUND: Duration = Duration::from_secs(60);
/// How long somebody who asks for a commit's fate may take to say which.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);

/// Starts the thread that lets channels in until it is hung up. Resolve channels come in at any time, the
/// control channel, the urgent one and each page channel once; and all once more while pages follow a guest
/// that runs here, when the source has lost its link.
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
        let is_draining = is_draining(state.engine.lock().state());
        taken.lock().take(role, is_draining)
    }));
    let mut porter = Porter {
        shared: shared.clone(),
        first: LinkEvents { link: 0, inbox: inbox.clone() },
        seats,
        control: None,
        lanes: BTreeMap::new(),
    };
    thread::spawn(move || {
        loop {
            match listener.accept(&gate, Instant::now() + ROUND) {
                Ok(incoming) => porter.welcome(incoming),
                Err(TransportError::TimedOut { .. }) => {}
                Err(error) => {
                    let event = DestinationEvent::LinkLost(format!("the listener ended: {error}"));
                    // The session may have ended, which is why the listener did.
                    let _ = porter.first.inbox.send(Happening::Event(event));
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

/// Takes channels to where they belong: those of the first link one by one, as they come; those of a later one
/// when all have come, as only then the engine may know of it.
struct Porter {
    shared: Arc<Shared>,
    first: LinkEvents,
    seats: Arc<Mutex<Seats>>,
    /// What has come of a later link. Of a link that never got whole the next one's channels take the places.
    control: Option<(Box<dyn ControlSender>, Box<dyn ControlReceiver>)>,
    lanes: BTreeMap<Lane, Box<dyn DataReceiver>>,
}

impl Porter {
    fn welcome(&mut self, incoming: Incoming) {
        let is_first = self.seats.lock().links <= 1;
        match incoming {
            Incoming::Control { role: ChannelRole::Resolve, sender, receiver, .. } => {
                let inbox = self.first.inbox.clone();
                thread::spawn(move || answer(sender, receiver, &inbox));
            }
            Incoming::Control { sender, receiver, peer, .. } => {
                tracing::info!(%peer, "the source has connected");
                if is_first {
                    self.shared.link.set_control(sender);
                    // A session that has ended takes no channel.
                    if self.first.inbox.send(Happening::Event(DestinationEvent::Connected)).is_ok() {
                        reader::start(&self.shared, self.first.clone(), receiver);
                    }
                } else {
                    self.control = Some((sender, receiver));
                    self.complete();
                }
            }
            Incoming::Data { role, receiver } => {
                let lane = match role {
                    ChannelRole::Page(channel) => Lane::Page(channel),
                    ChannelRole::Urgent => Lane::Urgent,
                    ChannelRole::Control | ChannelRole::Resolve => return,
                };
                if is_first {
                    self.shared.link.add_hangup(receiver.hangup());
                    pages::start(&self.shared, self.first.clone(), lane, receiver);
                } else {
                    self.lanes.insert(lane, receiver);
                    self.complete();
                }
            }
        }
    }

    /// Hands a later link on once it is whole: it has as many channels as the first.
    fn complete(&mut self) {
        let pages = self.shared.engine.lock().record(self.shared.clock.now()).channels;
        if self.lanes.len() != usize::from(pages) + 1 {
            return;
        }
        if let Some((sender, receiver)) = self.control.take() {
            let lanes = std::mem::take(&mut self.lanes).into_iter().collect();
            let link = Box::new(NewLink { sender, receiver, lanes });
            // A session that has ended takes no channel.
            let _ = self.first.inbox.send(Happening::NewLink(link));
        }
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
