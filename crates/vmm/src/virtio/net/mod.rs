//! A network card (virtio 1.3, section 5.1) on a TAP.
//!
//! Every frame goes through a buffer of ours, one copy each way. Straight from guest RAM into the kernel would
//! save that copy, a tenth of a microsecond for an ordinary frame, and cost what the buffer gives: what is
//! checked, and what addresses are learnt from, is what is sent, whatever the guest writes meanwhile; a frame
//! that was read and finds no room waits as plain state and is not lost; and guest RAM is touched, and marked, by
//! vm-memory alone.
//!
//! `receive` and `transmit` are a frame's two ways, `header` what their headers may say. `addresses` learns who
//! the guest is, `announce` and `frames` tell the network where it is after a move. `handle` is what others than
//! the device's worker may do.

mod addresses;
mod announce;
mod cards;
mod control;
mod frames;
mod handle;
mod header;
mod link;
mod receive;
mod state;
#[cfg(test)]
mod tests;
mod transmit;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use migrated_kernel::{Tap, TapError, TapOffloads, VNET_HEADER};
use rustix::event::PollFlags;
use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};

use super::{DeviceError, DeviceKind, Queues, Served, VirtioDevice, Watched};
use crate::NetworkConfig;
use addresses::Addresses;
use announce::Announcer;
pub(crate) use cards::Cards;
pub(crate) use handle::NetHandle;
use header::{from_guest, to_guest};
use link::Link;
use receive::Receiver;

const RX: usize = 0;
const TX: usize = 1;
const CTRL: usize = 2;
/// As many as QEMU's devices have, for which drivers are tuned.
const QUEUE_SIZES: [u16; 3] = [256, 256, 64];
/// Longest chain that a driver may make: no longer than its queue (virtio 1.3, 2.7.5.3.1).
const MAX_DESCRIPTORS: usize = 256;
/// Longest frame, with its header: 64 KiB of a segment to be cut, and Ethernet's 14 bytes.
const MAX_FRAME: usize = VNET_HEADER + 65_550;
/// Shortest frame that is one: Ethernet's addresses and type.
const MIN_FRAME: usize = VNET_HEADER + 14;
/// Frames that one call handles at most, each way: about a millisecond of the longest, for which a pause waits.
const BATCH: u16 = 32;

const TAP: usize = 0;
const WAKE: usize = 1;
const TIMER: usize = 2;

/// What each card offers besides an MTU. A change is another version in [`VirtioDevice::kind`].
///
/// There is no VIRTIO_NET_F_CTRL_RX: a bridge decides what comes here, and the guest gets all of it.
const FEATURES: [u32; 14] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
    // Only with an MTU to tell.
    VIRTIO_NET_F_MTU,
];

/// Why a guest can't have its network card.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// The TAP can't be had.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The process can't have another descriptor.
    #[error("a timer for the network card can't be had: {0}; raise the limit of open files (ulimit -n)")]
    Descriptor(#[source] io::Error),
}

/// The card.
#[derive(Debug)]
pub(crate) struct Net {
    mac: [u8; 6],
    mtu: Option<u16>,
    handle: NetHandle,
    /// What the driver accepted, while it is there.
    accepted: Option<u64>,
    /// What the TAP leaves to the driver.
    offloads: TapOffloads,
    /// The TAP is there; nothing but its removal by somebody else changes that.
    link_up: bool,
    /// VIRTIO_NET_S_ANNOUNCE: the driver was asked to announce the guest and has not said that it did.
    asked_to_announce: bool,
    announcer: Announcer,
    addresses: Addresses,
    /// When the guest came here, until its first packet.
    arrived: Option<Instant>,
    receiver: Receiver,
    /// The frame on its way out.
    sent: Box<[u8]>,
}

impl Net {
    /// A card on a TAP of its own, which it makes and joins to the bridge.
    pub(crate) fn open(config: &NetworkConfig) -> Result<Self, NetworkError> {
        let tap = Tap::open(config.tap.as_deref(), config.mtu, Some(&config.bridge))?;
        Self::new(config.mac, config.mtu, Arc::new(tap)).map_err(NetworkError::Descriptor)
    }

    fn new(mac: [u8; 6], mtu: Option<u16>, link: Arc<dyn Link>) -> io::Result<Self> {
        let mut net = Self {
            mac,
            mtu,
            handle: NetHandle::new(link)?,
            accepted: None,
            offloads: TapOffloads::default(),
            link_up: true,
            asked_to_announce: false,
            announcer: Announcer::new()?,
            addresses: Addresses::default(),
            arrived: None,
            receiver: Receiver::new(),
            sent: vec![0; MAX_FRAME].into(),
        };
        // Most drivers accept it all, and those that arrive need not wait for it then.
        net.set_offloads(to_guest(net.features()));
        Ok(net)
    }

