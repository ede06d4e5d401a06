//! A transport inside one process, for tests: pipes of a fixed capacity that can be cut at any byte.

mod link;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use migrated_wire::{Hello, MigrationId};

use crate::{
    Caller, Capabilities, DataSender, Door, Endpoint, Listener, OpenedControl, Stream, StreamListener,
    Transport, TransportError, open_control, open_data,
};
use link::Link;

/// Bytes that a pipe holds unless told otherwise: small, so that tests meet back-pressure.
const CAPACITY: usize = 64 << 10;
/// Ports from here on are given to listeners that ask for any.
const FIRST_ANY_PORT: u16 = 49152;

/// A direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the source, which connects, to the destination, which listens.
    ToListener = 0,
    /// From the destination to the source.
    ToCaller = 1,
}

impl Direction {
    /// The other one.
    #[must_use]
    pub const fn reverse(self) -> Self {
        match self {
            Self::ToListener => Self::ToCaller,
            Self::ToCaller => Self::ToListener,
        }
    }
}

/// Where a connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Counted in this direction; both end.
    pub direction: Direction,
    /// The connection ends right after so many bytes; they still arrive.
    pub after: u64,
}

/// The in-memory transport. Clones share one network: what one listens on, the other connects to.
#[derive(Clone)]
pub struct MemoryTransport {
    network: Arc<Network>,
    capacity: usize,
    cut: Option<Cut>,
}

#[derive(Default)]
struct Network {
    state: Mutex<NetworkState>,
}

#[derive(Default)]
struct NetworkState {
    doors: HashMap<SocketAddr, Arc<MemoryDoor>>,
    links: Vec<Weak<Link>>,
}

impl Network {
    fn state(&self) -> MutexGuard<'_, NetworkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryTransport {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryTransport {
    /// A transport on a new network.
    #[must_use]
    pub fn new() -> Self {
        Self { network: Arc::default(), capacity: CAPACITY, cut: None }
    }

    /// The same network, but connections opened by this one hold `capacity` bytes in each direction.
    ///
    /// # Panics
    /// On a capacity of 0.
    #[must_use]
    pub fn with_capacity(&self, capacity: usize) -> Self {
        assert!(capacity > 0, "a pipe without room moves nothing");
        Self { capacity, ..self.clone() }
    }

    /// The same network, but each connection opened by this one breaks as `cut` says.
    #[must_use]
    pub fn with_cut(&self, cut: Cut) -> Self {
        Self { cut: Some(cut), ..self.clone() }
    }

    /// Breaks all connections of the network now: the link is down. New ones can be opened.
    pub fn break_all(&self) {
        for link in self.network.state().links.drain(..) {
            if let Some(link) = link.upgrade() {
                link.end();
            }
        }
    }

    /// Bytes that passed in a direction, over all connections that still exist.
    #[must_use]
    pub fn passed(&self, direction: Direction) -> u64 {
        let state = self.network.state();
        state.links.iter().filter_map(Weak::upgrade).map(|link| link.passed(direction)).sum()
    }

    /// Connects and says nothing: a stream for tests that play a stranger.
    ///
    /// # Errors
    /// [`TransportError::Unreachable`] when nobody listens there.
    pub fn dial(&self, peer: &Endpoint) -> Result<Stream, TransportError> {
        let mut state = self.network.state();
        let refused = || TransportError::Unreachable {
            peer: peer.to_string(),
            source: io::ErrorKind::ConnectionRefused.into(),
        };
        let door = state.doors.get(&peer.addr).ok_or_else(refused)?;
        let link = Link::new(self.capacity, self.cut);
        let mut waiting = door.waiting();
        if waiting.closed {
            return Err(refused());
        }
        waiting.callers.push_back(Arc::clone(&link));
        drop(waiting);
        door.changed.notify_all();
        state.links.retain(|link| link.strong_count() > 0);
        state.links.push(Arc::downgrade(&link));
        Ok(link.stream(Direction::ToCaller, peer.to_string()))
    }
}

impl Transport for MemoryTransport {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { secure: false, in_place: false }
    }

    fn connect_control(
        &self,
        peer: &Endpoint,
        hello: &Hello,
        deadline: Instant,
    ) -> Result<OpenedControl, TransportError> {
        open_control(self.dial(peer)?, hello, deadline)
    }

    fn connect_data(
        &self,
        peer: &Endpoint,
        hello: &Hello,
        deadline: Instant,
    ) -> Result<Box<dyn DataSender>, TransportError> {
        open_data(self.dial(peer)?, hello, deadline)
    }

    fn listen(
        &self,
        addr: IpAddr,
        ports: RangeInclusive<u16>,
        _migration: MigrationId,
    ) -> Result<Box<dyn Listener>, TransportError> {
        let mut state = self.network.state();
        let ports = if ports == (0..=0) { FIRST_ANY_PORT..=u16::MAX } else { ports };
        let addr = ports
            .clone()
            .map(|port| SocketAddr::new(addr, port))
            .find(|addr| !state.doors.contains_key(addr))
            .ok_or_else(|| TransportError::Local {
                what: format!("no free port in {} to {} at {addr}", ports.start(), ports.end()),
                source: io::ErrorKind::AddrInUse.into(),
            })?;
        let door = Arc::new(MemoryDoor {
            network: Arc::downgrade(&self.network),
            addr,
            waiting: Mutex::default(),
            changed: Condvar::new(),
        });
        state.doors.insert(addr, Arc::clone(&door));
        drop(state);
        Ok(Box::new(StreamListener::new(Box::new(door), addr)?))
    }
}

struct MemoryDoor {
    network: Weak<Network>,
    addr: SocketAddr,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    callers: VecDeque<Arc<Link>>,
    closed: bool,
}

impl MemoryDoor {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Door for Arc<MemoryDoor> {
    fn next_caller(&self) -> io::Result<Caller> {
        let mut waiting = self.waiting();
        let link = loop {
            if waiting.closed {
                return Err(io::ErrorKind::NotConnected.into());
            }
            if let Some(link) = waiting.callers.pop_front() {
                break link;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        };
        let stream = link.stream(Direction::ToListener, "a caller in this process".to_owned());
        Ok(Caller { hangup: stream.hangup.clone(), greet: Box::new(|_| Ok(stream)) })
    }

    fn close(&self) {
        let mut waiting = self.waiting();
        waiting.closed = true;
        waiting.callers.drain(..).for_each(|link| link.end());
        drop(waiting);
        self.changed.notify_all();
        if let Some(network) = self.network.upgrade() {
            network.state().doors.retain(|addr, door| *addr != self.addr || !Arc::ptr_eq(door, self));
        }
    }
}
