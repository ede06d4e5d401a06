//! How far the requests of a queue are served. A request may name all of a guest's RAM, and a pause waits for
//! the device, so it is served in pieces, with a chance for others in between.

use std::io::Read;

use vm_memory::GuestAddress;

use super::super::{Chain, DeviceError, DeviceMemory};

/// Pages, descriptors or page numbers that are looked at before others have their turn: 64 MiB of pages,
/// which takes the kernel some milliseconds.
pub(super) const BUDGET: u64 = 16 << 10;
/// Bytes of a page number in an inflate request.
const PFN: u64 = 4;
/// Bytes of a page as virtio's balloon counts, whatever the guest's own are (VIRTIO_BALLOON_PFN_SHIFT).
const PAGE: u64 = 4096;

/// Where the first request of a queue is to be gone on with. Not part of a saved state: done twice is as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// Descriptors that are done.
    descriptors: usize,
    /// Bytes that are done of the one after them, or of the whole request.
    bytes: u64,
}

/// Whether a request has been served to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    Partly,
}

/// Goes on with a report of free pages, which are its writable buffers.
pub(super) fn report(
    chain: Chain<'_>,
    at: &mut Position,
    budget: &mut u64,
    mut free: impl FnMut(GuestAddress, u64),
) -> Progress {
    for descriptor in chain.writable().skip(at.descriptors) {
        if *budget == 0 {
            return Progress::Partly;
        }
        let rest = u64::from(descriptor.len()).saturating_sub(at.bytes);
        let piece = rest.min(*budget * PAGE);
        if let Some(start) = descriptor.addr().0.checked_add(at.bytes) {
            free(GuestAddress(start), piece);
        }
        *budget -= piece.div_ceil(PAGE).max(1);
        if piece < rest {
            at.bytes += piece;
            return Progress::Partly;
        }
        *at = Position { descriptors: at.descriptors + 1, bytes: 0 };
    }
    Progress::Done
}

/// Goes on with a request to inflate, which is a list of page numbers.
///
/// # Errors
/// [`DeviceError::Request`] when the list is not in RAM.
pub(super) fn inflate(
    queue: usize,
    chain: Chain<'_>,
    memory: &DeviceMemory,
    at: &mut Position,
    budget: &mut u64,
    mut free: impl FnMut(GuestAddress, u64),
) -> Result<Progress, DeviceError> {
    let outside = DeviceError::Request { queue, reason: "a list of pages that is not in RAM" };
    let Ok(mut list) = chain.reader(memory) else { return Err(outside) };
    // A driver that changed the list while it was served is done sooner.
    let Ok(mut list) = list.split_at(at.bytes as usize) else { return Ok(Progress::Done) };
    let count = (list.available_bytes() as u64 / PFN).min(*budget);
    let mut bytes = vec![0; (count * PFN) as usize];
    list.read_exact(&mut bytes).map_err(|_| outside)?;
    let mut pages: Vec<u64> =
        bytes.as_chunks().0.iter().map(|number| u64::from(u32::from_le_bytes(*number))).collect();
    // Linux lists them one by one in any order, and neighbours cost hardly more than one.
    pages.sort_unstable();
    pages.dedup();
    for run in pages.chunk_by(|page, next| page + 1 == *next) {
        free(GuestAddress(run[0] * PAGE), run.len() as u64 * PAGE);
    }
    at.bytes += count * PFN;
    *budget -= count;
    Ok(if list.available_bytes() as u64 >= PFN { Progress::Partly } else { Progress::Done })
}
