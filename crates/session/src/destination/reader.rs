use std::sync::Arc;
use std::time::Duration;

use migrated_engine::destination::DestinationEvent;
use migrated_transport::{ControlReceiver, TransportError};
use migrated_wire::{MAX_MESSAGE, ToDestination, decode_message};

use super::Shared;
use super::link::LinkEvents;
use crate::error::ChannelFault;
use crate::threads;
use crate::traffic::Odometer;

/// The reader looks up from a silent channel this often, only to notice that the session is over.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the thread that turns the source's messages into events.
pub(super) fn start(shared: &Arc<Shared>, events: LinkEvents, mut receiver: Box<dyn ControlReceiver>) {
    let shared = shared.clone();
    threads::start("dst-control", move || {
        let event = match read(receiver.as_mut(), &shared, &events) {
            ChannelFault::Lost(reason) => DestinationEvent::LinkLost(reason),
            ChannelFault::Misbehaved(what) => DestinationEvent::PeerMisbehaved(what),
        };
        shared.restoring.link_ended(events.link);
        // The session may have ended, which is why the channel did.
        events.send(event);
    });
}

fn read(receiver: &mut dyn ControlReceiver, shared: &Shared, events: &LinkEvents) -> ChannelFault {
    let mut odometer = Odometer::default();
    loop {
        let message = match receiver.recv(MAX_MESSAGE, PATIENCE) {
            Ok(bytes) => decode_message::<ToDestination>(bytes),
            Err(TransportError::TimedOut { .. }) => continue,
            Err(error) => return error.into(),
        };
        shared.traffic.add_received(odometer.advance(receiver.bytes_received()));
        match message {
            // Dropping what is stale of a large guest keeps the session's thread busy for longer than a dead peer is
            // silent.
            Ok(ToDestination::Ping { nonce }) => {
                let pong = events.engine(shared).map(|mut engine| engine.ping(shared.clock.now(), nonce));
                match pong {
                    Ok(pong) => shared.link.send(&pong, &shared.traffic),
                    Err(fault) => return fault,
                }
            }
            Ok(message) => {
                if !events.send(DestinationEvent::Message(message)) {
                    return ChannelFault::Lost("the session is over".into());
                }
            }
            Err(error) => return error.into(),
        }
    }
}
