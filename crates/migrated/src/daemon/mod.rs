//! The daemon of a host: which VMs and migrations there are, and everything that is done with them.
//!
//! A guest lives in its VM process; the daemon only knows of it. So what is here can be rebuilt at
//! any time from the state directory and from what the VM processes answer (`adopt`).

mod admission;
mod adopt;
mod clocks;
mod console;
mod cpu;
mod death;
mod drift;
mod error;
mod fleet;
mod host;
mod incoming;
mod lifecycle;
mod memory;
mod migrate;
mod migration;
mod network;
mod peers;
mod plan;
mod postcopy;
mod process;
mod reset;
mod resolve;
mod spec;
mod store;
mod supervise;
mod vm;
mod whereabouts;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use migrated_api::{MigrationState, RecordError, RecordRole, Vm as ApiVm};
use migrated_control::{ConsoleFile, VmSpec, VmState};
use migrated_cpuid::HostCpu;
use parking_lot::Mutex;

pub use console::ConsoleReader;
pub use cpu::{guest_of, parse_dump};
pub use error::DaemonError;
pub use fleet::pool_of;
#[cfg(test)]
pub use host::probe_kvm_at;
pub use host::{KvmFacts, probe_kvm, read_host_cpu};
pub use migration::Migration;
pub use network::HostNetwork;
pub use peers::peer_failed;
pub use postcopy::pages_follow;
pub use process::{ProcessId, VmCommand};
pub use vm::Vm;
pub use whereabouts::Whereabouts;

use crate::config::HostConfig;
use crate::metrics::Metrics;
use cpu::OwnCpu;
use migration::Change;
use store::Store;

/// Ended migrations that are kept.
const KEPT_MIGRATIONS: usize = 1000;

/// What a daemon stands on besides its configuration; a test puts other things there.
#[derive(Clone, Debug)]
pub struct Ground {
    /// What becomes a VM process.
    pub vm_command: VmCommand,
    /// What KVM can do, or why it can't be used.
    pub kvm: fn() -> Result<KvmFacts, DaemonError>,
    /// What the CPU of the host of that name can give a guest.
    pub cpu: fn(&str) -> Result<HostCpu, DaemonError>,
    /// Where bridges and TAPs are looked for.
    pub network: HostNetwork,
}

/// One host's daemon.
#[derive(Debug)]
pub struct Daemon {
    /// What it was told.
    pub config: HostConfig,
    /// What it counts.
    pub metrics: Metrics,
    ground: Ground,
    cpu: OwnCpu,
    store: Store,
    vms: Mutex<BTreeMap<String, Arc<Vm>>>,
    migrations: Mutex<BTreeMap<String, Arc<Migration>>>,
}

impl Daemon {
    /// Opens the state directory and takes over what a daemon before left.
    pub async fn start(config: HostConfig, ground: Ground) -> Result<Arc<Self>> {
        config.validate()?;
        let daemon = Arc::new(Self {
            store: Store::open(&config.state_dir)?,
            metrics: Metrics::new()?,
            cpu: OwnCpu::new(&config, &ground)?,
            config,
            ground,
            vms: Mutex::default(),
            migrations: Mutex::default(),
        });
        daemon.adopt_all().await?;
        tokio::task::spawn_blocking({
            let daemon = Arc::clone(&daemon);
            move || daemon.host_cpu().map(drop)
        });
        Ok(daemon)
    }

    /// What KVM can do now.
    pub fn kvm(&self) -> Result<KvmFacts, DaemonError> {
        (self.ground.kvm)()
    }

    /// All VMs that the API shows, by name.
    pub fn vms(&self) -> Vec<Arc<Vm>> {
        let mut vms: Vec<_> = self.vms.lock().values().filter(|vm| vm.is_listed()).cloned().collect();
        vms.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        vms
    }

