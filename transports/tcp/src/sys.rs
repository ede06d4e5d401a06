//! The two system calls of the page path, straight from and to guest memory, and socket options that no library
//! has. The crate's unsafe room.
//!
//! Guest memory may change while the kernel copies it. That is no data race in Rust's sense, because
//! no Rust code makes or reads a reference to it: addresses go to the kernel, and bytes that
//! tear are pages that are dirty and will be sent again.

use std::array;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::Duration;

use migrated_wire::PathSample;
use vm_memory::VolatileSlice;

/// Most pieces given to one system call; the kernel takes 1024 (`IOV_MAX`). 1 MiB of scattered pages.
const MAX_PIECES: usize = 256;

const NOTHING: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

/// Sends all of `head`, then all of `payload`: one system call unless the peer is behind.
pub(crate) fn send_all(
    socket: BorrowedFd<'_>,
    mut head: &[u8],
    payload: &[VolatileSlice<'_>],
) -> io::Result<()> {
    let mut position = Position::default();
    loop {
        let rest = &payload[position.slice..];
        if head.is_empty() && rest.is_empty() {
            return Ok(());
        }
        let guards: [_; MAX_PIECES - 1] = array::from_fn(|i| rest.get(i).map(VolatileSlice::ptr_guard));
        let mut pieces = [NOTHING; MAX_PIECES];
        // The kernel only reads what sendmsg's pieces point at, so the const is cast away in form only.
        pieces[0] = libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() };
        for (piece, guard) in pieces[1..].iter_mut().zip(guards.iter().flatten()) {
            *piece = libc::iovec { iov_base: guard.as_ptr().cast_mut().cast(), iov_len: guard.len() };
        }
        position.skip(&mut pieces[1]);
        let count = 1 + rest.len().min(MAX_PIECES - 1);
        // SAFETY: msghdr is plain data for which zero is a valid value of every field.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_mut_ptr();
        message.msg_iovlen = count;
        // SAFETY: `message` names `count` initialised pieces, each within `head` or within a slice
        // whose guard lives until after the call, so the kernel reads only mapped memory that we may
        // read. NOSIGNAL: a peer that went away is an error, not a SIGPIPE.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
        let Some(sent) = moved(sent)? else { continue };
        let of_head = sent.min(head.len());
        head = &head[of_head..];
        position.advance(payload, sent - of_head);
    }
}

/// Fills `slices` in order; the kernel waits for all of it, so that is one system call as a rule.
pub(crate) fn recv_all(socket: BorrowedFd<'_>, slices: &[VolatileSlice<'_>]) -> io::Result<()> {
    let mut position = Position::default();
    position.advance(slices, 0);
    loop {
        let rest = &slices[position.slice..];
        if rest.is_empty() {
            return Ok(());
        }
        let guards: [_; MAX_PIECES] = array::from_fn(|i| rest.get(i).map(VolatileSlice::ptr_guard_mut));
        let mut pieces = [NOTHING; MAX_PIECES];
        for (piece, guard) in pieces.iter_mut().zip(guards.iter().flatten()) {
            *piece = libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() };
        }
        position.skip(&mut pieces[0]);
        // SAFETY: msghdr is plain data for which zero is a valid value of every field.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_mut_ptr();
        message.msg_iovlen = rest.len().min(MAX_PIECES);
        // SAFETY: `message` names initialised pieces, each within a slice whose guard lives until after
        // the call: mapped memory that may be written by anybody at any time, and by us now.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_WAITALL) };
        match moved(received)? {
            None => {}
            Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(received) => position.advance(slices, received),
        }
    }
}

/// The count of a call that moved bytes, `None` when a signal came first.
fn moved(result: isize) -> io::Result<Option<usize>> {
    match usize::try_from(result) {
        Ok(count) => Ok(Some(count)),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            error => Err(error),
        },
    }
}

/// What the kernel knows of the way to the peer (`TCP_INFO`) of a socket that was given so many bytes.
pub(crate) fn path(socket: BorrowedFd<'_>, given: u64) -> io::Result<PathSample> {
    // SAFETY: tcp_info is plain data for which zero is a valid value of every field.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which has as many, and what it wrote to
    // `length`. A kernel that knows fewer fields leaves the rest zero.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let micros = |us: u32| Duration::from_micros(us.into());
    Ok(PathSample {
        rtt: micros(info.tcpi_rtt),
        rtt_variation: micros(info.tcpi_rttvar),
        // The kernel's word for "not known" is all ones.
        min_rtt: if info.tcpi_min_rtt == u32::MAX { Duration::ZERO } else { micros(info.tcpi_min_rtt) },
        acked: info.tcpi_bytes_acked,
        // Not the segments times their size: the last one is often small.
        in_flight: given.saturating_sub(info.tcpi_notsent_bytes.into()).saturating_sub(info.tcpi_bytes_acked),
        unsent: info.tcpi_notsent_bytes.into(),
        segments: info.tcpi_data_segs_out.into(),
        retransmitted: info.tcpi_total_retrans.into(),
    })
}

