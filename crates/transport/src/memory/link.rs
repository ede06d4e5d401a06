use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vm_memory::VolatileSlice;

use super::{Cut, Direction};
use crate::{Hangup, Stream, StreamReader, StreamWriter, TransportError};

/// A connection: two pipes under one lock.
pub(super) struct Link {
    pipes: Mutex<[Pipe; 2]>,
    changed: Condvar,
    capacity: usize,
}

#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// No byte will be added any more.
    ended: bool,
    passed: u64,
    cut_after: Option<u64>,
}

impl Link {
    pub(super) fn new(capacity: usize, cut: Option<Cut>) -> Arc<Self> {
        let mut pipes = [Pipe::default(), Pipe::default()];
        if let Some(cut) = cut {
            pipes[cut.direction as usize].cut_after = Some(cut.after);
            if cut.after == 0 {
                pipes.iter_mut().for_each(|pipe| pipe.ended = true);
            }
        }
        Arc::new(Self { pipes: Mutex::new(pipes), changed: Condvar::new(), capacity })
    }

    fn pipes(&self) -> MutexGuard<'_, [Pipe; 2]> {
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn passed(&self, direction: Direction) -> u64 {
        self.pipes()[direction as usize].passed
    }

    /// Breaks the connection: what is in the pipes can still be read.
    pub(super) fn end(&self) {
        self.pipes().iter_mut().for_each(|pipe| pipe.ended = true);
        self.changed.notify_all();
    }

    fn end_one(&self, direction: Direction) {
        self.pipes()[direction as usize].ended = true;
        self.changed.notify_all();
    }

    /// The stream of the end that reads what flows `towards` it.
    pub(super) fn stream(self: &Arc<Self>, towards: Direction, peer: String) -> Stream {
        let link = Arc::clone(self);
        Stream {
            reader: Box::new(Reader(End { link: Arc::clone(self), direction: towards, peer: peer.clone() })),
            writer: Box::new(Writer {
                end: End { link: Arc::clone(self), direction: towards.reverse(), peer: peer.clone() },
                chunk: vec![0; 16 << 10],
            }),
            hangup: Hangup::new(move || link.end()),
            peer,
        }
    }
}

/// One half of one end: one direction of the link. Dropping it ends the direction.
struct End {
    link: Arc<Link>,
    direction: Direction,
    peer: String,
}

impl End {
    fn lost(&self) -> TransportError {
        TransportError::Lost { peer: self.peer.clone(), reason: "the connection was closed".to_owned() }
    }

    fn write(&self, mut bytes: &[u8]) -> Result<(), TransportError> {
        let mut pipes = self.link.pipes();
        while !bytes.is_empty() {
            let pipe = &mut pipes[self.direction as usize];
            if pipe.ended {
                return Err(self.lost());
            }
            let until_cut = pipe.cut_after.map_or(u64::MAX, |after| after - pipe.passed);
            let room = self.link.capacity - pipe.bytes.len();
            let take = bytes.len().min(room).min(usize::try_from(until_cut).unwrap_or(usize::MAX));
            pipe.bytes.extend(&bytes[..take]);
            pipe.passed += take as u64;
            bytes = &bytes[take..];
            if take as u64 == until_cut {
                pipes.iter_mut().for_each(|pipe| pipe.ended = true);
            }
            if take > 0 {
                self.link.changed.notify_all();
            } else {
                pipes = self.link.changed.wait(pipes).unwrap_or_else(PoisonError::into_inner);
            }
        }
        Ok(())
    }

    fn read(&self, buf: &mut [u8], wait: Option<Duration>) -> Result<usize, TransportError> {
        let until = wait.map(|wait| (wait, Instant::now() + wait));
        let mut pipes = self.link.pipes();
        loop {
            let pipe = &mut pipes[self.direction as usize];
            let take = pipe.bytes.len().min(buf.len());
            if take > 0 {
                let (front, back) = pipe.bytes.as_slices();
                let from_front = take.min(front.len());
                buf[..from_front].copy_from_slice(&front[..from_front]);
                buf[from_front..take].copy_from_slice(&back[..take - from_front]);
                pipe.bytes.drain(..take);
                self.link.changed.notify_all();
                return Ok(take);
            }
            if pipe.ended {
                return Err(self.lost());
            }
            pipes = match until {
                None => self.link.changed.wait(pipes).unwrap_or_else(PoisonError::into_inner),
                Some((after, until)) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(TransportError::TimedOut { peer: self.peer.clone(), after });
                    }
                    self.link.changed.wait_timeout(pipes, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.link.end_one(self.direction);
    }
}

struct Reader(End);

impl StreamReader for Reader {
    fn read(&mut self, buf: &mut [u8], wait: Option<Duration>) -> Result<usize, TransportError> {
        self.0.read(buf, wait)
    }

    fn read_slices(&mut self, slices: &[VolatileSlice<'_>]) -> Result<(), TransportError> {
        let mut chunk = [0; 4096];
        for slice in slices {
            let mut done = 0;
            while done < slice.len() {
                let want = (slice.len() - done).min(chunk.len());
                let got = self.0.read(&mut chunk[..want], None)?;
                slice.subslice(done, got).expect("within the slice").copy_from(&chunk[..got]);
                done += got;
            }
        }
        Ok(())
    }

    fn bytes_received(&self) -> u64 {
        let pipes = self.0.link.pipes();
        let pipe = &pipes[self.0.direction as usize];
        pipe.passed - pipe.bytes.len() as u64
    }
}

struct Writer {
    end: End,
    chunk: Vec<u8>,
}

impl StreamWriter for Writer {
    fn write(&mut self, head: &[u8], payload: &[VolatileSlice<'_>]) -> Result<(), TransportError> {
        self.end.write(head)?;
        for slice in payload {
            let mut done = 0;
            while done < slice.len() {
                let part = slice.offset(done).expect("within the slice");
                let got = part.copy_to(&mut self.chunk[..]);
                self.end.write(&self.chunk[..got])?;
                done += got;
            }
        }
        Ok(())
    }

    fn bytes_sent(&self) -> u64 {
        self.end.link.passed(self.end.direction)
    }
}
