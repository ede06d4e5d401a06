//! What became of a commit whose acknowledgement was lost.
//!
//! Between the commit and its ack the source does not know which host may run the guest. It stays
//! paused and its daemon asks the destination's, for as long as it takes: guessing would run two
//! copies, or none. The destination answers from the VM process that knows, or, when that is gone,
//! from the epoch that it recorded before its first instruction.

use std::sync::Arc;
use std::time::Duration;

use migrated_api::{MigrationRecord, MigrationState, Mode, ResolveAnswer, ResolveRequest};
use migrated_control::{ClientError, EpochState, Request, Resolution, Response, VmState, read_epoch};

use super::migration::Migration;
use super::vm::Vm;
use super::{Daemon, DaemonError};

/// Between the first two questions; then twice as long each time, up to [`LONGEST`].
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(10);

impl Daemon {
    /// Asks the destination what became of a VM's commit, until it answers, and tells the VM process,
    /// or settles it here when that has died.
    pub(super) fn resolve(self: &Arc<Self>, vm: &Arc<Vm>, migration: &Arc<Migration>) {
        if !migration.begin_resolving() {
            return;
        }
        let (daemon, vm, migration) = (Arc::clone(self), Arc::clone(vm), Arc::clone(migration));
        tokio::spawn(async move {
            let mut pause = SHORTEST;
            while !migration.state().is_final() {
                match daemon.try_resolve(&vm, &migration).await {
                    Ok(()) => break,
                    Err(reason) => {
                        tracing::warn!(vm = vm.id, migration = %migration.id, reason, "a commit is unresolved");
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST);
            }
            migration.end_resolving();
        });
    }

    async fn try_resolve(&self, vm: &Vm, migration: &Migration) -> Result<(), String> {
        let peer = self.peer(&migration.peer).map_err(|e| e.to_string())?;
        let path = format!("/v1/incoming/{}/resolve", migration.id);
        let request = ResolveRequest { epoch: migration.epoch };
        let ResolveAnswer { answer } =
            peer.post(&path, &request, PATIENCE).await.map_err(|e| e.to_string())?;
        if answer == Resolution::Unknown {
            return Err(format!(
                "{} knows nothing of the migration; the guest stays paused here. If its state directory is lost \
                 for good and no copy of the guest runs there, delete the VM or restart it by hand",
                migration.peer
            ));
        }
        if vm.is_gone() {
            self.settle_dead(vm, migration, answer);
            return Ok(());
        }
        let client = vm.client().map_err(|e| e.to_string())?;
        let known = Request::ResolutionKnown { migration: migration.id, epoch: migration.epoch, answer };
        client.perform(known).await.map_err(|e| e.to_string())
    }

    /// The source's VM process died when the commit may have been under way, and now its fate is known.
    fn settle_dead(&self, vm: &Vm, migration: &Migration, answer: Resolution) {
        let peer = &migration.peer;
        let (code, what) = match answer {
            Resolution::Committed | Resolution::Complete { .. } => {
                self.update(migration, migration.ended(MigrationState::Completed, None));
                vm.set_state(VmState::MigratedAway, None);
                return self.forget(vm);
            }
            Resolution::Incomplete => (
                "vm_process_died",
                format!(
                    "the guest runs at {peer} without the pages that only this process had: a vCPU that touches \
                     one stands still, and nothing can bring the page; make the guest anew"
                ),
            ),
            Resolution::Lost => (
                "guest_lost",
                format!(
                    "the guest ran at {peer} and ended there before all of its memory had come: it is lost"
                ),
            ),
            Resolution::NeverRan | Resolution::Unknown => {
                ("vm_process_died", "the guest never ran at the destination: it is lost".to_owned())
            }
        };
        let (_, reason) = vm.state();
        let message = format!("{}; {what}", reason.as_deref().unwrap_or("the VM process died"));
        self.end(migration, MigrationState::Failed, code, message);
    }

    /// Asked by a source: what became of its commit of `epoch`?
    pub async fn answer_resolve(&self, id: &str, epoch: u64) -> Result<Resolution, DaemonError> {
        let Ok(migration) = self.incoming(id) else { return Ok(Resolution::Unknown) };
        let unresolved = |reason: String| DaemonError::Unresolved { id: id.to_owned(), reason };
        let vm = self.vms.lock().get(&migration.vm()).cloned();
        if let Some(vm) = vm.filter(|vm| !vm.is_gone()) {
            let client = vm.client().map_err(|e| unresolved(e.to_string()))?;
            match client.request(Request::Resolve { migration: migration.id, epoch }).await {
                Ok(Response::Resolution(answer)) => return Ok(answer),
                // It is in a migration since: then this one is on record.
                Err(ClientError::Refused(refusal)) if refusal.code == "migration_not_found" => {}
                Ok(_) => return Err(unresolved("the VM process gave another answer".into())),
                Err(e) => return Err(unresolved(e.to_string())),
            }
        }
        // No process, or one that has moved on: it never will run the guest on this commit, so only the record counts.
        let recorded = read_epoch(&self.store.epoch_file(id));
        match recorded.map_err(|e| unresolved(format!("its epoch record can't be read: {e}")))? {
            Some((recorded, _)) if recorded != epoch => {
                Err(unresolved(format!("epoch {recorded} is recorded, not {epoch}")))
            }
            Some((_, EpochState::Committed)) => Ok(came_of(&migration.record())),
            Some((_, EpochState::Armed | EpochState::NeverRan)) => Ok(Resolution::NeverRan),
            Some((_, EpochState::Unknown)) => Err(unresolved(
                "this host has booted anew since the migration was prepared, and a commit may have been lost with it: \
                 if the guest was never seen here, delete the VM at the source or restart it there by hand"
                    .into(),
            )),
            None => Ok(Resolution::NeverRan),
        }
    }
}

/// What came of a guest that was committed here and whose VM process is gone, or has another migration.
fn came_of(record: &MigrationRecord) -> Resolution {
    let arrived = matches!(record.state, Some(MigrationState::Running | MigrationState::Completed));
    match &record.postcopy {
        Some(followed) if followed.last_page_ms.is_some() => {
            Resolution::Complete { pages: followed.missing_pages }
        }
        _ if arrived || record.mode == Mode::Precopy => Resolution::Committed,
        _ => Resolution::Lost,
    }
}

#[cfg(test)]
mod tests {
    use migrated_api::Postcopy;

    use super::*;

    #[test]
    fn only_a_guest_that_lacked_pages_is_lost_with_its_process() {
        let record = |mode, state, postcopy| MigrationRecord {
            mode,
            state: Some(state),
            postcopy,
            ..MigrationRecord::default()
        };
        let followed =
            |last_page_ms| Some(Postcopy { missing_pages: 9, last_page_ms, ..Postcopy::default() });
        let failed = MigrationState::Failed;
        for (mode, state, postcopy, expected) in [
            (Mode::Precopy, failed, None, Resolution::Committed),
            (Mode::Postcopy, failed, followed(None), Resolution::Lost),
            (Mode::Hybrid, failed, None, Resolution::Lost),
            (Mode::Hybrid, MigrationState::Completed, None, Resolution::Committed),
            (Mode::Hybrid, failed, followed(Some(1.0)), Resolution::Complete { pages: 9 }),
            (
                Mode::Postcopy,
                MigrationState::Completed,
                followed(Some(1.0)),
                Resolution::Complete { pages: 9 },
            ),
        ] {
            assert_eq!(came_of(&record(mode, state, postcopy)), expected, "{mode:?} {state}");
        }
    }
}
