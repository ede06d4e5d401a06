//! Watching one VM process: what it tells, when its connection breaks, and how it ends.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use migrated_api::{MigrationState, RecordRole};
use migrated_control::{
    ClientError, ControlClient, EpochState, Event, PendingResolution, Request, Response, VmState, read_epoch,
};
use migrated_engine::FailureCode;
use tokio::sync::mpsc;

use super::death::Death;
use super::postcopy::pages_follow;
use super::process::Exit;
use super::vm::Vm;
use super::{Daemon, Migration};

/// Between attempts to reach a VM process that lives and does not answer.
const RETRY: Duration = Duration::from_secs(1);
/// How long an exited process's last words may take to arrive: they are in the socket already.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Daemon {
    /// Follows a VM process until it ends. `events` is none when it couldn't be reached.
    pub(super) async fn supervise(
        self: Arc<Self>,
        vm: Arc<Vm>,
        mut events: Option<mpsc::Receiver<Event>>,
        mut exit: Exit,
    ) {
        let how = loop {
            let Some(receiver) = &mut events else {
                tokio::select! {
                    how = exit.wait() => break how,
                    connected = self.reconnect(&vm) => events = Some(connected),
                }
                continue;
            };
            tokio::select! {
                how = exit.wait() => break how,
                event = receiver.recv() => match event {
                    Some(event) => self.on_event(&vm, event),
                    None => {
                        vm.set_client(None);
                        events = None;
                    }
                }
            }
        };
        if let Some(mut receiver) = events {
            let drained = async {
                while let Some(event) = receiver.recv().await {
                    self.on_event(&vm, event);
                }
            };
            let _ = tokio::time::timeout(LAST_WORDS, drained).await;
        }
        self.on_exit(&vm, how);
    }

    async fn reconnect(self: &Arc<Self>, vm: &Arc<Vm>) -> mpsc::Receiver<Event> {
        loop {
            match ControlClient::connect(&vm.dir.control_socket(), ControlClient::PATIENCE).await {
                Ok((client, events)) => {
                    vm.set_client(Some(client.clone()));
                    match self.catch_up(vm, &client).await {
                        Ok(()) => return events,
                        Err(e) => tracing::warn!(vm = vm.id, "the VM process does not say how it is: {e}"),
                    }
                    vm.set_client(None);
                }
                Err(e) => {
                    if matches!(e, ClientError::Version(_)) {
                        let (state, _) = vm.state();
                        vm.set_state(state, Some(e.to_string()));
                    }
                    match e {
                        // It ended just now, or is about to be seen to have.
                        ClientError::Io(e) if e.kind() == ErrorKind::ConnectionRefused => {}
                        e => tracing::warn!(vm = vm.id, "can't connect to the VM process: {e}"),
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Learns what happened while nobody listened.
    pub(super) async fn catch_up(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        client: &ControlClient,
    ) -> Result<(), ClientError> {
        let status = client.status().await?;
        vm.set_state(status.state, status.reason);
        if let Some(id) = vm.migration() {
            let Ok(migration) = self.migration(&id) else { return Ok(()) };
            match client.request(Request::MigrationRecord { migration: migration.id }).await {
                Ok(Response::Record(record)) => self.on_record(vm, *record),
                Ok(_) => return Err(ClientError::Unexpected("another answer than a record")),
                Err(ClientError::Refused(_)) => self.abandon(&migration, client).await,
                Err(e) => return Err(e),
            }
        }
        if let Some(pending) = status.unresolved {
            self.on_unresolved(vm, &pending);
        }
        Ok(())
    }

    /// The VM process has not heard of the migration: the daemon before this one ended on the way there, so it
    /// will never begin, and whoever got ready for it need not wait.
    async fn abandon(&self, migration: &Migration, client: &ControlClient) {
        let message = "the daemon ended before it had handed the migration to the VM process; start it again";
        self.end(migration, MigrationState::Failed, "daemon_restarted", message);
        let told = match migration.role() {
            RecordRole::Source => {
                self.release_peer(migration).await;
                Ok(())
            }
            RecordRole::Destination => client.perform(Request::Shutdown).await.map_err(|e| e.to_string()),
        };
        if let Err(reason) = told {
            tracing::info!(migration = %migration.id, reason, "the VM process was not told; it gives up by itself");
        }
    }

    fn on_event(self: &Arc<Self>, vm: &Arc<Vm>, event: Event) {
        match event {
            Event::VmState { state, reason } => vm.set_state(state, reason),
            Event::MigrationRecord(record) => self.on_record(vm, *record),
            Event::NeedsResolution(pending) => self.on_unresolved(vm, &pending),
            Event::Exiting { reason } => tracing::info!(vm = vm.id, reason, "the VM process exits"),
        }
    }

    fn on_unresolved(self: &Arc<Self>, vm: &Arc<Vm>, pending: &PendingResolution) {
        match self.migration(&pending.migration.to_string()) {
            Ok(migration) => self.resolve(vm, &migration),
            Err(e) => tracing::error!(vm = vm.id, "the VM process asks what became of a commit: {e}"),
        }
    }

    fn on_record(self: &Arc<Self>, vm: &Vm, record: migrated_api::MigrationRecord) {
        let Ok(migration) = self.migration(&record.id) else {
            tracing::warn!(vm = vm.id, migration = record.id, "record of a migration that is not known here");
            return;
        };
        match (migration.role(), record.state) {
            (RecordRole::Source, Some(MigrationState::Settling | MigrationState::Completed)) => {
                vm.set_state(VmState::MigratedAway, None);
            }
            (RecordRole::Destination, Some(state))
                if vm.state().0 == VmState::Incoming
                    && (pages_follow(state)
                        || matches!(state, MigrationState::Running | MigrationState::Completed)) =>
            {
                vm.set_state(VmState::Running, None);
            }
            (RecordRole::Source, Some(MigrationState::Failed | MigrationState::Cancelled))
                if !migration.state().is_final() && lost_sight(&record) =>
            {
                let (daemon, migration) = (Arc::clone(self), Arc::clone(&migration));
                tokio::spawn(async move { daemon.release_peer(&migration).await });
            }
            _ => {}
        }
        self.update(&migration, record);
    }

    /// Lets a destination go that may still wait for a source which has given up.
    async fn release_peer(&self, migration: &Migration) {
        if let Err(reason) = self.give_up_at_peer(migration).await {
            tracing::info!(migration = %migration.id, reason, "the destination was not told; it gives up by itself");
        }
    }

    /// A VM process is gone: what it was decides what remains of it.
    pub(super) fn on_exit(self: &Arc<Self>, vm: &Arc<Vm>, how: String) {
        let death = Death::read(&vm.dir, how);
        if let Some(record) = death.record.clone() {
            self.on_record(vm, *record);
        }
        let migration = vm.migration().and_then(|id| self.migration(&id).ok());
        let before = vm.state().0;
        tracing::info!(vm = vm.id, name = vm.spec.name, %before, reason = death.reason, "VM process gone");
        vm.set_death(death.clone());
        if death.state == VmState::MigratedAway || before == VmState::MigratedAway {
            vm.set_state(VmState::MigratedAway, Some(death.reason));
            if let Some(migration) = &migration {
                // Committed for certain; at most its last words are missing.
                self.update(migration, migration.ended(MigrationState::Completed, None));
            }
            self.forget(vm);
        } else if before == VmState::Incoming && !self.was_committed(vm, migration.as_deref()) {
            if let Some(migration) = &migration {
                self.end(migration, MigrationState::Failed, &death.code, death.reason);
            }
            self.forget(vm);
        } else if before != VmState::Starting || vm.was_reset() {
            // Its process's memory is gone, whatever else it was.
            let state = if death.state == VmState::Stopped { death.state } else { VmState::Failed };
            let again = death.is_reset() && !vm.is_doomed();
            if !again {
                vm.set_state(state, Some(death.reason.clone()));
            }
            if let Some(migration) = migration {
                self.end_after_death(vm, &migration, death);
            }
            if again {
                self.end_arrivals(vm);
                return self.reboot(vm);
            }
        }
        // Else whoever is making it reports that and clears it away.
        self.end_arrivals(vm);
        vm.set_gone();
    }

    /// A guest that ran here had arrived, also when its process ended before both ends had said their last words.
    fn end_arrivals(&self, vm: &Vm) {
        for migration in self.migrations() {
            let arrived =
                migration.role() == RecordRole::Destination && migration.state() == MigrationState::Running;
            if arrived && migration.vm() == vm.id {
                self.update(&migration, migration.ended(MigrationState::Completed, None));
            }
        }
    }

    /// Whether the guest of an incoming VM may have run here. In doubt it may have.
    fn was_committed(&self, vm: &Vm, migration: Option<&Migration>) -> bool {
        let Some(migration) = migration else { return false };
        match read_epoch(&self.store.epoch_file(&migration.id.to_string())) {
            Ok(record) => matches!(record, Some((_, EpochState::Committed | EpochState::Unknown))),
            Err(e) => {
                tracing::error!(vm = vm.id, migration = %migration.id, "the epoch record can't be read: {e}");
                true
            }
        }
    }

    fn end_after_death(self: &Arc<Self>, vm: &Arc<Vm>, migration: &Arc<Migration>, death: Death) {
        // The last it did may not have got through to us: from pre-copy on it may have sent the commit.
        let perhaps_committed = matches!(
            migration.state(),
            MigrationState::Precopy
                | MigrationState::PrecopyPaused
                | MigrationState::PostcopySetup
                | MigrationState::StopAndCopy
                | MigrationState::Switchover
                | MigrationState::Indeterminate
        );
        let follow = migration.pages_follow();
        if death.is_reset() && migration.role() == RecordRole::Source && !follow {
            // It ran here until then, so it was not committed; and it will run here again.
            let message = "the guest reset itself; move it when it has booted again";
            self.end(migration, MigrationState::Failed, "guest_reset", message);
            let (daemon, migration) = (Arc::clone(self), Arc::clone(migration));
            tokio::spawn(async move { daemon.release_peer(&migration).await });
        } else if migration.role() == RecordRole::Source && (perhaps_committed || follow) {
            if follow {
                self.note_lost_source(migration, &death.reason);
            }
            self.resolve(vm, migration);
        } else if follow {
            let message = format!(
                "{}, before all of the guest's memory had come from {}: no whole copy of it is left",
                death.reason, migration.peer
            );
            self.end(migration, MigrationState::Failed, "guest_lost", message);
        } else {
            let message = format!("{}; the guest was in that process", death.reason);
            self.end(migration, MigrationState::Failed, &death.code, message);
        }
    }
}

/// Whether a source that has given up could not tell the destination.
fn lost_sight(record: &migrated_api::MigrationRecord) -> bool {
    use FailureCode as C;
    record.error.as_ref().is_some_and(|error| {
        let codes = [C::LinkLost, C::PeerDead, C::PeerUnreachable];
        codes.iter().any(|code| code.as_str() == error.code)
            || error.phase == Some(MigrationState::PrecopyPaused)
    })
}
