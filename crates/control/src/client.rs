use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::codec::{CodecError, decode, encode};
use crate::socket::{connect_control, packet_buffer, recv_packet, send_packet};
use crate::{
    CONTROL_VERSION, ControlError, ControlHello, Event, FromVm, GuestDescription, GuestSample, Request,
    Response, Status, ToVm,
};

/// Why a VM process gave no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// It answered: no.
    #[error(transparent)]
    Refused(#[from] ControlError),
    /// The connection can't be made or broke.
    #[error("the VM process can't be reached: {0}")]
    Io(#[from] io::Error),
    /// The VM process ended, or cut the connection.
    #[error("the VM process closed the connection")]
    Closed,
    /// It said nothing in time.
    #[error("the VM process gave no answer within {0:?}; look at its vm.log")]
    TimedOut(Duration),
    /// It was started by a `migrated` of another version.
    #[error(
        "the VM process speaks version {0} of the control messages, this daemon {CONTROL_VERSION}; \
         the guest runs on, but only a daemon of its version can manage it"
    )]
    Version(u32),
    /// A message that should not be there.
    #[error("the VM process sent {0}")]
    Unexpected(&'static str),
    /// A message that can't be sent or read.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Result<Response, ControlError>>>>>>;

/// The daemon's connection to one VM process. Cheap to clone; the last clone to go closes it.
#[derive(Clone)]
pub struct ControlClient(Arc<Inner>);

struct Inner {
    socket: Arc<UnixStream>,
    waiting: Waiting,
    next_id: AtomicU64,
    reader: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl std::fmt::Debug for ControlClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ControlClient")
    }
}

impl ControlClient {
    /// How long an answer may take where nothing else is said.
    pub const PATIENCE: Duration = Duration::from_secs(10);

    /// Connects to the VM process that listens at `path` and greets it. Events come out of the
    /// receiver, which ends when the connection does.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn connect(
        path: &Path,
        patience: Duration,
    ) -> Result<(Self, mpsc::Receiver<Event>), ClientError> {
        // Tokio has no seqpacket socket. A stream's readiness is the same; only our own calls move bytes.
        let socket = StdUnixStream::from(connect_control(path)?);
        socket.set_nonblocking(true)?;
        let socket = Arc::new(UnixStream::from_std(socket)?);
        send(&socket, &ToVm::Hello(ControlHello { version: CONTROL_VERSION })).await?;
        let hello = tokio::time::timeout(patience, receive(&socket))
            .await
            .map_err(|_| ClientError::TimedOut(patience))??;
        match hello {
            FromVm::Hello(hello) if hello.version == CONTROL_VERSION => {}
            FromVm::Hello(hello) => return Err(ClientError::Version(hello.version)),
            FromVm::Response { .. } | FromVm::Event(_) => {
                return Err(ClientError::Unexpected("something else than a hello first"));
            }
        }
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let (events, receiver) = mpsc::channel(256);
        let reader = tokio::spawn(read(Arc::clone(&socket), Arc::clone(&waiting), events));
        Ok((Self(Arc::new(Inner { socket, waiting, next_id: AtomicU64::new(1), reader })), receiver))
    }

    /// Asks, and waits for the answer at most [`PATIENCE`](Self::PATIENCE).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn request(&self, request: Request) -> Result<Response, ClientError> {
        self.request_within(request, Self::PATIENCE).await
    }

    /// Asks, and waits for the answer at most `patience`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn request_within(
        &self,
        request: Request,
        patience: Duration,
    ) -> Result<Response, ClientError> {
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, receiver) = oneshot::channel();
        self.0.waiting.lock().as_mut().ok_or(ClientError::Closed)?.insert(id, answer);
        let asked = async {
            send(&self.0.socket, &ToVm::Request { id, request }).await?;
            Ok(receiver.await.map_err(|_| ClientError::Closed)??)
        };
        let result = tokio::time::timeout(patience, asked).await;
        if let Some(waiting) = self.0.waiting.lock().as_mut() {
            waiting.remove(&id);
        }
        result.unwrap_or(Err(ClientError::TimedOut(patience)))
    }

    /// Asks for something that has no other answer than that it is done.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn perform(&self, request: Request) -> Result<(), ClientError> {
        match self.request(request).await? {
            Response::Done => Ok(()),
            _ => Err(ClientError::Unexpected("another answer than \"done\"")),
        }
    }

    /// How the VM is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        match self.request(Request::Status).await? {
            Response::Status(status) => Ok(*status),
            _ => Err(ClientError::Unexpected("another answer than its status")),
        }
    }

    /// What the guest needs of a host.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn describe(&self) -> Result<GuestDescription, ClientError> {
        match self.request(Request::Describe).await? {
            Response::Description(description) => Ok(*description),
            _ => Err(ClientError::Unexpected("another answer than its description")),
        }
    }

    /// What the guest is seen to write in a time.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn sample_dirty(&self, sample_ms: u32) -> Result<GuestSample, ClientError> {
        let patience = Self::PATIENCE + Duration::from_millis(sample_ms.into());
        match self.request_within(Request::SampleDirty { sample_ms }, patience).await? {
            Response::Sample(sample) => Ok(*sample),
            _ => Err(ClientError::Unexpected("another answer than a sample")),
        }
    }
}

async fn send(socket: &UnixStream, message: &ToVm) -> Result<(), ClientError> {
    let packet = encode(message)?;
    Ok(socket.async_io(Interest::WRITABLE, || send_packet(socket.as_fd(), &packet)).await?)
}

async fn receive(socket: &UnixStream) -> Result<FromVm, ClientError> {
    let mut buffer = packet_buffer();
    let received =
        socket.async_io(Interest::READABLE, || recv_packet(socket.as_fd(), &mut buffer).map(<[u8]>::len));
    match received.await? {
        0 => Err(ClientError::Closed),
        length => Ok(decode(&buffer[..length])?),
    }
}

/// Hands out what comes until the connection ends, then wakes everybody who still waits.
async fn read(socket: Arc<UnixStream>, waiting: Waiting, events: mpsc::Sender<Event>) {
    loop {
        match receive(&socket).await {
            Ok(FromVm::Response { id, result }) => {
                let answer = waiting.lock().as_mut().and_then(|waiting| waiting.remove(&id));
                // Whoever asked may have lost patience.
                let _ = answer.map(|answer| answer.send(result));
            }
            Ok(FromVm::Event(event)) => {
                // Nobody may want events.
                let _ = events.send(event).await;
            }
            Ok(FromVm::Hello(_)) | Err(_) => break,
        }
    }
    *waiting.lock() = None;
}
