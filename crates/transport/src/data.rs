use migrated_wire::{PathSample, SendPace};
use vm_memory::VolatileSlice;

use crate::{DataReceiver, DataSender, Hangup, Stream, TransportError};

/// A stream as the source's end of a page channel.
#[must_use]
pub fn data_sender(stream: Stream) -> Box<dyn DataSender> {
    Box::new(Channel(stream))
}

/// A stream as the destination's end of a page channel.
#[must_use]
pub fn data_receiver(stream: Stream) -> Box<dyn DataReceiver> {
    Box::new(Channel(stream))
}

struct Channel(Stream);

impl Channel {
    /// After half a frame nothing that follows could be understood.
    fn or_end<T>(&self, result: Result<T, TransportError>) -> Result<T, TransportError> {
        result.inspect_err(|_| self.0.hangup.hang_up())
    }
}

impl DataSender for Channel {
    fn send(&mut self, head: &[u8], payload: &[VolatileSlice<'_>]) -> Result<(), TransportError> {
        let result = self.0.writer.write(head, payload);
        self.or_end(result)
    }

    fn bytes_sent(&self) -> u64 {
        self.0.writer.bytes_sent()
    }

    fn path(&self) -> Option<PathSample> {
        self.0.writer.path()
    }

    fn set_pace(&mut self, pace: SendPace) {
        self.0.writer.set_pace(pace);
    }

    fn hangup(&self) -> Hangup {
        self.0.hangup.clone()
    }
}

impl DataReceiver for Channel {
    fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), TransportError> {
        let result = self.0.reader.read_exact(buf);
        self.or_end(result)
    }

    fn read_payload(&mut self, slices: &[VolatileSlice<'_>]) -> Result<(), TransportError> {
        let result = self.0.reader.read_slices(slices);
        self.or_end(result)
    }

    fn bytes_received(&self) -> u64 {
        self.0.reader.bytes_received()
    }

    fn hangup(&self) -> Hangup {
        self.0.hangup.clone()
    }
}
