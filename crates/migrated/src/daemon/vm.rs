use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use migrated_control::{BootSource, ControlClient, VmDir, VmSpec, VmState};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::DaemonError;
use super::death::Death;
use super::process::ProcessId;
use super::reset::{Resets, TooManyResets};

/// Readers of one console that may wait for output at a time: each has a question open at the VM process, which answers
/// 32 at once.
const CONSOLE_READERS: usize = 16;

/// One VM and what the daemon knows of its process.
#[derive(Debug)]
pub struct Vm {
    /// Its id, the same on every host.
    pub id: String,
    /// What it is made of.
    pub spec: VmSpec,
    /// What it shares with its process.
    pub dir: VmDir,
    live: Mutex<Live>,
    gone: watch::Sender<bool>,
    forgotten: AtomicBool,
    doomed: AtomicBool,
    console_seats: Arc<Semaphore>,
}

#[derive(Debug)]
struct Live {
    state: VmState,
    reason: Option<String>,
    process: Option<ProcessId>,
    client: Option<ControlClient>,
    migration: Option<String>,
    death: Option<Death>,
    resets: Resets,
}

impl Vm {
    /// A VM without a process.
    pub fn new(id: String, spec: VmSpec, dir: VmDir, state: VmState) -> Self {
        let live = Live {
            state,
            reason: None,
            process: None,
            client: None,
            migration: None,
            death: None,
            resets: Resets::default(),
        };
        Self {
            id,
            spec,
            dir,
            live: Mutex::new(live),
            gone: watch::Sender::new(false),
            forgotten: AtomicBool::new(false),
            doomed: AtomicBool::new(false),
            console_seats: Arc::new(Semaphore::new(CONSOLE_READERS)),
        }
    }

    /// What it is doing, and why.
    pub fn state(&self) -> (VmState, Option<String>) {
        let live = self.live.lock();
        (live.state, live.reason.clone())
    }

    /// It does something else now.
    pub fn set_state(&self, state: VmState, reason: Option<String>) {
        let mut live = self.live.lock();
        if live.state != state {
            tracing::info!(vm = self.id, name = self.spec.name, %state, reason, "VM state");
        }
        (live.state, live.reason) = (state, reason);
    }

    /// Whether the API shows it: a guest that has not come yet, or went away, is a migration's matter.
    pub fn is_listed(&self) -> bool {
        !matches!(self.live.lock().state, VmState::Incoming | VmState::MigratedAway)
    }

    /// Whether it is on this host or on its way to it.
    pub fn is_here(&self) -> bool {
        self.live.lock().state != VmState::MigratedAway
    }

    /// Whether the caller is to remove its directory, because nobody has: another VM's may be there since.
    pub fn begin_forgetting(&self) -> bool {
        !self.forgotten.swap(true, Ordering::AcqRel)
    }

    /// Whether its RAM is, or is about to be, taken for good.
    pub fn holds_memory(&self) -> bool {
        !matches!(self.live.lock().state, VmState::Failed | VmState::MigratedAway)
    }

    /// Which process it is, while it lives.
    pub fn process(&self) -> Option<ProcessId> {
        self.live.lock().process.clone()
    }

    /// Number of its process, while it lives.
    pub fn pid(&self) -> Option<u32> {
        self.live.lock().process.as_ref().map(|process| process.pid)
    }

    /// It has a process now.
    pub fn set_process(&self, process: ProcessId) {
        self.live.lock().process = Some(process);
    }

    /// Where host programs reach the agent in the guest: a guest that boots a kernel has a line to one, which its
    /// process serves.
    pub fn agent_socket(&self) -> Option<String> {
        let has_line = matches!(self.spec.boot, BootSource::Kernel { .. });
        (has_line && self.pid().is_some()).then(|| self.dir.agent_socket().display().to_string())
    }

    /// How its process ended.
    pub fn death(&self) -> Option<Death> {
        self.live.lock().death.clone()
    }

    /// Its process has ended.
    pub fn set_death(&self, death: Death) {
        self.live.lock().death = Some(death);
    }

    /// The guest has reset itself: it waits for another process, unless it has done so too often. Whoever waits for
    /// its end goes on waiting.
    pub fn note_reset(&self) -> Result<(), TooManyResets> {
        let mut live = self.live.lock();
        live.resets.note(Instant::now())?;
        (live.process, live.client) = (None, None);
        Ok(())
    }

