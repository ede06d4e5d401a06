//! The channels that the source has open now, and what is still fed of older ones: nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use migrated_engine::destination::{Destination, DestinationEvent};
use migrated_transport::{ControlReceiver, ControlSender, DataReceiver, Hangup};
use migrated_wire::{ToSource, encode_message};
use parking_lot::{Mutex, MutexGuard};

use super::pages::{self, Lane};
use super::{Happening, Shared, reader};
use crate::error::ChannelFault;
use crate::traffic::{Odometer, Traffic};

/// What all threads use of the link.
#[derive(Default)]
pub(super) struct Link {
    /// Which of the source's links is the one, from 0; changed only under the engine's lock.
    number: AtomicU64,
    control: Mutex<Option<(Box<dyn ControlSender>, Odometer)>>,
    hangups: Mutex<Vec<Hangup>>,
}

impl Link {
    /// Sends a message; a session without a link has nobody to tell.
    pub(super) fn send(&self, message: &ToSource, traffic: &Traffic) {
        let mut control = self.control.lock();
        let Some((sender, odometer)) = &mut *control else { return };
        let sent = sender.send(&encode_message(message));
        traffic.add_sent(odometer.advance(sender.bytes_sent()));
        if let Err(error) = sent {
            // The reader notices, behind what the peer had said: its reason must not be lost.
            tracing::debug!("a message was not sent: {error}");
        }
    }

    pub(super) fn set_control(&self, sender: Box<dyn ControlSender>) {
        self.hangups.lock().push(sender.hangup());
        *self.control.lock() = Some((sender, Odometer::default()));
    }

    pub(super) fn add_hangup(&self, hangup: Hangup) {
        self.hangups.lock().push(hangup);
    }

    pub(super) fn hang_up(&self) {
        let hangups = std::mem::take(&mut *self.hangups.lock());
        hangups.iter().for_each(Hangup::hang_up);
    }
}

/// Whether events of this link are fed.
pub(super) fn is_current(shared: &Shared, link: u64) -> bool {
    link == shared.link.number.load(Ordering::Relaxed)
}

/// Where a channel's thread reports; what it says of a link that was replaced is dropped.
#[derive(Clone)]
pub(super) struct LinkEvents {
    pub(super) link: u64,
    pub(super) inbox: Sender<Happening>,
}

impl LinkEvents {
    /// Says whether the session goes on.
    pub(super) fn send(&self, event: DestinationEvent) -> bool {
        self.inbox.send(Happening::OfLink { link: self.link, event }).is_ok()
    }

    /// Makes the session look at what the engine wants done.
    pub(super) fn wake(&self) {
        // A session that has ended does nothing more.
        let _ = self.inbox.send(Happening::Event(DestinationEvent::Tick));
    }

    /// Whether this link is the one: whether its events are fed.
    pub(super) fn is_current(&self, shared: &Shared) -> bool {
        is_current(shared, self.link)
    }

    /// The engine, for a channel of the link that is the one.
    pub(super) fn engine<'a>(&self, shared: &'a Shared) -> Result<MutexGuard<'a, Destination>, ChannelFault> {
        let engine = shared.engine.lock();
        match self.is_current(shared) {
            true => Ok(engine),
            false => Err(ChannelFault::Lost("the source has opened new channels".into())),
        }
    }
}

/// The control channel of a link. The first link has number 0; later ones the source opened because it had lost
/// the one before.
pub(super) struct NewLink {
    pub(super) events: LinkEvents,
    pub(super) sender: Box<dyn ControlSender>,
    pub(super) receiver: Box<dyn ControlReceiver>,
    /// The protocol version that both ends speak.
    pub(super) version: u16,
}

impl NewLink {
    /// Takes the place of the old link, if the engine still cares for one.
    pub(super) fn replace(self, shared: &Arc<Shared>) {
        let Self { events, sender, receiver, version } = self;
        {
            let mut engine = shared.engine.lock();
            if !super::may_relink(engine.state()) {
                return;
            }
            shared.link.number.store(events.link, Ordering::Relaxed);
            let event = match events.link {
                0 => DestinationEvent::Connected { version },
                _ => DestinationEvent::Reconnected { version },
            };
            engine.handle(shared.clock.now(), event);
        }
        // What old channels are still to bring is given back, or never was.
        shared.link.hang_up();
        shared.restoring.new_link(events.link);
        shared.link.set_control(sender);
        reader::start(shared, events, receiver);
    }
}

/// A page channel of a link.
pub(super) struct NewLane {
    pub(super) events: LinkEvents,
    pub(super) lane: Lane,
    pub(super) receiver: Box<dyn DataReceiver>,
}

impl NewLane {
    /// Takes its place in its link, if that is still the one.
    pub(super) fn join(self, shared: &Arc<Shared>) {
        let Self { events, lane, receiver } = self;
        if events.is_current(shared) {
            shared.link.add_hangup(receiver.hangup());
            pages::start(shared, events, lane, receiver);
        }
    }
}
