use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use migrated_engine::MigrationRecord;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::{VmStart, VmState};

/// Replaces a file's contents at once: whoever reads it sees the old or the new, also after a crash of
/// whoever wrote it. Nothing is synced: what these files tell of ends with a crash of the host, and a sync
/// costs several milliseconds while a guest waits to move. (What must outlive the host's crash is in
/// [`EpochRecord`](crate::EpochRecord).) Only the owner can read it, for it may hold secrets.
///
/// # Errors
/// The system's; the old contents are then still there.
pub fn write_atomic(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(contents)?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // Best effort: the next attempt truncates it anyway.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Why a file of a VM's directory can't be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Its contents are not what this version writes.
    #[error("{path} does not parse: {source}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
}

/// Why a VM process ended, left in its directory for a daemon that may not be there at the time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExitReport {
    /// What the VM ended as: `stopped`, `crashed`, `migrated_away` or `failed`.
    pub state: VmState,
    /// Stable and machine-readable, e.g. `kernel_not_elf`, `shutdown`, or [`ExitReport::RESET`].
    pub code: String,
    /// For people.
    pub message: String,
    /// The last migration's record: nobody may have been there to hear its end.
    #[serde(default)]
    pub record: Option<Box<MigrationRecord>>,
}

impl ExitReport {
    /// The guest reset itself: whoever finds this boots it anew.
    pub const RESET: &str = "reset";
}

/// The directory that a daemon and a VM process share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmDir(PathBuf);

impl VmDir {
    /// The directory at `path`, whether or not it exists yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The listening socket that the daemon made; the VM process has it as its standard input.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// The socket on which host programs reach the agent in the guest.
    #[must_use]
    pub fn agent_socket(&self) -> PathBuf {
        self.0.join("agent.sock")
    }

    /// The console's ring, see [`ConsoleFile`](crate::ConsoleFile).
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.0.join("console.ring")
    }

    /// What the VM process logs: its standard output and error.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.0.join("vm.log")
    }

    /// Which process it is, for the daemon's own use.
    #[must_use]
    pub fn pid(&self) -> PathBuf {
        self.0.join("pid")
    }

    /// The VM's specification, as the API shows it.
    #[must_use]
    pub fn spec(&self) -> PathBuf {
        self.0.join("spec.json")
    }

    fn start(&self) -> PathBuf {
        self.0.join("start.json")
    }

    fn exit(&self) -> PathBuf {
        self.0.join("exit.json")
    }

    /// Says how the VM process is to begin.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn write_start(&self, start: &VmStart) -> Result<(), FileError> {
        write_json(&self.start(), start)
    }

    /// How the VM process is to begin.
    ///
    /// # Errors
    /// [`FileError`]; a VM process that can't read it must exit.
    pub fn read_start(&self) -> Result<VmStart, FileError> {
        read_json(&self.start())
    }

    /// Leaves word why the VM process ends.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn write_exit(&self, report: &ExitReport) -> Result<(), FileError> {
        write_json(&self.exit(), report)
    }

    /// Forgets why an earlier VM process ended, because another begins.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn clear_exit(&self) -> Result<(), FileError> {
        match fs::remove_file(self.exit()) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(FileError::Io { path: self.exit(), source })
            }
            _ => Ok(()),
        }
    }

    /// Why the VM process ended, if it left word.
    #[must_use]
    pub fn read_exit(&self) -> Option<ExitReport> {
        read_json(&self.exit()).ok()
    }
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let json = serde_json::to_vec_pretty(value)
        .map_err(|source| FileError::Malformed { path: path.to_owned(), source })?;
    write_atomic(path, &json).map_err(|source| FileError::Io { path: path.to_owned(), source })
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let bytes = fs::read(path).map_err(|source| FileError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| FileError::Malformed { path: path.to_owned(), source })
}
