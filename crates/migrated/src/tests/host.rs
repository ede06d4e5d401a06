//! One host for a test: a daemon on a runtime of its own, so that it can be ended without its VMs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use migrated_api::{MigrationRecord, MigrationState, Problem, Vm, VmState};
use migrated_cpuid::HostCpu;
use migrated_testkit::wait_until;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::{cpus, fake_vm};
use crate::client::{ApiClient, ApiClientError};
use crate::config::HostConfig;
use crate::daemon::{Daemon, DaemonError, Ground, HostNetwork, KvmFacts, VmCommand};
use crate::http;

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Host {
    runtime: Option<Runtime>,
    caller: Runtime,
    pub daemon: Option<Arc<Daemon>>,
    pub config: HostConfig,
    pub client: ApiClient,
    /// URL of its TCP API, when it has one.
    pub url: Option<String>,
    kvm: fn() -> Result<KvmFacts, DaemonError>,
    root: TempDir,
}

pub fn four_vcpus() -> Result<KvmFacts, DaemonError> {
    Ok(KvmFacts { max_vcpus: 4 })
}

/// One that has what fake guests need.
pub fn fitting_cpu(name: &str) -> Result<HostCpu, DaemonError> {
    let mut host = cpus::host("intel-skylake");
    host.identity.name = name.into();
    Ok(host)
}

impl Host {
    /// A host whose guests may travel in the clear.
    pub fn new(name: &str) -> Self {
        Self::with(name, four_vcpus, |_| ())
    }

