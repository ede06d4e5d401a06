//! One of the demo's hosts: a daemon, as a child process.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use migrated_api::VmList;
use migrated_control::VmDir;
use rustix::process::{Pid, Signal, kill_process};

use super::say;
use crate::client::{ApiClient, ApiClientError};
use crate::daemon::ProcessId;

/// How long a daemon may take to serve.
const START: Duration = Duration::from_secs(20);
/// How long a daemon or a killed VM process may take to end.
const END: Duration = Duration::from_secs(10);
/// Time between two looks at what nobody announces.
pub const LOOK: Duration = Duration::from_millis(10);
/// Lines of a daemon's log that are shown when it does not start.
const LOG_LINES: usize = 5;
/// What a user may have set for the command line and a daemon would heed as well.
const OURS: [&str; 5] =
    ["MIGRATED_HOST", "MIGRATED_TOKEN_FILE", "MIGRATED_CA", "MIGRATED_CERT", "MIGRATED_KEY"];

/// A daemon and the guests that it has. They end with it.
#[derive(Debug)]
pub struct Host {
    /// Its name in the other's configuration.
    pub name: &'static str,
    /// Its API.
    pub api: ApiClient,
    daemon: Option<Child>,
    state: PathBuf,
    log: PathBuf,
}

impl Host {
    /// Where a host serves its API.
    pub fn socket(dir: &Path, name: &str) -> PathBuf {
        dir.join(format!("{name}.sock"))
    }

    /// Starts a daemon with this configuration; `command` says how a program is run on the host.
    pub fn start(
        name: &'static str,
        dir: &Path,
        config: &str,
        command: impl FnOnce(&Path) -> Command,
    ) -> Result<Self> {
        let file = dir.join(format!("{name}.toml"));
        fs::write(&file, config).with_context(|| format!("can't write {}", file.display()))?;
        let log = dir.join(format!("{name}.log"));
        let output = OpenOptions::new().create(true).append(true).mode(0o600).open(&log)?;
        let program = std::env::current_exe().context("can't find this program's file")?;
        let mut command = command(&program);
        OURS.iter().for_each(|variable| {
            command.env_remove(variable);
        });
        let daemon = command
            .args(["serve", "--config"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // An interrupt of the terminal is for the demo, which ends the daemon when its guest is gone.
            .process_group(0)
            .spawn()
            .with_context(|| format!("can't start {name}"))?;
        let api = ApiClient::unix(Self::socket(dir, name));
        Ok(Self { name, api, daemon: Some(daemon), state: dir.join(name), log })
    }

    /// Waits until the daemon serves.
    pub async fn await_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            match self.api.get::<VmList>("/v1/vms").await {
                Ok(_) => return Ok(()),
                Err(ApiClientError::Unreachable { .. }) if Instant::now() < deadline => {}
                Err(error) => bail!("{} does not serve: {error}{}", self.name, self.log()),
            }
            if let Some(ended) = self.daemon.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("{} did not start ({ended}){}", self.name, self.log());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The last of what the daemon said.
    fn log(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
        last.iter().map(|line| format!("\n  {line}")).collect()
    }

    /// Ends the daemon, and its guests, which would survive it. Says what did not go as it should.
    pub fn stop(&mut self) -> Vec<String> {
        let Some(mut daemon) = self.daemon.take() else { return Vec::new() };
        let mut problems = Vec::new();
        // It may have ended by itself.
        let _ = kill_process(Pid::from_child(&daemon), Signal::TERM);
        let ended = within(END, || daemon.try_wait().ok().flatten());
        match ended {
            Some(status) if status.success() => {}
            Some(status) => problems.push(format!("{} ended with {status}{}", self.name, self.log())),
            None => {
                problems.push(format!("{} did not end when told to: it was killed{}", self.name, self.log()));
                // A killed child can always be waited for.
                let _ = daemon.kill().and_then(|()| daemon.wait());
            }
        }
        problems.extend(self.vm_processes().iter().filter_map(kill));
        problems
    }

    /// The VM processes of this host that live.
    fn vm_processes(&self) -> Vec<ProcessId> {
        let Ok(entries) = fs::read_dir(self.state.join("vms")) else { return Vec::new() };
        let read = |dir: VmDir| serde_json::from_slice::<ProcessId>(&fs::read(dir.pid()).ok()?).ok();
        let processes = entries.filter_map(|entry| read(VmDir::new(entry.ok()?.path())));
        processes.filter(ProcessId::is_alive).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop().iter().for_each(|problem| say(problem));
    }
}

/// Kills a VM process. Says so when it survives.
fn kill(process: &ProcessId) -> Option<String> {
    process.kill();
    let gone = within(END, || (!process.is_alive()).then_some(()));
    gone.is_none().then(|| format!("VM process {} survives being killed", process.pid))
}

/// Looks until there is something, or `patience` is over.
fn within<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        let found = look();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        std::thread::sleep(LOOK);
    }
}
