use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use migrated_kernel::FaultEvent;
use migrated_pages::{BlockId, PAGE_SIZE, PageRun};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use super::{Armed, PostcopyError, kernel};

/// A thread waits for a missing page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// The block that the page lies in.
    pub block: BlockId,
    /// Index of the page in the block.
    pub page: u64,
    /// Whether the thread wants to write.
    pub is_write: bool,
    /// Thread that waits, as gettid(2) names it; 0 where the kernel doesn't say.
    pub thread: u32,
}

/// Reads faults, and provides pages that fault without being missing.
#[derive(Debug)]
pub struct FaultReader {
    armed: Arc<Armed>,
    stop: Arc<Stop>,
    events: Vec<FaultEvent>,
}

/// Ends a [`FaultReader`], from any thread.
#[derive(Clone, Debug)]
pub struct FaultStop {
    stop: Arc<Stop>,
}

#[derive(Debug)]
struct Stop {
    asked: AtomicBool,
    /// Wakes a reader that sleeps.
    event: OwnedFd,
}

impl FaultStop {
    /// Makes the reader's [`next`](FaultReader::next) return `false`, now and always.
    pub fn stop(&self) {
        self.stop.asked.store(true, Ordering::Release);
        // A counter of 8 bytes: this can fail only when it was written 2^64 times.
        let _ = rustix::io::write(&self.stop.event, &1u64.to_ne_bytes());
    }
}

impl FaultReader {
    pub(super) fn new(armed: Arc<Armed>) -> Result<Self, PostcopyError> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(kernel("eventfd for the reader of faults"))?;
        let stop = Stop { asked: AtomicBool::new(false), event }.into();
        Ok(Self { armed, stop, events: Vec::new() })
    }

    /// A handle to end this reader.
    #[must_use]
    pub fn stop_handle(&self) -> FaultStop {
        FaultStop { stop: self.stop.clone() }
    }

    /// Waits for faults on missing pages and appends all that are there to `out`; or returns `false` when it was
    /// stopped. It looks again and again for `spin`, then sleeps: a fault is then noticed some 50 µs later.
    ///
    /// A page may be reported that is placed meanwhile; nobody waits for it then.
    ///
    /// # Errors
    /// [`PostcopyError`]; who waits goes on waiting, and another call may well succeed.
    pub fn next(&mut self, spin: Duration, out: &mut Vec<PageFault>) -> Result<bool, PostcopyError> {
        let mut idle_since = Instant::now();
        loop {
            if self.stop.asked.load(Ordering::Acquire) {
                return Ok(false);
            }
            let before = out.len();
            if self.read(out)? {
                idle_since = Instant::now();
            } else if idle_since.elapsed() >= spin {
                self.sleep()?;
            } else {
                std::hint::spin_loop();
            }
            if out.len() > before {
                return Ok(true);
            }
        }
    }

    /// Takes the faults that are there; whether there were any.
    fn read(&mut self, out: &mut Vec<PageFault>) -> Result<bool, PostcopyError> {
        self.armed.uffd().read_faults(&mut self.events)?;
        let any = !self.events.is_empty();
        // The oldest last, to be taken first.
        self.events.reverse();
        // What fails stays here for the next call: the kernel tells each fault once.
        while let Some(FaultEvent { address, is_write, thread }) = self.events.last().copied() {
            if let Some((block, page)) = self.armed.page_at(address) {
                if self.armed.missing().contains(block, page) {
                    out.push(PageFault { block, page, is_write, thread });
                } else if let Err(error) = self.armed.provide(PageRun { block, first: page, count: 1 })
                    // The kernel has no such memory any more, and who waited for it was woken by that.
                    && !self.armed.watched.is_released()
                {
                    return Err(error);
                }
            }
            self.events.pop();
        }
        Ok(any)
    }

    fn sleep(&self) -> Result<(), PostcopyError> {
        let mut sources =
            [PollFd::new(self.armed.uffd(), PollFlags::IN), PollFd::new(&self.stop.event, PollFlags::IN)];
        match poll(&mut sources, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(kernel("poll of a userfaultfd")(error)),
        }
    }
}

impl Armed {
    /// The page at a host address of the guest's mapping.
    fn page_at(&self, address: u64) -> Option<(BlockId, u64)> {
        self.ram().layout().ids().find_map(|block| {
            let mapping = self.ram().mapping(block);
            let offset = address.checked_sub(mapping.as_ptr().addr() as u64)?;
            (offset < mapping.size() as u64).then_some((block, offset / PAGE_SIZE as u64))
        })
    }
}
