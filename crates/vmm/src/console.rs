//! What the guest wrote to its serial port: the last bytes, at absolute offsets.
//!
//! The ring may lie in a file. The kernel then keeps the bytes even when this process is killed, and
//! whoever supervises it reads them out of the file: a header with magic, capacity, the offset of the first byte that
//! is there and the number of bytes ever written, eight bytes each, and behind it the ring.
//!
//! Offsets count from the guest's first byte, on whichever host it wrote it: a migration carries the count, so that who
//! reads along goes on where it was, and the last bytes, so that it loses none.

use std::fs::File;
use std::io;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// Bytes of output that a console keeps.
pub const CONSOLE_CAPACITY: u64 = 256 << 10;

/// Most bytes of output that travel with a guest. They are sent while it stands still, 0.13 ms at 1 Gbit/s: enough for
/// what a reader has not fetched yet and for a look back.
pub const CARRIED_OUTPUT: usize = 16 << 10;
/// No guest writes more than that; sums with it can't overflow.
const MAX_OFFSET: u64 = 1 << 62;

/// First bytes of a console's file. The layout is that of `ConsoleFile` in `crates/control`, with which a
/// daemon reads it when this process is gone.
const MAGIC: u64 = u64::from_le_bytes(*b"MGRDCON2");
const MAGIC_AT: usize = 0;
/// Where the file holds the ring's size, the offset of the first byte that is there, and the number of bytes ever
/// written; the ring follows this header.
const CAPACITY_AT: usize = 8;
const FIRST_AT: usize = 16;
const WRITTEN_AT: usize = 24;
const RING_AT: usize = 32;
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
    /// Offset of the first byte that was written here or came along.
    first: u64,
    written: u64,
    wakers: Vec<Waker>,
}

/// A console's output as it travels with the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConsoleHistory {
    /// One past the last byte's offset.
    end: u64,
    /// The last bytes.
    bytes: Vec<u8>,
}

impl Console {
    /// A console whose output is gone with this process.
    ///
    /// # Errors
    /// The kernel's, when there is no memory.
    pub fn new() -> io::Result<Self> {
        let region = MmapRegion::new(FILE_LEN).map_err(io::Error::other)?;
        Self::with(region, 0, 0)
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
        let (first, written) = if fresh { (0, 0) } else { header(&region)? };
        Self::with(region, first, written)
    }

    fn with(bytes: MmapRegion<()>, first: u64, written: u64) -> io::Result<Self> {
        let slice = bytes.as_volatile_slice();
        slice.write_obj(MAGIC, MAGIC_AT).map_err(io::Error::other)?;
        slice.write_obj(CONSOLE_CAPACITY, CAPACITY_AT).map_err(io::Error::other)?;
        slice.write_obj(first, FIRST_AT).map_err(io::Error::other)?;
        slice.write_obj(written, WRITTEN_AT).map_err(io::Error::other)?;
        let ring = Ring { bytes, first, written, wakers: Vec::new() };
        Ok(Self { ring: Mutex::new(ring), grown: Condvar::new() })
    }

    /// Appends output and wakes readers.
    pub fn write(&self, bytes: &[u8]) {
        let mut ring = self.ring.lock();
        ring.append(bytes);
        self.wake(ring);
    }

    fn wake(&self, mut ring: MutexGuard<'_, Ring>) {
        ring.wakers.drain(..).for_each(Waker::wake);
        drop(ring);
        self.grown.notify_all();
    }

    /// What travels with the guest.
    pub(crate) fn history(&self) -> ConsoleHistory {
        let ring = self.ring.lock();
        let (from, bytes) =
            ring.read_from(ring.written.saturating_sub(CARRIED_OUTPUT as u64), CARRIED_OUTPUT);
        ConsoleHistory { end: from + bytes.len() as u64, bytes }
    }

    /// Goes on with the output of a guest that arrives, which has written nothing here.
    ///
    /// # Errors
    /// In words, when that can't be a console's.
    pub(crate) fn go_on(&self, history: &ConsoleHistory) -> Result<(), String> {
        let ConsoleHistory { end, bytes } = history;
        if bytes.len() > CARRIED_OUTPUT || bytes.len() as u64 > *end || *end > MAX_OFFSET {
            return Err(format!("{} bytes of output that ends at {end}", bytes.len()));
        }
        let mut ring = self.ring.lock();
        ring.first = end - bytes.len() as u64;
        ring.written = ring.first;
        let header = ring.bytes.as_volatile_slice();
        header.write_obj(ring.first, FIRST_AT).expect("the header is mapped");
        ring.append(bytes);
        self.wake(ring);
        Ok(())
    }

