use migrated_kernel::VNET_HEADER;
use vm_memory::Bytes;

use super::header::may_be_sent;
use super::{BATCH, DeviceError, MAX_DESCRIPTORS, Net, Queues, Served, TX, from_guest};
use crate::virtio::{Chain, DeviceMemory};

impl Net {
    /// Lets out what the driver has put into its queue. What can't be a frame, or is not taken, is dropped, as on a
    /// cable.
    pub(super) fn transmit(&mut self, queues: &mut Queues<'_>) -> Result<Served, DeviceError> {
        let Some(accepted) = self.accepted else { return Ok(Served::All) };
        let offloads = from_guest(accepted);
        queues.serve_some(TX, BATCH, |chain, memory| {
            let length = gather(chain, memory, &mut self.sent)?.unwrap_or(0);
            let frame = &mut self.sent[..length];
            if may_be_sent(frame, offloads) {
                self.addresses.learn(&frame[VNET_HEADER..], self.mac);
                // Whether the TAP is still there is found out where it is read.
                if self.handle.link().send(frame).is_ok() {
                    self.note_packet();
                }
            }
            Ok(0)
        })
    }
}

/// Copies what a chain holds for the device; `None` when it is longer than any frame.
fn gather(chain: Chain<'_>, memory: &DeviceMemory, into: &mut [u8]) -> Result<Option<usize>, DeviceError> {
    let refused = |reason| DeviceError::Request { queue: TX, reason };
    let mut length = 0;
    for (at, descriptor) in chain.enumerate() {
        if at == MAX_DESCRIPTORS {
            return Err(refused("a frame in too many pieces"));
        }
        if descriptor.is_write_only() {
            continue;
        }
        let Some(piece) = into[length..].get_mut(..descriptor.len() as usize) else { return Ok(None) };
        memory.read_slice(piece, descriptor.addr()).map_err(|_| refused("a frame outside of RAM"))?;
        length += piece.len();
    }
    Ok(Some(length))
}
