use std::sync::Arc;
use std::time::Duration;

use migrated_control::{
    ConsoleChunk, ControlError, ErrorKind, ExitReport, OtherAddress, Request, Resolution, Response,
    VmService, VmState,
};
use migrated_engine::{MigrationState, RecordError};
use migrated_guest::GuestError;
use migrated_vmm::{BalloonError, InputRefused, PowerButtonError, Vm};
use migrated_wire::{CommitOutcome, MigrationId};

use super::migration::{Active, resolution};
use super::process::Process;
use super::{describe, errors, outgoing, sample, status};

/// Answers the daemon.
pub struct Service {
    process: Arc<Process>,
}

impl Service {
    pub const fn new(process: Arc<Process>) -> Self {
        Self { process }
    }

    fn vm(&self) -> Result<Vm, ControlError> {
        self.process.vm().ok_or_else(|| errors::conflict("vm_starting", "the VM is still being made"))
    }
}

impl VmService for Service {
    fn handle(&self, request: Request) -> Result<Response, ControlError> {
        let process = &self.process;
        match request {
            Request::AwaitReady => process.await_ready(),
            Request::Status => Ok(Response::Status(Box::new(status::status(process)))),
            Request::Describe => {
                Ok(Response::Description(Box::new(describe::describe(process, &self.vm()?))))
            }
            Request::SampleDirty { sample_ms } => {
                Ok(Response::Sample(Box::new(sample::sample(process, &self.vm()?, sample_ms)?)))
            }
            Request::Pause => self.switch(Vm::pause),
            Request::Resume => self.switch(Vm::resume),
            Request::PressPowerButton => self.press_power_button(),
            Request::SetBalloon { bytes } => self.set_balloon(bytes),
            Request::Shutdown => {
                process.end(ExitReport {
                    state: VmState::Stopped,
                    code: "deleted".into(),
                    message: "the VM was deleted".into(),
                    record: None,
                });
                Ok(Response::Done)
            }
            Request::ConsoleRead { from, max, wait_ms } => {
                let vm = self.vm()?;
                if wait_ms > 0 {
                    vm.console().wait_past(from, Duration::from_millis(wait_ms.into()));
                }
                let (from, bytes) = vm.console().read_from(from, ConsoleChunk::MAX.min(max as usize));
                Ok(Response::Console(ConsoleChunk { from, bytes }))
            }
            Request::ConsoleInput { bytes } => {
                self.vm()?.write_input(&bytes).map_err(|refused| {
                    let code = match refused {
                        InputRefused::Full => "console_input_full",
                        InputRefused::Leaving => "guest_moving",
                    };
                    errors::conflict(code, format!("{refused}; none of the input was taken, send it again"))
                })?;
                Ok(Response::Done)
            }
            Request::Migrate(plan) => {
                outgoing::start(process, &self.vm()?, *plan)?;
                Ok(Response::Done)
            }
            Request::CancelMigration { migration } => self.cancel(migration),
            Request::RecoverMigration { migration, via } => self.recover(migration, via),
            Request::MigrationRecord { migration } => {
                self.with_migration(migration, |active| Ok(Response::Record(Box::new(active.record()))))
            }
            Request::Resolve { migration, epoch } => self.resolve(migration, epoch),
            Request::ResolutionKnown { migration, answer, .. } => self.with_migration(migration, |active| {
                match answer {
                    Resolution::Committed | Resolution::Incomplete => {
                        active.learn(Some(CommitOutcome::Committed));
                    }
                    Resolution::Complete { pages } => active.learn(Some(CommitOutcome::Complete { pages })),
                    Resolution::NeverRan => active.learn(Some(CommitOutcome::NeverRan)),
                    Resolution::Lost => self.lost(active),
                    Resolution::Unknown => active.learn(None),
                }
                Ok(Response::Done)
            }),
        }
    }
}