    /// The VM of that id or name.
    pub fn vm(&self, key: &str) -> Result<Arc<Vm>, DaemonError> {
        let vms = self.vms.lock();
        let found = vms.get(key).or_else(|| vms.values().find(|vm| vm.spec.name == key));
        found.filter(|vm| vm.is_listed()).cloned().ok_or_else(|| DaemonError::VmNotFound(key.to_owned()))
    }

    /// The VM as the API shows it, with what its process says at the moment.
    pub async fn show(&self, vm: &Vm) -> ApiVm {
        let mut shown = self.outline(vm);
        let status = match vm.client() {
            Ok(client) => {
                let described = client.describe().await.ok();
                shown.cpu = described.map(|description| cpu::show(&description.cpu, vm));
                client.status().await.map_err(|e| e.to_string())
            }
            Err(e) => Err(e.to_string()),
        };
        match status {
            Ok(status) => {
                shown.console = status.console;
                shown.workload = status.workload;
                shown.balloon = status.balloon;
                shown.vcpu_blocked_us = status.vcpu_blocked_us;
            }
            Err(reason) => {
                shown.console =
                    ConsoleFile::open(&vm.dir.console()).map(|ring| ring.range()).unwrap_or_default();
                shown.error.get_or_insert(reason);
            }
        }
        shown
    }

    /// The VM as the API shows it among others, without asking its process.
    pub fn outline(&self, vm: &Vm) -> ApiVm {
        let (state, error) = vm.state();
        ApiVm {
            id: vm.id.clone(),
            name: vm.spec.name.clone(),
            spec: vm.spec.clone(),
            state,
            error: error.or_else(|| self.following_note(vm)),
            pid: vm.pid(),
            created_unix_ms: vm.created_unix_ms(),
            console: Default::default(),
            workload: None,
            balloon: None,
            agent_socket: vm.agent_socket(),
            cpu: None,
            vcpu_blocked_us: 0,
            migration: vm.migration(),
        }
    }

    /// The metrics as Prometheus reads them. VM processes are asked; one that doesn't answer counts nothing.
    pub async fn render_metrics(&self) -> String {
        let vms: Vec<_> = self.vms.lock().values().cloned().collect();
        let asked = vms.iter().map(|vm| async {
            let client = vm.client().ok()?;
            client.status().await.ok()
        });
        let statuses = futures_util::future::join_all(asked).await.into_iter().flatten().collect::<Vec<_>>();
        let states: Vec<_> = vms.iter().map(|vm| vm.state().0).collect();
        let migrations = self.migrations();
        let throttle = migrations.iter().map(|migration| migration.throttle_percent()).fold(0.0, f64::max);
        let active: Vec<_> = migrations
            .iter()
            .map(|migration| (migration.role(), migration.state()))
            .filter(|(_, state)| !state.is_final())
            .collect();
        self.metrics.render(&states, &statuses, &active, throttle, self.cpu.features_lost())
    }

    /// Enters a VM, unless its name, id or an address is taken or there is no room for it. A VM that went away takes
    /// nothing, also while its former process frees its memory.
    fn register(&self, id: String, spec: VmSpec, state: VmState) -> Result<Arc<Vm>, DaemonError> {
        let mut vms = self.vms.lock();
        if vms.get(&id).is_some_and(|vm| vm.is_here()) {
            return Err(DaemonError::IdTaken(id));
        }
        if vms.values().any(|vm| vm.is_here() && vm.spec.name == spec.name) {
            return Err(DaemonError::NameTaken(spec.name));
        }
        memory::check_room(&self.config.guests, &spec, vms.values().map(Arc::as_ref))?;
        let clashes = network::macs_in_use(&spec, vms.values().map(Arc::as_ref));
        if !clashes.is_empty() {
            return Err(DaemonError::Network(clashes));
        }
        let dir = self.store.fresh_vm_dir(&id);
        let vm = Arc::new(Vm::new(id.clone(), spec, dir, state));
        vms.insert(id, Arc::clone(&vm));
        Ok(vm)
    }

