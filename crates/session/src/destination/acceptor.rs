use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use migrated_engine::destination::DestinationEvent;
use migrated_transport::{
    ControlReceiver, ControlSender, Gate, Hangup, Incoming, Listener, MigrationGate, TransportError,
};
use migrated_wire::{
    ChannelRole, MAX_MESSAGE, MigrationId, Refusal, RefusalCode, ToDestination, ToSource, Token,
    decode_message, encode_message,
};
use parking_lot::Mutex;

use super::{Happening, Shared, pages, reader};

const ROUND: Duration = Duration::from_secs(60);
/// How long somebody who asks for a commit's fate may take to say which.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);

/// Starts the thread that lets channels in until it is hung up. Resolve channels come in at any time, the
/// control channel and each page channel once.
pub(super) fn start(
    shared: &Arc<Shared>,
    inbox: &Sender<Happening>,
    mut listener: Box<dyn Listener>,
    migration: MigrationId,
    token: Token,
    max_channels: u16,
) -> Hangup {
    let hangup = listener.hangup();
    let seats = Mutex::new(Seats { control: false, pages: vec![false; max_channels.into()] });
    let gate: Arc<dyn Gate> =
        Arc::new(MigrationGate::new(migration, token, move |role| seats.lock().take(role)));
    let (shared, inbox) = (shared.clone(), inbox.clone());
    thread::spawn(move || {
        loop {
            match listener.accept(&gate, Instant::now() + ROUND) {
                Ok(incoming) => welcome(&shared, &inbox, incoming),
                Err(TransportError::TimedOut { .. }) => {}
                Err(error) => {
                    let event = DestinationEvent::LinkLost(format!("the listener ended: {error}"));
                    // The session may have ended, which is why the listener did.
                    let _ = inbox.send(Happening::Event(event));
                    return;
                }
            }
        }
    });
    hangup
}

/// Which channels have come already.
struct Seats {
    control: bool,
    pages: Vec<bool>,
}

impl Seats {
    fn take(&mut self, role: ChannelRole) -> Result<(), Refusal> {
        let refuse = |text: String| Err(Refusal { code: RefusalCode::Role, text });
        let seat = match role {
            ChannelRole::Resolve => return Ok(()),
            ChannelRole::Control => &mut self.control,
            ChannelRole::Page(index) => match self.pages.get_mut(usize::from(index)) {
                Some(seat) => seat,
                None => return refuse(format!("page channel {index} is beyond the most allowed here")),
            },
            ChannelRole::Urgent => return refuse("urgent channels belong to post-copy".into()),
        };
        match std::mem::replace(seat, true) {
            false => Ok(()),
            true => refuse(format!("{role:?} is open already")),
        }
    }
}

fn welcome(shared: &Arc<Shared>, inbox: &Sender<Happening>, incoming: Incoming) {
    match incoming {
        Incoming::Control { role: ChannelRole::Resolve, sender, receiver, .. } => {
            let inbox = inbox.clone();
            thread::spawn(move || answer(sender, receiver, &inbox));
        }
        Incoming::Control { sender, receiver, peer, .. } => {
            tracing::info!(%peer, "the source has connected");
            shared.hangups.lock().push(sender.hangup());
            // A session that has ended takes no channel.
            if inbox.send(Happening::Control(sender)).is_ok() {
                reader::start(shared, inbox, receiver);
            }
        }
        Incoming::Data { role, receiver } => {
            if let ChannelRole::Page(channel) = role {
                shared.hangups.lock().push(receiver.hangup());
                pages::start(shared, inbox, channel, receiver);
            }
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
