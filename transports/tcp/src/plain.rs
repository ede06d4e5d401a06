use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use migrated_transport::{Stream, StreamReader, StreamWriter, TransportError};
use migrated_wire::{PathSample, SendPace};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use vm_memory::VolatileSlice;

use crate::{socket, sys};

/// A connected socket as a stream: both halves use the one descriptor.
pub(crate) fn stream(socket: Arc<TcpStream>, peer: String) -> Stream {
    Stream {
        hangup: socket::hangup(&socket),
        reader: Box::new(Reader { socket: Arc::clone(&socket), peer: peer.clone(), received: 0 }),
        writer: Box::new(Writer { socket, peer: peer.clone(), sent: 0 }),
        peer,
    }
}

/// Reads what is there; see [`StreamReader::read`].
pub(crate) fn read(
    socket: &TcpStream,
    peer: &str,
    buf: &mut [u8],
    wait: Option<Duration>,
) -> Result<usize, TransportError> {
    let until = wait.map(|wait| (wait, Instant::now() + wait));
    let flags = if wait.is_some() { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
    loop {
        match recv(socket, &mut *buf, flags) {
            Ok((_, 0)) => return Err(socket::lost(peer, &std::io::ErrorKind::UnexpectedEof.into())),
            Ok((_, count)) => return Ok(count),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let Some((after, until)) = until else { continue };
                let left = until.saturating_duration_since(Instant::now());
                if !readable_within(socket, left).map_err(|errno| socket::lost(peer, &errno.into()))? {
                    return Err(TransportError::TimedOut { peer: peer.to_owned(), after });
                }
            }
            Err(errno) => return Err(socket::lost(peer, &errno.into())),
        }
    }
}

fn readable_within(socket: &TcpStream, time: Duration) -> Result<bool, Errno> {
    let time = Timespec::try_from(time).ok();
    match poll(&mut [PollFd::new(socket, PollFlags::IN)], time.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        // The caller looks again, and counts the time.
        Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(errno),
    }
}

struct Reader {
    socket: Arc<TcpStream>,
    peer: String,
    received: u64,
}

impl StreamReader for Reader {
    fn read(&mut self, buf: &mut [u8], wait: Option<Duration>) -> Result<usize, TransportError> {
        let count = read(&self.socket, &self.peer, buf, wait)?;
        self.received += count as u64;
        Ok(count)
    }

    fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), TransportError> {
        self.read_slices(&[VolatileSlice::from(buf)])
    }

    fn read_slices(&mut self, slices: &[VolatileSlice<'_>]) -> Result<(), TransportError> {
        sys::recv_all(self.socket.as_fd(), slices).map_err(|error| socket::lost(&self.peer, &error))?;
        self.received += slices.iter().map(|slice| slice.len() as u64).sum::<u64>();
        Ok(())
    }

    fn bytes_received(&self) -> u64 {
        self.received
    }
}

struct Writer {
    socket: Arc<TcpStream>,
    peer: String,
    sent: u64,
}

impl StreamWriter for Writer {
    fn write(&mut self, head: &[u8], payload: &[VolatileSlice<'_>]) -> Result<(), TransportError> {
        sys::send_all(self.socket.as_fd(), head, payload)
            .map_err(|error| socket::lost(&self.peer, &error))?;
        self.sent += head.len() as u64 + payload.iter().map(|slice| slice.len() as u64).sum::<u64>();
        Ok(())
    }

    fn bytes_sent(&self) -> u64 {
        self.sent
    }

    fn path(&self) -> Option<PathSample> {
        sys::path(self.socket.as_fd(), self.sent).ok()
    }

    fn set_pace(&mut self, pace: SendPace) {
        socket::set_pace(&self.socket, pace);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The reading half keeps the descriptor open; the peer learns here that nothing follows.
        let _ = shutdown(&*self.socket, Shutdown::Write);
    }
}