    /// Strikes a VM out, with everything on disk; not another of the same id that has come since.
    fn forget(&self, vm: &Vm) {
        let mut vms = self.vms.lock();
        if vm.begin_forgetting() {
            self.store.remove_vm(&vm.dir);
        }
        if vms.get(&vm.id).is_some_and(|entered| std::ptr::eq(Arc::as_ptr(entered), vm)) {
            vms.remove(&vm.id);
        }
    }

    /// All migrations, newest first.
    pub fn migrations(&self) -> Vec<Arc<Migration>> {
        let mut migrations: Vec<_> = self.migrations.lock().values().cloned().collect();
        migrations.sort_by_key(|migration| std::cmp::Reverse(migration.record().started_unix_ms));
        migrations
    }

    /// The migration of that id.
    pub fn migration(&self, id: &str) -> Result<Arc<Migration>, DaemonError> {
        let found = self.migrations.lock().get(id).cloned();
        found.ok_or_else(|| DaemonError::MigrationNotFound(id.to_owned()))
    }

    /// Enters a migration and keeps it on disk. When that fails, it must not begin.
    fn enter(&self, migration: Migration) -> Result<Arc<Migration>, DaemonError> {
        let migration = Arc::new(migration);
        self.store
            .write_migration(&migration)
            .map_err(DaemonError::local("can't keep the migration's record"))?;
        self.migrations.lock().insert(migration.id.to_string(), Arc::clone(&migration));
        self.drop_oldest_migrations();
        Ok(migration)
    }

    fn drop_oldest_migrations(&self) {
        let mut ended = self.migrations();
        // How a guest that is here came here is needed when its process dies.
        ended.retain(|migration| {
            migration.state().is_final() && !self.vms.lock().contains_key(&migration.vm())
        });
        for migration in ended.into_iter().skip(KEPT_MIGRATIONS) {
            let id = migration.id.to_string();
            self.migrations.lock().remove(&id);
            self.store.remove_migration(&id);
        }
    }

    /// A migration's record went on. Whatever ends one comes through here, once.
    fn update(&self, migration: &Migration, record: migrated_api::MigrationRecord) {
        // A guest that runs at the destination has arrived, whatever both ends still have to tell each other.
        let arrived = record.role == RecordRole::Destination && record.state == Some(MigrationState::Running);
        if (arrived || record.state.is_some_and(MigrationState::is_final))
            && let Some(vm) = self.vms.lock().get(&record.vm)
        {
            // Before anybody sees the end: whoever waits for it may begin the next migration at once.
            vm.end_migration(&migration.id.to_string());
        }
        let change = migration.update(record);
        if matches!(change, Change::State | Change::Ended) {
            let record = migration.record();
            let error = record.error.as_ref().map(|error| error.message.as_str());
            let state = migration.state();
            tracing::info!(migration = %migration.id, vm = record.vm, %state, error, "migration state");
            if let Err(e) = self.store.write_migration(migration) {
                tracing::error!(migration = %migration.id, "can't keep the migration's record: {e}");
            }
        }
        if change == Change::Ended {
            self.metrics.migration_ended(&migration.record());
        }
    }

    /// Ends a migration from the daemon's side.
    fn end(&self, migration: &Migration, state: MigrationState, code: &str, message: impl Into<String>) {
        let error =
            RecordError { code: code.to_owned(), message: message.into(), phase: None, details: None };
        self.update(migration, migration.ended(state, Some(error)));
    }
}

/// 128 random bits as 32 hex digits.
fn new_id() -> Result<migrated_wire::MigrationId, DaemonError> {
    let mut bytes = [0; 16];
    fill_random(&mut bytes)?;
    Ok(migrated_wire::MigrationId(bytes))
}

fn fill_random(bytes: &mut [u8]) -> Result<(), DaemonError> {
    getrandom::fill(bytes).map_err(|e| {
        DaemonError::local("the system gives no random numbers")(std::io::Error::other(e.to_string()))
    })
}
