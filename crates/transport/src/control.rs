use std::time::{Duration, Instant};

use migrated_wire::WireError;

use crate::{ControlReceiver, ControlSender, Hangup, Stream, StreamReader, StreamWriter, TransportError};

/// A message is its length (u32, little-endian) and its bytes.
const PREFIX: usize = 4;
/// How much is read at once: many small messages cost one system call.
const READ_AHEAD: usize = 64 << 10;
/// A buffer that a large message needed is given back when it exceeds this.
const KEEP: usize = 1 << 20;
/// A message that began and stalls for this long has lost its sender.
const STALL: Duration = Duration::from_secs(5);
/// A message that began must be whole within this time, however steadily it drips.
const WHOLE: Duration = Duration::from_secs(60);

/// Cuts a stream into the two halves of a control channel.
#[must_use]
pub fn control_halves(stream: Stream) -> (Box<dyn ControlSender>, Box<dyn ControlReceiver>) {
    let Stream { reader, writer, hangup, peer } = stream;
    let sender = FramedSender { writer, hangup: hangup.clone(), peer: peer.clone(), frame: Vec::new() };
    let receiver =
        FramedReceiver { reader, hangup, peer, buffer: Vec::new(), start: 0, end: 0, failed: false };
    (Box::new(sender), Box::new(receiver))
}

struct FramedSender {
    writer: Box<dyn StreamWriter>,
    hangup: Hangup,
    peer: String,
    frame: Vec<u8>,
}

impl ControlSender for FramedSender {
    fn send(&mut self, message: &[u8]) -> Result<(), TransportError> {
        let len = u32::try_from(message.len()).map_err(|_| TransportError::Protocol {
            peer: self.peer.clone(),
            source: WireError::TooLarge {
                what: "control message to send",
                got: message.len() as u64,
                limit: u32::MAX.into(),
            },
        })?;
        self.frame.clear();
        self.frame.shrink_to(KEEP);
        self.frame.extend_from_slice(&len.to_le_bytes());
        self.frame.extend_from_slice(message);
        // After half a frame nothing that follows could be understood.
        self.writer.write(&self.frame, &[]).inspect_err(|_| self.hangup.hang_up())
    }

    fn bytes_sent(&self) -> u64 {
        self.writer.bytes_sent()
    }

    fn hangup(&self) -> Hangup {
        self.hangup.clone()
    }
}

struct FramedReceiver {
    reader: Box<dyn StreamReader>,
    hangup: Hangup,
    peer: String,
    /// Bytes `start..end` are received and not yet given out.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    failed: bool,
}

impl FramedReceiver {
    /// Makes `want` bytes from `start` on available; `want` is within the caller's limit.
    fn fill(&mut self, want: usize, by: Instant) -> Result<(), TransportError> {
        while self.end - self.start < want {
            let left = by.saturating_duration_since(Instant::now()).min(STALL);
            self.read_some(want, left).map_err(|error| match error {
                TransportError::TimedOut { peer, .. } => TransportError::Lost {
                    peer,
                    reason: format!("a control message stalled at {} of {want} bytes", self.end - self.start),
                },
                other => other,
            })?;
        }
        Ok(())
    }

    fn read_some(&mut self, want: usize, wait: Duration) -> Result<(), TransportError> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let size = want.max(READ_AHEAD);
        if self.buffer.len() < size || self.buffer.len() > size.max(KEEP) {
            self.buffer.resize(size.max(self.end), 0);
            self.buffer.shrink_to_fit();
        }
        self.end += self.reader.read(&mut self.buffer[self.end..], Some(wait))?;
        Ok(())
    }

    fn next(&mut self, limit: usize, patience: Duration) -> Result<usize, TransportError> {
        if self.start == self.end {
            self.read_some(PREFIX, patience)?;
        }
        let by = Instant::now() + WHOLE;
        self.fill(PREFIX, by)?;
        let mut prefix = [0; PREFIX];
        prefix.copy_from_slice(&self.buffer[self.start..self.start + PREFIX]);
        let len = u32::from_le_bytes(prefix) as usize;
        if len > limit {
            let source =
                WireError::TooLarge { what: "control message", got: len as u64, limit: limit as u64 };
            return Err(TransportError::Protocol { peer: self.peer.clone(), source });
        }
        self.fill(PREFIX + len, by)?;
        Ok(len)
    }
}

impl ControlReceiver for FramedReceiver {
    fn recv(&mut self, limit: usize, patience: Duration) -> Result<&[u8], TransportError> {
        if self.failed {
            let reason = "the channel failed before".to_owned();
            return Err(TransportError::Lost { peer: self.peer.clone(), reason });
        }
        match self.next(limit, patience) {
            Ok(len) => {
                let from = self.start + PREFIX;
                self.start = from + len;
                Ok(&self.buffer[from..from + len])
            }
            Err(error) => {
                if !matches!(error, TransportError::TimedOut { .. }) {
                    self.failed = true;
                    self.hangup.hang_up();
                }
                Err(error)
            }
        }
    }

    fn bytes_received(&self) -> u64 {
        self.reader.bytes_received()
    }
}