    /// A host with that KVM and with its configuration changed; the path is a directory for its files.
    pub fn with(
        name: &str,
        kvm: fn() -> Result<KvmFacts, DaemonError>,
        change: impl FnOnce(&mut HostConfig),
    ) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut config =
            HostConfig { name: name.into(), state_dir: root.path().join("state"), ..Default::default() };
        config.api.socket = root.path().join("api.sock");
        config.migration.allow_plain_tcp = true;
        change(&mut config);
        let client = ApiClient::unix(&config.api.socket);
        let caller = Builder::new_current_thread().enable_all().build().unwrap();
        let mut host = Self { runtime: None, caller, daemon: None, config, client, url: None, kvm, root };
        host.start();
        host
    }

    pub fn start(&mut self) {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let ground = Ground {
            vm_command: VmCommand {
                program: std::env::current_exe().unwrap(),
                args: fake_vm::ARGS.map(Into::into).to_vec(),
            },
            kvm: self.kvm,
            cpu: fitting_cpu,
            network: self.network(),
        };
        let (daemon, url) = runtime.block_on(async {
            let listeners = http::bind(&self.config).await.unwrap();
            let scheme = if self.config.api.tls.is_some() { "https" } else { "http" };
            let url = listeners.tcp_addr().map(|address| format!("{scheme}://{address}"));
            let daemon = Daemon::start(self.config.clone(), ground).await.unwrap();
            tokio::spawn(listeners.serve(Arc::clone(&daemon)));
            (daemon, url)
        });
        (self.runtime, self.daemon, self.url) = (Some(runtime), Some(daemon), url);
    }

    /// A network of its own, in which the daemon may do anything: what is there are directories.
    fn network(&self) -> HostNetwork {
        let dir = self.root.path();
        std::fs::create_dir_all(dir.join("net")).unwrap();
        std::fs::write(dir.join("tun"), "").unwrap();
        HostNetwork { interfaces: dir.join("net"), tun: dir.join("tun"), is_permitted: || true }
    }

    /// Makes a bridge.
    pub fn add_bridge(&self, name: &str) {
        std::fs::create_dir_all(self.root.path().join("net").join(name).join("bridge")).unwrap();
    }

    /// Makes an interface that is no bridge.
    pub fn add_interface(&self, name: &str) {
        std::fs::create_dir_all(self.root.path().join("net").join(name)).unwrap();
    }

    /// Takes an interface away.
    pub fn remove_interface(&self, name: &str) {
        std::fs::remove_dir_all(self.root.path().join("net").join(name)).unwrap();
    }

    /// Ends the daemon in the middle of whatever it does; its VM processes live on.
    pub fn stop(&mut self) {
        self.daemon = None;
        self.runtime.take().unwrap().shutdown_timeout(PATIENCE);
    }

    pub fn call<T>(&self, call: impl Future<Output = T>) -> T {
        self.caller.block_on(call)
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiClientError> {
        self.call(self.client.get(path))
    }

    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiClientError> {
        self.call(self.client.post(path, body, PATIENCE))
    }

    pub fn create(&self, name: &str, words: &str) -> Result<Vm, ApiClientError> {
        self.post("/v1/vms", &spec(name, words))
    }

    pub fn vm(&self, key: &str) -> Result<Vm, ApiClientError> {
        self.get(&format!("/v1/vms/{key}"))
    }

    pub fn migrate(&self, vm: &str, to: &Self) -> MigrationRecord {
        let to = format!("unix:{}", to.config.api.socket.display());
        self.post(&format!("/v1/vms/{vm}/migrations"), &json!({ "to": to })).unwrap()
    }

    pub fn record(&self, id: &str) -> MigrationRecord {
        self.get(&format!("/v1/migrations/{id}")).unwrap()
    }

    /// Waits until the migration is in one of those states.
    pub fn wait(&self, id: &str, states: &[MigrationState]) -> MigrationRecord {
        let daemon = self.daemon.as_ref().unwrap();
        wait_until("the migration is known", PATIENCE, || daemon.migration(id).is_ok());
        let migration = daemon.migration(id).unwrap();
        let mut records = migration.watch();
        let wanted = |record: &MigrationRecord| record.state.is_some_and(|state| states.contains(&state));
        self.call(async {
            let waited = tokio::time::timeout(PATIENCE, records.wait_for(wanted)).await;
            waited.unwrap_or_else(|_| panic!("still {:?}", migration.record())).unwrap().clone()
        })
    }

    /// Waits until the VM's process is gone.
    pub fn wait_gone(&self, vm: &str) {
        let vm = self.daemon.as_ref().unwrap().vm(vm).unwrap();
        assert!(self.call(vm.wait_gone(PATIENCE)));
    }

    /// Waits until the VM is no more on this host.
    pub fn wait_until_forgotten(&self, id: &str) {
        let dir = self.config.state_dir.join("vms").join(id);
        wait_until("the VM's directory is gone", PATIENCE, || !dir.exists());
        wait_until(
            "the VM is forgotten",
            PATIENCE,
            || matches!(self.vm(id), Err(ApiClientError::Problem(p)) if p.code == "vm_not_found"),
        );
    }

    pub fn assert_state(&self, vm: &str, state: VmState) {
        assert_eq!(self.vm(vm).unwrap().state, state);
    }

    fn vm_pids(&self) -> Vec<i32> {
        let read_pid = |dir: PathBuf| {
            let file = std::fs::read(dir.join("pid")).ok()?;
            let process: Value = serde_json::from_slice(&file).ok()?;
            i32::try_from(process["pid"].as_i64()?).ok()
        };
        let dirs = std::fs::read_dir(self.root.path().join("state/vms")).unwrap();
        dirs.filter_map(|entry| read_pid(entry.unwrap().path())).collect()
    }

    pub fn kill_vm(&self, vm: &str) {
        kill(i32::try_from(self.vm(vm).unwrap().pid.unwrap()).unwrap());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Only processes that this test's daemon started, by the numbers it kept of those that live.
        self.vm_pids().into_iter().for_each(kill);
        if self.runtime.is_some() {
            self.stop();
        }
    }
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

pub fn spec(name: &str, words: &str) -> Value {
    json!({
        "name": name,
        "memory_bytes": 64 << 20,
        "boot": { "kind": "workload", "cmdline": words },
    })
}

/// The problem that a call ended with.
pub fn problem<T: std::fmt::Debug>(result: Result<T, ApiClientError>) -> Problem {
    match result.unwrap_err() {
        ApiClientError::Problem(problem) => *problem,
        other => panic!("no problem document: {other}"),
    }
}
