//! Both ends of one migration on threads of this process.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use migrated_engine::destination::DestinationConfig;
use migrated_engine::source::SourceConfig;
use migrated_engine::{Compression, Limits, MigrationRecord, Mode};
use migrated_guest::{Guest, IncomingGuest};
use migrated_pages::PageRun;
use migrated_session::{
    Clock, DestinationEnd, DestinationRemote, DestinationRequest, EpochLog, Observation, SourceEnd,
    SourceRemote, SourceRequest, receive, send,
};
use migrated_tcp::TcpTransport;
use migrated_transport::memory::{Cut, MemoryTransport};
use migrated_transport::{
    Capabilities, DataSender, Endpoint, Listener, OpenedControl, Transport, TransportError,
};
use migrated_wire::{
    ChannelRole, CommitOutcome, GuestIdentity, Hello, MigrationId, SectionName, Token, VerifyWhen,
};
use parking_lot::Mutex;

use crate::guest::{EmptyGuest, Runners, RunningGuest, Tap, contents, section};
use crate::relay::Relay;
use crate::vcpus::{Vcpus, Writes};

pub const EPOCH: u64 = 3;
const MIGRATION: MigrationId = MigrationId([5; 16]);
const TOKEN: Token = Token([6; 32]);

/// What the ends are connected by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Memory,
    Tcp,
    /// TCP over a link that can be cut.
    Relayed,
}

/// What is to be different from a calm migration.
#[derive(Clone)]
pub struct Case {
    pub pages: usize,
    pub channels: u16,
    pub mode: Mode,
    /// Threads that touch the guest's RAM from the moment that it runs at the destination.
    pub vcpus: usize,
    pub network: Network,
    /// Why post-copy is not possible at the destination.
    pub no_postcopy: Option<String>,
    /// Pages that restoring state reads.
    pub restore_reads: Vec<PageRun>,
    pub writes_per_harvest: u64,
    pub verify: VerifyWhen,
    pub compression: Compression,
    pub limits: Limits,
    /// Where the first control channel breaks. Questions about a commit get through.
    pub cut: Option<Cut>,
    /// The first of the destination's addresses is one where nobody is.
    pub dead_address: bool,
    pub restore_fails: bool,
    pub record_fails: bool,
    pub destination_epoch: u64,
    pub tap: Tap,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            pages: 300,
            channels: 2,
            mode: Mode::Precopy,
            vcpus: 0,
            network: Network::Memory,
            no_postcopy: None,
            restore_reads: Vec::new(),
            writes_per_harvest: 20,
            verify: VerifyWhen::Before,
            compression: Compression::Off,
            limits: Limits::default(),
            cut: None,
            dead_address: false,
            restore_fails: false,
            record_fails: false,
            destination_epoch: EPOCH,
            tap: Tap::default(),
        }
    }
}

/// What came of it.
pub struct Ending {
    pub source: SourceEnd<RunningGuest>,
    pub record: MigrationRecord,
    pub destination: DestinationEnd,
    pub destination_record: MigrationRecord,
    pub runners: Arc<Runners>,
    pub committed: Option<u64>,
    /// Memory as it was at the source when it ended there, and at the destination when it began to run; with
    /// vCPUs, when they had ended.
    pub source_ram: Vec<Vec<u8>>,
    pub destination_ram: Option<Vec<Vec<u8>>>,
    /// What vCPUs wrote.
    pub writes: Writes,
}

struct Epochs {
    committed: Arc<Mutex<Option<u64>>>,
    fails: bool,
}

impl EpochLog for Epochs {
    fn record_commit(&mut self, epoch: u64) -> io::Result<()> {
        if self.fails {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *self.committed.lock() = Some(epoch);
        Ok(())
    }

    fn record_never_ran(&mut self, _: u64) -> io::Result<()> {
        *self.committed.lock() = None;
        Ok(())
    }
}

/// The destination's daemon: answers for a process that has ended, from what that recorded.
#[derive(Clone, Default)]
struct Daemon {
    source: Arc<OnceLock<SourceRemote>>,
    process_ended: Arc<AtomicBool>,
    committed: Arc<Mutex<Option<u64>>>,
}

impl Daemon {
    fn answer(&self) {
        if let (Some(source), true) = (self.source.get(), self.process_ended.load(Ordering::SeqCst)) {
            source.resolve(Some(match *self.committed.lock() {
                Some(EPOCH) => CommitOutcome::Committed,
                _ => CommitOutcome::NeverRan,
            }));
        }
    }
}

/// The in-memory transport with a control channel that breaks.
struct Fragile {
    inner: MemoryTransport,
    cut: Mutex<Option<Cut>>,
}

impl Transport for Fragile {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn connect_control(
        &self,
        peer: &Endpoint,
        hello: &Hello,
        deadline: Instant,
    ) -> Result<OpenedControl, TransportError> {
        let cut = if hello.role == ChannelRole::Control { self.cut.lock().take() } else { None };
        match cut {
            Some(cut) => self.inner.with_cut(cut).connect_control(peer, hello, deadline),
            None => self.inner.connect_control(peer, hello, deadline),
        }
    }

    fn connect_data(
        &self,
        peer: &Endpoint,
        hello: &Hello,
        deadline: Instant,
    ) -> Result<Box<dyn DataSender>, TransportError> {
        self.inner.connect_data(peer, hello, deadline)
    }

    fn listen(
        &self,
        addr: IpAddr,
        ports: std::ops::RangeInclusive<u16>,
        migration: MigrationId,
    ) -> Result<Box<dyn Listener>, TransportError> {
        self.inner.listen(addr, ports, migration)
    }
}

/// What a test can do to a migration that goes on.
pub struct Hold<'a> {
    pub source: &'a SourceRemote,
    pub destination: &'a DestinationRemote,
    network: &'a MemoryTransport,
    relay: &'a Relay,
}

