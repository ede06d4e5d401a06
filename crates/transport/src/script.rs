//! A stream whose peer follows a script, for tests.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_memory::VolatileSlice;

use crate::{Hangup, Stream, StreamReader, StreamWriter, TransportError};

/// What happened to a scripted stream.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    /// The largest buffer that was offered to be filled, in bytes.
    pub(crate) largest_read: Arc<AtomicUsize>,
    pub(crate) hangups: Arc<AtomicUsize>,
    pub(crate) written: Arc<Mutex<Vec<u8>>>,
}

/// A stream that gives `segments`, a read each, and then ends or stalls.
pub(crate) fn stream(segments: Vec<Vec<u8>>, stalls: bool) -> (Stream, Seen) {
    let seen = Seen::default();
    let hangups = Arc::clone(&seen.hangups);
    let stream = Stream {
        reader: Box::new(Reader { segments: segments.into(), stalls, seen: seen.clone(), received: 0 }),
        writer: Box::new(Writer(seen.clone())),
        hangup: Hangup::new(move || {
            hangups.fetch_add(1, Ordering::SeqCst);
        }),
        peer: "script".to_owned(),
    };
    (stream, seen)
}

struct Reader {
    segments: VecDeque<Vec<u8>>,
    stalls: bool,
    seen: Seen,
    received: u64,
}

impl StreamReader for Reader {
    fn read(&mut self, buf: &mut [u8], wait: Option<Duration>) -> Result<usize, TransportError> {
        assert!(!buf.is_empty());
        self.seen.largest_read.fetch_max(buf.len(), Ordering::SeqCst);
        while let Some(mut segment) = self.segments.pop_front() {
            let count = segment.len().min(buf.len());
            buf[..count].copy_from_slice(&segment[..count]);
            let rest = segment.split_off(count);
            if !rest.is_empty() {
                self.segments.push_front(rest);
            }
            if count > 0 {
                self.received += count as u64;
                return Ok(count);
            }
        }
        let peer = "script".to_owned();
        Err(match (self.stalls, wait) {
            (true, Some(after)) => TransportError::TimedOut { peer, after },
            _ => TransportError::Lost { peer, reason: "the script is over".to_owned() },
        })
    }

    fn read_slices(&mut self, slices: &[VolatileSlice<'_>]) -> Result<(), TransportError> {
        unreachable!("no test reads {} slices of a script", slices.len())
    }

    fn bytes_received(&self) -> u64 {
        self.received
    }
}

struct Writer(Seen);

impl StreamWriter for Writer {
    fn write(&mut self, head: &[u8], payload: &[VolatileSlice<'_>]) -> Result<(), TransportError> {
        assert!(payload.is_empty());
        self.0.written.lock().expect("one thread").extend_from_slice(head);
        Ok(())
    }

    fn bytes_sent(&self) -> u64 {
        self.0.written.lock().expect("one thread").len() as u64
    }
}
