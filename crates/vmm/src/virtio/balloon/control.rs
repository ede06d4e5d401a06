use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use migrated_pages::PAGE_SIZE;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use crate::BalloonError;

/// What is known of a guest's balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonStatus {
    /// How much of its RAM the guest is to give up, in bytes.
    pub target_bytes: u64,
    /// How much the guest says that it has given up, in bytes.
    pub actual_bytes: u64,
    /// What of its RAM the guest has given back in all its life, as free or into the balloon, in bytes. It may have
    /// taken it again since.
    pub given_back_bytes: u64,
}

/// The host's hand on a guest's balloon.
#[derive(Debug)]
pub(crate) struct BalloonControl {
    /// In pages, as the driver counts.
    target: Mutex<u32>,
    actual: AtomicU32,
    given_back_bytes: AtomicU64,
    /// Whether the guest has a driver that is ready.
    driven: AtomicBool,
    /// Signalled when `target` has changed.
    changed: Arc<OwnedFd>,
}

impl BalloonControl {
    /// An empty balloon.
    ///
    /// # Errors
    /// When there are too many open files.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            target: Mutex::new(0),
            actual: AtomicU32::new(0),
            given_back_bytes: AtomicU64::new(0),
            driven: AtomicBool::new(false),
            changed: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
        })
    }

    /// Asks a guest that runs, as `runs` says, for so many bytes of its RAM, rounded down to pages. A guest may take
    /// its time, or never do it.
    ///
    /// It is asked under the target's lock: that is saved under it while the guest stands still, so a new target is
    /// either saved or refused.
    ///
    /// # Errors
    /// [`BalloonError::NotRunning`] and [`BalloonError::NoDriver`]; then the target is as it was.
    pub(crate) fn set_target(&self, bytes: u64, runs: impl FnOnce() -> bool) -> Result<(), BalloonError> {
        let mut target = self.target.lock();
        if !runs() {
            return Err(BalloonError::NotRunning);
        }
        if !self.driven.load(Ordering::Relaxed) {
            return Err(BalloonError::NoDriver);
        }
        *target = u32::try_from(bytes / PAGE_SIZE as u64).unwrap_or(u32::MAX);
        // Fails only when it is signalled already.
        let _ = rustix::io::write(&*self.changed, &1u64.to_ne_bytes());
        Ok(())
    }

    pub(crate) fn status(&self) -> BalloonStatus {
        let bytes = |pages: u32| u64::from(pages) * PAGE_SIZE as u64;
        BalloonStatus {
            target_bytes: bytes(self.target()),
            actual_bytes: bytes(self.actual()),
            given_back_bytes: self.given_back_bytes(),
        }
    }

    pub(super) fn target(&self) -> u32 {
        *self.target.lock()
    }

    pub(super) fn store_target(&self, pages: u32) {
        *self.target.lock() = pages;
    }

    /// The guest's driver is ready, or no more.
    pub(super) fn set_driven(&self, driven: bool) {
        self.driven.store(driven, Ordering::Relaxed);
    }

    pub(super) fn actual(&self) -> u32 {
        self.actual.load(Ordering::Relaxed)
    }

    pub(super) fn store_actual(&self, pages: u32) {
        self.actual.store(pages, Ordering::Relaxed);
    }

    pub(super) fn given_back_bytes(&self) -> u64 {
        self.given_back_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn store_given_back(&self, bytes: u64) {
        self.given_back_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_given_back(&self, bytes: u64) {
        self.given_back_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn changed(&self) -> &Arc<OwnedFd> {
        &self.changed
    }

    /// Takes the signal that the target has changed.
    pub(super) fn take_change(&self) {
        // Fails only when there is none.
        let _ = rustix::io::read(&*self.changed, &mut [0u8; 8]);
    }
}
