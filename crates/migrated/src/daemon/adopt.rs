//! Taking over what a daemon before this one left: VMs whose processes live on, VMs that died
//! meanwhile, and migrations in flight.

use std::sync::Arc;

use anyhow::{Context, Result};
use migrated_api::{MigrationState, RecordRole};
use migrated_control::{ControlClient, Request, VmDir, VmStart, VmState};

use super::process::{Exit, ProcessId};
use super::vm::Vm;
use super::{Daemon, Migration};

impl Daemon {
    pub(super) async fn adopt_all(self: &Arc<Self>) -> Result<()> {
        for migration in self.store.migrations().context("can't read the migrations kept")? {
            self.migrations.lock().insert(migration.id.to_string(), Arc::new(migration));
        }
        for (id, dir) in self.store.vm_dirs().context("can't read the VMs kept")? {
            self.adopt(id, dir).await;
        }
        for migration in self.migrations() {
            if !migration.state().is_final() && !self.vms.lock().contains_key(&migration.vm()) {
                self.end_orphan(&migration);
            }
        }
        Ok(())
    }

    async fn adopt(self: &Arc<Self>, id: String, dir: VmDir) {
        let Some(process) = self.store.read_process(&dir) else {
            return self.clear_away(&dir).await;
        };
        let start = match dir.read_start() {
            Ok(start) => start,
            Err(e) => {
                tracing::error!(vm = id, "this VM can't be taken over: {e}; look into its directory");
                return;
            }
        };
        let state = match start {
            VmStart::Boot(_) => VmState::Running,
            VmStart::Incoming(_) => VmState::Incoming,
        };
        let vm = Arc::new(Vm::new(id, start.spec().clone(), dir, state));
        self.recall_migration(&vm, &start);
        {
            let mut vms = self.vms.lock();
            // Where there are two of one id, the VM went away and came back: one of them is here.
            if vms.get(&vm.id).is_none_or(|other| !other.is_here()) {
                vms.insert(vm.id.clone(), Arc::clone(&vm));
            }
        }
        if process.is_alive() {
            self.adopt_living(vm, process).await;
        } else {
            self.on_exit(&vm, "while no daemon ran, so how is not known".into());
        }
    }

    /// The daemon ended before anybody was told of this VM. A process that lives is idle: it is not waited for.
    async fn clear_away(&self, dir: &VmDir) {
        tracing::warn!(dir = %dir.path().display(), "removing a VM that was never made");
        let connected = ControlClient::connect(&dir.control_socket(), ControlClient::PATIENCE).await;
        if let Ok((client, _)) = connected {
            // Whether or not it answers, nothing refers to it any more.
            let _ = client.perform(Request::Shutdown).await;
        }
        self.store.remove_vm(dir);
    }

    /// Which migration the VM is in, or that it has come for good.
    fn recall_migration(&self, vm: &Vm, start: &VmStart) {
        if let VmStart::Incoming(plan) = start
            && let Ok(arrival) = self.migration(&plan.migration.to_string())
        {
            match arrival.state() {
                // Only the death of a VM that has not come yet is taken for a failed arrival.
                MigrationState::Completed => vm.set_state(VmState::Running, None),
                state if !state.is_final() => return vm.set_migration(&plan.migration.to_string()),
                _ => {}
            }
        }
        let leaving =
            |m: &&Arc<Migration>| m.role() == RecordRole::Source && !m.state().is_final() && m.vm() == vm.id;
        if let Some(departure) = self.migrations().iter().find(leaving) {
            vm.set_migration(&departure.id.to_string());
        }
    }

    async fn adopt_living(self: &Arc<Self>, vm: Arc<Vm>, process: ProcessId) {
        tracing::info!(vm = vm.id, name = vm.spec.name, pid = process.pid, "taking over a VM");
        vm.set_process(process.clone());
        // What the API shows must be right from its first answer on, where the process answers.
        let connected = ControlClient::connect(&vm.dir.control_socket(), ControlClient::PATIENCE).await;
        let events = match connected {
            Ok((client, events)) => {
                vm.set_client(Some(client.clone()));
                match self.catch_up(&vm, &client).await {
                    Ok(()) => Some(events),
                    Err(e) => {
                        tracing::warn!(vm = vm.id, "the VM process does not say how it is: {e}");
                        None
                    }
                }
            }
            Err(e) => {
                tracing::warn!(vm = vm.id, "can't connect to the VM process: {e}");
                None
            }
        };
        tokio::spawn(Arc::clone(self).supervise(vm, events, Exit::Adopted(process)));
    }

    /// A migration whose VM is not here any more.
    fn end_orphan(&self, migration: &Migration) {
        let (code, message) = match migration.role() {
            RecordRole::Source => {
                ("vm_gone", "the VM is not on this host any more; look for it at the destination")
            }
            RecordRole::Destination if migration.pages_follow() => {
                ("guest_lost", "the VM is not on this host any more, and not all of its memory had come")
            }
            RecordRole::Destination => ("daemon_restarted", "the daemon ended before the guest came"),
        };
        self.end(migration, MigrationState::Failed, code, message);
    }
}
