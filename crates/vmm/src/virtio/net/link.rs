use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use migrated_kernel::{Tap, TapOffloads};

/// The cable: a TAP, or a test's. Each frame has its header in front.
pub(super) trait Link: fmt::Debug + Send + Sync {
    /// Readable while a frame waits.
    fn fd(&self) -> &Arc<OwnedFd>;

    /// What of offloads the driver accepted for frames that come in.
    fn set_offloads(&self, offloads: TapOffloads) -> io::Result<()>;

    /// One frame; `WouldBlock` when there is none.
    fn receive(&self, into: &mut [u8]) -> io::Result<usize>;

    /// One frame, as a whole or not at all.
    fn send(&self, frame: &[u8]) -> io::Result<()>;
}

impl Link for Tap {
    fn fd(&self) -> &Arc<OwnedFd> {
        self.fd()
    }

    fn set_offloads(&self, offloads: TapOffloads) -> io::Result<()> {
        self.set_offloads(offloads)
    }

    fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        self.receive(into)
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.send(frame)
    }
}
