use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use migrated_kernel::VNET_HEADER;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use super::link::Link;
use super::{MAX_FRAME, MIN_FRAME};

/// Frames that a guest's card holds for it at most; as many as a TAP queues.
const MAX_FRAMES: usize = 1000;
/// Bytes of all those frames at most.
const MAX_BYTES: usize = 4 << 20;
/// Bytes of them that move on with a guest that is moved again before it took them: a state section has 1 MiB.
const MAX_SAVED: usize = 768 << 10;

/// What others than its worker may do with a card: read frames that came too late, hand over another host's, and
/// ask. It never touches guest RAM.
///
/// A frame that reaches the source while its guest is on the way waits in the TAP, whose reader stands still.
/// Once the guest can't come back, the source takes those frames and the destination hands them to the guest in
/// front of what comes there by itself.
#[derive(Clone, Debug)]
pub(crate) struct NetHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    link: Arc<dyn Link>,
    delivered: Mutex<Frames>,
    late: Mutex<Late>,
    /// An eventfd: the worker shall look at `delivered`.
    wake: Arc<OwnedFd>,
    first_packet: Mutex<Option<Duration>>,
}

/// What was found out while late frames were taken.
#[derive(Debug, Default)]
struct Late {
    /// All that came before the guest runs elsewhere has been taken.
    caught_up: bool,
    /// A frame that was read and exceeded what was asked for.
    held: Option<Vec<u8>>,
}

/// Frames in order, bounded.
#[derive(Debug, Default)]
struct Frames {
    queue: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Frames {
    /// Whether there was room, and it may be a frame.
    fn push(&mut self, frame: Vec<u8>) -> bool {
        let fits = (MIN_FRAME..=MAX_FRAME).contains(&frame.len())
            && self.queue.len() < MAX_FRAMES
            && self.bytes + frame.len() <= MAX_BYTES;
        if fits {
            self.bytes += frame.len();
            self.queue.push_back(frame);
        }
        fits
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let frame = self.queue.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }
}

/// Whether a frame's destination is a group (IEEE 802.3, 3.2.3): the first bit on the cable.
fn goes_to_many(frame: &[u8]) -> bool {
    frame.get(VNET_HEADER).is_some_and(|first| first & 1 != 0)
}

impl NetHandle {
    pub(super) fn new(link: Arc<dyn Link>) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self(Arc::new(Shared {
            link,
            delivered: Mutex::default(),
            late: Mutex::default(),
            wake: Arc::new(wake),
            first_packet: Mutex::default(),
        })))
    }

    /// Takes what waits in the TAP, oldest first, each frame with its header, at most `limit` bytes of them. Only
    /// for a guest that will never run here again: while it may, these frames are its own.
    ///
    /// Once all is taken that came before the guest ran elsewhere, what goes to many at once is left out: the
    /// guest gets that where it is.
    pub(crate) fn take_late(&self, limit: usize) -> Vec<Vec<u8>> {
        let mut late = self.0.late.lock();
        let mut frames = Vec::new();
        let mut bytes = 0;
        for _ in 0..MAX_FRAMES {
            let Some(frame) = late.held.take().or_else(|| self.read()) else {
                late.caught_up = true;
                break;
            };
            if late.caught_up && goes_to_many(&frame) {
                continue;
            }
            if bytes + frame.len() > limit {
                late.held = Some(frame);
                break;
            }
            bytes += frame.len();
            frames.push(frame);
        }
        frames
    }

    fn read(&self) -> Option<Vec<u8>> {
        let mut frame = [0; MAX_FRAME];
        let length = self.0.link.receive(&mut frame).ok()?;
        Some(frame[..length].to_vec())
    }

    /// Hands frames to the guest, before what its TAP has. Returns how many there was room for.
    pub(crate) fn deliver(&self, frames: Vec<Vec<u8>>) -> usize {
        let mut delivered = self.0.delivered.lock();
        let taken = frames.into_iter().filter_map(|frame| delivered.push(frame).then_some(())).count();
        drop(delivered);
        self.wake();
        taken
    }

    /// From the guest's first moment here to its first packet: one that it sent, or one to its own address that it
    /// was given. `None` until then, and for a guest that came from nowhere.
    pub(crate) fn first_packet(&self) -> Option<Duration> {
        *self.0.first_packet.lock()
    }

    pub(super) fn note_first_packet(&self, after: Duration) {
        *self.0.first_packet.lock() = Some(after);
    }

    pub(super) fn link(&self) -> &dyn Link {
        &*self.0.link
    }

    pub(super) fn wake_fd(&self) -> &Arc<OwnedFd> {
        &self.0.wake
    }

    pub(super) fn wake(&self) {
        // It fails only when it was woken 2^64 times already.
        let _ = rustix::io::write(&*self.0.wake, &1u64.to_ne_bytes());
    }

    pub(super) fn take_wake(&self) {
        // It fails when somebody has taken it.
        let _ = rustix::io::read(&*self.0.wake, &mut [0; 8]);
    }

    /// Puts the next frame that was handed over into `into`; its length, or 0.
    pub(super) fn take_delivered(&self, into: &mut [u8]) -> usize {
        let Some(frame) = self.0.delivered.lock().pop() else { return 0 };
        into[..frame.len()].copy_from_slice(&frame);
        frame.len()
    }

    /// Those that were handed over and not taken yet, as far as they can move on.
    pub(super) fn delivered(&self) -> Vec<Vec<u8>> {
        let delivered = self.0.delivered.lock();
        let mut bytes = 0;
        let fits = |frame: &&Vec<u8>| {
            bytes += frame.len();
            bytes <= MAX_SAVED
        };
        delivered.queue.iter().take_while(fits).cloned().collect()
    }

    pub(super) fn forget(&self) {
        *self.0.delivered.lock() = Frames::default();
    }

    /// Reads what waits in the TAP away.
    pub(super) fn discard_waiting(&self) {
        let mut frame = [0; 16];
        // More may come while it reads.
        for _ in 0..MAX_FRAMES {
            if self.0.link.receive(&mut frame).is_err() {
                break;
            }
        }
    }
}
