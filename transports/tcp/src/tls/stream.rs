use std::io::{BufRead, ErrorKind, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use migrated_transport::{Endpoint, Stream, StreamReader, StreamWriter, TransportError};
use migrated_wire::{PathSample, SendPace};
use rustix::net::{Shutdown, shutdown};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection, ServerConnection};
use vm_memory::VolatileSlice;

use super::config::{Files, TlsConfig};
use super::explain::tls_error;
use crate::{plain, socket, sys};

/// Plaintext that is encrypted and sent at once: 16 records of the largest size.
const CHUNK: usize = 256 << 10;
/// Ciphertext read at once.
const READ_AHEAD: usize = 256 << 10;

/// Proves both ends to each other, as the one that dialled.
pub(crate) fn connect(
    config: &TlsConfig,
    socket: Arc<TcpStream>,
    to: &Endpoint,
    deadline: Instant,
) -> Result<Stream, TransportError> {
    let peer = to.to_string();
    let wrong = |reason| TransportError::Tls { peer: peer.clone(), reason };
    let name = match &to.server_name {
        Some(name) => ServerName::try_from(name.clone())
            .map_err(|_| wrong(format!("{name:?} is neither a DNS name nor an IP address")))?,
        None => ServerName::IpAddress(to.addr.ip().into()),
    };
    let connection =
        ClientConnection::new(Arc::clone(&config.client), name).map_err(|error| wrong(error.to_string()))?;
    handshake(connection.into(), config, socket, peer, deadline)
}

/// Proves both ends to each other, as the one that listened.
pub(crate) fn accept(
    config: &TlsConfig,
    socket: Arc<TcpStream>,
    peer: String,
    deadline: Instant,
) -> Result<Stream, TransportError> {
    let connection = ServerConnection::new(Arc::clone(&config.server))
        .map_err(|error| TransportError::Tls { peer: peer.clone(), reason: error.to_string() })?;
    handshake(connection.into(), config, socket, peer, deadline)
}

/// One TLS connection, used from two threads.
///
/// TLS is a single state machine, so both halves share it under a lock, but no half ever touches
/// the socket while it holds the lock: a receive that waits for the peer doesn't stop a send, and a send
/// that waits for the peer to read doesn't stop a receive. Ciphertext leaves in the order
/// in which it was made because only the writer sends, once the handshake is over; what the
/// state machine wants to say by itself (a key update) goes with the writer's next bytes.
struct Shared {
    socket: Arc<TcpStream>,
    connection: Mutex<Connection>,
    files: Arc<Files>,
    peer: String,
}

impl Shared {
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), TransportError> {
        sys::send_all(self.socket.as_fd(), bytes, &[]).map_err(|error| socket::lost(&self.peer, &error))
    }

    /// rustls and the system share one error type where it reads and writes.
    fn io_error(&self, error: &std::io::Error) -> TransportError {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(inner) => tls_error(&self.peer, &self.files, inner),
            None => socket::lost(&self.peer, error),
        }
    }
}