impl Hold<'_> {
    /// Breaks all channels; new ones can be opened.
    pub fn cut(&self) {
        self.network.break_all();
        self.relay.cut();
    }

    /// Breaks all relayed channels for good.
    pub fn close(&self) {
        self.relay.close();
    }
}

/// Runs a migration to its end. `meanwhile` has both remotes as soon as they exist.
pub fn migrate(case: &Case, meanwhile: impl FnOnce(&SourceRemote, &DestinationRemote)) -> Ending {
    migrate_held(case, |hold| meanwhile(hold.source, hold.destination))
}

/// As [`migrate`].
pub fn migrate_held(case: &Case, meanwhile: impl FnOnce(&Hold<'_>)) -> Ending {
    let runners = Arc::new(Runners::default());
    let guest = RunningGuest::new(case.pages, case.writes_per_harvest, 42, &runners, &case.tap);
    let mut empty = EmptyGuest::new(case.pages, &runners, &case.tap);
    empty.restore_fails = case.restore_fails;
    empty.restore_reads.clone_from(&case.restore_reads);
    let identity = GuestIdentity {
        layout: guest.ram().layout().clone(),
        sections: vec![SectionName { kind: section().kind, instance: 0, version: 1 }],
        cpu: Bytes::new(),
    };
    let network = MemoryTransport::new();
    let transport: Arc<dyn Transport> = match case.network {
        Network::Memory => Arc::new(Fragile { inner: network.clone(), cut: Mutex::new(case.cut) }),
        Network::Tcp | Network::Relayed => Arc::new(TcpTransport::plain()),
    };
    let listener = transport.listen(IpAddr::V4(Ipv4Addr::LOCALHOST), 0..=0, MIGRATION).unwrap();
    let relay = Relay::default();
    let addr = match case.network {
        Network::Memory | Network::Tcp => listener.local_addr(),
        Network::Relayed => relay.start(listener.local_addr()),
    };
    let peer = Endpoint { addr, server_name: None };
    let (peer, other_addresses) = match case.dead_address {
        true => (Endpoint { addr: SocketAddr::from(([127, 0, 0, 1], 9)), ..peer.clone() }, vec![peer]),
        false => (peer, Vec::new()),
    };

    let committed = Arc::new(Mutex::new(None));
    let clock = Clock::started_before(Duration::ZERO);
    let epochs = Epochs { committed: committed.clone(), fails: case.record_fails };
    let config = DestinationConfig {
        identity: identity.clone(),
        epoch: case.destination_epoch,
        rehearsal: Duration::ZERO,
        postcopy: case.no_postcopy.clone().map_or(Ok(()), Err),
        patience: Duration::from_secs(30),
        peer: "source".into(),
    };
    let request = DestinationRequest {
        migration: MIGRATION,
        token: TOKEN,
        max_channels: 8,
        config,
        record: MigrationRecord::default(),
        clock,
        linger: Duration::from_secs(1),
        epochs: Box::new(epochs),
        observer: Box::new(|_| Observation { guest_gap_us: Some(7), first_packet_us: Some(3) }),
    };
    let (receiving, destination_remote) = receive(request, empty.ram());
    let config = SourceConfig {
        identity,
        epoch: EPOCH,
        mode: case.mode,
        channels: case.channels,
        verify: case.verify,
        compression: case.compression,
        limits: case.limits,
        guest_clock: None,
        peer: "destination".into(),
    };
    let record = MigrationRecord::default();
    let daemon = Daemon { committed: committed.clone(), ..Daemon::default() };
    let asked = daemon.clone();
    let seeker = Box::new(move || asked.answer());
    let request = SourceRequest {
        migration: MIGRATION,
        token: TOKEN,
        peer,
        other_addresses,
        config,
        record,
        clock,
        seeker,
    };
    let (sending, source_remote) = send(request);
    daemon.source.set(source_remote.clone()).ok().expect("set once");

    let (source_ram, destination_ram) = (guest.ram().clone(), empty.ram().clone());
    let (source, (destination, at_start, vcpus)) = thread::scope(|scope| {
        let destination = scope.spawn(|| {
            let (mut at_start, mut vcpus) = (None, None);
            let running = |guest: RunningGuest| match case.vcpus {
                0 => at_start = Some(contents(guest.ram())),
                count => vcpus = Some(Vcpus::start(count, guest.ram(), &source_ram)),
            };
            let end = receiving.run(empty, listener, running, || {});
            daemon.process_ended.store(true, Ordering::SeqCst);
            (end, at_start, vcpus)
        });
        let source = scope.spawn(|| {
            let end = sending.run(guest, &transport, || {});
            if matches!(end, SourceEnd::Kept(..)) {
                // As the source's daemon does.
                destination_remote.cancel();
            }
            end
        });
        meanwhile(&Hold {
            source: &source_remote,
            destination: &destination_remote,
            network: &network,
            relay: &relay,
        });
        (source.join().unwrap(), destination.join().unwrap())
    });
    let writes = vcpus.map(Vcpus::stop);
    let committed = *committed.lock();
    Ending {
        source,
        record: source_remote.record(),
        destination,
        destination_record: destination_remote.record(),
        runners,
        committed,
        source_ram: contents(&source_ram),
        destination_ram: at_start.or_else(|| writes.is_some().then(|| contents(&destination_ram))),
        writes: writes.unwrap_or_default(),
    }
}
