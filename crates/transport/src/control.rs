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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;

    use super::*;
    use crate::script;

    fn encoded(messages: &[Vec<u8>]) -> Vec<u8> {
        let (stream, seen) = script::stream(Vec::new(), false);
        let (mut sender, _receiver) = control_halves(stream);
        for message in messages {
            sender.send(message).unwrap();
        }
        seen.written.lock().unwrap().clone()
    }

    /// Cuts `bytes` into segments at the places that `sizes` give.
    fn cut(mut bytes: &[u8], sizes: &[usize]) -> Vec<Vec<u8>> {
        let mut segments = Vec::new();
        for size in sizes {
            let (now, later) = bytes.split_at(bytes.len().min(*size));
            segments.push(now.to_vec());
            bytes = later;
        }
        segments.push(bytes.to_vec());
        segments
    }

    proptest! {
        #[test]
        fn messages_survive_any_segmentation(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            large in prop::option::of(READ_AHEAD - 8..READ_AHEAD + 8),
            sizes in prop::collection::vec(0usize..400, 0..30),
        ) {
            let mut messages = messages;
            messages.extend(large.map(|size| vec![0xab; size]));
            let (stream, seen) = script::stream(cut(&encoded(&messages), &sizes), false);
            let (_sender, mut receiver) = control_halves(stream);
            for message in &messages {
                prop_assert_eq!(receiver.recv(READ_AHEAD + 8, STALL).unwrap(), &message[..]);
            }
            prop_assert_eq!(seen.hangups.load(Ordering::SeqCst), 0);
            let end = receiver.recv(READ_AHEAD, STALL).map(<[u8]>::len);
            prop_assert!(matches!(end, Err(TransportError::Lost { .. })), "{end:?}");
        }

        #[test]
        fn any_bytes_are_messages_within_the_limit_or_an_error(
            bytes in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..2000),
            sizes in prop::collection::vec(0usize..400, 0..30),
            limit in 0usize..200_000,
        ) {
            let total = bytes.len();
            let (stream, seen) = script::stream(cut(&bytes, &sizes), false);
            let (_sender, mut receiver) = control_halves(stream);
            let mut given = 0;
            while let Ok(message) = receiver.recv(limit, STALL) {
                prop_assert!(message.len() <= limit);
                given += PREFIX + message.len();
            }
            prop_assert!(given <= total);
            prop_assert_eq!(seen.hangups.load(Ordering::SeqCst), 1);
            let largest = seen.largest_read.load(Ordering::SeqCst);
            prop_assert!(largest <= READ_AHEAD.max(PREFIX + limit), "a buffer of {largest} bytes");
        }
    }

    #[test]
    fn silence_is_timed_out_but_half_a_message_is_lost() {
        let message = encoded(&[vec![1, 2, 3]]);
        for cut_at in 0..message.len() {
            let (stream, seen) = script::stream(vec![message[..cut_at].to_vec()], true);
            let (_sender, mut receiver) = control_halves(stream);
            let result = receiver.recv(100, STALL).map(<[u8]>::len);
            if cut_at == 0 {
                assert!(matches!(result, Err(TransportError::TimedOut { after: STALL, .. })), "{result:?}");
                assert_eq!(seen.hangups.load(Ordering::SeqCst), 0, "the channel stays usable");
            } else {
                assert!(matches!(result, Err(TransportError::Lost { .. })), "{result:?}");
                assert_eq!(seen.hangups.load(Ordering::SeqCst), 1);
                let again = receiver.recv(100, STALL).map(<[u8]>::len);
                assert!(matches!(again, Err(TransportError::Lost { .. })), "{again:?}");
            }
        }
    }

    #[test]
    fn a_large_message_does_not_keep_its_buffer() {
        let messages = [vec![7; 3 * KEEP], vec![8; 10], vec![9; 10]];
        let (stream, seen) = script::stream(vec![encoded(&messages)], false);
        let (_sender, mut receiver) = control_halves(stream);
        for message in &messages {
            assert_eq!(receiver.recv(4 * KEEP, STALL).unwrap(), message);
        }
        seen.largest_read.store(0, Ordering::SeqCst);
        assert!(receiver.recv(4 * KEEP, STALL).is_err());
        assert!(seen.largest_read.load(Ordering::SeqCst) <= KEEP);
    }
}