impl Service {
    fn switch(&self, to: impl FnOnce(&Vm) -> Result<(), GuestError>) -> Result<Response, ControlError> {
        let vm = self.vm()?;
        to(&vm).map_err(|error| {
            let kind = match error {
                GuestError::Gone(_) => ErrorKind::Conflict,
                _ => ErrorKind::Internal,
            };
            ControlError::new(kind, "guest_not_switched", error.to_string())
        })?;
        self.process.announce();
        Ok(Response::Done)
    }

    fn press_power_button(&self) -> Result<Response, ControlError> {
        let pressed = self.vm()?.press_power_button();
        pressed.map(|()| Response::Done).map_err(|error| {
            let code = match error {
                PowerButtonError::NotRunning => "guest_not_running",
                PowerButtonError::Ignored => "power_button_ignored",
            };
            errors::conflict(code, error.to_string())
        })
    }

    fn set_balloon(&self, bytes: u64) -> Result<Response, ControlError> {
        let set = self.vm()?.set_balloon(bytes);
        set.map(|()| Response::Done).map_err(|error| {
            let (kind, code) = match error {
                BalloonError::None => (ErrorKind::Conflict, "guest_without_balloon"),
                BalloonError::TooLarge { .. } => (ErrorKind::InvalidInput, "balloon_too_large"),
                BalloonError::NotRunning => (ErrorKind::Conflict, "guest_not_running"),
                BalloonError::NoDriver => (ErrorKind::Conflict, "balloon_without_driver"),
            };
            ControlError::new(kind, code, error.to_string())
        })
    }

    fn with_migration<T>(
        &self,
        id: MigrationId,
        f: impl FnOnce(&Active) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        match &*self.process.migration.lock() {
            Some(active) if active.id() == id => f(active),
            _ => Err(errors::conflict("migration_not_found", format!("this VM has no migration {id}"))),
        }
    }

    fn cancel(&self, migration: MigrationId) -> Result<Response, ControlError> {
        self.with_migration(migration, |active| {
            if active.cancel() {
                return Ok(Response::Done);
            }
            let message =
                "the commit was sent or the migration has ended: only the destination may run the guest";
            Err(errors::conflict("not_cancellable", message))
        })
    }

    /// Not under the lock: the session may take a moment to answer.
    fn resolve(&self, migration: MigrationId, epoch: u64) -> Result<Response, ControlError> {
        let remote = self.with_migration(migration, |active| Ok(active.destination_remote()))?;
        let Some(remote) = remote else {
            return Err(errors::conflict("not_destination", "this VM was the migration's source"));
        };
        Ok(Response::Resolution(resolution(&remote, epoch)))
    }

    fn recover(&self, migration: MigrationId, via: Option<OtherAddress>) -> Result<Response, ControlError> {
        let (code, message) = match self.with_migration(migration, |active| Ok(active.recover(via)))? {
            Some(true) => return Ok(Response::Done),
            Some(false) => ("migration_not_recoverable", "no link is missing that pages need"),
            None => ("not_source", "the source comes back to this host; recover the migration there"),
        };
        Err(errors::conflict(code, message))
    }

    /// The guest ran at the destination and can't go on there: what is left here is of an earlier moment, which
    /// must not come back, so nothing is kept waiting for it.
    fn lost(&self, active: &Active) {
        let mut record = active.record();
        if record.state.is_some_and(|state| state.is_final() || state == MigrationState::Settling) {
            return;
        }
        let message = format!(
            "the guest ran at {} and its VM process there ended before all of its memory had come: it is lost",
            record.peer
        );
        let phase = record.state.replace(MigrationState::Failed);
        let code = "guest_lost".to_owned();
        record.error =
            Some(RecordError { code: code.clone(), message: message.clone(), phase, details: None });
        self.process.end(ExitReport {
            state: VmState::Failed,
            code,
            message,
            record: Some(Box::new(record)),
        });
    }
}
