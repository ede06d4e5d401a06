use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// An eventfd that KVM can signal (which takes it as an [`EventFd`]) and poll(2) can wait for (which takes what
/// has a borrowed descriptor, and an [`EventFd`] has none).
#[derive(Debug)]
pub struct Event(EventFd);

impl Event {
    /// One that is not signalled.
    ///
    /// # Errors
    /// The kernel's, as when too many descriptors are open.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
    }

    /// As KVM's interfaces take it.
    #[must_use]
    pub const fn eventfd(&self) -> &EventFd {
        &self.0
    }

    /// Signals it. One that is signalled stays so.
    pub fn signal(&self) {
        // The only failure of an eventfd is a counter at its limit, and then it is signalled.
        let _ = self.0.write(1);
    }

    /// Takes the signal back and returns whether there was one.
    pub fn take(&self) -> bool {
        self.0.read().is_ok()
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd is open for as long as `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_taken_once_however_often_it_was_given() {
        let event = Event::new().unwrap();
        assert!(!event.take());
        event.signal();
        event.signal();
        assert!(event.take() && !event.take());
        assert_eq!(event.as_fd().as_raw_fd(), event.eventfd().as_raw_fd());
    }
}