    /// The offset one past the last byte written, in bytes since the guest's first.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.ring.lock().written
    }

    /// The offset of the oldest byte that is kept.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.ring.lock().start()
    }

    /// At most `max` bytes of the output from `offset` on that is still kept, and the offset of their first: larger
    /// than asked for when the guest wrote more than [`CONSOLE_CAPACITY`] since.
    #[must_use]
    pub fn read_from(&self, offset: u64, max: usize) -> (u64, Vec<u8>) {
        self.ring.lock().read_from(offset, max)
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

    fn start(&self) -> u64 {
        self.first.max(self.written.saturating_sub(CONSOLE_CAPACITY))
    }

    fn read_from(&self, offset: u64, max: usize) -> (u64, Vec<u8>) {
        let first = offset.clamp(self.start(), self.written);
        let mut out = vec![0; max.min((self.written - first) as usize)];
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

/// The first byte's offset and the number of bytes ever written, out of a file that says it is a console's.
fn header(region: &MmapRegion<()>) -> io::Result<(u64, u64)> {
    let slice = region.as_volatile_slice();
    let magic = slice.read_obj::<u64>(MAGIC_AT).map_err(io::Error::other)?;
    let first = slice.read_obj::<u64>(FIRST_AT).map_err(io::Error::other)?;
    let written = slice.read_obj::<u64>(WRITTEN_AT).map_err(io::Error::other)?;
    // A process that died just after it made the file left zeros.
    let is_sound = first <= written && written <= MAX_OFFSET;
    if is_sound && (magic == MAGIC || (magic, written) == (0, 0)) {
        return Ok((first, written));
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
        assert_eq!(console.read_from(0, usize::MAX), (0, b"hello".to_vec()));
        assert_eq!(console.read_from(3, 1), (3, b"l".to_vec()));
        assert_eq!(console.read_from(99, 9), (5, vec![]));
        console.write(&vec![b'x'; CONSOLE_CAPACITY as usize]);
        let (first, bytes) = console.read_from(0, usize::MAX);
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
        assert_eq!(console.read_from(2, 9), (2, b"fore".to_vec()));
        console.write(b" after");
        assert_eq!(console.read_from(0, usize::MAX), (0, b"before after".to_vec()));

        let other = tempfile::tempfile().unwrap();
        other.write_all_at(&[b'#'; FILE_LEN], 0).unwrap();
        assert_eq!(Console::in_file(other).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_history_that_cant_be_one_is_refused() {
        let console = Console::new().unwrap();
        for (end, length) in [(4, 5), (1 << 20, CARRIED_OUTPUT + 1), (u64::MAX, 1)] {
            let history = ConsoleHistory { end, bytes: vec![b'x'; length] };
            assert!(console.go_on(&history).unwrap_err().contains("bytes of output"));
        }
        assert_eq!((console.start(), console.end()), (0, 0));
    }

    proptest! {
        #[test]
        fn the_ring_equals_the_tail_of_everything(
            writes in prop::collection::vec(1usize..150_000, 1..8), offset in 0u64..700_000, max in 0usize..400_000,
        ) {
            let console = Console::new().unwrap();
            let mut all = Vec::new();
            for length in writes {
                let piece: Vec<u8> = (all.len()..all.len() + length).map(|n| (n % 251) as u8).collect();
                console.write(&piece);
                all.extend(piece);
            }
            let (first, bytes) = console.read_from(offset, max);
            let kept = all.len().saturating_sub(CONSOLE_CAPACITY as usize);
            prop_assert_eq!(first as usize, (offset as usize).clamp(kept, all.len()));
            let until = all.len().min(first as usize + max);
            prop_assert_eq!(&bytes[..], &all[first as usize..until]);

            // A guest's destination goes on with the same offsets and the last of it.
            let there = Console::in_file(tempfile::tempfile().unwrap()).unwrap();
            there.go_on(&console.history()).unwrap();
            prop_assert_eq!((there.start(), there.end()), ((all.len() - all.len().min(CARRIED_OUTPUT)) as u64, console.end()));
            there.write(b"and on");
            all.extend(b"and on");
            let (first, bytes) = there.read_from(0, usize::MAX);
            prop_assert_eq!(&bytes[..], &all[first as usize..]);
        }
    }
}
