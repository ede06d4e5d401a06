//! Connecting, listening, and the options that both ends set.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use migrated_transport::{Endpoint, Hangup, TransportError};
use migrated_wire::SendPace;
use rustix::net::Shutdown;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use std::sync::Arc;

use crate::sys;

/// A peer that acknowledges nothing for this long is dead (`TCP_USER_TIMEOUT`). The kernel looks when it
/// probes or retransmits, up to a second later: within the 5 s in which a dead peer must be noticed.
/// It counts against a peer that keeps its window shut, too: a destination must not leave a page channel
/// unread for so long.
const DEAD_AFTER: Duration = Duration::from_secs(4);
/// An idle connection is probed after this time, and as often again (`TCP_KEEPIDLE`, `TCP_KEEPINTVL`),
/// so that a dead peer is noticed when nothing is sent, too.
const PROBE_AFTER: Duration = Duration::from_secs(1);
/// Unanswered probes until the connection is dead (`TCP_KEEPCNT`).
const PROBES: u32 = 4;
/// Connections the kernel holds for us: a burst of page channels.
const BACKLOG: i32 = 128;

/// Connects by `deadline`.
pub(crate) fn connect(peer: &Endpoint, deadline: Instant) -> Result<Arc<TcpStream>, TransportError> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timed_out = || TransportError::TimedOut { peer: peer.to_string(), after: left };
    if left.is_zero() {
        return Err(timed_out());
    }
    let socket = TcpStream::connect_timeout(&peer.addr, left).map_err(|source| match source.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => timed_out(),
        _ => TransportError::Unreachable { peer: peer.to_string(), source },
    })?;
    set_options(&socket)
        .map_err(|source| TransportError::Local { what: "can't set socket options".to_owned(), source })?;
    Ok(Arc::new(socket))
}

/// Listens on the first free port of `ports`.
pub(crate) fn listen(addr: IpAddr, ports: RangeInclusive<u16>) -> Result<TcpListener, TransportError> {
    let mut in_use = io::Error::from(io::ErrorKind::AddrInUse);
    for port in ports.clone() {
        match bind(SocketAddr::new(addr, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => in_use = error,
            Err(source) => {
                return Err(TransportError::Local { what: format!("can't listen on {addr}:{port}"), source });
            }
        }
    }
    let what = format!("no free port in {} to {} at {addr}; widen the range", ports.start(), ports.end());
    Err(TransportError::Local { what, source: in_use })
}

fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    // Ports of migrations that have just ended are free again at once.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The options of a connected socket. Buffer sizes stay with the kernel's autotuning.
pub(crate) fn set_options(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_AFTER).with_retries(PROBES),
    )?;
    socket.set_tcp_user_timeout(Some(DEAD_AFTER))
}

/// Unsent bytes that an urgent channel's socket takes (`TCP_NOTSENT_LOWAT`): four pages. What waits in front of a
/// page that somebody waits for is then chosen by the sender as late as can be, however large the window is.
const URGENT_UNSENT: u32 = 16 << 10;

/// The options of a socket that carries urgent pages, beside [`set_options`].
pub(crate) fn set_urgent(socket: &TcpStream) -> Result<(), TransportError> {
    SockRef::from(socket)
        .set_tcp_notsent_lowat(URGENT_UNSENT)
        .map_err(|source| TransportError::Local { what: "can't set TCP_NOTSENT_LOWAT".to_owned(), source })
}

/// Lets the kernel spread what the socket sends (`SO_MAX_PACING_RATE`, which needs no queueing discipline
/// since Linux 4.13), and bounds what it holds unsent (`TCP_NOTSENT_LOWAT`, where 0 is the system's own).
pub(crate) fn set_pace(socket: &TcpStream, pace: SendPace) {
    let paced = sys::set_max_pacing_rate(socket.as_fd(), pace.bytes_per_second);
    let unsent = SockRef::from(socket).set_tcp_notsent_lowat(pace.unsent.unwrap_or(0));
    // It is an aid: the sender keeps to its rate by itself as well. A socket that is closed refuses it.
    let _ = paced.and(unsent);
}

/// Ends all waits on the socket. It keeps no descriptor open: a channel that was dropped is closed,
/// whoever still holds its hangup.
pub(crate) fn hangup(socket: &Arc<TcpStream>) -> Hangup {
    let socket = Arc::downgrade(socket);
    Hangup::new(move || {
        if let Some(socket) = socket.upgrade() {
            // Not connected any more is what we want.
            let _ = rustix::net::shutdown(&*socket, Shutdown::Both);
        }
    })
}

/// What an error of the system on a connected socket means.
pub(crate) fn lost(peer: &str, error: &io::Error) -> TransportError {
    let reason = match error.kind() {
        io::ErrorKind::UnexpectedEof => "closed by the peer".to_owned(),
        io::ErrorKind::TimedOut => format!("nothing acknowledged for {DEAD_AFTER:?}"),
        _ => error.to_string(),
    };
    TransportError::Lost { peer: peer.to_owned(), reason }
}