    /// Whether the process that it has, or is about to have, is one that boots it anew after a reset.
    pub fn was_reset(&self) -> bool {
        self.live.lock().resets.any()
    }

    /// It is to end: no process may be started for it any more.
    pub fn doom(&self) {
        self.doomed.store(true, Ordering::SeqCst);
    }

    /// Whether it is to end.
    pub fn is_doomed(&self) -> bool {
        self.doomed.load(Ordering::SeqCst)
    }

    /// The right to wait for the console's output, while it is kept.
    pub fn take_console_seat(&self) -> Result<OwnedSemaphorePermit, DaemonError> {
        let seat = Arc::clone(&self.console_seats).try_acquire_owned();
        seat.map_err(|_| DaemonError::TooManyReaders { vm: self.spec.name.clone(), readers: CONSOLE_READERS })
    }

    /// Its process is gone and so is everything that had to go with it: nobody waits any longer.
    pub fn set_gone(&self) {
        let mut live = self.live.lock();
        (live.process, live.client) = (None, None);
        drop(live);
        self.gone.send_replace(true);
    }

    /// Whether its process is certainly gone.
    pub fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }

    /// Waits until its process is gone, at most `patience`, and says whether it is.
    pub async fn wait_gone(&self, patience: Duration) -> bool {
        let mut gone = self.gone.subscribe();
        matches!(tokio::time::timeout(patience, gone.wait_for(|gone| *gone)).await, Ok(Ok(_)))
    }

    /// The connection to its process changed.
    pub fn set_client(&self, client: Option<ControlClient>) {
        self.live.lock().client = client;
    }

    /// The connection to its process.
    pub fn client(&self) -> Result<ControlClient, DaemonError> {
        let live = self.live.lock();
        match &live.client {
            Some(client) => Ok(client.clone()),
            None if *self.gone.borrow() => Err(DaemonError::WrongState {
                vm: self.spec.name.clone(),
                state: live.state,
                wanted: "alive",
            }),
            None => Err(DaemonError::VmUnreachable {
                vm: self.spec.name.clone(),
                source: migrated_control::ClientError::Closed,
            }),
        }
    }

    /// The migration it is in.
    pub fn migration(&self) -> Option<String> {
        self.live.lock().migration.clone()
    }

    /// It takes part in a migration now; refused when it does already, or is in no state to.
    pub fn begin_migration(&self, id: &str) -> Result<(), DaemonError> {
        let mut live = self.live.lock();
        self.check_movable(&live)?;
        live.migration = Some(id.to_owned());
        Ok(())
    }

    /// Whether it could take part in a migration now; refused as by [`begin_migration`](Self::begin_migration).
    pub fn refuse_if_immovable(&self) -> Result<(), DaemonError> {
        self.check_movable(&self.live.lock())
    }

    fn check_movable(&self, live: &Live) -> Result<(), DaemonError> {
        if let Some(migration) = &live.migration {
            return Err(DaemonError::MigrationInProgress {
                vm: self.spec.name.clone(),
                migration: migration.clone(),
            });
        }
        if !matches!(live.state, VmState::Running | VmState::Paused) {
            return Err(DaemonError::WrongState {
                vm: self.spec.name.clone(),
                state: live.state,
                wanted: "running or paused",
            });
        }
        Ok(())
    }

    /// It takes part in that migration now, whatever was before: after a restart, or as the destination.
    pub fn set_migration(&self, id: &str) {
        self.live.lock().migration = Some(id.to_owned());
    }

    /// That migration is over.
    pub fn end_migration(&self, id: &str) {
        let mut live = self.live.lock();
        live.migration.take_if(|migration| migration == id);
    }

    /// Refuses while it is in a migration.
    pub fn refuse_if_migrating(&self) -> Result<(), DaemonError> {
        match self.migration() {
            Some(migration) => {
                Err(DaemonError::MigrationInProgress { vm: self.spec.name.clone(), migration })
            }
            None => Ok(()),
        }
    }

    /// When it came to this host, in ms since the Unix epoch: when its specification was written.
    pub fn created_unix_ms(&self) -> u64 {
        let modified = std::fs::metadata(self.dir.spec()).and_then(|file| file.modified());
        modified.map_or(0, unix_ms)
    }
}

/// A wall-clock time in ms since the Unix epoch.
pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