fn handshake(
    mut connection: Connection,
    config: &TlsConfig,
    socket: Arc<TcpStream>,
    peer: String,
    deadline: Instant,
) -> Result<Stream, TransportError> {
    // A chunk is encrypted whole and taken out at once, so this buffers no more than a chunk.
    connection.set_buffer_limit(None);
    let shared = Arc::new(Shared {
        connection: Mutex::new(connection),
        files: Arc::clone(&config.files),
        socket,
        peer: peer.clone(),
    });
    let mut reader = Reader::new(Arc::clone(&shared));
    let mut writer = Writer { shared: Arc::clone(&shared), plain: Vec::new(), cipher: Vec::new(), sent: 0 };
    let began = Instant::now();
    loop {
        let fed = reader.feed_handshake();
        // Also after an error: the alert tells the peer why.
        let flushed = writer.flush();
        fed?;
        flushed?;
        if !shared.connection().is_handshaking() {
            break;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        reader.read_socket(Some(left)).map_err(|error| match error {
            TransportError::TimedOut { peer, .. } => {
                TransportError::TimedOut { peer, after: deadline.saturating_duration_since(began) }
            }
            TransportError::Lost { peer, reason } => {
                let hint = "in the TLS handshake; check that both hosts use the same transport";
                TransportError::Lost { peer, reason: format!("{reason} {hint}") }
            }
            other => other,
        })?;
    }
    let hangup = socket::hangup(&shared.socket);
    Ok(Stream { reader: Box::new(reader), writer: Box::new(writer), hangup, peer })
}

struct Reader {
    shared: Arc<Shared>,
    /// Ciphertext `start..end` came from the socket and is not yet decrypted.
    cipher: Vec<u8>,
    start: usize,
    end: usize,
    received: u64,
}

impl Reader {
    fn new(shared: Arc<Shared>) -> Self {
        Self { shared, cipher: vec![0; READ_AHEAD], start: 0, end: 0, received: 0 }
    }

    /// Waits for ciphertext; none may be left over.
    fn read_socket(&mut self, wait: Option<Duration>) -> Result<(), TransportError> {
        let count = plain::read(&self.shared.socket, &self.shared.peer, &mut self.cipher, wait)?;
        (self.start, self.end) = (0, count);
        self.received += count as u64;
        Ok(())
    }

    /// Gives the state machine some of the ciphertext there is; false when there is none.
    fn feed(&mut self, connection: &mut Connection) -> Result<bool, TransportError> {
        if self.start == self.end {
            return Ok(false);
        }
        let taken = connection
            .read_tls(&mut &self.cipher[self.start..self.end])
            .map_err(|error| self.shared.io_error(&error))?;
        if taken == 0 {
            // It reads nothing more, so the record it has is malformed or the connection is over.
            let reason = "the TLS stream has ended".to_owned();
            return Err(TransportError::Lost { peer: self.shared.peer.clone(), reason });
        }
        self.start += taken;
        connection
            .process_new_packets()
            .map_err(|error| tls_error(&self.shared.peer, &self.shared.files, &error))?;
        Ok(true)
    }

    /// Feeds until the handshake is over; what follows it stays for [`take`](Self::take).
    fn feed_handshake(&mut self) -> Result<(), TransportError> {
        let shared = Arc::clone(&self.shared);
        let mut connection = shared.connection();
        while connection.is_handshaking() && self.feed(&mut connection)? {}
        Ok(())
    }

    /// Gives plaintext to `take` as soon as there is some, and returns how much that took.
    fn take(
        &mut self,
        wait: Option<Duration>,
        take: &mut dyn FnMut(&[u8]) -> usize,
    ) -> Result<usize, TransportError> {
        let shared = Arc::clone(&self.shared);
        loop {
            let mut connection = shared.connection();
            loop {
                let mut plaintext = connection.reader();
                match plaintext.fill_buf() {
                    Ok([]) => return Err(socket::lost(&shared.peer, &ErrorKind::UnexpectedEof.into())),
                    Ok(bytes) => {
                        let taken = take(bytes);
                        plaintext.consume(taken);
                        return Ok(taken);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(shared.io_error(&error)),
                }
                if !self.feed(&mut connection)? {
                    break;
                }
            }
            drop(connection);
            self.read_socket(wait)?;
        }
    }
}

impl StreamReader for Reader {
    fn read(&mut self, buf: &mut [u8], wait: Option<Duration>) -> Result<usize, TransportError> {
        self.take(wait, &mut |bytes| {
            let count = bytes.len().min(buf.len());
            buf[..count].copy_from_slice(&bytes[..count]);
            count
        })
    }

    fn read_slices(&mut self, slices: &[VolatileSlice<'_>]) -> Result<(), TransportError> {
        for slice in slices {
            let mut done = 0;
            while done < slice.len() {
                let rest = slice.offset(done).expect("within the slice");
                done += self.take(None, &mut |bytes| {
                    let count = bytes.len().min(rest.len());
                    rest.copy_from(&bytes[..count]);
                    count
                })?;
            }
        }
        Ok(())
    }

    fn bytes_received(&self) -> u64 {
        self.received
    }
}

struct Writer {
    shared: Arc<Shared>,
    plain: Vec<u8>,
    cipher: Vec<u8>,
    sent: u64,
}

impl Writer {
    /// Sends what the state machine has to say, and empties the plaintext buffer through it.
    fn flush(&mut self) -> Result<(), TransportError> {
        self.cipher.clear();
        {
            let mut connection = self.shared.connection();
            connection.writer().write_all(&self.plain).map_err(|error| self.shared.io_error(&error))?;
            while connection.wants_write() {
                connection.write_tls(&mut self.cipher).map_err(|error| self.shared.io_error(&error))?;
            }
        }
        self.plain.clear();
        self.shared.send(&self.cipher)?;
        self.sent += self.cipher.len() as u64;
        Ok(())
    }

    fn flush_if_full(&mut self) -> Result<(), TransportError> {
        if self.plain.len() < CHUNK { Ok(()) } else { self.flush() }
    }
}

impl StreamWriter for Writer {
    fn write(&mut self, mut head: &[u8], payload: &[VolatileSlice<'_>]) -> Result<(), TransportError> {
        while !head.is_empty() {
            let (now, later) = head.split_at(head.len().min(CHUNK - self.plain.len()));
            self.plain.extend_from_slice(now);
            head = later;
            self.flush_if_full()?;
        }
        for slice in payload {
            let mut done = 0;
            while done < slice.len() {
                let rest = slice.offset(done).expect("within the slice");
                let filled = self.plain.len();
                self.plain.resize(CHUNK.min(filled + rest.len()), 0);
                done += rest.copy_to(&mut self.plain[filled..]);
                self.flush_if_full()?;
            }
        }
        if self.plain.is_empty() { Ok(()) } else { self.flush() }
    }

    fn bytes_sent(&self) -> u64 {
        self.sent
    }

    fn path(&self) -> Option<PathSample> {
        sys::path(self.shared.socket.as_fd(), self.sent).ok()
    }

    fn set_pace(&mut self, pace: SendPace) {
        socket::set_pace(&self.shared.socket, pace);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // No close_notify: it could block, and no end of a stream is a success here anyway.
        let _ = shutdown(&*self.shared.socket, Shutdown::Write);
    }
}
