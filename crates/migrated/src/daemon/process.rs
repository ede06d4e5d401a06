//! VM processes as the system sees them: starting one, recognising it later, learning how it ended.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use migrated_control::{VmDir, bind_control};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

/// The program that becomes a VM process: `PROGRAM ARGS… --dir DIR`, with its control socket as standard input.
#[derive(Clone, Debug)]
pub struct VmCommand {
    /// The executable.
    pub program: PathBuf,
    /// What comes before `--dir`.
    pub args: Vec<OsString>,
}

impl VmCommand {
    /// This executable's own hidden subcommand.
    pub fn this_program() -> io::Result<Self> {
        Ok(Self { program: std::env::current_exe()?, args: vec!["vm-process".into()] })
    }

    /// Starts a VM process on `dir`. It is in the daemon's session until it calls `setsid` itself.
    pub fn spawn(&self, dir: &VmDir) -> io::Result<Child> {
        let listener = bind_control(&dir.control_socket())?;
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.log())?;
        Command::new(&self.program)
            .args(&self.args)
            .arg("--dir")
            .arg(dir.path())
            .current_dir("/")
            .stdin(Stdio::from(listener))
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
    }
}

/// Names one process for good: numbers are used again, but not with the same start time in the same boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The system's number.
    pub pid: u32,
    /// When it started, in clock ticks since the boot (`/proc/PID/stat`, field 22).
    pub start_time: u64,
    /// Which boot.
    pub boot_id: String,
}

impl ProcessId {
    /// The process that has that number now, unless it is dead.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, also parentheses.
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
        let state = fields.next()?;
        let start_time = fields.nth(18)?.parse().ok()?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        (!matches!(state, "Z" | "X")).then_some(Self { pid, start_time, boot_id })
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Kills it, if it still runs.
    pub fn kill(&self) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let Some(Ok(process)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { return };
        // The descriptor is of one process for good, so that the number can't become another's in between.
        if self.is_alive() {
            // It may have ended just now.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}

/// Waits for a VM process's end.
#[derive(Debug)]
pub enum Exit {
    /// This daemon started it.
    Child(Child),
    /// A daemon before this one did, so the system tells us nothing: we look.
    Adopted(ProcessId),
}

impl Exit {
    /// How long an adopted process's end may go unnoticed.
    const LOOK: Duration = Duration::from_millis(100);

    /// Waits, and says how it ended, if that can be known. Can be dropped and called again.
    pub async fn wait(&mut self) -> String {
        match self {
            Self::Child(child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(e) => format!("its end could not be waited for: {e}"),
            },
            Self::Adopted(process) => {
                while process.is_alive() {
                    tokio::time::sleep(Self::LOOK).await;
                }
                "how is not known, because another daemon had started it".into()
            }
        }
    }
}
