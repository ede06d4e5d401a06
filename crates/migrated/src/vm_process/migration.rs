use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use migrated_control::{Event, OtherAddress, PendingResolution, Resolution};
use migrated_engine::{MigrationRecord, MigrationState};
use migrated_session::{DestinationRemote, SourceRemote};
use migrated_transport::Endpoint;
use migrated_wire::{CommitOutcome, MigrationId};

use super::process::Process;

/// How often a migration under way tells how far it is.
const PROGRESS: Duration = Duration::from_millis(200);

/// The migration that this process takes part in, or took part in last.
pub struct Active {
    id: MigrationId,
    peer: String,
    epoch: u64,
    remote: Remote,
}

enum Remote {
    /// With where the destination was told to listen.
    Source(SourceRemote, Endpoint),
    Destination(DestinationRemote),
}

impl Active {
    /// A migration away from here.
    pub fn source(pending: PendingResolution, endpoint: Endpoint, remote: SourceRemote) -> Self {
        let PendingResolution { migration: id, epoch, peer } = pending;
        Self { id, peer, epoch, remote: Remote::Source(remote, endpoint) }
    }

    /// A migration to here.
    pub const fn destination(id: MigrationId, peer: String, epoch: u64, remote: DestinationRemote) -> Self {
        Self { id, peer, epoch, remote: Remote::Destination(remote) }
    }

    /// Which it is.
    pub const fn id(&self) -> MigrationId {
        self.id
    }

    /// Which it is, unless it has ended.
    pub fn id_if_under_way(&self) -> Option<MigrationId> {
        let ended = self.record().state.is_some_and(MigrationState::is_final);
        (!ended).then_some(self.id)
    }

    /// As far as it got.
    pub fn record(&self) -> MigrationRecord {
        match &self.remote {
            Remote::Source(remote, _) => remote.record(),
            Remote::Destination(remote) => remote.record(),
        }
    }

    /// Asks for its end; `false` when it is too late.
    pub fn cancel(&self) -> bool {
        match &self.remote {
            Remote::Source(remote, _) => remote.cancel(),
            Remote::Destination(remote) if lacks_pages(remote.state()) => false,
            Remote::Destination(remote) => {
                remote.cancel();
                true
            }
        }
    }

    /// A commit whose fate the source doesn't know.
    pub fn unresolved(&self) -> Option<PendingResolution> {
        match &self.remote {
            Remote::Source(remote, _) if remote.is_indeterminate() => Some(self.pending()),
            _ => None,
        }
    }

    fn pending(&self) -> PendingResolution {
        PendingResolution { migration: self.id, epoch: self.epoch, peer: self.peer.clone() }
    }

    /// Brings the source what somebody learnt about its commit.
    pub fn learn(&self, outcome: Option<CommitOutcome>) {
        if let Remote::Source(remote, _) = &self.remote {
            remote.resolve(outcome);
        }
    }

    /// The destination's session, if this is one.
    pub fn destination_remote(&self) -> Option<DestinationRemote> {
        match &self.remote {
            Remote::Destination(remote) => Some(remote.clone()),
            Remote::Source(..) => None,
        }
    }

    /// Tries now to reach the destination over a link that was lost, by another way if one is given. Says
    /// whether a link is missing; `None` at the destination, which waits for the source to come.
    pub fn recover(&self, via: Option<OtherAddress>) -> Option<bool> {
        let Remote::Source(remote, told) = &self.remote else { return None };
        let endpoint = |via: OtherAddress| Endpoint { addr: via.instead_of(told.addr), ..told.clone() };
        Some(remote.recover(via.map(endpoint)))
    }

    /// Whether pages still follow a guest to here, so that it can't go on to another host.
    pub fn is_arriving(&self) -> bool {
        matches!(&self.remote, Remote::Destination(remote) if lacks_pages(remote.state()))
    }
}

/// Whether the guest runs at the destination and pages are missing there.
const fn lacks_pages(state: MigrationState) -> bool {
    use MigrationState as S;
    matches!(state, S::PostcopyActive | S::PostcopyPaused | S::Recovering)
}

/// What this destination answers for a commit.
pub fn resolution(remote: &DestinationRemote, epoch: u64) -> Resolution {
    match remote.resolve(epoch) {
        Some(CommitOutcome::Committed) if lacks_pages(remote.state()) => Resolution::Incomplete,
        Some(CommitOutcome::Committed) => Resolution::Committed,
        Some(CommitOutcome::Complete { pages }) => Resolution::Complete { pages },
        Some(CommitOutcome::NeverRan) => Resolution::NeverRan,
        None => Resolution::Unknown,
    }
}

/// Publishes a migration's record: at every change of its state, and about five times a second until its end.
pub struct Publisher {
    process: Arc<Process>,
    last: Option<MigrationState>,
    over: Arc<AtomicBool>,
}

impl Publisher {
    /// Begins to publish with what `record` gives.
    pub fn start(process: &Arc<Process>, record: impl Fn() -> MigrationRecord + Send + 'static) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (events, stop) = (process.events.clone(), Arc::clone(&over));
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(PROGRESS);
                let record = record();
                if stop.load(Ordering::Acquire) || record.state.is_some_and(MigrationState::is_final) {
                    break;
                }
                events.send(Event::MigrationRecord(Box::new(record)));
            }
        });
        Self { process: Arc::clone(process), last: None, over }
    }

    /// Looks whether the state has changed.
    pub fn look(&mut self, record: impl FnOnce() -> MigrationRecord, state: MigrationState) {
        if self.last == Some(state) {
            return;
        }
        self.last = Some(state);
        // What the VM does comes first: who sees the migration's state may ask for the VM's next.
        self.process.announce();
        self.process.events.send(Event::MigrationRecord(Box::new(record())));
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
    }
}
