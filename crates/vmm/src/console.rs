//! What the guest wrote to its serial port: the last bytes, at absolute offsets.
//!
//! The ring may lie in a file. The kernel then keeps the bytes even when this process is killed, and
//! whoever supervises it reads them out of the file: a header with magic, capacity and the number of bytes ever
//! written, eight bytes each, and behind it the ring.

use std::fs::File;
use std::io;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// Bytes of output that a console keeps.
pub const CONSOLE_CAPACITY: u64 = 256 << 10;

/// First bytes of a console's file. The layout is that of `ConsoleFile` in `crates/control`, with which a
/// daemon reads it when this process is gone.
const MAGIC: u64 = u64::from_le_bytes(*b"MGRDCON1");
const MAGIC_AT: usize = 0;
/// Where the file holds the ring's size and the number of bytes ever written; the ring follows this header.
const CAPACITY_AT: usize = 8;
const WRITTEN_AT: usize = 16;
const RING_AT: usize = 24;
const FILE_LEN: usize = RING_AT + CONSOLE_CAPACITY as usize;

/// A console's output. A guest that floods it costs itself time and nobody memory.
#[derive(Debug)]
pub struct Console {
    ring: Mutex<Ring>,
    grown: Condvar,
}

#[derive(Debug)]
struct Ring {
    bytes: MmapRegion<()>,
    written: u64,
    wakers: Vec<Waker>,
}

impl Console {
    /// A console whose output is gone with this process.
    ///
    /// # Errors
    /// The kernel's, when there is no memory.
    pub fn new() -> io::Result<Self> {
        let region = MmapRegion::new(FILE_LEN).map_err(io::Error::other)?;
        Self::with(region, 0)
    }

    /// A console that keeps its output in `file`, going on where an earlier console's output ended.
    ///
    /// # Errors
    /// The kernel's; `InvalidData` when the file is something else's.
    pub fn in_file(file: File) -> io::Result<Self> {
        let fresh = file.metadata()?.len() == 0;
        if fresh {
            // Room is taken now: a full disk must not become a SIGBUS when the guest prints.
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, FILE_LEN as u64)?;
        }
        let region = map(file)?;
        let written = if fresh { 0 } else { header(&region)? };
        Self::with(region, written)
    }

    fn with(bytes: MmapRegion<()>, written: u64) -> io::Result<Self> {
        let slice = bytes.as_volatile_slice();
        slice.write_obj(MAGIC, MAGIC_AT).map_err(io::Error::other)?;
        slice.write_obj(CONSOLE_CAPACITY, CAPACITY_AT).map_err(io::Error::other)?;
        slice.write_obj(written, WRITTEN_AT).map_err(io::Error::other)?;
        let ring = Ring { bytes, written, wakers: Vec::new() };
        Ok(Self { ring: Mutex::new(ring), grown: Condvar::new() })
    }

    /// Appends output and wakes readers.
    pub fn write(&self, bytes: &[u8]) {
        let mut ring = self.ring.lock();
        ring.append(bytes);
        ring.wakers.drain(..).for_each(Waker::wake);
        drop(ring);
        self.grown.notify_all();
    }

    /// The offset one past the last byte written, in bytes since the guest's first.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.ring.lock().written
    }

    /// The output from `offset` on that is still kept, and the offset of its first byte: larger than
    /// asked for when the guest wrote more than [`CONSOLE_CAPACITY`] since.
    #[must_use]
    pub fn read_from(&self, offset: u64) -> (u64, Vec<u8>) {
        self.ring.lock().read_from(offset)
    }

    /// Waits until there is output past `offset`; `false` when there was none in time.
    pub fn wait_past(&self, offset: u64, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut ring = self.ring.lock();
        while ring.written <= offset {
            if self.grown.wait_until(&mut ring, deadline).timed_out() {
                return ring.written > offset;
            }
        }
        true
    }

    /// Ready once there is output past `offset`; else the task is woken by the next output.
    pub fn poll_past(&self, offset: u64, context: &mut Context<'_>) -> Poll<()> {
        let mut ring = self.ring.lock();
        if ring.written > offset {
            return Poll::Ready(());
        }
        if !ring.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            ring.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Ring {
    fn append(&mut self, bytes: &[u8]) {
        let ring = self.bytes.as_volatile_slice();
        for byte in bytes {
            let at = RING_AT + (self.written % CONSOLE_CAPACITY) as usize;
            ring.write_obj(*byte, at).expect("the ring is mapped");
            self.written += 1;
        }
        ring.write_obj(self.written, WRITTEN_AT).expect("the header is mapped");
    }

    fn read_from(&self, offset: u64) -> (u64, Vec<u8>) {
        let first = offset.clamp(self.written.saturating_sub(CONSOLE_CAPACITY), self.written);
        let mut out = vec![0; (self.written - first) as usize];
        let start = (first % CONSOLE_CAPACITY) as usize;
        let until_wrap = out.len().min(CONSOLE_CAPACITY as usize - start);
        let (head, tail) = out.split_at_mut(until_wrap);
        let ring = self.bytes.as_volatile_slice();
        ring.read_slice(head, RING_AT + start).expect("the ring is mapped");
        ring.read_slice(tail, RING_AT).expect("the ring is mapped");
        (first, out)
    }
}

fn map(file: File) -> io::Result<MmapRegion<()>> {
    let length = file.metadata()?.len();
    if length != FILE_LEN as u64 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a console's file has {FILE_LEN} bytes, this one {length}"),
        ));
    }
    MmapRegion::from_file(FileOffset::new(file, 0), FILE_LEN).map_err(io::Error::other)
}

