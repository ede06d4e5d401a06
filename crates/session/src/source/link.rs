use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use migrated_engine::source::SourceEvent;
use migrated_transport::{
    ControlReceiver, ControlSender, DataSender, Endpoint, Hangup, Transport, TransportError,
};
use migrated_wire::{
    ChannelRole, CommitOutcome, Hello, MAX_MESSAGE, ToDestination, ToSource, decode_message, encode_message,
};

use super::Shared;
use crate::error::ChannelFault;
use crate::traffic::{Odometer, Traffic};

/// The reader looks up from a silent channel this often, only to notice that the session is over.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a question about a commit may take on one connection.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// The source's channels.
pub(super) struct SourceLink {
    sender: Box<dyn ControlSender>,
    receiver: Option<Box<dyn ControlReceiver>>,
    hangups: Vec<Hangup>,
    odometer: Odometer,
}

impl SourceLink {
    /// Opens the control channel, then all page channels.
    pub(super) fn open(
        transport: &Arc<dyn Transport>,
        peer: &Endpoint,
        hello: &Hello,
        channels: u16,
        deadline: Instant,
    ) -> Result<(Self, Vec<Box<dyn DataSender>>), TransportError> {
        let (sender, receiver, _version) = transport.connect_control(peer, hello, deadline)?;
        let mut hangups = vec![sender.hangup()];
        let mut pages = Vec::new();
        for index in 0..channels {
            let hello = Hello { role: ChannelRole::Page(index), ..*hello };
            let page = transport.connect_data(peer, &hello, deadline)?;
            hangups.push(page.hangup());
            pages.push(page);
        }
        let receiver = Some(receiver);
        Ok((Self { sender, receiver, hangups, odometer: Odometer::default() }, pages))
    }

    /// Starts the thread that turns the destination's messages into events.
    pub(super) fn start_reader(mut self, events: Sender<SourceEvent>, shared: Arc<Shared>) -> Self {
        if let Some(mut receiver) = self.receiver.take() {
            thread::spawn(move || {
                let fault = read(receiver.as_mut(), &events, &shared.traffic);
                let event = match fault {
                    ChannelFault::Lost(reason) => SourceEvent::LinkLost(reason),
                    ChannelFault::Misbehaved(what) => SourceEvent::PeerMisbehaved(what),
                };
                // The session may have ended, which is why the channel did.
                let _ = events.send(event);
            });
        }
        self
    }

    pub(super) fn send(&mut self, message: &ToDestination, traffic: &Traffic) -> Result<(), String> {
        let sent = self.sender.send(&encode_message(message)).map_err(|error| error.to_string());
        traffic.add_sent(self.odometer.advance(self.sender.bytes_sent()));
        sent
    }

    pub(super) fn hang_up(self) {
        self.hangups.iter().for_each(Hangup::hang_up);
    }
}

fn read(receiver: &mut dyn ControlReceiver, events: &Sender<SourceEvent>, traffic: &Traffic) -> ChannelFault {
    let mut odometer = Odometer::default();
    loop {
        let message = match receiver.recv(MAX_MESSAGE, PATIENCE) {
            Ok(bytes) => decode_message::<ToSource>(bytes),
            Err(TransportError::TimedOut { .. }) => continue,
            Err(error) => return error.into(),
        };
        traffic.add_received(odometer.advance(receiver.bytes_received()));
        match message {
            Ok(message) => {
                if events.send(SourceEvent::Message(message)).is_err() {
                    return ChannelFault::Lost("the session is over".into());
                }
            }
            Err(error) => return error.into(),
        }
    }
}

/// Asks the destination's VM process, on a connection of its own, what became of the commit.
pub(super) fn ask(
    transport: Arc<dyn Transport>,
    peer: Endpoint,
    hello: Hello,
    epoch: u64,
    events: &Sender<SourceEvent>,
) {
    let events = events.clone();
    thread::spawn(move || {
        let outcome = question(transport.as_ref(), &peer, &hello, epoch);
        if let Err(error) = &outcome {
            tracing::info!("the destination's VM process does not say what became of the commit: {error}");
        }
        let _ = events.send(SourceEvent::Outcome(outcome.ok().flatten()));
    });
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
