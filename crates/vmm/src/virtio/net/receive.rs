use std::io;

use migrated_kernel::VNET_HEADER;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vm_memory::{Bytes, GuestAddress};

use super::header::{NUM_BUFFERS, may_be_received, to_guest};
use super::{BATCH, DeviceError, MAX_DESCRIPTORS, MAX_FRAME, Net, Queues, RX, Served};

/// Pieces of memory that one frame may be put into: four for each buffer of a page that the longest needs,
/// many times what drivers make.
const MAX_PIECES: usize = 1024;

/// A frame on its way to the guest, and where it will go.
#[derive(Debug)]
pub(super) struct Receiver {
    frame: Box<[u8]>,
    /// Of the frame that waits; 0 is none.
    length: usize,
    lacks_buffers: bool,
    /// Memory of the buffers that were taken for it.
    pieces: Vec<(GuestAddress, usize)>,
    /// The buffers: head of the chain, and how much has room in it, or was put there.
    buffers: Vec<(u16, u32)>,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placed {
    Given,
    /// No buffers that the driver could make would hold it.
    Never,
    /// It waits until the driver makes more of them available.
    Later,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            frame: vec![0; MAX_FRAME].into(),
            length: 0,
            lacks_buffers: false,
            pieces: Vec::with_capacity(MAX_PIECES),
            buffers: Vec::with_capacity(MAX_DESCRIPTORS),
        }
    }

    /// There is a frame and no room, so reading others would only lose them.
    pub(super) fn lacks_buffers(&self) -> bool {
        self.lacks_buffers
    }

    pub(super) fn waiting(&self) -> &[u8] {
        &self.frame[..self.length]
    }

    /// Takes over a frame that waited elsewhere; whether it can have.
    pub(super) fn resume(&mut self, waiting: &[u8]) -> bool {
        self.forget();
        let Some(frame) = self.frame.get_mut(..waiting.len()) else { return false };
        frame.copy_from_slice(waiting);
        self.length = waiting.len();
        true
    }

    pub(super) fn forget(&mut self) {
        self.length = 0;
        self.lacks_buffers = false;
    }

    fn place(&mut self, queues: &mut Queues<'_>, merge: bool) -> Result<Placed, DeviceError> {
        self.lacks_buffers = false;
        let placed = self.take_buffers(queues, merge)?;
        if placed != Placed::Given {
            self.buffers.iter().for_each(|_| queues.put_back(RX));
            self.lacks_buffers = placed == Placed::Later;
            return Ok(placed);
        }
        self.frame[NUM_BUFFERS].copy_from_slice(&(self.buffers.len() as u16).to_le_bytes());
        self.fill(queues)?;
        queues.complete_together(RX, &self.buffers)?;
        Ok(placed)
    }

    /// Takes buffers off the queue until they hold the frame.
    ///
    /// Before it gives up it asks to be notified, with all buffers taken: put back first, they would be the ones
    /// that the driver is asked about, and it has notified of them already.
    fn take_buffers(&mut self, queues: &mut Queues<'_>, merge: bool) -> Result<Placed, DeviceError> {
        self.pieces.clear();
        self.buffers.clear();
        let mut room = 0;
        // Each turn takes a buffer or has been told that there is another: a driver that takes that back is not
        // listened to for ever.
        for _ in 0..2 * MAX_DESCRIPTORS {
            let Some(chain) = queues.next(RX)? else {
                if queues.unmute(RX)? {
                    continue;
                }
                return Ok(Placed::Later);
            };
            let (head, before) = (chain.head_index(), room);
            for (at, descriptor) in chain.enumerate() {
                if at == MAX_DESCRIPTORS || self.pieces.len() == MAX_PIECES {
                    return Err(refused("receive buffers in too many pieces"));
                }
                if descriptor.is_write_only() {
                    self.pieces.push((descriptor.addr(), descriptor.len() as usize));
                    room += descriptor.len() as usize;
                }
            }
            // A chain has less than 4 GiB.
            self.buffers.push((head, (room - before) as u32));
            if room >= self.length {
                return Ok(Placed::Given);
            }
            if !merge || self.buffers.len() == usize::from(queues.size(RX)) {
                return Ok(Placed::Never);
            }
        }
        Ok(Placed::Later)
    }

    /// Copies the frame, and notes of each buffer how much of it is in there.
    fn fill(&mut self, queues: &Queues<'_>) -> Result<(), DeviceError> {
        let mut rest = &self.frame[..self.length];
        for (address, room) in &self.pieces {
            let (now, later) = rest.split_at(rest.len().min(*room));
            queues
                .memory()
                .write_slice(now, *address)
                .map_err(|_| refused("a receive buffer outside of RAM"))?;
            rest = later;
        }
        let mut rest = self.length as u32;
        for (_, room) in &mut self.buffers {
            *room = rest.min(*room);
            rest -= *room;
        }
        Ok(())
    }
}

fn refused(reason: &'static str) -> DeviceError {
    DeviceError::Request { queue: RX, reason }
}

impl Net {
    /// Moves frames into the guest: first what was read before, then what another host sent after the guest,
    /// then what the TAP has.
    pub(super) fn receive(&mut self, queues: &mut Queues<'_>) -> Result<Served, DeviceError> {
        let Some(accepted) = self.accepted.filter(|_| queues.is_ready(RX)) else { return Ok(Served::All) };
        let merge = self.has_accepted(VIRTIO_NET_F_MRG_RXBUF);
        queues.mute(RX)?;
        let (mut served, mut given) = (Served::More, false);
        for _ in 0..BATCH {
            if !self.fetch(queues) {
                served = Served::All;
                break;
            }
            let frame = &mut self.receiver.frame[..self.receiver.length];
            let placed = if may_be_received(frame, to_guest(accepted)) {
                self.receiver.place(queues, merge)?
            } else {
                Placed::Never
            };
            match placed {
                Placed::Given => {
                    given = true;
                    if self.receiver.frame[VNET_HEADER..].starts_with(&self.mac) {
                        self.note_packet();
                    }
                }
                Placed::Never => {}
                Placed::Later => {
                    served = Served::All;
                    break;
                }
            }
            self.receiver.length = 0;
        }
        if given {
            queues.interrupt(RX)?;
        }
        Ok(served)
    }

    /// Whether there is a frame to be placed.
    fn fetch(&mut self, queues: &Queues<'_>) -> bool {
        let receiver = &mut self.receiver;
        if receiver.length == 0 {
            receiver.length = self.handle.take_delivered(&mut receiver.frame);
        }
        if receiver.length == 0 && self.link_up {
            match self.handle.link().receive(&mut receiver.frame) {
                Ok(length) => receiver.length = length,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => self.lose_link(queues, &error),
            }
        }
        self.receiver.length > 0
    }
}
