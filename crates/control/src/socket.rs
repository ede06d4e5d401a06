//! The Unix seqpacket socket under the messages: one message is one packet, so there is nothing to
//! frame, and a reader never sees half a message.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recv, send, socket_with,
};

use crate::MAX_MESSAGE;

/// A listening control socket at `path`, replacing one that may be there. The daemon makes it and
/// passes it on as the VM process's standard input, so that a connection never races with the start.
///
/// # Errors
/// The system's.
pub fn bind_control(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let socket = new_socket(SocketFlags::CLOEXEC)?;
    with_short_path(path, |address| Ok(bind(&socket, address)?))?;
    listen(&socket, 16)?;
    Ok(socket)
}

/// Connects to a control socket.
///
/// # Errors
/// The system's; `ConnectionRefused` when the process that listened is gone.
pub fn connect_control(path: &Path) -> io::Result<OwnedFd> {
    let socket = new_socket(SocketFlags::CLOEXEC)?;
    with_short_path(path, |address| Ok(connect(&socket, address)?))?;
    Ok(socket)
}

/// The listening socket that the daemon gave this process as its standard input.
///
/// # Errors
/// The system's, when there is no standard input.
pub fn listener_from_stdin() -> io::Result<OwnedFd> {
    io::stdin().as_fd().try_clone_to_owned()
}

fn new_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// A socket's path may have 107 bytes and state directories are deeper than that: go by an open
/// descriptor of the directory instead.
fn with_short_path<T>(path: &Path, f: impl FnOnce(&SocketAddrUnix) -> io::Result<T>) -> io::Result<T> {
    let missing = || io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} names no socket"));
    let (parent, name) = (path.parent().ok_or_else(missing)?, path.file_name().ok_or_else(missing)?);
    let parent = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&parent);
    let short = Path::new("/proc/self/fd").join(number.to_string()).join(name);
    f(&SocketAddrUnix::new(short)?)
}

/// Waits for the next connection.
pub fn accept_connection(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(accept_with(listener, SocketFlags::CLOEXEC)?)
}

/// Sends one packet.
pub fn send_packet(socket: BorrowedFd<'_>, packet: &[u8]) -> io::Result<()> {
    let sent = rustix::io::retry_on_intr(|| send(socket, packet, SendFlags::NOSIGNAL))?;
    debug_assert_eq!(sent, packet.len(), "a packet is sent whole or not at all");
    Ok(())
}

/// Receives one packet into `buffer`; an empty one means that the peer is gone. A packet longer
/// than any message fills the buffer's spare byte, so decoding refuses it.
pub fn recv_packet<'b>(
    socket: BorrowedFd<'_>,
    buffer: &'b mut [u8; MAX_MESSAGE + 1],
) -> io::Result<&'b [u8]> {
    let (_, length) = rustix::io::retry_on_intr(|| recv(socket, &mut buffer[..], RecvFlags::empty()))?;
    Ok(&buffer[..length])
}

/// Space for any packet.
pub fn packet_buffer() -> Box<[u8; MAX_MESSAGE + 1]> {
    vec![0; MAX_MESSAGE + 1].try_into().expect("the vector has that length")
}
