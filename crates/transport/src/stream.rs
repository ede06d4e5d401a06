use std::time::Duration;

use migrated_wire::{PathSample, SendPace};
use vm_memory::VolatileSlice;

use crate::{Hangup, TransportError};

/// What a transport over byte streams has to bring: a connected, authenticated stream in two halves
/// that two threads may use at the same time. The rest (hello, framing, listening) is here, once.
///
/// Dropping the writer ends what the peer reads, after all bytes written; dropping both closes the stream.
pub struct Stream {
    /// The half that reads.
    pub reader: Box<dyn StreamReader>,
    /// The half that writes.
    pub writer: Box<dyn StreamWriter>,
    /// Ends every wait in both halves.
    pub hangup: Hangup,
    /// Who is at the other end, for messages.
    pub peer: String,
}

/// The reading half of a [`Stream`].
pub trait StreamReader: Send {
    /// Reads what is there, at least one byte, into the non-empty `buf`. Waits for it no longer than `wait`
    /// (for ever when `None`).
    ///
    /// # Errors
    /// [`TransportError::TimedOut`] when nothing came (nothing is lost then), [`TransportError::Lost`] at the
    /// end of the stream.
    fn read(&mut self, buf: &mut [u8], wait: Option<Duration>) -> Result<usize, TransportError>;

    /// Fills `buf`, however long it takes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), TransportError> {
        let mut done = 0;
        while done < buf.len() {
            done += self.read(&mut buf[done..], None)?;
        }
        Ok(())
    }

    /// Fills the slices in order, however long it takes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn read_slices(&mut self, slices: &[VolatileSlice<'_>]) -> Result<(), TransportError>;

    /// Bytes that came from the network so far.
    fn bytes_received(&self) -> u64;
}

/// The writing half of a [`Stream`].
pub trait StreamWriter: Send {
    /// Writes `head`, then `payload`, and leaves nothing in a buffer of its own. Blocks while the peer is behind.
    ///
    /// # Errors
    /// [`TransportError`]; the stream is unusable afterwards.
    fn write(&mut self, head: &[u8], payload: &[VolatileSlice<'_>]) -> Result<(), TransportError>;

    /// Bytes handed to the network so far.
    fn bytes_sent(&self) -> u64;

    /// As [`DataSender::path`](crate::DataSender::path).
    fn path(&self) -> Option<PathSample> {
        None
    }

    /// As [`DataSender::set_pace`](crate::DataSender::set_pace).
    fn set_pace(&mut self, _pace: SendPace) {}
}
