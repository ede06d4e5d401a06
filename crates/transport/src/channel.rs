use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use migrated_wire::{ChannelRole, Hello, MigrationId, PathSample, Refusal, SendPace};
use vm_memory::VolatileSlice;

use crate::TransportError;

/// Where a destination listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address and port.
    pub addr: SocketAddr,
    /// Name that the peer's certificate must carry, where the transport authenticates.
    pub server_name: Option<String>,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr.fmt(f)
    }
}

/// What a transport can do, as far as a session cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Peers are authenticated and bytes are encrypted.
    pub secure: bool,
    /// Guest memory is sent and received in place, without a copy in user space.
    pub in_place: bool,
}

/// Ends a channel from any thread: every wait in it returns [`TransportError::Lost`] at once.
#[derive(Clone)]
pub struct Hangup(Arc<dyn Fn() + Send + Sync>);

impl Hangup {
    /// A hangup that does `end`, which must be idempotent and must not block.
    pub fn new(end: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(end))
    }

    /// Ends the channel.
    pub fn hang_up(&self) {
        (self.0)();
    }
}

impl fmt::Debug for Hangup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hangup")
    }
}

/// The sending half of a control channel.
pub trait ControlSender: Send {
    /// Sends one message, whole, and flushes it to the network.
    ///
    /// # Errors
    /// [`TransportError`]; the channel is unusable afterwards.
    fn send(&mut self, message: &[u8]) -> Result<(), TransportError>;

    /// Bytes handed to the network so far by this half.
    fn bytes_sent(&self) -> u64;

    /// The handle that ends the channel, both halves.
    fn hangup(&self) -> Hangup;
}

/// The receiving half of a control channel.
pub trait ControlReceiver: Send {
    /// Waits for the next whole message and gives its bytes, valid until the next call. Messages
    /// longer than `limit` bytes are refused before anything is allocated for them.
    ///
    /// # Errors
    /// [`TransportError::TimedOut`] when no message *began* within `patience` (the channel stays usable),
    /// any other error ends the channel. An orderly close is [`TransportError::Lost`] too: EOF is never success.
    fn recv(&mut self, limit: usize, patience: Duration) -> Result<&[u8], TransportError>;

    /// Bytes received so far by this half.
    fn bytes_received(&self) -> u64;
}

/// The source's end of a page channel.
pub trait DataSender: Send {
    /// Sends `head`, then the bytes of `payload` in order, as one frame. Blocks while the peer is
    /// behind: that is the back-pressure.
    ///
    /// # Errors
    /// [`TransportError`]; the channel is unusable afterwards.
    fn send(&mut self, head: &[u8], payload: &[VolatileSlice<'_>]) -> Result<(), TransportError>;

    /// Bytes handed to the network so far.
    fn bytes_sent(&self) -> u64;

    /// What is known of the way to the peer; `None` where the transport can't tell.
    fn path(&self) -> Option<PathSample> {
        None
    }

    /// How the channel is to send from now on. A transport that can't do so sends as before.
    fn set_pace(&mut self, _pace: SendPace) {}

    /// The handle that ends the channel.
    fn hangup(&self) -> Hangup;
}

/// The destination's end of a page channel.
pub trait DataReceiver: Send {
    /// Fills `buf` entirely: the head of a frame. The reader knows its size.
    ///
    /// # Errors
    /// [`TransportError`]; the channel is unusable afterwards.
    fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), TransportError>;

    /// Fills the slices in order: a frame's payload, straight to where it belongs.
    ///
    /// # Errors
    /// [`TransportError`]; the slices may be half filled and the channel is unusable afterwards.
    fn read_payload(&mut self, slices: &[VolatileSlice<'_>]) -> Result<(), TransportError>;

    /// Bytes received so far.
    fn bytes_received(&self) -> u64;

    /// The handle that ends the channel.
    fn hangup(&self) -> Hangup;
}

/// Decides which hellos a listener accepts.
pub trait Gate: Send + Sync {
    /// The protocol version to speak, or why the channel is refused. Called once for each hello, from
    /// several threads.
    ///
    /// # Errors
    /// The refusal, which is sent to the peer.
    fn admit(&self, hello: &Hello) -> Result<u16, Refusal>;
}

/// A channel that came in and was admitted.
pub enum Incoming {
    /// A control or resolve channel; which one is in `role`.
    Control {
        /// [`ChannelRole::Control`] or [`ChannelRole::Resolve`].
        role: ChannelRole,
        /// Towards the source.
        sender: Box<dyn ControlSender>,
        /// From the source.
        receiver: Box<dyn ControlReceiver>,
        /// Protocol version agreed.
        version: u16,
        /// Who connected, for messages.
        peer: String,
    },
    /// A page or urgent channel.
    Data {
        /// [`ChannelRole::Page`] or [`ChannelRole::Urgent`].
        role: ChannelRole,
        /// From the source.
        receiver: Box<dyn DataReceiver>,
    },
}

/// A destination that waits for channels. Dropping it closes the port.
pub trait Listener: Send {
    /// Where it listens, as the source should dial.
    fn local_addr(&self) -> SocketAddr;

    /// Waits until `deadline` for the next channel that `gate` admits. Strangers, garbage, slow and refused
    /// callers are answered and dropped inside, in bounded memory, and never delay a good one for long.
    ///
    /// # Errors
    /// [`TransportError::TimedOut`] at the deadline; any other error means that the listener is broken.
    fn accept(&mut self, gate: &Arc<dyn Gate>, deadline: Instant) -> Result<Incoming, TransportError>;

    /// The handle that ends [`accept`](Self::accept) with [`TransportError::Lost`].
    fn hangup(&self) -> Hangup;
}

/// A control channel just opened: its halves and the protocol version agreed.
pub type OpenedControl = (Box<dyn ControlSender>, Box<dyn ControlReceiver>, u16);

/// A way to move bytes between two hosts.
pub trait Transport: Send + Sync {
    /// Its name in the API, records and metrics, e.g. `tcp`, `tcp+tls`.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Opens a control (or resolve) channel: connects, authenticates, says hello, waits for the answer. The
    /// halves come with the protocol version agreed.
    ///
    /// # Errors
    /// [`TransportError`] naming the peer and what to look at.
    fn connect_control(
        &self,
        peer: &Endpoint,
        hello: &Hello,
        deadline: Instant,
    ) -> Result<OpenedControl, TransportError>;

    /// Opens a page or urgent channel.
    ///
    /// # Errors
    /// [`TransportError`] naming the peer and what to look at.
    fn connect_data(
        &self,
        peer: &Endpoint,
        hello: &Hello,
        deadline: Instant,
    ) -> Result<Box<dyn DataSender>, TransportError>;

    /// Listens on the first free port of `ports` at `addr` (port 0 in a range of one means any).
    ///
    /// # Errors
    /// [`TransportError::Local`] when no port of the range is free or the address is not this host's.
    fn listen(
        &self,
        addr: std::net::IpAddr,
        ports: std::ops::RangeInclusive<u16>,
        migration: MigrationId,
    ) -> Result<Box<dyn Listener>, TransportError>;
}
