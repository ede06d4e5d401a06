use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{Shutdown, shutdown};

use crate::codec::{decode, encode};
use crate::socket::{accept_connection, packet_buffer, recv_packet, send_packet};
use crate::{
    CONTROL_VERSION, ControlError, ControlHello, ErrorKind, Event, FromVm, MAX_MESSAGE, Request, Response,
    ToVm,
};

/// Messages that may wait for a daemon to read them. One that is further behind is cut off; it
/// connects again and asks for the status.
const QUEUE: usize = 256;
/// Requests of one connection that may be in work at once.
const IN_FLIGHT: usize = 32;
/// Connections at once: a daemon has one, a restarted one has a second for a moment.
const CONNECTIONS: usize = 8;

/// How long a daemon may leave its socket full.
const SEND_PATIENCE: Duration = Duration::from_secs(10);

/// What answers a daemon's requests: the guest's VM process.
pub trait VmService: Send + Sync + 'static {
    /// Answers one request. Called from several threads at once, and may block.
    ///
    /// # Errors
    /// [`ControlError`], which the daemon passes on to whoever asked.
    fn handle(&self, request: Request) -> Result<Response, ControlError>;
}

/// Where a VM process puts its events. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub struct EventSink(Arc<Mutex<Vec<Arc<Connection>>>>);

impl EventSink {
    /// A sink without connections.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends an event to every daemon that is connected. Never blocks: nobody may hold a guest up.
    pub fn send(&self, event: Event) {
        let Some(packet) = encode_bounded(&FromVm::Event(event)) else { return };
        self.0.lock().retain(|connection| connection.try_send(packet.clone()));
    }
}

impl std::fmt::Debug for EventSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EventSink")
    }
}

struct Connection {
    socket: OwnedFd,
    queue: SyncSender<Arc<[u8]>>,
    in_flight: AtomicUsize,
}

impl Connection {
    fn try_send(&self, packet: Arc<[u8]>) -> bool {
        match self.queue.try_send(packet) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.cut();
                false
            }
        }
    }

    fn cut(&self) {
        // Fails only when the peer cut it before.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

/// Serves daemons on `listener`, until it breaks or is shut down. Events put into `events` reach all of them.
///
/// # Errors
/// The system's, when no connection can be accepted any more.
pub fn serve(listener: OwnedFd, service: Arc<dyn VmService>, events: EventSink) -> io::Result<()> {
    loop {
        let socket = match accept_connection(listener.as_fd()) {
            Ok(socket) => socket,
            Err(e) if is_transient(&e) => continue,
            // Somebody shut the listener down.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => return Ok(()),
            Err(e) => return Err(e),
        };
        // Only a peer that is stopped, or means harm, takes longer; its thread must end some day.
        if set_socket_timeout(&socket, Timeout::Send, Some(SEND_PATIENCE)).is_err() {
            continue;
        }
        let (queue, outgoing) = sync_channel(QUEUE);
        let connection = Arc::new(Connection { socket, queue, in_flight: AtomicUsize::new(0) });
        if events.0.lock().len() >= CONNECTIONS {
            continue;
        }
        let (service, events) = (Arc::clone(&service), events.clone());
        thread::Builder::new()
            .name("control".into())
            .spawn(move || serve_connection(&connection, outgoing, &service, &events))?;
    }
}

fn is_transient(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
}

fn serve_connection(
    connection: &Arc<Connection>,
    outgoing: Receiver<Arc<[u8]>>,
    service: &Arc<dyn VmService>,
    events: &EventSink,
) {
    let writer = {
        let connection = Arc::clone(connection);
        thread::Builder::new().name("control-send".into()).spawn(move || {
            for packet in outgoing {
                if packet.is_empty() || send_packet(connection.socket.as_fd(), &packet).is_err() {
                    break;
                }
            }
            connection.cut();
        })
    };
    let Ok(writer) = writer else { return };
    read_requests(connection, service, events);
    events.0.lock().retain(|other| !Arc::ptr_eq(other, connection));
    // An empty packet ends the writer behind what is still to be said: why we end, perhaps.
    connection.try_send(Arc::from([]));
    let _ = writer.join();
}

/// Reads until the peer is gone or talks nonsense; either way the connection is then cut.
fn read_requests(connection: &Arc<Connection>, service: &Arc<dyn VmService>, events: &EventSink) {
    let mut buffer = packet_buffer();
    let mut greeted = false;
    while let Ok(packet) = recv_packet(connection.socket.as_fd(), &mut buffer) {
        if packet.is_empty() {
            return;
        }
        match decode::<ToVm>(packet) {
            Ok(ToVm::Hello(hello)) if !greeted => {
                greeted = true;
                reply(connection, &FromVm::Hello(ControlHello { version: CONTROL_VERSION }));
                if hello.version != CONTROL_VERSION {
                    return;
                }
                events.0.lock().push(Arc::clone(connection));
            }
            Ok(ToVm::Request { id, request }) if greeted => start_request(connection, service, id, request),
            Ok(_) | Err(_) => return,
        }
    }
}

/// Answers on a thread of its own: a request that waits must not hold up the one that would end its wait.
fn start_request(connection: &Arc<Connection>, service: &Arc<dyn VmService>, id: u64, request: Request) {
    let refuse = |message: String| {
        let error = ControlError::new(ErrorKind::Unavailable, "vm_process_busy", message);
        reply(connection, &FromVm::Response { id, result: Err(error) });
    };
    if connection.in_flight.fetch_add(1, Ordering::AcqRel) >= IN_FLIGHT {
        connection.in_flight.fetch_sub(1, Ordering::AcqRel);
        return refuse(format!("{IN_FLIGHT} requests are in work already; wait for one to end"));
    }
    let worker = {
        let (connection, service) = (Arc::clone(connection), Arc::clone(service));
        thread::Builder::new().name("control-work".into()).spawn(move || {
            let result = service.handle(request);
            connection.in_flight.fetch_sub(1, Ordering::AcqRel);
            reply(&connection, &FromVm::Response { id, result });
        })
    };
    if let Err(e) = worker {
        connection.in_flight.fetch_sub(1, Ordering::AcqRel);
        refuse(format!("no thread for the request: {e}"));
    }
}

fn reply(connection: &Connection, message: &FromVm) {
    let packet = encode_bounded(message).or_else(|| match message {
        FromVm::Response { id, .. } => {
            let error = ControlError::new(
                ErrorKind::Internal,
                "answer_too_large",
                format!("the answer has more than {MAX_MESSAGE} bytes; whoever made it must cap its lists"),
            );
            encode_bounded(&FromVm::Response { id: *id, result: Err(error) })
        }
        FromVm::Hello(_) | FromVm::Event(_) => None,
    });
    if let Some(packet) = packet {
        connection.try_send(packet);
    }
}

fn encode_bounded(message: &FromVm) -> Option<Arc<[u8]>> {
    encode(message).ok().map(Arc::from)
}
