//! The guest's serial output, kept in a file so that it outlives the VM process.
//!
//! The file is a ring of fixed size behind a header with the offset of the first byte that was written to it and the
//! count of all bytes ever written. Data is written before the count: a process killed in between loses its last bytes,
//! no others.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

const MAGIC: [u8; 8] = *b"MGRDCON2";
const HEADER: u64 = 32;

/// Which bytes of the console's output can be read, as offsets into all that the guest wrote, on whichever host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConsoleRange {
    /// Offset of the oldest byte still kept.
    pub start: u64,
    /// One past the newest byte's offset: how many were written in all.
    pub end: u64,
}

/// A piece of console output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleChunk {
    /// Offset of the first byte: later than asked for when older ones are gone.
    pub from: u64,
    /// The bytes; none when there was nothing to read.
    pub bytes: Vec<u8>,
}

impl ConsoleChunk {
    /// Most bytes in one chunk.
    pub const MAX: usize = 16 * 1024;
}

/// A console's ring in a file.
#[derive(Debug)]
pub struct ConsoleFile {
    file: File,
    capacity: u64,
    first: u64,
    written: u64,
}

impl ConsoleFile {
    /// How much output is kept unless something else is asked for, in bytes.
    pub const DEFAULT_CAPACITY: u64 = 1 << 20;

    /// An empty ring of `capacity` bytes, replacing a file that may be there.
    ///
    /// # Errors
    /// The system's, or `InvalidInput` for a ring of nothing.
    pub fn create(path: &Path, capacity: u64) -> io::Result<Self> {
        if capacity == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a console ring of 0 bytes"));
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.set_len(HEADER + capacity)?;
        file.write_all_at(&MAGIC, 0)?;
        file.write_all_at(&capacity.to_le_bytes(), 8)?;
        Ok(Self { file, capacity, first: 0, written: 0 })
    }

    /// The ring that a VM process left at `path`, to read.
    ///
    /// # Errors
    /// The system's, or `InvalidData` when the file is no console ring.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut header = [0; HEADER as usize];
        file.read_exact_at(&mut header, 0)?;
        let (magic, rest) = header.split_at(8);
        let (capacity, rest) = rest.split_at(8);
        let (first, written) = rest.split_at(8);
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        let (capacity, first, written) = (number(capacity), number(first), number(written));
        if magic != MAGIC || capacity == 0 || file.metadata()?.len() != HEADER.saturating_add(capacity) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a console ring"));
        }
        Ok(Self { file, capacity, first, written })
    }

    /// Which bytes can be read.
    #[must_use]
    pub fn range(&self) -> ConsoleRange {
        let start = self.first.max(self.written.saturating_sub(self.capacity));
        // A process killed while its guest arrived may have left a beginning without the rest.
        ConsoleRange { start: start.min(self.written), end: self.written }
    }

    /// Appends output. Many bytes at once are cheaper: two system calls a call.
    ///
    /// # Errors
    /// The system's; nothing counts as written then.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let skipped = bytes.len().saturating_sub(self.capacity as usize);
        let kept = &bytes[skipped..];
        let at = (self.written + skipped as u64) % self.capacity;
        let (head, tail) = kept.split_at(kept.len().min((self.capacity - at) as usize));
        self.file.write_all_at(head, HEADER + at)?;
        self.file.write_all_at(tail, HEADER)?;
        let written = self.written + bytes.len() as u64;
        self.file.write_all_at(&written.to_le_bytes(), 24)?;
        self.written = written;
        Ok(())
    }

    /// Reads at most `max` bytes (and [`ConsoleChunk::MAX`]) from offset `from`, or from the oldest kept.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&self, from: u64, max: usize) -> io::Result<ConsoleChunk> {
        let ConsoleRange { start, end } = self.range();
        let from = from.clamp(start, end);
        let mut bytes = vec![0; ((end - from) as usize).min(max).min(ConsoleChunk::MAX)];
        let at = from % self.capacity;
        let head = bytes.len().min((self.capacity - at) as usize);
        let (head, tail) = bytes.split_at_mut(head);
        self.file.read_exact_at(head, HEADER + at)?;
        self.file.read_exact_at(tail, HEADER)?;
        Ok(ConsoleChunk { from, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keeps_the_newest_bytes(capacity in 1u64..40, writes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..12), from in 0u64..400, max in 0usize..80) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("ring");
            let mut ring = ConsoleFile::create(&path, capacity).unwrap();
            let mut all = Vec::new();
            for bytes in &writes {
                ring.append(bytes).unwrap();
                all.extend_from_slice(bytes);
            }
            let reopened = ConsoleFile::open(&path).unwrap();
            let start = all.len().saturating_sub(capacity as usize) as u64;
            prop_assert_eq!(reopened.range(), ConsoleRange { start, end: all.len() as u64 });
            let chunk = reopened.read(from, max).unwrap();
            let first = (from as usize).clamp(start as usize, all.len());
            prop_assert_eq!(chunk.from, first as u64);
            prop_assert_eq!(&chunk.bytes[..], &all[first..all.len().min(first + max)]);
        }
    }

    #[test]
    fn refuses_a_file_that_is_no_ring() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ring");
        std::fs::write(&path, [7; 100]).unwrap();
        assert_eq!(ConsoleFile::open(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
