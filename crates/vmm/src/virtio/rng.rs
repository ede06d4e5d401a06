use std::io;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vm_memory::Bytes;

use super::{Chain, DeviceError, DeviceKind, DeviceMemory, Queues, Served, VirtioDevice};

/// The most bytes that one request is answered with. A driver that wants more asks again.
const LIMIT: usize = 4096;
/// Requests that may wait at a time.
const QUEUE_SIZE: u16 = 64;

/// The entropy device (virtio 1.3, section 5.4): random bytes of the host's kernel. It remembers nothing.
#[derive(Debug)]
pub(super) struct Rng;

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        // Base class 0xff: what PCI has no class for.
        DeviceKind { id: VIRTIO_ID_RNG as u16, name: "rng", pci_class: 0xff_0000, version: 1 }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    fn serve_queue(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<Served, DeviceError> {
        queues.serve(queue, |chain, memory| fill(queue, chain, memory))
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, data: &[u8]) -> Result<(), String> {
        if data.is_empty() { Ok(()) } else { Err(format!("{} bytes of state, and it has none", data.len())) }
    }
}

/// Fills a request's first buffers, and returns with how many bytes.
fn fill(queue: usize, chain: Chain<'_>, memory: &DeviceMemory) -> Result<u32, DeviceError> {
    let mut random = [0; LIMIT];
    let mut filled = 0;
    for buffer in chain.writable() {
        let piece = &mut random[filled..];
        let piece = &mut piece[..(buffer.len() as usize).min(LIMIT - filled)];
        getrandom::fill(piece)
            .map_err(|error| DeviceError::Host { operation: "getrandom", source: io::Error::other(error) })?;
        let reason = "a buffer that is not all in RAM";
        memory.write_slice(piece, buffer.addr()).map_err(|_| DeviceError::Request { queue, reason })?;
        filled += piece.len();
        if filled == LIMIT {
            break;
        }
    }
    Ok(filled as u32)
}
