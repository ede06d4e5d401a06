use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, accept_with, send};

/// The socket on which host programs reach the guest's agent, one at a time: others wait until it has gone.
#[derive(Debug)]
pub(super) struct Door {
    socket: Arc<OwnedFd>,
}

impl Door {
    /// # Errors
    /// The kernel's.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        // A VM process of before may have left its own.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixListener::bind(path)?;
        // A client that gives up between poll and accept must not stop the device.
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Arc::new(socket.into()) })
    }

    pub(super) fn fd(&self) -> Arc<OwnedFd> {
        self.socket.clone()
    }

    /// Who is first in line, if anybody is.
    ///
    /// # Errors
    /// The kernel's, as when too many files are open.
    pub(super) fn next(&self) -> io::Result<Option<Client>> {
        match accept_with(&self.socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(stream) => Ok(Some(Client::new(stream))),
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A connected program.
#[derive(Debug)]
pub(super) struct Client {
    stream: Arc<OwnedFd>,
    /// It will send nothing more.
    said_all: bool,
    /// It will take nothing more. What it sent before can still be read.
    gone: bool,
}

impl Client {
    fn new(stream: OwnedFd) -> Self {
        Self { stream: Arc::new(stream), said_all: false, gone: false }
    }

    pub(super) fn fd(&self) -> Arc<OwnedFd> {
        self.stream.clone()
    }

    /// What to wait for: that it sends something, if there is room for it, that it has room, if there is something
    /// for it, and always that it hangs up. `None` when nothing of that is to come.
    pub(super) fn interest(&self, has_room: bool, has_more: bool) -> Option<PollFlags> {
        // That it has hung up is reported whatever is asked for, again and again.
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, has_room && !self.said_all);
        interest.set(PollFlags::OUT, has_more);
        (!self.gone || !interest.is_empty()).then_some(interest)
    }

    /// Whether it is there no more; what it sent can still be read.
    pub(super) const fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether all that it sent was read.
    pub(super) const fn said_all(&self) -> bool {
        self.said_all
    }

    /// Looks whether it has hung up. One that only has nothing more to say may still want to hear.
    pub(super) fn look(&mut self) {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        let looked = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        self.gone |= looked.is_ok() && !fds[0].revents().is_empty();
    }

    /// Reads what it sent, and returns how many bytes.
    pub(super) fn read(&mut self, into: &mut [u8]) -> usize {
        match rustix::io::read(&self.stream, into) {
            Ok(0) => {
                self.said_all = true;
                0
            }
            Ok(len) => len,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => {
                (self.said_all, self.gone) = (true, true);
                0
            }
        }
    }

    /// Sends as much as finds room, and returns how many bytes that were.
    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        match send(&self.stream, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(len) => len,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => {
                self.gone = true;
                0
            }
        }
    }
}
