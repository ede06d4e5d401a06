use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use migrated_wire::{ChannelRole, Hello, MigrationId, PROTOCOL, Token};

use super::CuttingProxy;
use crate::memory::{Cut, Direction};
use crate::{
    ControlReceiver, ControlSender, DataReceiver, DataSender, Endpoint, Gate, Incoming, Listener,
    MigrationGate, Transport,
};

/// A transport under test, with the tools to mistreat it. The defaults suit transports over TCP.
pub trait Rig: Sync {
    /// The transport; both ends use it.
    fn transport(&self) -> &dyn Transport;

    /// The name to ask of a peer's certificate.
    fn server_name(&self) -> Option<String> {
        None
    }

    /// A way to `to` that breaks as `cut` says.
    fn link(&self, to: &Endpoint, cut: Option<Cut>) -> Link<'_> {
        Link::through_proxy(Via::Same(self.transport()), to, cut)
    }

    /// How many bytes an exchange may be shorter than the one before it, because of encodings of
    /// variable length (signatures).
    fn slack(&self) -> u64 {
        0
    }

    /// A bare connection, for bytes that are not the protocol's. Reads give up after 20 s.
    fn stranger(&self, to: &Endpoint) -> Box<dyn Stranger> {
        let socket = TcpStream::connect(to.addr).expect("the listener can be reached");
        socket.set_read_timeout(Some(FAR)).expect("a socket option");
        socket.set_write_timeout(Some(FAR)).expect("a socket option");
        Box::new(socket)
    }
}

/// A bare connection.
pub trait Stranger: Read + Write + Send {}
impl<T: Read + Write + Send> Stranger for T {}

/// A way to a listener that can break.
pub struct Link<'a> {
    /// What to connect with.
    pub transport: Via<'a>,
    /// Where to.
    pub endpoint: Endpoint,
    /// Bytes that passed so far.
    pub passed: Box<dyn Fn(Direction) -> u64 + Send + 'a>,
}

impl<'a> Link<'a> {
    /// A way to `to` through a [`CuttingProxy`].
    #[must_use]
    pub fn through_proxy(transport: Via<'a>, to: &Endpoint, cut: Option<Cut>) -> Self {
        let proxy = CuttingProxy::new(to.addr, cut);
        let endpoint = Endpoint { addr: proxy.addr(), server_name: to.server_name.clone() };
        Self { transport, endpoint, passed: Box::new(move |direction| proxy.passed(direction)) }
    }
}

/// The transport that a [`Link`] is dialled with.
pub enum Via<'a> {
    /// The one under test.
    Same(&'a dyn Transport),
    /// One made for the link.
    Own(Box<dyn Transport>),
}

impl Via<'_> {
    pub(super) fn get(&self) -> &dyn Transport {
        match self {
            Self::Same(transport) => *transport,
            Self::Own(transport) => transport.as_ref(),
        }
    }
}

/// Far beyond what any step takes: who waits this long hangs.
pub(super) const FAR: Duration = Duration::from_secs(20);
pub(super) const MIGRATION: MigrationId = MigrationId(*b"conformance test");
pub(super) const TOKEN: Token = Token(*b"a token of thirty-two bytes here");

pub(super) fn far() -> Instant {
    Instant::now() + FAR
}

pub(super) fn hello(role: ChannelRole) -> Hello {
    Hello { versions: PROTOCOL, role, migration: MIGRATION, token: TOKEN }
}

pub(super) fn gate() -> Arc<dyn Gate> {
    Arc::new(MigrationGate::new(MIGRATION, TOKEN, |_| Ok(())))
}

/// A listener and where it is reached.
pub(super) fn listen(rig: &dyn Rig) -> (Box<dyn Listener>, Endpoint) {
    let listener = rig
        .transport()
        .listen(IpAddr::V4(Ipv4Addr::LOCALHOST), 0..=0, MIGRATION)
        .expect("a free port on loopback");
    let endpoint = Endpoint { addr: listener.local_addr(), server_name: rig.server_name() };
    (listener, endpoint)
}

pub(super) type ControlEnd = (Box<dyn ControlSender>, Box<dyn ControlReceiver>);

/// A control channel, its caller's and its listener's end.
pub(super) fn control_pair(
    rig: &dyn Rig,
    listener: &mut dyn Listener,
    endpoint: &Endpoint,
) -> (ControlEnd, ControlEnd) {
    std::thread::scope(|scope| {
        let accepted = scope.spawn(|| listener.accept(&gate(), far()).expect("a good caller is let in"));
        let (sender, receiver, version) = rig
            .transport()
            .connect_control(endpoint, &hello(ChannelRole::Control), far())
            .expect("a control channel opens");
        assert_eq!(version, PROTOCOL.max);
        match accepted.join().expect("accept") {
            Incoming::Control { role, sender: back, receiver: from, version: theirs, peer } => {
                assert_eq!((role, theirs), (ChannelRole::Control, version));
                assert!(!peer.is_empty());
                ((sender, receiver), (back, from))
            }
            Incoming::Data { role, .. } => panic!("a control channel came in as {role:?}"),
        }
    })
}

/// A page channel, its caller's and its listener's end.
pub(super) fn data_pair(
    rig: &dyn Rig,
    listener: &mut dyn Listener,
    endpoint: &Endpoint,
    role: ChannelRole,
) -> (Box<dyn DataSender>, Box<dyn DataReceiver>) {
    std::thread::scope(|scope| {
        let accepted = scope.spawn(|| listener.accept(&gate(), far()).expect("a good caller is let in"));
        let sender =
            rig.transport().connect_data(endpoint, &hello(role), far()).expect("a page channel opens");
        match accepted.join().expect("accept") {
            Incoming::Data { role: came, receiver } => {
                assert_eq!(came, role);
                (sender, receiver)
            }
            Incoming::Control { role, .. } => panic!("a page channel came in as {role:?}"),
        }
    })
}

/// `len` bytes that differ from those of another `seed`.
pub(super) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// Runs `then` once the thread `tid` of this process sleeps: a call that has to be interrupted is
/// then most likely in its wait. (When it isn't yet, the outcome must be the same.)
pub(super) fn when_asleep(tid: &str, then: impl FnOnce()) {
    let stat = format!("/proc/self/task/{tid}/stat");
    while std::fs::read_to_string(&stat)
        .is_ok_and(|stat| stat.rsplit_once(") ").is_none_or(|(_, rest)| !rest.starts_with('S')))
    {
        std::thread::yield_now();
    }
    then();
}

/// The calling thread's id.
pub(super) fn my_tid() -> String {
    let link = std::fs::read_link("/proc/thread-self").expect("procfs");
    link.file_name().expect("a thread id").to_string_lossy().into_owned()
}