    /// What others than the worker may do with it.
    pub(crate) fn handle(&self) -> NetHandle {
        self.handle.clone()
    }

    fn has_accepted(&self, feature: u32) -> bool {
        self.accepted.is_some_and(|accepted| accepted & (1 << feature) != 0)
    }

    /// `struct virtio_net_config` as far as the features go: mac, status, max_virtqueue_pairs, mtu.
    fn config(&self) -> [u8; 12] {
        let announce = if self.asked_to_announce { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        let link = if self.link_up { VIRTIO_NET_S_LINK_UP } else { 0 };
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&((announce | link) as u16).to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        config
    }

    fn set_offloads(&mut self, offloads: TapOffloads) {
        if offloads == self.offloads {
            return;
        }
        match self.handle.link().set_offloads(offloads) {
            Ok(()) => self.offloads = offloads,
            // Frames that the driver can't take are dropped on the way to it.
            Err(error) => {
                tracing::warn!(%error, "the TAP's offloads can't be set: the guest may miss frames")
            }
        }
    }

    /// The guest's first frame here, either way, ends the time that the network lost by its move.
    fn note_packet(&mut self) {
        if let Some(arrived) = self.arrived.take() {
            self.handle.note_first_packet(arrived.elapsed());
        }
    }

    /// Somebody removed the TAP. The guest sees a pulled cable, and its owner why.
    fn lose_link(&mut self, queues: &Queues<'_>, error: &io::Error) {
        tracing::warn!(%error, "the guest's TAP is gone: its network is cut off until it moves or starts anew");
        self.link_up = false;
        queues.config_changed();
    }

    fn announce(&mut self, queues: &Queues<'_>) {
        for frame in self.addresses.announcement(self.mac) {
            // A TAP that takes no frames is noticed where it is read.
            let _ = self.handle.link().send(&frame);
        }
        self.asked_to_announce = self.has_accepted(VIRTIO_NET_F_GUEST_ANNOUNCE);
        // A driver that can't announce anything looks at its link, which may have been down where it comes from.
        queues.config_changed();
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind { id: VIRTIO_ID_NET as u16, name: "net", pci_class: 0x02_0000, version: 1 }
    }

    fn features(&self) -> u64 {
        let offered = |feature: &u32| *feature != VIRTIO_NET_F_MTU || self.mtu.is_some();
        FEATURES.into_iter().filter(offered).fold(0, |all, feature| all | 1 << feature)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let rest = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or(&[]);
        data.fill(0);
        data.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    }

    fn activate(&mut self, features: u64) {
        self.accepted = Some(features);
        self.set_offloads(to_guest(features));
    }

    fn reset(&mut self) {
        self.accepted = None;
        self.asked_to_announce = false;
        self.announcer.stop();
        self.addresses = Addresses::default();
        self.receiver.forget();
        self.handle.forget();
    }

    fn serve_queue(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<Served, DeviceError> {
        match queue {
            RX => self.receive(queues),
            TX => self.transmit(queues),
            _ => self.control(queues),
        }
    }

    fn watched(&self, watched: &mut Vec<Watched>) {
        let mut wait_for = |fd: &Arc<_>, token| {
            watched.push(Watched { fd: Arc::clone(fd), interest: PollFlags::IN, token });
        };
        wait_for(self.handle.wake_fd(), WAKE);
        if self.link_up && !self.receiver.lacks_buffers() {
            wait_for(self.handle.link().fd(), TAP);
        }
        if let Some(timer) = self.announcer.timer() {
            wait_for(timer, TIMER);
        }
    }

    fn serve_host(&mut self, token: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        match token {
            TIMER => {
                if self.announcer.is_due() {
                    self.announce(queues);
                }
                return Ok(());
            }
            WAKE => self.handle.take_wake(),
            _ => {}
        }
        if self.receive(queues)? == Served::More {
            self.handle.wake();
        }
        Ok(())
    }

    /// What the TAP holds by now came by broadcast while the guest was elsewhere, where it got it as well.
    fn arrived(&mut self, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        self.handle.discard_waiting();
        self.arrived = Some(Instant::now());
        self.announcer.begin();
        self.announce(queues);
        Ok(())
    }

    fn save(&self) -> Vec<u8> {
        state::save(self)
    }

    fn restore(&mut self, data: &[u8]) -> Result<(), String> {
        state::restore(self, data)
    }
}