/// The number of bytes ever written, out of a file that says it is a console's.
fn header(region: &MmapRegion<()>) -> io::Result<u64> {
    let slice = region.as_volatile_slice();
    let magic = slice.read_obj::<u64>(MAGIC_AT).map_err(io::Error::other)?;
    let written = slice.read_obj::<u64>(WRITTEN_AT).map_err(io::Error::other)?;
    // A process that died just after it made the file left zeros.
    if magic == MAGIC || (magic, written) == (0, 0) {
        return Ok(written);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the file is no console's"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    #[test]
    fn readers_follow_and_learn_what_they_missed() {
        let console = Console::new().unwrap();
        console.write(b"hello");
        assert_eq!(console.read_from(0), (0, b"hello".to_vec()));
        assert_eq!(console.read_from(3), (3, b"lo".to_vec()));
        assert_eq!(console.read_from(99), (5, vec![]));
        console.write(&vec![b'x'; CONSOLE_CAPACITY as usize]);
        let (first, bytes) = console.read_from(0);
        assert_eq!((first, bytes.len() as u64), (5, CONSOLE_CAPACITY));
    }

    #[test]
    fn a_waiting_reader_is_woken() {
        let console = Arc::new(Console::new().unwrap());
        let reader = {
            let console = console.clone();
            std::thread::spawn(move || console.wait_past(0, Duration::from_secs(60)))
        };
        console.write(b"x");
        assert!(reader.join().unwrap());
        assert!(!console.wait_past(1, Duration::ZERO));

        let mut context = Context::from_waker(Waker::noop());
        assert!(console.poll_past(0, &mut context).is_ready());
        assert!(console.poll_past(1, &mut context).is_pending());
    }

    #[test]
    fn a_file_keeps_the_output_and_strangers_files_are_refused() {
        let file = tempfile::tempfile().unwrap();
        let console = Console::in_file(file.try_clone().unwrap()).unwrap();
        console.write(b"before");
        drop(console);
        let console = Console::in_file(file.try_clone().unwrap()).unwrap();
        assert_eq!(console.read_from(2), (2, b"fore".to_vec()));
        console.write(b" after");
        assert_eq!(console.read_from(0), (0, b"before after".to_vec()));

        let other = tempfile::tempfile().unwrap();
        other.write_all_at(&[b'#'; FILE_LEN], 0).unwrap();
        assert_eq!(Console::in_file(other).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn the_ring_equals_the_tail_of_everything(
            writes in prop::collection::vec(1usize..150_000, 1..8), offset in 0u64..700_000,
        ) {
            let console = Console::new().unwrap();
            let mut all = Vec::new();
            for length in writes {
                let piece: Vec<u8> = (all.len()..all.len() + length).map(|n| (n % 251) as u8).collect();
                console.write(&piece);
                all.extend(piece);
            }
            let (first, bytes) = console.read_from(offset);
            let kept = all.len().saturating_sub(CONSOLE_CAPACITY as usize);
            prop_assert_eq!(first as usize, (offset as usize).clamp(kept, all.len()));
            prop_assert_eq!(&bytes[..], &all[first as usize..]);
        }
    }
}
