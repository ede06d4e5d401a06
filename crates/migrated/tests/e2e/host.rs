use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use migrated_api::{MigrationList, MigrationRecord, Vm, VmList};
use migrated_testkit::wait_until;
use serde_json::Value;

use crate::client::Api;
use crate::netns::Netns;

pub const MIGRATED: &str = env!("CARGO_BIN_EXE_migrated");
/// Longer than anything takes that must happen.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A host: a namespace with a daemon in it.
pub struct Host {
    pub name: &'static str,
    pub netns: Netns,
    pub api: Api,
    pub url: String,
    dir: PathBuf,
    daemon: Option<Child>,
}

impl Host {
    /// Starts a daemon with the configuration that lies in `dir`.
    pub fn new(name: &'static str, netns: Netns, dir: PathBuf, listen: SocketAddr) -> Self {
        let api = Api::at(&dir.join("api.sock"));
        let mut host = Self { name, netns, api, url: format!("http://{listen}"), dir, daemon: None };
        host.start_daemon();
        host
    }

    pub fn start_daemon(&mut self) {
        self.start(self.netns.command(MIGRATED));
    }

    /// Starts a daemon that has no device and no capability for taking other's page faults.
    pub fn start_daemon_without_userfaultfd(&mut self) {
        let deny = "mount --bind /dev/null /dev/userfaultfd && \
                    exec setpriv --bounding-set=-sys_ptrace --inh-caps=-sys_ptrace -- \"$@\"";
        // `ip netns exec` gives what it runs a mount namespace of its own.
        let mut command = self.netns.command("sh");
        command.args(["-c", deny, "sh", MIGRATED]);
        self.start(command);
    }

    fn start(&mut self, mut command: Command) {
        let log = std::fs::File::options().append(true).create(true).open(self.log()).unwrap();
        command.arg("serve").arg("--config").arg(self.dir.join("host.toml"));
        self.daemon = Some(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
        wait_until("the daemon answers", PATIENCE, || {
            self.api.call(hyper::Method::GET, "/readyz", Vec::new()).is_ok_and(|answer| answer.status == 200)
        });
    }

    /// Kills the daemon as a power cut would.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub fn vms(&self) -> Vec<Vm> {
        self.api.get("/v1/vms").ok::<VmList>().vms
    }

    /// A VM, if this host has it.
    pub fn find(&self, vm: &str) -> Option<Vm> {
        let answer = self.api.get(&format!("/v1/vms/{vm}"));
        (answer.status != 404).then(|| answer.ok())
    }

    #[track_caller]
    pub fn vm(&self, vm: &str) -> Vm {
        self.find(vm).unwrap_or_else(|| panic!("{vm} is not on {}", self.name))
    }

    pub fn migration(&self, id: &str) -> MigrationRecord {
        self.api.get(&format!("/v1/migrations/{id}")).ok()
    }

    pub fn migrations(&self) -> Vec<MigrationRecord> {
        self.api.get("/v1/migrations").ok::<MigrationList>().migrations
    }

    /// Begins a migration.
    #[track_caller]
    pub fn migrate(&self, vm: &str, request: &Value) -> MigrationRecord {
        self.api.post(&format!("/v1/vms/{vm}/migrations"), request).ok()
    }

    /// Waits for a migration's end.
    #[track_caller]
    pub fn await_end(&self, id: &str) -> MigrationRecord {
        let mut record = self.migration(id);
        wait_until("the migration ends", PATIENCE, || {
            record = self.migration(id);
            record.state.is_some_and(|state| state.is_final())
        });
        record
    }

    /// Runs the command line against this host.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The command line against this host.
    pub fn command(&self, args: &[&str]) -> Command {
        let socket = self.dir.join("api.sock");
        let mut command = Command::new(MIGRATED);
        command.arg(format!("--host=unix:{}", socket.display())).args(args);
        command
    }

    /// Runs a command that must work, and gives what it prints.
    #[track_caller]
    pub fn cli(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Runs a command that must be refused, and gives the problem's code and text.
    #[track_caller]
    pub fn cli_refused(&self, args: &[&str]) -> (String, String) {
        let output = self.run(&[args, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        let part = |name: &str| error["error"][name].as_str().unwrap().to_owned();
        (part("code"), part("detail"))
    }

    /// Processes of guests on this host, listed or not.
    pub fn vm_processes(&self) -> Vec<u32> {
        let daemon = self.daemon.as_ref().map(Child::id);
        self.netns.pids().into_iter().filter(|pid| Some(*pid) != daemon && is_vm_process(*pid)).collect()
    }

    /// Number of VM directories.
    pub fn vm_dirs(&self) -> usize {
        std::fs::read_dir(self.state_dir().join("vms")).unwrap().count()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            self.kill_daemon();
        }
        if std::thread::panicking() {
            show_tail(self.name, &self.log());
        }
    }
}

fn is_vm_process(pid: u32) -> bool {
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    cmdline.split(|byte| *byte == 0).any(|word| word == b"vm-process")
}

/// What a daemon said before a test failed.
fn show_tail(name: &str, log: &Path) {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    eprintln!("--- log of {name}, its last lines\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
}
