//! What is different while pages follow a guest: it runs at the destination and belongs to its owner there, and the
//! source holds a copy that never runs again and without which the guest is lost.

use migrated_api::{MigrationState, Mode, Reason, RecordError, RecordRole, StartMigration, Verify};
use migrated_control::{OtherAddress, Request};

use super::migration::Migration;
use super::vm::Vm;
use super::{Daemon, DaemonError};

/// Whether the guest runs at the destination and pages are missing there.
pub const fn pages_follow(state: MigrationState) -> bool {
    use MigrationState as S;
    matches!(state, S::PostcopyActive | S::PostcopyPaused | S::Recovering)
}

impl Migration {
    /// Whether the guest runs at the destination and pages are missing there.
    pub(super) fn pages_follow(&self) -> bool {
        pages_follow(self.state())
    }

    /// Whether pages were, or are, to follow the guest: the source counts them from before its commit on.
    pub(super) fn switched(&self) -> bool {
        self.record().postcopy.is_some()
    }

    /// Whether the destination needs, or may need, what only the source has.
    fn is_source_needed(&self) -> bool {
        self.role() == RecordRole::Source
            && (self.pages_follow() || self.state() == MigrationState::Indeterminate && self.switched())
    }
}

impl Daemon {
    /// Whether a migration may let the guest run before its pages are there, if the destination can.
    pub fn may_use_postcopy(&self, request: &StartMigration) -> bool {
        let defaults = &self.config.migration.defaults;
        match request.mode {
            Mode::Precopy => false,
            Mode::Postcopy | Mode::Hybrid => true,
            Mode::Auto => {
                request.allow_postcopy.unwrap_or(defaults.allow_postcopy)
                    && request.verify.unwrap_or(defaults.verify) != Verify::Before
            }
        }
    }

    /// Refuses to pause, resume or delete a VM in a migration; not one that has come and whose pages follow it.
    pub(super) fn refuse_if_migrating(&self, vm: &Vm) -> Result<(), DaemonError> {
        match self.migration_of(vm) {
            Some(migration) if migration.is_source_needed() && !vm.is_gone() => {
                Err(DaemonError::RunsElsewhere {
                    vm: vm.spec.name.clone(),
                    peer: migration.peer.clone(),
                    migration: migration.id.to_string(),
                    pid: vm.pid().unwrap_or_default(),
                })
            }
            Some(migration) if migration.pages_follow() && migration.role() == RecordRole::Destination => {
                Ok(())
            }
            _ => vm.refuse_if_migrating(),
        }
    }

    /// What the owner of a VM should know of pages that follow it.
    pub(super) fn following_note(&self, vm: &Vm) -> Option<String> {
        let migration = self.migration_of(vm).filter(|migration| migration.pages_follow())?;
        let record = migration.record();
        match record.role {
            RecordRole::Source => Some(format!(
                "the guest runs at {}; this copy never runs again and is kept for the pages that are missing there",
                migration.peer
            )),
            RecordRole::Destination => record.error.map(|error| error.message),
        }
    }

    /// Tries at once to reach the destination over a link that was lost, `via` another address first if given.
    pub async fn recover(&self, migration: &Migration, via: Option<&str>) -> Result<(), DaemonError> {
        let via = via.map(str::parse::<OtherAddress>).transpose().map_err(|detail| {
            DaemonError::Invalid(vec![Reason { code: "invalid_address".into(), detail }])
        })?;
        let (id, state) = (migration.id.to_string(), migration.state());
        let is_paused = matches!(state, MigrationState::PrecopyPaused | MigrationState::PostcopyPaused);
        if migration.role() != RecordRole::Source || !is_paused {
            return Err(DaemonError::NotRecoverable { id, state });
        }
        let Some(vm) = self.vms.lock().get(&migration.vm()).cloned() else {
            return Err(DaemonError::NotRecoverable { id, state });
        };
        let request = Request::RecoverMigration { migration: migration.id, via };
        vm.client()?.perform(request).await.map_err(|e| vm.failed(e))
    }

    /// The source's VM process is gone, and with it pages that the guest may need.
    pub(super) fn note_lost_source(&self, migration: &Migration, why: &str) {
        let mut record = migration.record();
        let phase = record.state.replace(MigrationState::PostcopyPaused);
        record.error = Some(RecordError {
            code: "vm_process_died".into(),
            message: format!(
                "{why}; that process had pages that the guest at {} may still lack: asking there",
                migration.peer
            ),
            phase,
            details: None,
        });
        self.update(migration, record);
    }

    pub(super) fn migration_of(&self, vm: &Vm) -> Option<std::sync::Arc<Migration>> {
        self.migration(&vm.migration()?).ok()
    }
}
