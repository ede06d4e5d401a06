//! Taking over what a daemon before this one left: VMs whose processes live on, VMs that died
//! meanwhile, and migrations in flight.

use std::sync::Arc;

use anyhow::{Context, Result};
use migrated_api::{MigrationState, RecordRole};
use migrated_control::{ControlClient, VmStart, VmState};

use super::process::{Exit, ProcessId};
use super::vm::Vm;
use super::{Daemon, Migration};

impl Daemon {
    pub(super) async fn adopt_all(self: &Arc<Self>) -> Result<()> {
        for migration in self.store.migrations().context("can't read the migrations kept")? {
            self.migrations.lock().insert(migration.id.to_string(), Arc::new(migration));
        }
        for id in self.store.vm_ids().context("can't read the VMs kept")? {
            self.adopt(id).await;
        }
        for migration in self.migrations() {
            if !migration.state().is_final() && !self.vms.lock().contains_key(&migration.vm()) {
                self.end_orphan(&migration);
            }
        }
        Ok(())
    }

    async fn adopt(self: &Arc<Self>, id: String) {
        let dir = self.store.vm_dir(&id);
        let start = match dir.read_start() {
            Ok(start) => start,
            Err(e) => {
                tracing::error!(vm = id, "this VM can't be taken over: {e}; look into its directory");
                return;
            }
        };
        let Some(process) = self.store.read_process(&dir) else {
            // The daemon ended before anybody was told of this VM. A process that lives is idle: it is not waited for.
            tracing::warn!(vm = id, "removing a VM that was never made");
            if let Ok((client, _)) =
                ControlClient::connect(&dir.control_socket(), ControlClient::PATIENCE).await
            {
                let _ = client.perform(migrated_control::Request::Shutdown).await;
            }
            self.store.remove_vm(&dir);
            return;
        };
        let state = match start {
            VmStart::Boot(_) => VmState::Running,
            VmStart::Incoming(_) => VmState::Incoming,
        };
        let vm = Arc::new(Vm::new(id.clone(), start.spec().clone(), dir, state));
        let in_flight = |m: &&Arc<Migration>| !m.state().is_final() && m.vm() == id;
        if let Some(migration) = self.migrations().iter().find(in_flight) {
            vm.set_migration(&migration.id.to_string());
        } else if let VmStart::Incoming(plan) = &start {
            // It came here and stayed: only its process's death would be taken for a failed arrival.
            let migration = plan.migration.to_string();
            if matches!(self.migration(&migration), Ok(m) if m.state() == MigrationState::Completed) {
                vm.set_state(VmState::Running, None);
            }
        }
        self.vms.lock().insert(id, Arc::clone(&vm));
        if process.is_alive() {
            self.adopt_living(vm, process).await;
        } else {
            self.on_exit(&vm, "it ended while no daemon ran".into());
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
            RecordRole::Destination => ("daemon_restarted", "the daemon ended before the guest came"),
        };
        self.end(migration, MigrationState::Failed, code, message);
    }
}
