use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use migrated_api::{MigrationRecord, Vm, VmList};
use serde_json::Value;

use super::{Api, ApiError, PATIENCE};

/// Time between two looks at what nobody announces.
const LOOK: Duration = Duration::from_millis(10);
/// Lines of a daemon's log that are shown when it does not start.
const LOG_LINES: usize = 8;

/// A host: a daemon in a network namespace. Dropped, the daemon is killed; its guests go with the namespace.
#[derive(Debug)]
pub struct Host {
    /// Its name in the other's configuration.
    pub name: &'static str,
    /// Its API.
    pub api: Api,
    daemon: Child,
    log: PathBuf,
}

impl Host {
    pub(super) fn socket(dir: &Path, name: &str) -> PathBuf {
        dir.join(format!("{name}.sock"))
    }

    /// Starts the daemon whose configuration lies in `dir`.
    pub(super) fn start(name: &'static str, dir: &Path, mut program: Command) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let output = fs::File::options().create(true).append(true).open(&log)?;
        let daemon = program
            .args(["serve", "--config"])
            .arg(dir.join(format!("{name}.toml")))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // What a user may have set for the command line is not meant for the daemon.
            .env_remove("MIGRATED_TOKEN_FILE")
            .env_remove("MIGRATED_HOST")
            .process_group(0)
            .spawn()
            .with_context(|| format!("can't start host {name}"))?;
        Ok(Self { name, api: Api::at(&Self::socket(dir, name))?, daemon, log })
    }

    pub(super) fn await_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.api.get::<VmList>("/v1/vms") {
                Ok(_) => return Ok(()),
                Err(ApiError::Unreachable { .. }) if Instant::now() < deadline => {}
                Err(error) => bail!("host {} does not serve: {error}{}", self.name, self.log()),
            }
            if let Some(ended) = self.daemon.try_wait()? {
                bail!("host {} did not start ({ended}){}", self.name, self.log());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The last of what the daemon said, for error messages.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
        last.iter().map(|line| format!("\n  {line}")).collect()
    }

    /// A VM, if this host has it.
    ///
    /// # Errors
    /// The daemon does not answer, or with another problem.
    pub fn find(&self, vm: &str) -> Result<Option<Vm>, ApiError> {
        match self.api.get(&format!("/v1/vms/{vm}")) {
            Ok(vm) => Ok(Some(vm)),
            Err(ApiError::Problem(problem)) if problem.status == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Begins a migration to the other host, with a request as of `StartMigration` without `to`.
    ///
    /// # Errors
    /// It is refused, or the daemon does not answer.
    pub fn migrate(&self, vm: &str, to: &Self, request: &Value) -> Result<MigrationRecord, ApiError> {
        let mut request = request.clone();
        request["to"] = to.name.into();
        self.api.post(&format!("/v1/vms/{vm}/migrations"), &request)
    }

    /// A migration's record.
    ///
    /// # Errors
    /// There is none, or the daemon does not answer.
    pub fn migration(&self, id: &str) -> Result<MigrationRecord, ApiError> {
        self.api.get(&format!("/v1/migrations/{id}"))
    }

    /// Waits until a migration has ended here.
    ///
    /// # Errors
    /// It has not when `patience` is over, or the daemon does not answer.
    pub fn await_end(&self, id: &str, patience: Duration) -> Result<MigrationRecord> {
        let deadline = Instant::now() + patience;
        loop {
            let record = self.migration(id)?;
            if record.state.is_some_and(|state| state.is_final()) {
                return Ok(record);
            }
            if Instant::now() > deadline {
                let state = record.state.map_or("negotiating", |state| state.name());
                bail!("migration {id} is still {state} at host {} after {patience:?}", self.name);
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A killed child can always be waited for; one that has ended by itself can't be killed.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