/// The most bytes a second that leave the socket; `None` is no limit.
pub(crate) fn set_max_pacing_rate(socket: BorrowedFd<'_>, bytes_per_second: Option<u64>) -> io::Result<()> {
    let rate = bytes_per_second.unwrap_or(u64::MAX);
    // SAFETY: the kernel reads as many bytes as `rate` has.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const rate).cast(),
            size_of_val(&rate) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How far a list of slices is done.
#[derive(Default)]
struct Position {
    slice: usize,
    /// Bytes done of that slice; always fewer than it has.
    offset: usize,
}

impl Position {
    fn advance(&mut self, slices: &[VolatileSlice<'_>], moved: usize) {
        self.offset += moved;
        while let Some(slice) = slices.get(self.slice)
            && self.offset >= slice.len()
        {
            self.offset -= slice.len();
            self.slice += 1;
        }
    }

    /// Leaves out of the first piece what is done of it.
    fn skip(&self, first: &mut libc::iovec) {
        first.iov_base = first.iov_base.wrapping_byte_add(self.offset);
        first.iov_len -= self.offset;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use proptest::prelude::*;
    use socket2::SockRef;

    use super::*;

    /// Two connected sockets with buffers so small that calls stop in the middle.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        SockRef::from(&near).set_send_buffer_size(4096).unwrap();
        (near, listener.accept().unwrap().0)
    }

    /// `bytes` cut into pieces of the sizes given, over and over; empty ones among them.
    fn pieces<'a>(mut bytes: &'a mut [u8], sizes: &[usize]) -> Vec<VolatileSlice<'a>> {
        let mut pieces = Vec::new();
        for size in sizes.iter().cycle() {
            if bytes.is_empty() {
                break;
            }
            let (now, later) = bytes.split_at_mut((*size).min(bytes.len()));
            pieces.push(VolatileSlice::from(now));
            bytes = later;
        }
        pieces.extend(sizes.iter().filter(|size| **size == 0).map(|_| VolatileSlice::from(&mut [][..])));
        pieces
    }

    fn sizes() -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(0usize..3000, 1..8)
            .prop_filter("no progress", |sizes| sizes.iter().any(|size| *size > 0))
    }

    #[test]
    fn the_kernel_tells_of_the_path_and_holds_to_a_rate() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let mut bytes = [7u8; 1 << 16];
        set_max_pacing_rate(near.as_fd(), Some(1 << 30)).unwrap();
        send_all(near.as_fd(), &bytes, &[]).unwrap();
        recv_all(far.as_fd(), &pieces(&mut bytes, &[1 << 16])).unwrap();
        // The last acknowledgement may still be on its way.
        let seen = path(near.as_fd(), 1 << 16).unwrap();
        // The kernel counts the SYN.
        assert!(seen.segments > 0 && (0..2).contains(&(seen.acked + seen.in_flight - (1 << 16))), "{seen:?}");
        assert!(seen.min_rtt <= seen.rtt.max(Duration::from_millis(1)), "{seen:?}");
        set_max_pacing_rate(near.as_fd(), None).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_scatter_is_gathered_in_order(
            head in prop::collection::vec(any::<u8>(), 0..100),
            len in 0usize..400_000,
            from in sizes(),
            into in sizes(),
        ) {
            let (near, far) = pair();
            let mut payload: Vec<u8> = (0..len).map(|at| ((at * 31) >> 3) as u8).collect();
            let mut got = vec![0; head.len() + len];
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    send_all(near.as_fd(), &head, &pieces(&mut payload, &from)).unwrap();
                });
                recv_all(far.as_fd(), &pieces(&mut got, &into)).unwrap();
            });
            prop_assert_eq!(&got[..head.len()], &head[..]);
            prop_assert!(got[head.len()..] == payload[..]);
            drop(near);
            let end = recv_all(far.as_fd(), &pieces(&mut [0], &[1])).unwrap_err();
            prop_assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
