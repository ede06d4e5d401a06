//! A card with a driver's hand on one side and a cable that only remembers on the other.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use migrated_kernel::{TapOffloads, VNET_HEADER};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::Queue;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};

use super::super::link::Link;
use super::super::{CTRL, Net, QUEUE_SIZES, RX, TX};
use crate::virtio::testing::{Ram, Sent};
use crate::virtio::{DeviceError, DeviceMemory, Queues, Served, VirtioDevice};

pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 7];
pub const RAM: usize = 8 << 20;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;

/// The other end of the cable.
#[derive(Debug)]
pub struct Cable {
    fd: Arc<OwnedFd>,
    pub coming: Mutex<VecDeque<Vec<u8>>>,
    pub sent: Mutex<Vec<Vec<u8>>>,
    pub offloads: Mutex<TapOffloads>,
    pub removed: Mutex<bool>,
}

impl Cable {
    pub fn new() -> Arc<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        Arc::new(Self {
            fd: Arc::new(fd),
            coming: Mutex::default(),
            sent: Mutex::default(),
            offloads: Mutex::default(),
            removed: Mutex::default(),
        })
    }

    pub fn take_sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.sent.lock())
    }
}

impl Link for Cable {
    fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    fn set_offloads(&self, offloads: TapOffloads) -> io::Result<()> {
        *self.offloads.lock() = offloads;
        Ok(())
    }

    fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        if *self.removed.lock() {
            return Err(io::Error::from_raw_os_error(libc::EBADFD));
        }
        let frame = self.coming.lock().pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        let length = frame.len().min(into.len());
        into[..length].copy_from_slice(&frame[..length]);
        Ok(length)
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.sent.lock().push(frame.to_vec());
        Ok(())
    }
}

/// A frame to `to`, of `length` bytes with its header.
pub fn frame_to(to: [u8; 6], length: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..length).map(|at| (at * 7) as u8).collect();
    frame[..VNET_HEADER].fill(0);
    frame[VNET_HEADER..VNET_HEADER + 6].copy_from_slice(&to);
    frame[VNET_HEADER + 6..VNET_HEADER + 12].copy_from_slice(&MAC);
    frame
}

pub struct Bench<'a> {
    pub ram: &'a Ram,
    pub net: Net,
    pub cable: Arc<Cable>,
    pub interrupts: Sent,
    pub queues: [Queue; 3],
    drivers: [MockSplitQueue<'a, DeviceMemory>; 3],
    /// Per queue: the descriptor that is used next, and how many used elements were seen.
    at: [(u16, u16); 3],
    /// Where the next buffer lies.
    buffer: u64,
}

impl<'a> Bench<'a> {
    /// A card whose driver accepted all that it offers but `without`.
    pub fn new(ram: &'a Ram, without: &[u32]) -> Self {
        let cable = Cable::new();
        let mut net = Net::new(MAC, None, cable.clone()).unwrap();
        let drivers = [0, 1, 2].map(|queue| {
            let at = GuestAddress(queue as u64 * 0x4000);
            MockSplitQueue::create(&ram.memory, at, QUEUE_SIZES[queue])
        });
        let queues = [0, 1, 2].map(|queue: usize| drivers[queue].create_queue().unwrap());
        net.activate(without.iter().fold(net.features(), |features, bit| features & !(1 << bit)));
        let interrupts = Sent::default();
        Self { ram, net, cable, interrupts, queues, drivers, at: [(0, 0); 3], buffer: 0x10_0000 }
    }

    pub fn with<T>(&mut self, what: impl FnOnce(&mut Net, &mut Queues<'_>) -> T) -> T {
        let mut queues = Queues::new(&mut self.queues, &self.ram.memory, &self.interrupts);
        what(&mut self.net, &mut queues)
    }

    pub fn try_serve(&mut self, queue: usize) -> Result<Served, DeviceError> {
        self.with(|net, queues| net.serve_queue(queue, queues))
    }

    pub fn serve(&mut self, queue: usize) -> Served {
        self.try_serve(queue).unwrap()
    }

    /// Makes a chain of buffers available: (bytes, flags) each. Returns where each buffer lies.
    fn add(&mut self, queue: usize, pieces: &[(u32, u16)]) -> Vec<u64> {
        let first = self.at[queue].0;
        let mut places = Vec::new();
        let mut chain = Vec::new();
        for (nth, (length, flags)) in (1u16..).zip(pieces) {
            let more = if usize::from(nth) < pieces.len() { NEXT } else { 0 };
            let descriptor = Descriptor::new(self.buffer, *length, flags | more, first + nth);
            chain.push(RawDescriptor::from(descriptor));
            places.push(self.buffer);
            self.buffer += u64::from(*length).next_multiple_of(64);
        }
        self.drivers[queue].add_desc_chains(&chain, first).unwrap();
        self.at[queue].0 += pieces.len() as u16;
        places
    }

    /// Makes a buffer for received frames of these pieces available, and returns where its pieces lie.
    pub fn offer(&mut self, pieces: &[u32]) -> Vec<u64> {
        let pieces: Vec<_> = pieces.iter().map(|length| (*length, WRITE)).collect();
        self.add(RX, &pieces)
    }

    /// Sends a frame in pieces of at most `piece` bytes.
    pub fn send(&mut self, frame: &[u8], piece: usize) {
        let lengths: Vec<_> = frame.chunks(piece).map(|piece| (piece.len() as u32, 0)).collect();
        let places = self.add(TX, &lengths);
        for (place, piece) in places.iter().zip(frame.chunks(piece)) {
            self.ram.memory.write_slice(piece, GuestAddress(*place)).unwrap();
        }
    }

    /// Sends a command and returns where its answer will be.
    pub fn command(&mut self, command: &[u8]) -> GuestAddress {
        let places = self.add(CTRL, &[(command.len() as u32, 0), (1, WRITE)]);
        self.ram.memory.write_slice(command, GuestAddress(places[0])).unwrap();
        self.ram.memory.write_obj(0xffu8, GuestAddress(places[1])).unwrap();
        GuestAddress(places[1])
    }

    /// Lengths of what was given back since the last time.
    pub fn given_back(&mut self, queue: usize) -> Vec<u32> {
        let used = self.drivers[queue].used();
        let seen = std::mem::replace(&mut self.at[queue].1, used.idx().load());
        let size = QUEUE_SIZES[queue];
        (seen..self.at[queue].1)
            .map(|at| used.ring().ref_at(usize::from(at % size)).unwrap().load().len())
            .collect()
    }

    /// Bytes of guest RAM.
    pub fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub fn config(&self) -> Vec<u8> {
        let mut config = vec![0xaa; 16];
        self.net.read_config(0, &mut config);
        config
    }

    /// Whether the TAP is waited for.
    pub fn waits_for_frames(&self) -> bool {
        let mut watched = Vec::new();
        self.net.watched(&mut watched);
        watched.iter().any(|watched| watched.token == super::super::TAP)
    }
}
